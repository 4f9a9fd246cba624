"""Read the provisioned datasources and dashboards; refuse what Grafana would drop or stumble over."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, NamedTuple

import yaml

from . import ConfigurationError
from .settings import read_text

DATASOURCE_KEYS = (
    "name type access orgId uid url user database basicAuth basicAuthUser withCredentials isDefault jsonData"
    " secureJsonData version editable"
)
JSON_DATA_KEYS = (
    "httpMethod timeInterval queryTimeout manageAlerts allowAsRecordingRulesTarget exemplarTraceIdDestinations"
    " prometheusType prometheusVersion cacheLevel incrementalQuerying incrementalQueryOverlapWindow"
    " disableRecordingRules disableMetricsLookup customQueryParameters defaultEditor seriesLimit seriesEndpoint"
    " alertmanagerUid timeout keepCookies tlsSkipVerify tlsAuth tlsAuthWithCACert serverName oauthPassThru"
)
PROVIDER_KEYS = "name orgId folder folderUid type disableDeletion editable updateIntervalSeconds allowUiUpdates options"
DASHBOARD_KEYS = (
    "id uid title description tags style timezone editable graphTooltip time timepicker refresh fiscalYearStartMonth"
    " liveNow templating annotations panels links schemaVersion version weekStart preload"
)
ANNOTATION_KEYS = (
    "name datasource enable hide iconColor expr step titleFormat textFormat tagKeys useValueForTime target filter"
    " builtIn type mappings"
)
PANEL_TYPES = (
    "row stat gauge bargauge timeseries text table piechart barchart state-timeline status-history histogram heatmap"
    " alertlist dashlist annolist logs news nodeGraph geomap candlestick canvas trend xychart traces flamegraph"
    " datagrid"
)
UID = re.compile(r"[A-Za-z0-9_-]{1,40}")
Json = Dict[str, Any]


class Provisioned(NamedTuple):
    datasources: list[Json]
    dashboards: dict[str, Json]
    folders: dict[str, str]


def only(content: Any, allowed: str, where: str, required: str = "") -> Json:
    if not isinstance(content, dict):
        raise ConfigurationError(f"{where} must be a mapping.")
    mapping: Json = content
    unknown = sorted(set(mapping) - set(allowed.split()))
    missing = sorted(name for name in required.split() if mapping.get(name) in (None, ""))
    if unknown:
        raise ConfigurationError(f"{where}: Grafana does not know {', '.join(map(repr, unknown))} there.")
    if missing:
        raise ConfigurationError(f"{where}: {', '.join(map(repr, missing))} missing.")
    return mapping


def yaml_files(directory: Path) -> Iterator[tuple[Path, Json]]:
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in (".yaml", ".yml"))
    except OSError as error:
        raise ConfigurationError(f"The provisioning directory {directory} cannot be read: {error}.") from error
    for path in paths:
        try:
            content = yaml.safe_load(read_text(path, "The provisioning file"))
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
        if content is not None:  # a sample holds comments only
            yield path, content


def versioned(content: Any, path: Path, allowed: str) -> Json:
    mapping = only(content, "apiVersion " + allowed, str(path))
    if mapping.get("apiVersion") != 1:
        raise ConfigurationError(f"{path}: apiVersion must be 1, not {mapping.get('apiVersion')!r}.")
    return mapping


def read_datasources(directory: Path) -> list[Json]:
    found: list[Json] = []
    for path, loaded in yaml_files(directory):
        content = versioned(loaded, path, "datasources deleteDatasources prune")
        for entry in content.get("deleteDatasources") or []:
            only(entry, "name orgId", f"{path}: deleteDatasources", "name")
        for entry in content.get("datasources") or []:
            source = only(entry, DATASOURCE_KEYS, f"{path}: datasources", "name type url uid")
            where = f"{path}: datasource {source['name']!r}"
            data = only(source.get("jsonData") or {}, JSON_DATA_KEYS, f"{where}: jsonData")
            if source["type"] != "prometheus":
                raise ConfigurationError(
                    f"{where}: the stand-in knows the type 'prometheus' only, not {source['type']!r}."
                )
            if source.get("access", "proxy") not in ("proxy", "direct"):
                raise ConfigurationError(f"{where}: access must be 'proxy' or 'direct'.")
            if not UID.fullmatch(str(source["uid"])):
                raise ConfigurationError(f"{where}: uid {source['uid']!r} has characters that Grafana refuses.")
            if not re.fullmatch(r"https?://[^/\s]+\S*", str(source["url"])):
                raise ConfigurationError(f"{where}: url {source['url']!r} is not an http(s) address.")
            if not re.fullmatch(r"\d+(ms|[smhd])", str(data.get("timeInterval", "15s"))):
                raise ConfigurationError(f"{where}: jsonData.timeInterval must be a duration such as 1s.")
            if data.get("httpMethod", "POST") not in ("GET", "POST"):
                raise ConfigurationError(f"{where}: jsonData.httpMethod must be GET or POST.")
            for key in ("isDefault", "editable", "basicAuth", "withCredentials"):
                if not isinstance(source.get(key, False), bool):
                    raise ConfigurationError(f"{where}: {key} must be true or false.")
            found.append(source)
    unique((source["name"] for source in found), "datasource name")
    unique((source["uid"] for source in found), "datasource uid")
    if sum(source.get("isDefault", False) for source in found) > 1:
        raise ConfigurationError(f"{directory}: more than one datasource is the default one.")
    return found


def unique(names: Iterable[Any], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ConfigurationError(f"The {what} {name!r} is given twice.")
        seen.add(name)


def check_dashboard(content: Any, path: Path) -> Json:
    """The dashboard, when Grafana would show all of it: known panel types, ids unique, no two panels on one place."""
    board = only(content, DASHBOARD_KEYS, str(path), "uid title schemaVersion panels")
    if not UID.fullmatch(str(board["uid"])):
        raise ConfigurationError(f"{path}: uid {board['uid']!r} has characters that Grafana refuses.")
    for annotation in (board.get("annotations") or {}).get("list") or []:
        only(annotation, ANNOTATION_KEYS, f"{path}: annotation", "name datasource expr iconColor")
    panels: list[Json] = []
    for panel in board["panels"]:
        panels += [panel, *(panel.get("panels") or [])]
    unique((panel.get("id") for panel in panels), f"panel id in {path.name}:")
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        name = f"{path}: panel {panel.get('title') or panel.get('id')!r}"
        if panel.get("type") not in PANEL_TYPES.split():
            raise ConfigurationError(f"{name}: Grafana has no panel type {panel.get('type')!r} of its own.")
        place = only(panel.get("gridPos"), "x y w h static", f"{name}: gridPos")
        if not all(isinstance(place.get(key), int) for key in "xywh"):
            raise ConfigurationError(f"{name}: gridPos must have whole numbers x, y, w, h.")
        x, y, w, h = (int(place[key]) for key in "xywh")
        if min(x, y) < 0 or min(w, h) < 1 or x + w > 24:
            raise ConfigurationError(f"{name}: gridPos {place} is outside the 24 columns.")
        for cell in ((column, line) for column in range(x, x + w) for line in range(y, y + h)):
            if cell in taken:
                raise ConfigurationError(f"{name} lies over {taken[cell]} at column {cell[0]}, line {cell[1]}.")
            taken[cell] = name
    return board


def read_dashboards(directory: Path) -> tuple[dict[str, Json], dict[str, str]]:
    boards: dict[str, Json] = {}
    folders: dict[str, str] = {}
    names: list[str] = []
    for path, loaded in yaml_files(directory):
        content = versioned(loaded, path, "providers")
        for entry in content.get("providers") or []:
            provider = only(entry, PROVIDER_KEYS, f"{path}: providers", "name type options")
            names.append(provider["name"])
            if provider["type"] != "file":
                raise ConfigurationError(f"{path}: a provider's type must be 'file', not {provider['type']!r}.")
            options = only(provider["options"], "path foldersFromFilesStructure", f"{path}: options", "path")
            root = Path(options["path"])
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
                folders[board["uid"]] = provider.get("folder") or "General"
    unique(names, "dashboard provider")
    return boards, folders


def read_provisioning(root: Path) -> Provisioned:
    for directory in sorted(root.iterdir()) if root.is_dir() else []:
        if directory.name not in ("datasources", "dashboards") and directory.is_dir():
            for path, _ in yaml_files(directory):
                raise ConfigurationError(f"{path}: the stand-in does not know how to provision {directory.name}.")
    boards, folders = read_dashboards(root / "dashboards")
    return Provisioned(read_datasources(root / "datasources"), boards, folders)
