"""Read grafana.ini, and the provisioned datasources and dashboards; refuse what Grafana would ignore or misread."""

from __future__ import annotations

import configparser
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple

import yaml

from . import ConfigurationError

# The sections and keys that the role may use. The mark after a name is the kind of its value:
# ? true or false, # a whole number, ~ a duration; none: text.
KNOWN = {
    "paths": "data logs plugins provisioning",
    "server": "http_addr http_port# domain enforce_domain? root_url serve_from_sub_path?",
    "analytics": "reporting_enabled? check_for_updates? check_for_plugin_updates? feedback_links_enabled?",
    "security": "admin_user admin_password secret_key disable_gravatar? cookie_secure? cookie_samesite",
    "snapshots": "external_enabled?",
    "dashboards": "versions_to_keep# min_refresh_interval~ default_home_dashboard_path",
    "users": "allow_sign_up? allow_org_create? default_theme",
    "auth.anonymous": "enabled?",
    "news": "news_feed_enabled?",
    "live": "max_connections# allowed_origins",
    "plugins": "preinstall_disabled? public_key_retrieval_disabled?",
    "smtp": "enabled? host user password from_address from_name skip_verify? startTLS_policy",
}
KINDS = {
    "?": (r"true|false|", "true or false"),
    "#": (r"-?\d+|", "a whole number"),
    "~": (r"(\d+(ms|[smhdwMy]))+|\d+|", "a duration such as 1s or 7d"),
    "": (r"(?s).*", "text"),
}
DEFAULTS = {
    "paths.data": "/var/lib/grafana",
    "paths.provisioning": "/etc/grafana/provisioning",
    "server.http_addr": "",
    "server.http_port": "3000",
    "security.admin_user": "admin",
    "security.admin_password": "admin",
}
DATASOURCE_KEYS = "name type access orgId uid url isDefault jsonData editable"
JSON_DATA_KEYS = "httpMethod timeInterval queryTimeout manageAlerts prometheusType prometheusVersion implementation"
PROVIDER_KEYS = "name orgId folder type disableDeletion updateIntervalSeconds allowUiUpdates options"
FORMS = {
    "type": (r"prometheus|alertmanager", "not a type that the stand-in knows"),
    "uid": (r"[A-Za-z0-9_-]{1,40}", "characters that Grafana refuses"),
    "url": (r"https?://[^/\s]+\S*", "not an http(s) address"),
}
Json = Dict[str, Any]


def read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what} {path} cannot be read by uid {os.getuid()}: {error}.") from error


def unquoted(value: str, where: str) -> str:
    """Return a value without its quotes, or the content of the file that it names ($__file{…})."""
    for quote in ('"""', "`", '"'):
        if len(value) >= 2 * len(quote) and value.startswith(quote) and value.endswith(quote):
            return value[len(quote) : -len(quote)]
    if "#" in value or ";" in value:
        raise ConfigurationError(f'{where}: Grafana cuts a value at # or ;, so wrap it in triple quotes ("""…""").')
    file = re.fullmatch(r"\$__file\{(.+)\}", value)
    return read_text(Path(file.group(1)), f"{where}: the file").strip() if file else value


def read_settings(path: Path, overrides: list[str]) -> dict[str, str]:
    """Return `section.key` → value, from the defaults, the file and `cfg:default.section.key=value` arguments."""
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#", ";"), default_section="\0")
    try:
        parser.read_string(read_text(path, "The configuration"), source=str(path))
    except configparser.Error as error:
        raise ConfigurationError(f"{path} is not a valid ini file: {str(error).splitlines()[0]}.") from error
    found = dict(DEFAULTS)
    for section in parser.sections():
        if section not in KNOWN:
            raise ConfigurationError(f"{path}: Grafana has no section [{section}] that this stand-in knows.")
        kinds = {re.sub(r"\W", "", name): re.sub(r"\w", "", name) for name in KNOWN[section].split()}
        for key, raw in parser[section].items():
            where = f"{path}: [{section}] {key}"
            if key not in kinds:
                raise ConfigurationError(f"{where}: Grafana has no such key that this stand-in knows.")
            value = unquoted(raw, where)
            pattern, kind = KINDS[kinds[key]]
            if not re.fullmatch(pattern, value):
                raise ConfigurationError(f"{where} = {value!r} is not {kind}.")
            found[f"{section}.{key}"] = value
    for override in overrides:
        found.update([re.sub(r"^cfg:(default\.)?", "", override).partition("=")[::2]])
    return found


class Provisioned(NamedTuple):  # by uid
    datasources: dict[str, Json]
    dashboards: dict[str, Json]


def only(content: Any, allowed: str, where: str, required: str = "") -> Json:
    if not isinstance(content, dict):
        raise ConfigurationError(f"{where} must be a mapping.")
    unknown = sorted(set(content) - set(allowed.split()))
    missing = sorted(name for name in required.split() if content.get(name) in (None, ""))
    if unknown:
        raise ConfigurationError(f"{where}: Grafana does not know {', '.join(map(repr, unknown))} there.")
    if missing:
        raise ConfigurationError(f"{where}: {', '.join(map(repr, missing))} missing.")
    return content


def entries(directory: Path, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the entries of the list `kind` in each YAML file of a directory, with where they are."""
    for path in sorted(path for path in directory.iterdir() if path.suffix in (".yaml", ".yml")):
        try:
            content = yaml.safe_load(read_text(path, "The provisioning file")) or {"apiVersion": 1}  # a sample is empty
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
        if only(content, f"apiVersion {kind} prune", str(path)).get("apiVersion") != 1:
            raise ConfigurationError(f"{path}: apiVersion must be 1, not {content.get('apiVersion')!r}.")
        for entry in content.get(kind) or []:
            yield f"{path}: {kind}", entry


def read_datasources(directory: Path) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for where, entry in entries(directory, "datasources"):
        source = only(entry, DATASOURCE_KEYS, where, "name type url uid")
        only(source.get("jsonData") or {}, JSON_DATA_KEYS, f"{where}: jsonData")
        for key, (pattern, problem) in FORMS.items():
            if not re.fullmatch(pattern, str(source[key])):
                raise ConfigurationError(f"{where}: {key} {source[key]!r} has or is {problem}.")
        found[source["uid"]] = source
    return found


def read_dashboard(path: Path) -> Json:
    """Read a dashboard; tests/dashboards/test_files.py checks its panels."""
    try:
        board = json.loads(read_text(path, "The dashboard"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(board, dict) or not board.get("title") or not board.get("uid"):
        raise ConfigurationError(f"{path}: a dashboard needs a title and a uid.")
    return board


def read_dashboards(directory: Path) -> dict[str, Json]:
    boards: dict[str, Json] = {}
    for where, entry in entries(directory, "providers"):
        provider = only(entry, PROVIDER_KEYS, where, "name type options")
        root = Path(only(provider["options"], "path", f"{where}: options", "path")["path"])
        if not root.is_dir():
            raise ConfigurationError(f"{where}: the dashboards' directory {root} is not there.")
        for file in sorted(root.rglob("*.json")):
            board = read_dashboard(file)
            if boards.setdefault(board["uid"], board) is not board:
                raise ConfigurationError(f"{file}: the uid {board['uid']!r} is taken by another dashboard.")
    return boards


def read_provisioning(root: Path) -> Provisioned:
    return Provisioned(read_datasources(root / "datasources"), read_dashboards(root / "dashboards"))
