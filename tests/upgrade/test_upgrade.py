"""From the release before to this one under load: Molecule's scenario `upgrade` runs this as its verify.

The release before is deployed already. What is upgraded stays so: on the same machines these tests run once.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.dashboards.questions import unanswered
from tests.integration.conftest import Tell
from tests.integration.machines import (
    MODEL_SERVER_PORT,
    SCENARIO,
    Machine,
    ModelServer,
    Prometheus,
    WebhookReceiver,
    wait_until,
)
from tests.integration.playbooks import REPOSITORY, Ansible
from tests.integration.traffic import IMAGES, Traffic

DASHBOARDS = Path("roles/grafana/files/dashboards")
RELEASE_BEFORE = REPOSITORY / ".cache/molecule/upgrade/release"
# One image again and again is drift: an alert that no deployment mends.
DRIFTED = {"alertname": "FeatureDrift", "feature": "brightness"}
UP = "max_over_time(up[10s]) == 1"  # on a busy machine a single scrape may be late
FIRING = 'ALERTS{alertname="FeatureDrift",feature="brightness",alertstate="firing"}'


@pytest.fixture(scope="module")
def password() -> str:
    """The password that the release before has made for Grafana."""
    return (REPOSITORY / "credentials" / SCENARIO / "grafana-admin-server").read_text().strip()


@dataclass(frozen=True)
class Seen:
    """What there was at a moment."""

    moment: float
    release: str  # of the model server that answers
    targets: frozenset[tuple[str, str]]  # job and instance of what is up
    unanswered: frozenset[str]  # what the dashboards of the release before ask, and get no answer


def look(server: Machine, prometheus: Prometheus) -> Seen:
    page = server.get(MODEL_SERVER_PORT, "/metrics").text
    (release,) = re.findall(r'^model_info\{.*\brelease="([^"]*)"', page, flags=re.MULTILINE)
    boards = [json.loads(file.read_text()) for file in sorted((RELEASE_BEFORE / DASHBOARDS).glob("*.json"))]
    moment = time.time()
    return Seen(
        moment=moment,
        release=release,
        targets=frozenset((up["metric"]["job"], up["metric"]["instance"]) for up in prometheus.query(UP, at=moment)),
        unanswered=frozenset(question for board in boards for question in unanswered(board, prometheus.query)),
    )


@dataclass(frozen=True)
class Upgrade:
    before: Seen
    after: Seen
    traffic: Traffic


@pytest.fixture(scope="module")
def upgrade(
    server: Machine, model_server: ModelServer, prometheus: Prometheus, receiver: WebhookReceiver, ansible: Ansible
) -> Upgrade:
    with Traffic(model_server, images=[min(IMAGES, key=len)]) as traffic:
        wait_until(lambda: receiver.told(0, "firing", **DRIFTED), timeout=120, what="the alert of the release before")
        before = look(server, prometheus)
        ansible.run("ansible-playbook", "site.yml")
        after = look(server, prometheus)
    return Upgrade(before, after, traffic)


def test_another_release_answers(upgrade: Upgrade) -> None:
    assert upgrade.after.release != upgrade.before.release


def test_no_request_fails(upgrade: Upgrade, tell: Tell) -> None:
    seconds = upgrade.after.moment - upgrade.before.moment
    requests, failed = upgrade.traffic.requests, upgrade.traffic.failed
    slowest = max(request.ended - request.began for request in requests)
    tell("upgrade", f"{seconds:.0f} s: {len(failed)} of {len(requests)} requests failed, slowest {slowest:.1f} s")

    # The front door of the release before closes idle connections when it is reloaded, also the kept one that a client
    # sends on at that moment.
    cut = [request for request in failed if request.error.startswith(("RemoteProtocolError", "ReadError"))]
    assert len(cut) <= 1
    assert [request for request in failed if request not in cut] == []
    assert len(requests) > 10 * seconds, "the load was not there"


def test_targets_keep_their_names(upgrade: Upgrade) -> None:
    assert upgrade.before.targets <= upgrade.after.targets


def test_history_goes_on(upgrade: Upgrade, prometheus: Prometheus) -> None:
    seconds = int(upgrade.after.moment - upgrade.before.moment)
    (series,) = prometheus.query(f'up{{job="model_server"}}[{seconds}s]', at=upgrade.after.moment)
    moments = [upgrade.before.moment, *(moment for moment, _ in series["values"]), upgrade.after.moment]

    assert max(later - earlier for earlier, later in pairwise(moments)) < 30  # a restart of Prometheus


def test_dashboards_of_the_release_before_are_answered(upgrade: Upgrade) -> None:
    assert upgrade.after.unanswered <= upgrade.before.unanswered


def test_grafana_has_the_dashboards_and_the_past(upgrade: Upgrade, server: Machine, password: str) -> None:
    with server.door("/grafana", auth=("admin", password)) as grafana:
        for file in sorted((REPOSITORY / DASHBOARDS).glob("*.json")):
            wanted = json.loads(file.read_text())
            answer = grafana.get(f"/api/dashboards/uid/{wanted['uid']}")
            assert answer.status_code == 200, answer.text
            assert answer.json()["dashboard"]["panels"] == wanted["panels"]
        answer = grafana.get(
            "/api/datasources/proxy/uid/prometheus/api/v1/query",
            params={"query": UP, "time": upgrade.before.moment},
        )

    assert answer.status_code == 200, answer.text
    up = {(each["metric"]["job"], each["metric"]["instance"]) for each in answer.json()["data"]["result"]}
    assert up == upgrade.before.targets


def test_alert_goes_on(upgrade: Upgrade, prometheus: Prometheus, receiver: WebhookReceiver) -> None:
    wait_until(lambda: prometheus.query(FIRING), timeout=30, what="the alert that fired before")

    assert receiver.told(upgrade.before.moment, "resolved", **DRIFTED) == []


def test_new_alert_arrives(upgrade: Upgrade, server: Machine, receiver: WebhookReceiver) -> None:
    with server.stopped("haproxy"):
        wait_until(
            lambda: receiver.told(upgrade.after.moment, "firing", alertname="TargetDown", job="haproxy"),
            timeout=60,
            what="the alert that the front door is down",
        )
