"""The rules and alerts, on made-up series: by promtool, without a running Prometheus.

The *.yml beside this file are promtool's unit tests. Here they are run, and it is checked that they and the
runbooks are complete, and that the rules know nothing newer than Prometheus 2.15.2.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from itertools import zip_longest
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "roles" / "prometheus" / "files" / "rules").glob("*.yml"))
TESTS = sorted(Path(__file__).parent.glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks.md"
DURATION = r"[0-9]+(?:ms|[smhdwy])"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def groups() -> Iterator[dict[str, Any]]:
    for path in RULES:
        yield from load(path)["groups"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
each_alert = pytest.mark.parametrize("alert", ALERTS)
WATCHDOG = "Watchdog"  # it always fires


# They ask for ALERTS, which an older promtool does not write.
NEEDS = {"drift": (2, 24, 1), "situations": (2, 24, 1)}


def release() -> tuple[int, ...]:
    said = subprocess.run(["promtool", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", said.stdout + said.stderr)
    assert found, said
    return tuple(map(int, found.groups()))


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What promtool says


@needs_promtool
@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_rules_are_valid(path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", path)


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules_pass_promtools_tests(path: Path) -> None:
    needed = NEEDS.get(path.stem, (2, 15, 2))
    if release() < needed:
        pytest.skip(f"needs promtool {'.'.join(map(str, needed))}")
    promtool("test", "rules", path)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool_2_15_reads_the_tests(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert [test for test in load(path)["tests"] if "name" in test] == [], "names need 2.25: write a comment"
    assert re.findall(r"(?<![\w.+-])-?[0-9.]+(?:e[0-9]+)?x[0-9]+", text) == [], "'0x30' is '0+0x30' there"
    assert re.findall(rf"eval_time: {DURATION}[0-9]\S*", text) == [], "durations have one unit there"


# Completeness


def expectations(alert: str) -> list[list[bool]]:
    """For each test that asks for the alert, whether it fires, at one moment after the other."""
    asked = [
        [bool(moment["exp_alerts"]) for moment in test.get("alert_rule_test", []) if moment["alertname"] == alert]
        for path in TESTS
        for test in load(path)["tests"]
    ]
    return [fires for fires in asked if fires]


@each_alert
def test_alert_is_seen_to_fire_to_resolve_and_to_be_silent(alert: str) -> None:
    asked = expectations(alert)

    if alert == WATCHDOG:
        assert asked == [[True]]
        return
    assert any(True in fires for fires in asked), "no test in which it fires"
    assert any(True in fires and not fires[-1] for fires in asked), "no test in which it resolves"
    assert any(True not in fires for fires in asked), "no test in which it does not fire"


def test_tests_ask_for_alerts_that_exist() -> None:
    moments = [moment for path in TESTS for test in load(path)["tests"] for moment in test.get("alert_rule_test", [])]

    assert {moment["alertname"] for moment in moments} == set(ALERTS)


def test_names_are_unique() -> None:
    names = [rule.get("alert") or rule["record"] for rule in rules()]

    assert len(names) == len(set(names))
    assert len({group["name"] for group in groups()}) == len(list(groups()))


@each_alert
def test_alert_has_the_annotations_that_its_reader_needs(alert: str) -> None:
    rule = ALERTS[alert]

    assert list(rule) == ["alert", "expr", "for", "labels", "annotations"]
    assert re.fullmatch(DURATION, rule["for"])
    assert rule["labels"]["severity"] in ({"none"} if alert == WATCHDOG else {"critical", "warning"})
    assert set(rule["labels"]) == {"severity"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert "$value" in rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert.lower()}"


def test_each_alert_has_its_section_in_the_runbooks_and_the_reverse() -> None:
    sections = re.findall(r"^## (.+)$", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert sorted(sections) == sorted([*ALERTS, "Recorded series"])


def test_each_recorded_series_is_in_the_runbooks() -> None:
    runbooks = RUNBOOKS.read_text(encoding="utf-8")

    assert [rule["record"] for rule in rules() if "record" in rule and f"`{rule['record']}`" not in runbooks] == []


# Prometheus 2.15.2, which is older than the promtool here

NEWER = {
    "a function that 2.15 has not": r"\b(absent_over_time|group|last_over_time|present_over_time|mad_over_time"
    r"|clamp|sgn|pi|deg|rad|a?(sin|cos|tan)h?|atan2|limitk|limit_ratio|info|histogram_(?!quantile)\w+"
    r"|double_exponential_smoothing|sort_by_label(_desc)?|ts_of_\w+|first_over_time)\s*\(",
    "an aggregation that 2.15 has not": r"\bgroup\s+(by|without)\b",
    "a binary operator that 2.15 has not": r"\batan2\b",
    "the @ modifier": r"@",
    "a negative offset": r"\boffset\s*-",
    "a duration of two units": rf"(?<![\w.]){DURATION}(?:[0-9]+[a-z]+)+",
    "a duration with a decimal point, or none": r"\[[^\]:]*\.[0-9]|\[\s*[0-9]+\s*[\]:]",
    "a comma before a closing parenthesis": r",\s*\)",
    "a comma before a closing brace": r",\s*\}",
    "a number in another notation": r"\b[0-9]+_[0-9]|\b0[xob]",
}
# Strings are no syntax.
STRING = r'"(?:[^"\\]|\\.)*"'


def newer(promql: str) -> list[str]:
    return [what for what, pattern in NEWER.items() if re.search(pattern, re.sub(STRING, '""', promql))]


@pytest.mark.parametrize(
    "promql",
    [
        "absent_over_time(up[5m])",
        "group(up)",
        "group by (job) (up)",
        "last_over_time(up[5m])",
        "clamp(up, 0, 1)",
        "sgn(up)",
        "present_over_time(up[1h])",
        "pi()",
        "sin(up)",
        "histogram_count(up)",
        "up @ 10",
        "up offset -5m",
        "rate(up[1h30m])",
        "rate(up[300])",
        "sum by (job,) (up)",
        'up{job="a",}',
    ],
)
def test_newer_syntax_is_found(promql: str) -> None:
    assert newer(promql)


def test_older_syntax_is_not_taken_for_newer() -> None:
    promql = """
        clamp_min(a:group:rate5m{bin="x,)@ 1h30m"}, 1e3)
        / on (b) group_left () avg_over_time((x > 0)[1h:1m] offset 5m)
    """

    assert newer(promql) == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_prometheus_2_15_knows_the_expression(rule: dict[str, Any]) -> None:
    assert newer(rule["expr"]) == []


def test_prometheus_2_15_knows_the_fields() -> None:
    for group in groups():
        assert set(group) <= {"name", "interval", "rules"}, group["name"]
        assert re.fullmatch(DURATION, group.get("interval", "1s"))
    for rule in rules():
        assert set(rule) <= {"record", "alert", "expr", "for", "labels", "annotations"}


def test_prometheus_2_15_knows_the_template_functions() -> None:
    known = {"first", "humanize", "humanize1024", "humanizeDuration", "humanizePercentage", "printf", "value"}
    texts = [text for rule in ALERTS.values() for text in rule["annotations"].values()]

    assert {name for text in texts for name in re.findall(r"\| (\w+)", text)} <= known


# psi, against the formula


def psi(observed: list[int], reference: list[float]) -> float:
    total = sum(observed)
    shares = [(max(count / total, 0.0001), max(share, 0.0001)) for count, share in zip(observed, reference)]
    return sum((a - e) * math.log(a / e) for a, e in shares)


def series(name: str, feature: str, values: list[str], instance: str = "a:8000") -> Iterator[dict[str, str]]:
    for number, value in enumerate(values):
        labels = f'instance="{instance}",feature="{feature}",bin="{number:02}"'
        yield {"series": f"{name}{{{labels}}}", "values": value}


def growing(counts: list[int], instance: str = "a:8000", feature: str = "contrast") -> Iterator[dict[str, str]]:
    return series("feature_observations_total", feature, [f"0+{count}x300" for count in counts], instance)


def expected(shares: list[float], feature: str = "contrast") -> Iterator[dict[str, str]]:
    return series("feature_reference_ratio", feature, [f"{share}+0x300" for share in shares])


def evaluated(given: list[dict[str, str]], asked: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Assert what expressions give after 70 minutes of the series, four samples a minute."""
    test = {
        "interval": "15s",
        "input_series": given,
        "promql_expr_test": [
            {"expr": promql, "eval_time": "70m", "exp_samples": samples} for promql, samples in asked.items()
        ],
    }
    unit = {"rule_files": [str(path) for path in RULES if path.stem == "model"], "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({**unit, "evaluation_interval": "1m"}), encoding="utf-8")
    promtool("test", "rules", tmp_path / "test.yml")


DECILES = [0.1, 0.11, 0.09, 0.1, 0.12, 0.08, 0.1, 0.1, 0.1, 0.1]


@needs_promtool
@pytest.mark.parametrize(
    ("servers", "reference"),
    [
        pytest.param([[10, 11, 9, 10, 12, 8, 10, 10, 10, 10]], DECILES, id="as the reference"),
        pytest.param([[1, 2, 3, 5, 8, 13, 21, 34, 55, 89]], DECILES, id="drifted"),
        pytest.param([[0, 0, 0, 0, 0, 0, 0, 0, 0, 30]], DECILES, id="empty bins"),
        pytest.param([[30, 10]], [0.5, 0, 0.5], id="empty in the reference, missing in the observations"),
        pytest.param([[30, 0], [0, 10]], [0.6, 0.4], id="two servers"),
    ],
)
def test_psi(servers: list[list[int]], reference: list[float], tmp_path: Path) -> None:
    given = [*expected(reference)]
    for number, counts in enumerate(servers):
        given += growing(counts, instance=f"{number}:8000")
    observed = [sum(counts) for counts in zip_longest(*servers, [0] * len(reference), fillvalue=0)]
    value = psi(observed, reference)
    near = {f"abs(feature:feature_observations:psi{window} - {value:.12f}) < bool 1e-9" for window in ("5m", "1h")}

    evaluated(given, {promql: [{"labels": '{feature="contrast"}', "value": 1}] for promql in near}, tmp_path)


@needs_promtool
def test_psi_survives_a_restart_and_a_server_that_has_just_come(tmp_path: Path) -> None:
    restarted = [f"0+{count}x270 0+{count}x29" for count in (30, 10)]
    given = [
        *expected([0.5, 0.5]),
        *series("feature_observations_total", "contrast", restarted),
        *series("feature_observations_total", "contrast", ["_x278 0+9x2", "_x278 0+3x2"], "new:8000"),
    ]
    near = f"abs(feature:feature_observations:psi5m - {psi([3, 1], [0.5, 0.5]):.12f}) < bool 1e-2"

    evaluated(given, {near: [{"labels": '{feature="contrast"}', "value": 1}]}, tmp_path)


@needs_promtool
@pytest.mark.parametrize(
    ("bins", "there"),
    [
        pytest.param([9, 0], False, id="180 observations in 5 minutes"),
        pytest.param([11, 0], True, id="220"),
        pytest.param([11, *[0] * 19], False, id="220 for 20 bins"),
        pytest.param([21, *[0] * 19], True, id="420 for 20 bins"),
    ],
)
def test_psi_of_few_observations_is_absent(bins: list[int], there: bool, tmp_path: Path) -> None:
    given = [*expected([1 / len(bins)] * len(bins)), *growing(bins)]
    count = [{"labels": "{}", "value": 1}] if there else []

    evaluated(given, {"count(feature:feature_observations:psi5m)": count}, tmp_path)


@needs_promtool
def test_psi_needs_a_reference_and_observations(tmp_path: Path) -> None:
    given = [*growing([20, 20], feature="contrast"), *expected([0.5, 0.5], feature="brightness")]

    evaluated(given, {"feature:feature_observations:psi5m": [], "feature:feature_observations:psi1h": []}, tmp_path)


@needs_promtool
def test_shares_of_a_feature_add_up_to_one(tmp_path: Path) -> None:
    shares = {
        f'feature_bin:feature_observations:ratio5m{{feature="contrast",bin="{number:02}"}}': [
            {
                "labels": f'feature_bin:feature_observations:ratio5m{{feature="contrast",bin="{number:02}"}}',
                "value": value,
            }
        ]
        for number, value in enumerate((0.75, 0.25))
    }

    evaluated([*growing([15, 5])], shares, tmp_path)


def test_the_sums_of_the_error_budget_are_over_steps_of_a_minute() -> None:
    """They add up one increase[1m] for each minute: another interval would count requests twice, or not at all."""
    intervals = {group.get("interval") for group in groups() if "sum_over_time(instance:" in str(group)}

    assert intervals == {"1m"}
