"""Whether a fleet's answers are right: labels that come to another server than the one that predicted."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Fleet
from tests.integration.conftest import Tell
from tests.integration.machines import MODEL_SERVER_PORT, wait_until
from tests.integration.traffic import IMAGES

COUNT = 100


def test_accuracy_is_that_of_the_labels(fleet: Fleet, tell: Tell) -> None:
    """Predicted by one server, labelled at the other, 30 % of the labels are wrong."""
    predicting, told = (server.machine for server in fleet.servers)
    prometheus = fleet.prometheis[0]
    with predicting.http(MODEL_SERVER_PORT) as predictions, told.http(MODEL_SERVER_PORT) as feedback:
        classes = predictions.get("/model").json()["classes"]
        for number in range(COUNT):
            answer = predictions.post(
                "/predict", content=IMAGES[number % len(IMAGES)], headers={"Content-Type": "image/jpeg"}
            )
            likely_class = answer.json()["likely_class"]
            other = next(name for name in classes if name != likely_class)
            label = other if number % 10 < 3 else likely_class
            body = {"id": answer.headers["X-Prediction-Id"], "label": label}
            assert feedback.post("/feedback", json=body).status_code == 200
        assert feedback.post("/feedback", json=body).status_code == 409

    right = 'sum(feedback_by_confidence_total{correct="true"}) / sum(feedback_by_confidence_total)'
    wait_until(lambda: prometheus.total("feedback_total") == COUNT, 10, "feedback in Prometheus")
    accuracy = prometheus.total(right)

    tell("labels at another server", f"{COUNT} labels, 30 wrong: accuracy {accuracy:.1%}")
    assert accuracy == pytest.approx(0.7, abs=0.01)
    assert prometheus.total("count(model_accuracy_ratio > 0.95)") == len(fleet.servers)
