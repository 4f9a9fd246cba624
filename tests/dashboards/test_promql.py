"""What the queries compute, on made-up series: by promtool, without a running Prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.__main__ import files
from tests.dashboards.questions import questions

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")

HOST = 'instance="server:8000",method="POST",path="/predict"'


def promtool(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(queries: dict[str, str]) -> str:
    """A rule file that records each query under its name."""
    group = {"name": "panels", "rules": [{"record": name, "expr": promql} for name, promql in queries.items()]}
    return yaml.safe_dump({"groups": [group]})


def test_every_query_parses(board: dict[str, Any], tmp_path: Path) -> None:
    asked = [question.promql for question in questions(board)]
    (tmp_path / "panels.yml").write_text(rules({f"panel:{number}": promql for number, promql in enumerate(asked)}))
    assert f"SUCCESS: {len(asked)} rules found" in promtool("check", "rules", "panels.yml", cwd=tmp_path)


def evaluated(panel: str, legend: str, series: dict[str, str], expected: Mapping[str, float], tmp_path: Path) -> None:
    """Assert the value of a query after 2 minutes of the given series, one sample a second.

    An annotation's query has no legend.
    """
    boards = (json.loads(content) for content in files().values())
    asked = {question.panel: question.promql for board in boards for question in questions(board)}
    promql = asked[f"{panel} ({legend})" if legend else panel]
    test = {
        "interval": "1s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": promql,
                "eval_time": "2m",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in expected.items()],
            }
        ],
    }
    (tmp_path / "panels.yml").write_text(rules({"panel:query": promql}))
    unit = {"rule_files": ["panels.yml"], "evaluation_interval": "1s", "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(unit))
    promtool("test", "rules", "test.yml", cwd=tmp_path)


def requests(status: int, values: str) -> dict[str, str]:
    return {f'fastapi_requests_total{{{HOST},status_code="{status}"}}': values}


@pytest.mark.parametrize(
    ("series", "share"),
    [
        pytest.param(requests(200, "0+8x120"), 1, id="no 5xx yet"),
        pytest.param({**requests(200, "0+8x120"), **requests(500, "0+0x120")}, 1, id="no 5xx any more"),
        pytest.param({**requests(200, "0+6x120"), **requests(500, "0+2x120")}, 0.75, id="one in four"),
        pytest.param({**requests(200, "0+6x120"), **requests(400, "0+2x120")}, 1, id="4xx"),
        pytest.param({**requests(499, "0+8x120"), **requests(503, "0+8x120")}, 0, id="no client had another answer"),
        pytest.param({**requests(200, "7+0x120"), **requests(500, "7+0x120")}, 1, id="idle"),
    ],
)
def test_success_rate(series: dict[str, str], share: float, tmp_path: Path) -> None:
    evaluated("HTTP success rate", "1 m average", series, {"{}": share}, tmp_path)


def test_success_rate_ignores_the_scrapes(tmp_path: Path) -> None:
    scrapes = {'fastapi_requests_total{instance="server:8000",path="/metrics",status_code="200"}': "0+100x120"}
    series = {**requests(200, "0+1x120"), **requests(500, "0+1x120"), **scrapes}
    evaluated("HTTP success rate", "1 m average", series, {"{}": 0.5}, tmp_path)


def test_requests_in_progress_are_without_the_scrapes(tmp_path: Path) -> None:
    series = {
        f'fastapi_requests_in_progress{{instance="{host}:8000",method="{method}"}}': f"{pending}x120"
        for host, method, pending in (("a", "GET", 1), ("a", "POST", 4), ("b", "GET", 2))
    }
    evaluated("Requests in progress", "in progress", series, {"{}": 5}, tmp_path)


def buckets(growth: int) -> dict[str, str]:
    name = "fastapi_request_duration_seconds_bucket"
    return {f'{name}{{{HOST},status_code="200",le="{le}"}}': f"9+{growth}x120" for le in ("0.05", "0.1", "+Inf")}


def test_quantile(tmp_path: Path) -> None:
    evaluated("Inference latency", "p50", buckets(4), {"{}": 0.025}, tmp_path)


def test_quantile_of_an_idle_server_is_no_point(tmp_path: Path) -> None:
    evaluated("Inference latency", "p99", buckets(0), {}, tmp_path)


def test_quantile_sums_over_servers(tmp_path: Path) -> None:
    both = {name.replace("server:", f"{host}:"): value for host in ("a", "b") for name, value in buckets(2).items()}
    evaluated("Server latency", "p50", both, {"{}": 0.025}, tmp_path)


def test_cpu_is_divided_by_the_processors(tmp_path: Path) -> None:
    series = {
        f'node_cpu_seconds_total{{instance="server:9100",cpu="{cpu}",mode="{mode}"}}': f"0+{share}x120"
        for cpu, user in enumerate((1, 0, 0, 1))
        for mode, share in (("user", user), ("idle", 1 - user))
    }
    evaluated("CPU by mode", "{{mode}}", series, {'{mode="user"}': 0.5}, tmp_path)


def busy(job: str, host: str, user: float) -> dict[str, str]:
    return {
        f'node_cpu_seconds_total{{job="{job}",instance="{host}:9100",cpu="0",mode="{mode}"}}': f"0+{share}x120"
        for mode, share in (("user", user), ("idle", 1 - user))
    }


def test_cpu_of_load_hosts_is_shown_apart(tmp_path: Path) -> None:
    series = {**busy("node", "server", 0.25), **busy("load_generator", "load", 0.75)}
    evaluated("CPU by mode", "{{mode}}", series, {'{mode="user"}': 0.25}, tmp_path)
    evaluated("CPU of the load hosts", "{{instance}}", series, {'{instance="load:9100"}': 0.75}, tmp_path)


def test_client_is_measured_over_all_that_it_asks_for(tmp_path: Path) -> None:
    series = {
        f'locust_request_duration_seconds_bucket{{instance="load:9100",name="{name}",le="{le}"}}': f"9+{growth}x120"
        for name, fast, all_of_them in (("/", 2, 2), ("/predict", 0, 2))
        for le, growth in (("0.05", fast), ("0.1", all_of_them), ("+Inf", all_of_them))
    }
    evaluated("Latency: client and server", "client p50", series, {"{}": 0.05}, tmp_path)
    ended = {name: values.replace("+2x", "+0x") for name, values in series.items()}
    evaluated("Latency: client and server", "client p50", ended, {}, tmp_path)


def test_swap_of_a_host_without_swap_is_zero(tmp_path: Path) -> None:
    series = {f'node_memory_Swap{what}_bytes{{instance="server:9100"}}': "0x120" for what in ("Total", "Free")}
    evaluated("Swap used and total", "used", series, {"{}": 0}, tmp_path)


def test_traffic_of_the_loopback_does_not_count(tmp_path: Path) -> None:
    name = "node_network_receive_bytes_total"
    series = {
        f'{name}{{instance="server:9100",device="{device}"}}': "0+5x120"
        for device in ("lo", "eth0", "docker0", "veth1")
    }
    evaluated("Network traffic", "{{instance}} received", series, {'{instance="server:9100"}': 5}, tmp_path)


def model(host: str, version: str, loaded: int) -> dict[str, str]:
    target = f'instance="{host}:8000",job="model_server"'
    digest = version * 64
    return {
        f'model_info{{{target},release="r{version}",name="fruits",version="{version}",architecture="cnn",'
        f'sha256="{digest}"}}': "1x120",
        f"model_loaded_timestamp_seconds{{{target}}}": f"{loaded}x120",
    }


def test_models_in_service_are_counted(tmp_path: Path) -> None:
    series = {**model("a", "1", 10), **model("b", "2", 20), **model("c", "2", 30)}
    expected = {
        f'{{name="fruits",version="{version}",digest="{version * 12}"}}': servers
        for version, servers in (("1", 1), ("2", 2))
    }
    evaluated("Model in service", "{{name}} {{version}} ({{digest}})", series, expected, tmp_path)


def test_a_deployment_is_marked_with_its_release_and_model(tmp_path: Path) -> None:
    expected = {
        f'{{instance="{host}:8000",job="model_server",release="r{version}",name="fruits",version="{version}",architecture="cnn",'
        f'sha256="{version * 64}",digest="{version * 12}"}}': moment
        for host, version, moment in (("a", "1", 10_000), ("b", "2", 20_000))
    }
    evaluated("Deployment or restart", "", {**model("a", "1", 10), **model("b", "2", 20)}, expected, tmp_path)


def test_masters_that_answer_by_turns_are_each_marked_at_their_own_moment(tmp_path: Path) -> None:
    turns = {
        name.replace("b:", "a:"): " ".join(
            "stale" if second % 2 != last else values.partition("x")[0] for second in range(121)
        )
        for last, version in enumerate("12")
        for name, values in model("b", version, 0).items()
        if name.startswith("model_info")
    }
    loaded = 'model_loaded_timestamp_seconds{instance="a:8000",job="model_server"}'
    series = {**turns, loaded: " ".join(("10", "20")[second % 2] for second in range(121))}
    labels = (
        'instance="a:8000",job="model_server",release="r1",name="fruits",version="1",architecture="cnn",'
        f'sha256="{"1" * 64}",digest="{"1" * 12}"'
    )
    evaluated("Deployment or restart", "", series, {f"{{{labels}}}": 10_000}, tmp_path)


def side_by_side() -> dict[str, str]:
    """A server with model 1, whose shadow has model 3, and one with model 2; each answers by a class of its own."""
    made = {}
    for host, version, classes in (("a", "1", {"pear": 3, "plum": 1}), ("b", "2", {"pear": 1, "plum": 1})):
        target = f'instance="{host}:8000",job="model_server"'
        made.update(model(host, version, 10))
        for name, growth in classes.items():
            made[f'predictions_total{{{target},class="{name}"}}'] = f"0+{growth}x120"
        for status, growth in (("200", 3), ("500", int(version) - 1)):
            key = f'fastapi_requests_total{{{target},path="/predict",status_code="{status}"}}'
            made.update({key: f"0+{growth}x120"} if growth else {})
        for le in ("0.05", "0.1", "+Inf"):
            key = f'fastapi_request_duration_seconds_bucket{{{target},path="/predict",status_code="200",le="{le}"}}'
            made[key] = f"0+{0 if le == '0.05' and version == '2' else 4}x120"
        for le, growth in (("0.5", 0), ("0.6", 4 if version == "1" else 2), ("0.7", 4), ("+Inf", 4)):
            made[f'prediction_confidence_bucket{{{target},class="pear",le="{le}"}}'] = f"0+{growth}x120"
    shadow = 'instance="a:8000",job="model_server"'
    made[f'shadow_info{{{shadow},name="fruits",version="3",architecture="cnn",sha256="{"3" * 64}"}}'] = "1x120"
    for agrees, growth in (("true", 1), ("false", 3)):
        made[f'shadow_predictions_total{{{shadow},class="plum",agrees="{agrees}"}}'] = f"0+{growth}x120"
    for le, growth in (("0.9", 0), ("0.95", 4), ("+Inf", 4)):
        made[f'shadow_prediction_confidence_bucket{{{shadow},class="plum",le="{le}"}}'] = f"0+{growth}x120"
    return made


ONE, TWO, SHADOW = (f"{version} {version * 12}" for version in "123")
SHADOW += " (shadow)"


@pytest.mark.parametrize(
    ("panel", "legend", "expected"),
    [
        (
            "Classes by model",
            "{{model}} {{class}}",
            {
                f'{{model="{ONE}",class="pear"}}': 0.75,
                f'{{model="{ONE}",class="plum"}}': 0.25,
                f'{{model="{TWO}",class="pear"}}': 0.5,
                f'{{model="{TWO}",class="plum"}}': 0.5,
                f'{{model="{SHADOW}",class="plum"}}': 1,
            },
        ),
        (
            "Confidence by model",
            "{{model}}",
            {f'{{model="{ONE}"}}': 0.55, f'{{model="{TWO}"}}': 0.6, f'{{model="{SHADOW}"}}': 0.925},
        ),
        ("Latency by model", "{{model}}", {f'{{model="{ONE}"}}': 0.0495, f'{{model="{TWO}"}}': 0.0995}),
        ("Server errors by model", "{{model}}", {f'{{model="{ONE}"}}': 0, f'{{model="{TWO}"}}': 0.25}),
    ],
)
def test_models_are_shown_side_by_side(panel: str, legend: str, expected: dict[str, float], tmp_path: Path) -> None:
    evaluated(panel, legend, side_by_side(), expected, tmp_path)


def confidences(counts: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Predictions per second of each class with a confidence of 0.5 to 0.6, and with one of 0.6 to 0.7."""
    return {
        f'prediction_confidence_bucket{{instance="server:8000",class="{name}",le="{le}"}}': f"0+{growth}x120"
        for name, (lower, upper) in counts.items()
        for le, growth in (("0.5", 0), ("0.6", lower), ("0.7", lower + upper), ("+Inf", lower + upper))
    }


def test_median_confidence_is_by_class(tmp_path: Path) -> None:
    series = confidences({"pear": (4, 0), "plum": (2, 2), "idle": (0, 0)})
    expected = {'{class="pear"}': 0.55, '{class="plum"}': 0.6}
    evaluated("Prediction confidence", "{{class}} p50", series, expected, tmp_path)


def test_low_confidence_is_over_all_classes(tmp_path: Path) -> None:
    series = confidences({"pear": (1, 0), "plum": (0, 9)})
    evaluated("Prediction confidence", "p10", series, {"{}": 0.6}, tmp_path)


def test_stages_are_means(tmp_path: Path) -> None:
    series = {
        f'inference_stage_duration_seconds_{what}{{instance="{host}:8000",stage="{stage}"}}': f"0+{growth}x120"
        for host, stage, seconds, requests in (("a", "read", 2, 4), ("b", "read", 1, 8), ("a", "decode", 0, 0))
        for what, growth in (("sum", seconds), ("count", requests))
    }
    evaluated("Stages of a prediction", "{{stage}}", series, {'{stage="read"}': 0.25}, tmp_path)


def test_distribution_has_a_pair_for_each_bin(tmp_path: Path) -> None:
    series = {
        f'feature_bin:{recorded}{{feature="brightness",bin="{number}"}}': f"{share}x120"
        for recorded, shares in (("feature_observations:ratio5m", (0.8, 0.2)), ("feature_reference:ratio", (0.5, 0.5)))
        for number, share in zip(("00", "01"), shares, strict=True)
    }
    expected = {
        f'{{bin="{number}",of="{of}"}}': share
        for number, observed in (("00", 0.8), ("01", 0.2))
        for of, share in (("observed", observed), ("reference", 0.5))
    }
    evaluated("Observed and reference distribution", "{{bin}} {{of}}", series, expected, tmp_path)


def test_no_alert_is_zero(tmp_path: Path) -> None:
    pending = {'ALERTS{alertname="TargetDown",alertstate="pending"}': "1x120"}
    evaluated("Alerts firing", "firing", pending, {"{}": 0}, tmp_path)
    evaluated("Alerts firing by name", "{{alertname}}", pending, {'{alertname="none"}': 0}, tmp_path)


def test_alerts_are_counted_by_name(tmp_path: Path) -> None:
    firing = {
        f'ALERTS{{alertname="{name}",alertstate="firing",instance="{host}"}}': "1x120"
        for name, host in (("TargetDown", "a"), ("TargetDown", "b"), ("NoTraffic", "a"))
    }
    evaluated("Alerts firing", "firing", firing, {"{}": 3}, tmp_path)
    expected = {'{alertname="TargetDown"}': 2, '{alertname="NoTraffic"}': 1}
    evaluated("Alerts firing by name", "{{alertname}}", firing, expected, tmp_path)


def test_rule_groups_are_without_their_file(tmp_path: Path) -> None:
    series = {
        f'prometheus_rule_group_last_duration_seconds{{rule_group="/etc/prometheus/rules/{file}.yml;{group}"}}': "2x120"
        for file, group in (("model", "drift"), ("host", "cpu"))
    }
    evaluated("Rule evaluation by group", "{{group}}", series, {'{group="drift"}': 2, '{group="cpu"}': 2}, tmp_path)


def test_failures_of_a_rule_group_are_those_of_a_minute(tmp_path: Path) -> None:
    series = {'prometheus_rule_evaluation_failures_total{rule_group="/etc/model.yml;drift"}': "0+1x120"}
    evaluated("Failed rule evaluations", "{{group}} failed", series, {'{group="drift"}': 60}, tmp_path)


def test_scrapes_are_measured_by_the_interval(tmp_path: Path) -> None:
    series = {
        'scrape_duration_seconds{job="node",instance="a:9100"}': "0.5x120",
        'scrape_duration_seconds{job="node",instance="b:9100"}': "1x120",
        'prometheus_target_interval_length_seconds{interval="2s",quantile="0.5"}': "2x120",
        'prometheus_target_interval_length_seconds{interval="2s",quantile="0.99"}': "4x120",
    }
    evaluated("Share of the interval taken", "{{job}}", series, {'{job="node"}': 0.5}, tmp_path)


def test_without_an_alertmanager_nothing_is_sent(tmp_path: Path) -> None:
    evaluated("Notifications to Alertmanager", "sent", {}, {"{}": 0}, tmp_path)
    evaluated("Alertmanager", "active alerts", {}, {"{}": 0}, tmp_path)
