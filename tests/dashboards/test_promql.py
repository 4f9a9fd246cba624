"""What the queries compute, on made-up series: by promtool, without a running Prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.__main__ import files
from dashboards.questions import questions

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


def evaluated(panel: str, legend: str, series: dict[str, str], expected: dict[str, float], tmp_path: Path) -> None:
    """Assert the value of a panel's query after 2 minutes of the given series, one sample a second."""
    board = json.loads(files()["model-monitoring.json"])
    promql = {question.panel: question.promql for question in questions(board)}[f"{panel} ({legend})"]
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
