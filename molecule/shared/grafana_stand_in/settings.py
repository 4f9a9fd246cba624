"""Read grafana.ini; refuse any section, key or value that Grafana would not understand."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

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
    "auth.anonymous.enabled": "false",
}


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
    """Return `section.key` → value, from the defaults, the file and `cfg:default.section.key=value` arguments.

    Raises:
        ConfigurationError: an unreadable file, an unknown section or key, a value of the wrong kind.
    """
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
        name, _, value = re.sub(r"^cfg:(default\.)?", "", override).partition("=")
        found[name] = value
    return found
