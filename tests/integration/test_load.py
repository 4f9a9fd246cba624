"""What Prometheus and the dashboards tell about Locust's load equals what Locust says it sent."""

from __future__ import annotations

import csv
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.machines import Machine, Prometheus

REPOSITORY = Path(__file__).parents[2]
RUN_SECONDS = 60
USERS = 100  # of the deployed configuration, as is all that the command below does not say
RAMP_SECONDS = 5
# Locust waits for the last answers: what it leaves in flight the server counts, and Locust does not.
COMMAND = f"cd %s && locust --run-time {RUN_SECONDS}s --spawn-rate {USERS // RAMP_SECONDS} --stop-timeout 10 --csv run"

JOBS = ["prometheus", "node", "model_server", "alertmanager", "haproxy", "load_generator", "probe"]
# Path and status of an answer, what Locust calls the request, and the weight of its task in the original lab.
TASKS = [
    ("/", "200", "/", 1),
    ("/predict", "200", "/predict", 10),
    ("/predict", "400", "/predict (client error)", 1),
    ("/predict", "500", "/predict (server error)", 1),
]


@dataclass(frozen=True)
class Run:
    """A finished run of Locust: its output, its own statistics, and what the counters rose by.

    `client` is what Prometheus got from Locust at most, by what was asked for; `left` what it still gets from there.
    """

    status: int
    output: str
    summary: list[dict[str, str]]
    history: list[dict[str, str]]
    counted: dict[tuple[str, str], float]
    predicted: float
    client: dict[str, float]
    left: list[dict[str, Any]]

    @property
    def sent(self) -> int:
        return int(self.summary[-1]["Request Count"])


@pytest.fixture(scope="module")
def running(load: Machine, prometheus: Prometheus) -> Iterator[Future[Run]]:
    """Start Locust as an unprivileged user, from a directory that is not its own."""
    folder = load.run("mktemp --directory", user="nobody")

    def rows(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(load.run("cat %s/run_%s.csv", folder, name).splitlines()))

    def run() -> Run:
        before, predicted = settled(prometheus)
        began = time.time()
        locust = load.shell("nobody").run(COMMAND, folder)
        after, predicted_after = settled(prometheus)
        client = prometheus.query(f"max_over_time(locust_requests_total[{time.time() - began:.0f}s])")
        return Run(
            status=locust.rc,
            output=(locust.stdout + locust.stderr)[-5000:],
            summary=rows("stats"),
            history=[row for row in rows("stats_history") if row["Name"] == "Aggregated"],
            counted={key: after[key] - before.get(key, 0) for key in after},
            predicted=predicted_after - predicted,
            client={series["metric"]["name"]: float(series["value"][1]) for series in client},
            left=prometheus.query('{__name__=~"locust_.*"}'),
        )

    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(run)
    load.run("rm --recursive %s", folder)


@pytest.fixture(scope="module")
def finished(running: Future[Run]) -> Run:
    return running.result(timeout=RUN_SECONDS + 60)


def settled(prometheus: Prometheus) -> tuple[dict[tuple[str, str], float], float]:
    """Return the requests that Prometheus knows of, by path and status, but scrapes and probes, and the predictions.

    Both of one moment, after the last answers are counted and scraped.
    """
    time.sleep(4)
    moment = time.time() - 1
    query = 'sum by (path, status_code) (fastapi_requests_total{job="model_server", path=~"/|/predict"})'
    counted = {
        (series["metric"]["path"], series["metric"]["status_code"]): float(series["value"][1])
        for series in prometheus.query(query, at=moment)
    }
    return counted, prometheus.total("predictions_total", at=moment)


def test_every_panel_shows_data_during_the_load(running: Future[Run], prometheus: Prometheus) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/dashboards/test_live.py"]
    command += ["--prometheus-url", prometheus.url]
    time.sleep(RUN_SECONDS / 2)  # the panels' rates look back over up to a minute
    # Asked again, as a dashboard does: a scrape that takes over a second leaves a job's panels empty until the next.
    for _ in range(4):
        test = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if test.returncode == 0:
            break

    assert test.returncode == 0, test.stdout
    assert "skipped" not in test.stdout, test.stdout
    assert not running.done(), "the load was over before the panels were asked"


@pytest.mark.parametrize("job", JOBS)
def test_target_is_scraped_every_second(finished: Run, prometheus: Prometheus, job: str) -> None:
    (target,) = prometheus.query(f'up{{job="{job}"}}[30s]')
    times = [float(moment) for moment, up in target["values"] if up == "1"]

    assert 28 <= len(times) <= 32, f"{len(times)} answered scrapes in 30 s: {target['values']}"
    assert max(later - earlier for earlier, later in pairwise(times)) < 3.5, "a gap in the scrapes"


def test_locust_ran_the_deployed_configuration_without_a_failure(finished: Run) -> None:
    assert finished.status == 0, finished.output
    assert int(finished.summary[-1]["Failure Count"]) == 0, finished.output
    assert max(int(row["User Count"]) for row in finished.history) == USERS
    assert finished.sent > 30 * RUN_SECONDS, finished.output


@pytest.mark.parametrize(("path", "status", "name"), [task[:3] for task in TASKS])
def test_prometheus_counts_what_locust_sent(finished: Run, path: str, status: str, name: str) -> None:
    (sent,) = [int(row["Request Count"]) for row in finished.summary if row["Name"] == name]

    assert finished.counted[path, status] == pytest.approx(sent, rel=0.02), finished.counted


def test_prometheus_has_what_the_client_measured_and_nothing_stays(finished: Run) -> None:
    sent = {row["Name"]: int(row["Request Count"]) for row in finished.summary if row["Name"] != "Aggregated"}

    assert finished.client == pytest.approx(sent, rel=0.02)
    assert finished.left == []


def test_nothing_else_was_counted(finished: Run) -> None:
    assert sum(finished.counted.values()) == pytest.approx(finished.sent, rel=0.02), finished.counted
    assert {key for key, rise in finished.counted.items() if rise} == {task[:2] for task in TASKS}


def test_prometheus_has_locusts_rate(finished: Run, prometheus: Prometheus) -> None:
    """Both are the slope of the counts over the time: an end that is off by a second does not move it much.

    Locust's rows have whole seconds, and while the machine is busy they come late: over the whole time by up to one.
    """
    steady = [row for row in finished.history if int(row["User Count"]) == USERS]
    times = [int(row["Timestamp"]) + 0.5 for row in steady]
    locust = statistics.linear_regression(times, [int(row["Total Request Count"]) for row in steady])
    seconds = round(times[-1] - times[0])
    total = 'sum(fastapi_requests_total{job="model_server", path=~"/|/predict"})'

    assert seconds >= 30
    assert prometheus.total(f"deriv({total}[{seconds}s:1s])", at=times[-1]) == pytest.approx(
        locust.slope, rel=0.01 + 1 / seconds
    )


def test_classes_sum_to_the_answered_predictions(finished: Run) -> None:
    assert finished.predicted == finished.counted["/predict", "200"] > 0


@pytest.mark.parametrize(("path", "status", "weight"), [(path, status, weight) for path, status, _, weight in TASKS])
def test_shares_are_those_of_the_task_weights(finished: Run, path: str, status: str, weight: int) -> None:
    """Each request is drawn by itself, so that the count of one kind is binomial.

    4.5 standard deviations are left by one correct run in 150 000.
    """
    total = sum(finished.counted.values())
    share = weight / sum(task[3] for task in TASKS)
    bound = 4.5 * math.sqrt(share * (1 - share) / total)

    assert finished.counted[path, status] / total == pytest.approx(share, abs=bound)
