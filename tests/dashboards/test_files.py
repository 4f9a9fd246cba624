"""The checked-in dashboards: current, complete, and within what Grafana 8.0 and today's Grafana both understand."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from dashboards.__main__ import DASHBOARDS, files
from tests.dashboards.conftest import FILES, ROOT

PANEL_TYPES = {"row", "stat", "gauge", "bargauge", "timeseries", "text", "piechart"}

# The fields of Grafana 8.0.5, by the kind of object that holds them.
BOARD = (
    "annotations description editable graphTooltip links panels refresh schemaVersion tags templating time timezone"
    " title uid"
)
ANNOTATION = "datasource enable expr hide iconColor name step textFormat titleFormat useValueForTime"
LINK = "asDropdown icon includeVars keepTime tags targetBlank title tooltip type url"
PANEL = "datasource description fieldConfig gridPos id options targets title type"
TARGET = "expr instant legendFormat range refId"
DEFAULTS = "color custom decimals max min noValue thresholds unit"
CUSTOM = "axisSoftMax drawStyle fillOpacity lineWidth showPoints stacking thresholdsStyle"
VARIABLE = "allValue current datasource hide includeAll label multi name query refresh regex skipUrlSync sort type"
OPTIONS = {
    "text": "mode content",
    "stat": "colorMode graphMode justifyMode orientation reduceOptions text textMode",
    "gauge": "orientation reduceOptions showThresholdLabels showThresholdMarkers",
    "bargauge": "displayMode orientation reduceOptions showUnfilled",
    "piechart": "displayLabels legend orientation pieType reduceOptions tooltip",
    "timeseries": "legend tooltip",
}
LEGEND = "calcs displayMode placement values"

# Newer than Prometheus 2.15, by name or by form.
TOO_NEW = {
    "function": r"\b((absent|last|present)_over_time|clamp|deg|group|pi|rad|sgn|a?(sin|cos|tan)h?)\s*[(b]",
    "modifier": r"@|offset\s+-|\b(bool\s+)?atan2\b",
    "duration": r"\[(\d+[a-z]+){2,}",
    "trailing comma": r",\s*\)",
}

# The original lab's table by row, and the row of the model's health.
PANELS = {
    "": ["Date and time", "Targets up", "Latency, of its objective", "Error budget left", "Accuracy", "Alerts firing"],
    "Operation Metrics": [
        "HTTP success rate",
        "Requests by status code",
        "Requests in progress",
        "Server latency",
        "Total requests by endpoint",
    ],
    "Resource Metrics": [
        "Processors",
        "System load",
        "CPU by mode",
        "Memory",
        "Memory usage",
        "Swap used and total",
        "Root file system",
        "Root file system used",
        "Disk space used",
        "Disk I/O",
        "Network traffic",
    ],
    "Load Test: Client and Server": [
        "Latency: client and server",
        "Requests: client and server",
        "Failures: client and server",
        "Simulated users",
        "CPU of the load hosts",
    ],
    "Model Performance Metrics": ["Inference latency", "Prediction distribution"],
    "Model Quality: Labels and Estimates": [
        "Accuracy: labels, estimate and bundle",
        "Feedback",
        "Most frequent mistakes",
        "Calibration",
    ],
    "Model Health: Inputs, Confidence and Drift": [
        "Model in service",
        "Prediction confidence",
        "Stages of a prediction",
        "Drift over 5 minutes",
        "Drift over 1 hour",
        "Observed and reference distribution",
        "Rejected inputs by reason",
    ],
    "Models Side by Side": [
        "Classes by model",
        "Confidence by model",
        "Latency by model",
        "Server errors by model",
        "Agreement of the shadow",
    ],
}

Board = dict[str, Any]
PROMETHEUS_VARIABLES = (ROOT / "roles/prometheus/vars/main.yml").read_text(encoding="utf-8")


def targets(board: Board) -> list[Any]:
    return [target for panel in board["panels"] for target in panel.get("targets", [])]


def only(allowed: str, content: Any) -> None:
    assert set(content) <= set(allowed.split()), f"unknown to Grafana 8.0: {set(content) - set(allowed.split())}"


def test_checked_in_files_are_current() -> None:
    assert {file.name: file.read_text(encoding="utf-8") for file in FILES} == files(), "run python -m dashboards"


def test_uids_are_unique() -> None:
    assert len(files()) == len(DASHBOARDS)  # a file is named by its uid


def test_uid_is_one_that_grafana_takes(board: Board) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])


def test_model_monitoring_has_its_panels() -> None:
    board = json.loads(files()["model-monitoring.json"])
    found: dict[str, list[str]] = {"": []}
    row = ""
    for panel in board["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            found[row] = []
        else:
            found[row].append(panel.get("title", ""))
    missing = {row: set(titles) - set(found.get(row, [])) for row, titles in PANELS.items()}
    assert not any(missing.values()), missing


def test_one_short_text_begins_each_row(board: Board) -> None:
    """What else is to be said stands behind the panels' ⓘ: on a phone, texts would be half of the way."""
    for before, panel, after in zip(board["panels"], board["panels"][1:], board["panels"][2:]):
        if before["type"] == "row":
            assert panel["type"] == "text", before["title"]
            assert len(panel["options"]["content"]) <= 220, before["title"]
            assert after["type"] not in ("row", "text")
    kinds = Counter(panel["type"] for panel in board["panels"])
    assert kinds["text"] == kinds["row"]


def test_first_screen_tells_whether_it_is_up_fast_and_right() -> None:
    """At 1280 x 720 a page shows 16 units of the grid below Grafana's own bars."""
    board = json.loads(files()["model-monitoring.json"])
    visible = [panel.get("title") for panel in board["panels"] if panel["gridPos"]["y"] + panel["gridPos"]["h"] <= 16]
    up, fast, right = ["Targets up", "Alerts firing"], ["Latency, of its objective"], ["Accuracy", "Largest drift"]
    graphs = ["Server latency", "Requests by status code"]
    assert [title for title in [*up, *fast, *right, "Error budget left", *graphs] if title not in visible] == []


def test_only_stacked_lines_are_filled(board: Board) -> None:
    for panel in board["panels"]:
        if panel["type"] == "timeseries":
            custom = panel["fieldConfig"]["defaults"]["custom"]
            assert (custom["fillOpacity"] > 0) == (custom["stacking"]["mode"] == "normal"), panel["title"]


def test_a_flat_zero_has_a_small_axis(board: Board) -> None:
    for panel in board["panels"]:
        if panel["type"] == "timeseries":
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults.get("max") == 1 or defaults["custom"]["axisSoftMax"] > 0, panel["title"]


def test_numbers_have_a_fixed_size(board: Board) -> None:
    numbers = [panel for panel in board["panels"] if panel["type"] == "stat"]
    assert numbers
    assert all({"titleSize", "valueSize"} == set(panel["options"]["text"]) for panel in numbers)


def test_what_needs_a_reference_says_so() -> None:
    board = json.loads(files()["model-monitoring.json"])
    described = {panel["title"]: panel["description"] for panel in board["panels"] if "description" in panel}
    without = [title for title, description in described.items() if "without a `reference.json`" in description]
    assert without == ["Drift over 5 minutes", "Drift over 1 hour", "Observed and reference distribution"]


def test_fields_are_known_to_both_grafanas(board: Board) -> None:
    only(BOARD, board)
    assert board["schemaVersion"] == 30
    assert (board["refresh"], board["time"]) == ("5s", {"from": "now-5m", "to": "now"})
    for panel in board["panels"]:
        assert panel["type"] in PANEL_TYPES
        if panel["type"] == "row":
            only("collapsed gridPos id panels title type", panel)
            continue
        only(PANEL, panel)
        only(OPTIONS[panel["type"]], panel["options"])
        only(LEGEND, panel["options"].get("legend", {}))
        config = panel.get("fieldConfig", {"defaults": {}})
        only(DEFAULTS, config["defaults"])
        only(CUSTOM, config["defaults"].get("custom", {}))
        assert {override["matcher"]["id"] for override in config.get("overrides", [])} <= {"byRegexp", "byName"}
    for target in targets(board):
        only(TARGET, target)
    for variable in board["templating"]["list"]:
        only(VARIABLE, variable)
    for annotation in board["annotations"]["list"]:
        only(ANNOTATION, annotation)
    for link in board["links"]:
        only(LINK, link)


def test_alerts_link_to_panels_that_are_there() -> None:
    """The comment behind each link is the panel's title."""
    lines = re.findall(r"^  (\w+): ([\w-]+)\?viewPanel=(\d+) # (.+)$", PROMETHEUS_VARIABLES, re.MULTILINE)
    panels = {
        (file.stem, panel["id"]): panel.get("title")
        for file in FILES
        for panel in json.loads(file.read_text())["panels"]
    }
    assert len(lines) > 20
    for alert, uid, number, title in lines:
        assert panels.get((uid, int(number))) == title, alert


def test_datasource_is_a_string(board: Board) -> None:
    asking = [panel for panel in board["panels"] if panel.get("targets")]
    asking += board["templating"]["list"] + board["annotations"]["list"]
    assert {part["datasource"] for part in asking} == {"prometheus"}


def test_ids_are_unique(board: Board) -> None:
    assert max(Counter(panel["id"] for panel in board["panels"]).values()) == 1
    for panel in board["panels"]:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)
        assert "" not in letters


def test_panels_lie_side_by_side(board: Board) -> None:
    cells: Counter[tuple[int, int]] = Counter()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            cells.update((x, y) for y in range(place["y"], place["y"] + place["h"]))
    assert max(cells.values()) == 1
    bottom = max(y for _, y in cells) + 1
    assert len(cells) == 24 * bottom, "there are gaps between the panels"


def test_panels_explain_themselves(board: Board) -> None:
    for panel in board["panels"]:
        if panel["type"] not in ("row", "text"):
            assert panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("kind", TOO_NEW)
def test_promql_is_no_newer_than_the_target(board: Board, kind: str) -> None:
    assert [target["expr"] for target in targets(board) if re.search(TOO_NEW[kind], target["expr"])] == []


def test_every_selector_keeps_to_the_chosen_hosts() -> None:
    """But for alerts, recorded series (they have a colon), which are sums over all servers, and for load hosts."""
    board = json.loads(files()["model-monitoring.json"])
    for asking in targets(board) + board["annotations"]["list"]:
        for name, selector in re.findall(r"([\w:]+)\{(.*?)\}", asking["expr"]):
            others = name == "ALERTS" or ":" in name or selector.startswith('job="load_generator"')
            assert others or selector.startswith('instance=~"$instance:.*"'), asking["expr"]


def test_servers_figures_are_without_those_of_load_hosts() -> None:
    board = json.loads(files()["model-monitoring.json"])
    asked = [selector for target in targets(board) for selector in re.findall(r"\bnode_\w+\{(.*?)\}", target["expr"])]
    assert len(asked) > 20
    assert [selector for selector in asked if 'job!="load_generator"' not in selector] == [
        'job="load_generator",mode="idle"'
    ]


def test_panels_that_show_all_servers_or_load_hosts_say_so(board: Board) -> None:
    """But for objectives, which are the same for all."""
    for panel in board["panels"]:
        asked = [re.sub(r"\bobjective:\S+", "", target["expr"]) for target in panel.get("targets", [])]
        if any(re.search(r"\w:\w|\blocust_|job=\"load_generator", expr) for expr in asked):
            assert "does not follow the choice of hosts" in panel["description"], panel["title"]


def test_host_variable() -> None:
    board = json.loads(files()["model-monitoring.json"])
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    instance = variables["instance"]
    pattern = re.compile(instance["regex"].strip("/"))
    names = {found[1] for found in map(pattern.fullmatch, ["server:9100", "server:8000", "10.0.0.7:9100"]) if found}
    assert names == {"server", "10.0.0.7"}
    assert (instance["multi"], instance["includeAll"], instance["allValue"]) == (True, True, ".*")
    assert instance["current"]["value"] == ["$__all"]


def test_a_feature_is_chosen_from_the_references() -> None:
    board = json.loads(files()["model-monitoring.json"])
    (feature,) = (variable for variable in board["templating"]["list"] if variable["name"] == "feature")
    assert feature["query"] == "label_values(feature_reference_ratio, feature)"
    assert (feature["multi"], feature["includeAll"]) == (False, False)


def test_prometheus_shows_each_side_of_the_monitoring() -> None:
    board = json.loads(files()["prometheus.json"])
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Scrapes", "Rules, Alerts and Notifications", "Storage, Queries and Process"]
    assert board["templating"]["list"] == []


def test_deployments_are_marked_in_all_graphs() -> None:
    (annotation,) = json.loads(files()["model-monitoring.json"])["annotations"]["list"]
    assert "{{release}}" in annotation["textFormat"]
    assert annotation["enable"] is True
    assert annotation["useValueForTime"] is True
    assert ">= $__from" in annotation["expr"], "one of before the time shown would be drawn at its edge"
    assert annotation["step"] == "5s", "the default of a minute would miss a model that was soon replaced"


def test_drift_panels_show_the_thresholds() -> None:
    board = json.loads(files()["model-monitoring.json"])
    drifts = [panel for panel in board["panels"] if panel.get("title", "").startswith("Drift over")]
    assert [panel["title"] for panel in drifts] == ["Drift over 5 minutes", "Drift over 1 hour"]
    for panel in drifts:
        defaults = panel["fieldConfig"]["defaults"]
        assert [step["value"] for step in defaults["thresholds"]["steps"]] == [None, 0.1, 0.25]
        assert defaults["custom"]["thresholdsStyle"]["mode"] == "line"


def test_dashboards_are_linked_by_their_tag(board: Board) -> None:
    (link,) = board["links"]
    assert (link["type"], link["tags"]) == ("dashboards", board["tags"])


def test_flaws_of_the_original_lab_are_corrected(board: Board) -> None:
    queries = " ".join(target["expr"] for target in targets(board))
    assert "/etc/hosts" not in queries
    assert not re.search("apple|grapes|lemon", str(board)), "class names come from labels"


def test_latency_panels_show_the_objectives_that_the_rules_have() -> None:
    board = json.loads(files()["model-monitoring.json"])
    latencies = [panel for panel in board["panels"] if panel.get("title", "").endswith("latency")]
    assert [panel["title"] for panel in latencies] == ["Server latency", "Inference latency"]
    for panel in latencies:
        queries = {target["legendFormat"]: target["expr"] for target in panel["targets"]}
        assert list(queries) == ["p50", "p95", "p99", "objective p50", "objective p99"]
        assert queries["objective p99"] == "objective:latency_p99:seconds"
        assert [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]] == [
            "/^objective p50$/",
            "/^objective p99$/",
        ]
