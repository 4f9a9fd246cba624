"""The probe asks for a known image through the front door, and a wrong answer reaches a person."""

from __future__ import annotations

import time

from tests.integration.conftest import Tell
from tests.integration.machines import Prometheus, WebhookReceiver, wait_until
from tests.integration.playbooks import Ansible

DEPLOY = ("ansible-playbook", "playbooks/monitoring.yml", "--tags", "probe")


def test_the_known_image_is_answered_and_is_no_clients_request(prometheus: Prometheus) -> None:
    wait_until(
        lambda: prometheus.query('increase(fastapi_requests_total{path="/probe"}[1m]) > 1'), timeout=60, what="probes"
    )

    wait_until(lambda: prometheus.query("probe_success == 1"), timeout=30, what="the right answer")
    (right,) = prometheus.query("probe_answer_right == 1")
    assert right["metric"]["target"].startswith("https://"), "through the door"
    assert 0 < prometheus.total("probe_duration_seconds") < 5


def test_a_wrong_answer_fails_the_deployment_and_reaches_a_person(
    prometheus: Prometheus, ansible: Ansible, receiver: WebhookReceiver, tell: Tell
) -> None:
    started = time.time()
    try:
        status, output = ansible.attempt(*DEPLOY, "--extra-vars", "probe_class=lemon")
        assert status != 0, output
        assert "did not answer the known image with lemon within 5 s;" in " ".join(output.split())
        wait_until(lambda: receiver.told(started, "firing", alertname="ProbeAnswerWrong"), timeout=60, what="the alert")
        first = receiver.told(started, "firing", alertname="ProbeAnswerWrong")[0]
        tell("wrong answer to the probe", f"notified {first.received - started:.1f} s after the deployment began")
    finally:
        right = time.time()
        ansible.run(*DEPLOY)
    wait_until(
        lambda: receiver.told(right, "resolved", alertname="ProbeAnswerWrong"), timeout=60, what="the end of the alert"
    )
