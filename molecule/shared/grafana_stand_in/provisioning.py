"""Read the provisioned datasources and dashboards; refuse what Grafana would drop or stumble over."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple

import yaml

from . import ConfigurationError
from .settings import read_text

DATASOURCE_KEYS = "name type access orgId uid url basicAuth basicAuthUser isDefault jsonData secureJsonData editable"
JSON_DATA_KEYS = "httpMethod timeInterval queryTimeout manageAlerts prometheusType prometheusVersion"
PROVIDER_KEYS = "name orgId folder folderUid type disableDeletion editable updateIntervalSeconds allowUiUpdates options"
UID = re.compile(r"[A-Za-z0-9_-]{1,40}")
Json = Dict[str, Any]


class Provisioned(NamedTuple):
    datasources: list[Json]
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


def entries(directory: Path, kind: str) -> Iterator[tuple[Path, Any]]:
    """Yield the entries of the lists `kind` in the YAML files of a directory, each with its file."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in (".yaml", ".yml"))
    except OSError as error:
        raise ConfigurationError(f"The provisioning directory {directory} cannot be read: {error}.") from error
    for path in paths:
        try:
            content = yaml.safe_load(read_text(path, "The provisioning file"))
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
        if content is None:  # a sample has only comments
            continue
        if only(content, f"apiVersion {kind}", str(path)).get("apiVersion") != 1:
            raise ConfigurationError(f"{path}: apiVersion must be 1, not {content.get('apiVersion')!r}.")
        for entry in content.get(kind) or []:
            yield path, entry


def read_datasources(directory: Path) -> list[Json]:
    found: list[Json] = []
    for path, entry in entries(directory, "datasources"):
        source = only(entry, DATASOURCE_KEYS, f"{path}: datasources", "name type url uid")
        where = f"{path}: datasource {source['name']!r}"
        data = only(source.get("jsonData") or {}, JSON_DATA_KEYS, f"{where}: jsonData")
        if source["type"] != "prometheus":
            raise ConfigurationError(f"{where}: the stand-in knows only the type 'prometheus', not {source['type']!r}.")
        if not UID.fullmatch(str(source["uid"])):
            raise ConfigurationError(f"{where}: uid {source['uid']!r} has characters that Grafana refuses.")
        if not re.fullmatch(r"https?://[^/\s]+\S*", str(source["url"])):
            raise ConfigurationError(f"{where}: url {source['url']!r} is not an http(s) address.")
        if not re.fullmatch(r"\d+(ms|[smhd])", str(data.get("timeInterval", "15s"))):
            raise ConfigurationError(f"{where}: jsonData.timeInterval must be a duration such as 1s.")
        if source["uid"] in {other["uid"] for other in found}:
            raise ConfigurationError(f"{where}: its uid is given twice.")
        found.append({key: value for key, value in source.items() if key != "secureJsonData"})
    return found


def check_dashboard(content: Any, path: Path) -> Json:
    """Return the dashboard, if Grafana would list it; tests/dashboards/test_files.py checks its panels."""
    if not isinstance(content, dict) or not content.get("title") or not UID.fullmatch(str(content.get("uid"))):
        raise ConfigurationError(f"{path}: a dashboard needs a title, and a uid with characters that Grafana accepts.")
    return content


def read_dashboards(directory: Path) -> dict[str, Json]:
    boards: dict[str, Json] = {}
    for path, entry in entries(directory, "providers"):
        provider = only(entry, PROVIDER_KEYS, f"{path}: providers", "name type options")
        root = Path(only(provider["options"], "path", f"{path}: options", "path")["path"])
        if provider["type"] != "file":
            raise ConfigurationError(f"{path}: a provider's type must be 'file', not {provider['type']!r}.")
        if not os.access(str(root), os.R_OK | os.X_OK) or not root.is_dir():
            raise ConfigurationError(f"{path}: the dashboards' directory {root} is not there or cannot be read.")
        for file in sorted(root.rglob("*.json")):
            try:
                board = check_dashboard(json.loads(read_text(file, "The dashboard")), file)
            except ValueError as error:
                raise ConfigurationError(f"{file} is not valid JSON: {error}.") from error
            if board["uid"] in boards:
                raise ConfigurationError(f"{file}: the uid {board['uid']!r} is taken by another dashboard.")
            boards[board["uid"]] = board
    return boards


def read_provisioning(root: Path) -> Provisioned:
    return Provisioned(read_datasources(root / "datasources"), read_dashboards(root / "dashboards"))
