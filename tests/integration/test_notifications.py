"""Alerts reach a person: from a fault, or from other images than the model was made for, to a webhook on the load host.

Comes after the tests that send the lab's load, which fires no alert.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model_server.model.reference import FEATURES
from tests.integration.conftest import Tell
from tests.integration.machines import (
    Alertmanager,
    Machine,
    ModelServer,
    Prometheus,
    Told,
    WebhookReceiver,
    docker,
    wait_until,
)

IMAGES = sorted((Path(__file__).parents[2] / "load_test" / "images").glob("*.jp*g"))
STARTED = time.time()  # of the run: pytest imports all files before the first test
DARKNESS = 0.3
UNIT = "darkened-load"
DRIFTED = {"alertname": "FeatureDrift", "feature": "brightness"}

# The alerts of a model server that is down say nothing new.
SERVER = {"job": "model_server", "instance": "server:8000"}
SYMPTOMS = [{"alertname": "NoTraffic", **SERVER}, {"alertname": "PrometheusScrapeSlow", **SERVER}]
# Those of other servers, those that are summed over all of them, and those of another job do.
OTHERS = [
    {"alertname": "NoTraffic", **SERVER, "instance": "other:8000"},
    {"alertname": "LatencyP99AboveObjective", "job": "model_server"},
    {"alertname": "ErrorBudgetBurnFast", "job": "model_server"},
    {"alertname": "PredictedClassDominates", "class": "apple"},
    DRIFTED,
    {"alertname": "HostMemoryLow", "job": "node", "instance": "server:9100"},
]


@pytest.fixture(scope="module")
def alertmanager(server: Machine) -> Alertmanager:
    return Alertmanager(server)


def test_no_drift_alert_under_the_labs_load(load: Machine, prometheus: Prometheus, tell: Tell) -> None:
    # An earlier run's darkened images leave the window of the rules five minutes after they ended.
    ended = load.run("journalctl --unit %s --output short-unix --lines 1 --quiet --no-pager", UNIT)
    began = max(STARTED, float((ended or "0").split()[0]) + 310)
    now = time.time()
    window = f"{max(1, int(now - began))}s"
    seen = prometheus.total(f"sum(increase(feature_observations_total{{feature='brightness'}}[{window}]))", at=now)
    if ended and seen < 500:
        pytest.skip(f"only {seen:.0f} images were seen since five minutes after an earlier run")
    assert seen >= 500, "too few images to judge by: run all of tests/integration, whose load comes before this test"

    psi = {
        series["metric"]["feature"]: float(series["value"][1])
        for series in prometheus.query(f"max_over_time(feature:feature_observations:psi5m[{window}])", at=now)
    }
    alerts = f"count_over_time(ALERTS{{alertname=~'FeatureDrift.*', alertstate='firing'}}[{window}])"
    tell(f"highest psi of {seen:.0f} images", ", ".join(f"{name} {psi[name]:.3f}" for name in sorted(psi)))

    assert set(psi) == set(FEATURES), psi
    assert prometheus.query(alerts, at=now) == []
    assert prometheus.query("feature:feature_observations:psi5m >= 0.1", at=now) == []


def test_a_service_elsewhere_hears_that_the_monitoring_can_speak(receiver: WebhookReceiver) -> None:
    started = time.time()
    wait_until(
        lambda: len(receiver.told(started, "firing", alertname="Watchdog")) > 1, timeout=40, what="the second heartbeat"
    )


def test_darkened_images_raise_a_drift_alert(
    load: Machine, receiver: WebhookReceiver, tmp_path: Path, tell: Tell
) -> None:
    def arrived() -> list[Told]:
        return receiver.told(started, "firing", **DRIFTED)

    for image in IMAGES:
        Image.open(image).convert("RGB").point(lambda value: int(value * DARKNESS)).save(tmp_path / image.name)

    with darkened_load(load, tmp_path):
        started = time.time()
        wait_until(arrived, timeout=120, what="the alert that brightness has drifted")
        tell("darkened images", f"notified of the drift {arrived()[0].received - started:.1f} s after the load began")


@contextmanager
def darkened_load(load: Machine, images: Path) -> Iterator[None]:
    """Send `images` with the users of the deployed configuration, as a service, which can be ended early."""
    folder = load.run("mktemp --directory --tmpdir=/var/tmp", user="nobody")
    docker("cp", f"{images}/.", f"{load.container}:{folder}")
    command = f"locust --images {folder} --run-time 150s --spawn-rate 20 --only-summary"
    try:
        load.run(f"systemd-run --unit {UNIT} --collect --uid nobody --working-directory {folder} {command}")
        yield
    finally:
        load.status("systemctl stop %s", UNIT)
        load.run("rm --recursive %s", folder)


def timestamp(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


@contextmanager
def posted(alertmanager: Alertmanager, alerts: list[dict[str, str]]) -> Iterator[None]:
    """Have `alerts` fire, besides those of Prometheus: a further label tells them apart, which no rule compares."""

    def until(end: float) -> list[dict[str, Any]]:
        moments = {"startsAt": timestamp(began), "endsAt": timestamp(end)}
        return [{"labels": {**labels, "posted_by": "test"}, "annotations": {}, **moments} for labels in alerts]

    began = time.time()
    alertmanager.post(until(began + 120))
    try:
        yield
    finally:
        alertmanager.post(until(time.time()))


def test_stopped_server_is_notified_without_its_symptoms(
    model_server: ModelServer, receiver: WebhookReceiver, alertmanager: Alertmanager, tell: Tell
) -> None:
    def silenced() -> set[str]:
        return {
            alert["labels"]["alertname"]
            for alert in alertmanager.alerts()
            if alert["labels"].get("posted_by") == "test" and alert["status"]["inhibitedBy"]
        }

    started = time.time()
    with model_server.machine.stopped("model-server"):
        wait_until(
            lambda: receiver.told(started, "firing", alertname="TargetDown", **SERVER),
            timeout=30,
            what="the alert that the model server is down",
        )
        down = receiver.told(started, "firing", alertname="TargetDown", **SERVER)[0].received
        tell("model server stopped", f"notified {down - started:.1f} s later")
        with posted(alertmanager, [*SYMPTOMS, *OTHERS]):
            for other in OTHERS:
                told = partial(receiver.told, down, "firing", posted_by="test", **other)
                wait_until(told, timeout=10, what=f"{other['alertname']}, which is no symptom")
            assert silenced() == {symptom["alertname"] for symptom in SYMPTOMS}
            time.sleep(3)  # by now a symptom would have been notified
        assert [symptom for symptom in SYMPTOMS if receiver.told(down, "firing", **symptom)] == []

    ready = time.time()
    wait_until(
        lambda: receiver.told(ready - 1, "resolved", alertname="TargetDown", **SERVER),
        timeout=30,
        what="the news that the model server is back",
    )
    resolved = receiver.told(ready - 1, "resolved", alertname="TargetDown", **SERVER)[0].received
    tell("model server started again", f"notified {resolved - ready:.1f} s later")
