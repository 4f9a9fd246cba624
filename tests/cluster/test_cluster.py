"""A fleet behind its front door: what clients notice when a server fails, is drained or changes.

Molecule's scenario `cluster` runs this as its verify.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from tests.cluster.conftest import Fleet
from tests.integration.conftest import Tell
from tests.integration.machines import (
    PROMETHEUS_PORT,
    Machine,
    ModelServer,
    Prometheus,
    Told,
    WebhookReceiver,
    docker,
    wait_until,
)
from tests.integration.playbooks import Ansible
from tests.integration.traffic import Traffic

PROGRAM = "/usr/local/sbin/model-server-deployment"
DEPLOY = ("ansible-playbook", "site.yml", "--tags", "model_server", "--limit", "model_servers")
SHADOW = ("ansible-playbook", "playbooks/shadow.yml", "--extra-vars")
CANARY = ("ansible-playbook", "playbooks/canary.yml", "--extra-vars")
# The same weights without the reference: another bundle, which agrees.
NEXT = '{"model_server_reference_images": "", "share": 20, "requests": 50}'
DECOMMISSION = ("ansible-playbook", "playbooks/decommission.yml", "--limit", "server-2")
ALL_MEMBERS = {"monitor:9093": 2, "monitor-2:9093": 2}
OTHER_UNIT = "model_server_graceful_timeout=29"
OWN_RULE = "/etc/prometheus/rules/rehearsal.yml"
# For five seconds after a reload, Prometheus knows no Alertmanager: what fires then is sent a minute later.
REHEARSAL = "groups: [{name: rehearsal, rules: [{alert: Rehearsal, expr: vector(1), for: 10s}]}]"
PEER_TIMEOUT = 15  # seconds that the second Alertmanager gives the first
TARGETS = "sh -c 'cat /etc/prometheus/targets/*.json'"


def predictions(server: ModelServer) -> float:
    """Return how many predictions a server has made."""
    return sum(value for series, value in server.counters().items() if series.startswith("predictions_total"))


def by_instance(prometheus: Prometheus, promql: str) -> dict[str, float]:
    return {each["metric"]["instance"]: float(each["value"][1]) for each in prometheus.query(promql)}


def members(prometheus: Prometheus) -> dict[str, float]:
    """Return how many members of their cluster the Alertmanagers see."""
    return by_instance(prometheus, "alertmanager_cluster_members")


def longest_gap(prometheus: Prometheus, since: float) -> float:
    """Return the longest time in seconds that Prometheus has no sample of a model server, from a moment until now."""
    now = time.time()
    (series,) = prometheus.query(f'up{{job="model_server", instance="server-1:8000"}}[{now - since:.0f}s]', at=now)
    moments: list[float] = [since, *(moment for moment, _ in series["values"]), now]
    return max(later - earlier for earlier, later in pairwise(moments))


def figures(traffic: Traffic) -> str:
    took = [request.ended - request.began for request in traffic.requests]
    return f"{len(traffic.failed)} of {len(took)} requests failed, slowest {max(took):.1f} s"


def served(fleet: Fleet) -> list[str]:
    """Return what each server has in its history as the last deployment, and since when its main process runs."""
    return [server.machine.run(f"{PROGRAM} list | head -n 1") + f" {server.master()}" for server in fleet.servers]


def bundles(fleet: Fleet) -> list[str]:
    """Return the bundle that each server serves."""
    return [server.machine.run("readlink /var/lib/model-server/current").strip() for server in fleet.servers]


@contextmanager
def without_weights(machine: Machine) -> Iterator[None]:
    """Take away the weights of the bundle that serves, so that nothing else can be started from it."""
    current = "/var/lib/model-server/current"
    (weights,) = machine.run(f"ls {current}/ | grep '^weights'").split()
    machine.run(f"mv {current}/{weights} {current}/.{weights}")
    try:
        yield
    finally:
        machine.run(f"mv {current}/.{weights} {current}/{weights}")


def test_requests_are_shared(fleet: Fleet, tell: Tell) -> None:
    before = [predictions(server) for server in fleet.servers]
    with Traffic(fleet) as traffic:
        time.sleep(5)
    made = [predictions(server) - was for server, was in zip(fleet.servers, before, strict=True)]

    tell("two servers", f"{made[0]:.0f} and {made[1]:.0f} predictions")
    assert traffic.failed == []
    assert sum(made) == len(traffic.requests)
    assert min(made) > 0.3 * sum(made)


def test_all_servers_have_the_same_bytes(fleet: Fleet) -> None:
    sums = [
        server.machine.run("sh -c 'cd -P /var/lib/model-server/current && pwd && sha256sum *'")
        for server in fleet.servers
    ]

    assert "weights" in sums[0]
    assert sums[0] == sums[1]
    assert [server.machine.run("find /var/tmp -name 'model-server-*'") for server in fleet.servers] == ["", ""]


def test_every_server_is_scraped_by_its_name(fleet: Fleet) -> None:
    for prometheus in fleet.prometheis:
        up = by_instance(prometheus, 'up{job="model_server"}')
        assert up == {"server-1:8000": 1, "server-2:8000": 1}


def test_alertmanagers_are_one_cluster(fleet: Fleet) -> None:
    assert [members(prometheus) for prometheus in fleet.prometheis] == [ALL_MEMBERS] * 2


def test_load_hosts_are_scraped_apart_from_servers(fleet: Fleet) -> None:
    for prometheus in fleet.prometheis:
        assert by_instance(prometheus, 'up{job="load_generator"}') == {"load:9100": 1, "load-2:9100": 1}


def test_drained_server_gets_nothing_new_and_nobody_notices(fleet: Fleet, tell: Tell) -> None:
    first, second = fleet.servers
    with Traffic(fleet) as traffic:
        time.sleep(1)
        first.machine.run(f"{PROGRAM} drain")
        time.sleep(2)
        before = predictions(first), predictions(second)
        time.sleep(2)
        after = predictions(first), predictions(second)
        first.machine.run(f"{PROGRAM} resume")
        wait_until(lambda: predictions(first) > after[0], timeout=5, what="requests for the server that is back")

    tell("drained and resumed", figures(traffic))
    assert traffic.failed == []
    assert after[0] == before[0], "after two seconds, the door has noticed"
    assert after[1] > before[1]


def test_killed_server_loses_nothing_that_can_be_repeated(fleet: Fleet, receiver: WebhookReceiver, tell: Tell) -> None:
    machine = fleet.servers[0].machine
    started = time.time()
    with Traffic(fleet) as traffic:
        time.sleep(1)
        docker("kill", machine.container)
        down = {"alertname": "TargetDown", "job": "model_server", "instance": "server-1:8000"}
        wait_until(lambda: receiver.told(started, "firing", **down), timeout=60, what="the alert of the server")
        docker("start", machine.container)
        wait_until(fleet.servers[0].ready, timeout=90, what="the server after its start")
        before = predictions(fleet.servers[0])
        wait_until(
            lambda: predictions(fleet.servers[0]) > before, timeout=15, what="requests for the server that is back"
        )

    tell("server killed", f"{figures(traffic)}, longest time without an answer {traffic.longest_gap():.1f} s")
    assert traffic.failed == []  # all of these images fit into a buffer of the door


def test_hanging_server_delays_only_the_requests_that_it_has(fleet: Fleet, tell: Tell) -> None:
    machine = fleet.servers[0].machine
    with Traffic(fleet) as traffic:
        time.sleep(1)
        stopped = time.time()
        docker("pause", machine.container)
        try:
            time.sleep(12)
        finally:
            docker("unpause", machine.container)
        time.sleep(3)

    # It has deadlines of its own: what it had read a part of when it stopped may be refused when it goes on.
    met = [request for request in traffic.requests if request.error or request.ended - request.began > 3]
    tell("server hangs for 12 s", f"{figures(traffic)}, {len(met)} had to wait for it or failed")
    assert len(met) <= traffic.clients
    # The front door gives it up after two checks: a second until the first, 3 s each, half a second between them.
    assert max((request.began for request in met), default=0) < stopped + 8


def test_reloaded_door_loses_nothing(fleet: Fleet, tell: Tell) -> None:
    with Traffic(fleet) as traffic:
        for _ in range(3):
            time.sleep(1)
            fleet.door.run("systemctl reload haproxy")

    tell("front door reloaded three times", figures(traffic))
    assert traffic.failed == []


@contextmanager
def alert_of_all(monitors: Sequence[Machine]) -> Iterator[None]:
    """Have all Prometheis fire the alert Rehearsal, by a rule of one's own: it depends on no scrape."""
    for monitor in monitors:
        monitor.run(f"echo %s > {OWN_RULE} && systemctl reload prometheus", REHEARSAL)
    try:
        yield
    finally:
        for monitor in monitors:
            monitor.run(f"rm {OWN_RULE} && systemctl reload prometheus")


@contextmanager
def away(machine: Machine) -> Iterator[None]:
    """Take a machine away without a warning, for a minute at least, and bring it back."""
    docker("kill", machine.container)
    began = time.monotonic()
    try:
        yield
        time.sleep(max(0, 60 - (time.monotonic() - began)))
    finally:
        docker("start", machine.container)


def test_monitoring_host_that_is_away_is_told_and_an_alert_is_told_once(
    fleet: Fleet, receiver: WebhookReceiver, tell: Tell
) -> None:
    gone, stays = fleet.prometheis
    of_all = {"alertname": "Rehearsal"}
    lost = {"alertname": "TargetDown", "job": "prometheus", "instance": "monitor:9090"}
    meanwhile = {"alertname": "TargetDown", "job": "node", "instance": "server-1:9100"}

    def told(alert: dict[str, str], status: str = "firing") -> list[Told]:
        return receiver.told(started, status, **alert)

    started = time.time()
    with alert_of_all(fleet.monitors):
        wait_until(lambda: told(of_all), timeout=30, what="the alert of both")
        time.sleep(PEER_TIMEOUT + 2)
        assert len(told(of_all)) == 1

        left = time.time()
        with away(gone.machine):
            wait_until(lambda: told(lost), timeout=45, what="the alert of the monitoring host")
            with fleet.servers[0].machine.stopped("prometheus-node-exporter"):
                wait_until(lambda: told(meanwhile), timeout=30, what="an alert that one host alone tells")
        wait_until(lambda: told(lost, "resolved"), timeout=60, what="the news that the monitoring host is back")
        wait_until(
            lambda: gone.machine.get(PROMETHEUS_PORT, "/-/ready").status_code == 200,
            timeout=60,
            what="the Prometheus that is back",
        )
        wait_until(
            lambda: [members(prometheus) for prometheus in fleet.prometheis] == [ALL_MEMBERS] * 2,
            timeout=30,
            what="the cluster of Alertmanagers",
        )
        time.sleep(PEER_TIMEOUT + 2)
        gaps = [longest_gap(prometheus, left) for prometheus in (gone, stays)]
        assert len(told(of_all)) == 1, "the host that is back does not know what was told"

    tell(
        "a monitoring host is away for a minute",
        f"told after {told(lost)[0].received - left:.1f} s; its samples have a gap of {gaps[0]:.0f} s, "
        f"those of the other of {gaps[1]:.1f} s",
    )
    assert gaps[0] >= 60
    assert gaps[1] < 10


def test_deployment_that_fails_on_the_first_server_leaves_the_second(
    fleet: Fleet, ansible: Ansible, tell: Tell
) -> None:
    before = served(fleet)
    with Traffic(fleet) as traffic, without_weights(fleet.servers[0].machine):
        status, output = ansible.attempt(*DEPLOY, "--extra-vars", "model_server_max_queue_seconds=3")

    tell("rolling deployment that fails", figures(traffic))
    assert status != 0
    assert "weights" in output
    assert served(fleet) == before
    assert traffic.failed == []
    assert all(server.ready() for server in fleet.servers)


def test_canary_answers_its_share_until_it_is_aborted(fleet: Fleet, ansible: Ansible, tell: Tell) -> None:
    first, second = fleet.servers
    before = bundles(fleet), fleet.door.run("cat /etc/haproxy/haproxy.cfg")
    with Traffic(fleet) as traffic:
        ansible.run(*CANARY, NEXT)
        time.sleep(1)
        counted = predictions(first), predictions(second)
        time.sleep(10)
        made = predictions(first) - counted[0], predictions(second) - counted[1]
        status, refused = ansible.attempt(*DEPLOY)
        aborted = ansible.run(*CANARY, "step=abort")

    tell("canary of 20 %", f"{made[1]:.0f} of {sum(made):.0f} predictions; {figures(traffic)}")
    assert traffic.failed == []
    assert 0.1 < made[1] / sum(made) < 0.3
    assert status != 0
    assert "server-2 serves the bundle" in refused
    assert "changed: [server-2]" in aborted
    assert (bundles(fleet), fleet.door.run("cat /etc/haproxy/haproxy.cfg")) == before


def test_canary_that_is_killed_is_answered_by_the_other(fleet: Fleet, ansible: Ansible, tell: Tell) -> None:
    ansible.run(*CANARY, NEXT)
    with Traffic(fleet) as traffic:
        time.sleep(1)
        fleet.servers[1].machine.run("systemctl kill --kill-who=all --signal=KILL model-server")
        time.sleep(5)
    promoted = ansible.run(*CANARY, "step=promote")

    tell("canary killed", figures(traffic))
    assert len(traffic.failed) <= 4, "at most what it had in flight"
    assert "changed: [server-1]" in promoted
    assert len(set(bundles(fleet))) == 1
    assert "use-server" not in fleet.door.run("cat /etc/haproxy/haproxy.cfg")


# After one that failed, and a promotion: neither must be in its way.
def test_deployment_takes_one_server_after_the_other(fleet: Fleet, ansible: Ansible, tell: Tell) -> None:
    before = served(fleet)
    with Traffic(fleet) as traffic:
        said = ansible.run(*DEPLOY, "--extra-vars", f"{OTHER_UNIT} model_server_max_queue_seconds=2")

    tell("rolling deployment of the unit and a setting, with a restart", figures(traffic))
    assert traffic.failed == []
    assert [now != then for now, then in zip(served(fleet), before, strict=True)] == [True, True]
    assert said.count("changed: [server-1]") > 1
    assert all(server.ready() for server in fleet.servers)


def test_shadow_that_agrees_takes_over_and_nobody_notices(fleet: Fleet, ansible: Ansible, tell: Tell) -> None:
    before = bundles(fleet)
    with Traffic(fleet) as traffic:
        started = ansible.run(*SHADOW, NEXT)
        again = ansible.run(*SHADOW, NEXT)
        compared = [server.counters() for server in fleet.servers]
        promoted = ansible.run(*SHADOW, "step=promote requests=50")

    tell("shadow started and promoted", figures(traffic))
    assert traffic.failed == []
    assert "both models agree on 100.00 % of" in started
    assert "changed=0" in again, again
    assert all(any(series.startswith("shadow_predictions_total") for series in page) for page in compared)
    assert "changed: [server-2]" in promoted
    assert len(set(bundles(fleet))) == 1
    assert bundles(fleet) != before
    assert [
        server.machine.run("ls /etc/systemd/system | grep -c shadow || true").strip() for server in fleet.servers
    ] == ["0", "0"]


# The last one: it takes a server away. `molecule converge` brings it back.
def test_decommissioned_server_is_forgotten_and_nobody_notices(
    fleet: Fleet, ansible: Ansible, receiver: WebhookReceiver, tell: Tell
) -> None:
    gone = fleet.servers[1].machine

    def known() -> list[str]:
        return [fleet.door.run("cat /etc/haproxy/haproxy.cfg"), *(monitor.run(TARGETS) for monitor in fleet.monitors)]

    before = known()
    ansible.run(*DECOMMISSION, "--check")
    assert known() == before
    assert fleet.servers[1].ready()

    started = time.time()
    with Traffic(fleet, kept=1, fresh=1) as traffic:
        time.sleep(1)
        said = ansible.run(*DECOMMISSION)
        time.sleep(10)  # TargetDown would have fired: it holds for 5 s here
    took = time.time() - started

    tell("server decommissioned", figures(traffic))
    assert traffic.failed == []
    assert "Now delete server-2 from the inventory" in said

    assert ["server-1:8000" in text for text in known()] == [True] * 3
    assert ["server-2" in text for text in known()] == [False] * 3
    # The machines of a rehearsal share their processors with all that runs here.
    alerts = (
        f'max_over_time(ALERTS{{alertstate="firing",alertname!="HostCpuBusy",instance=~"server-2:.*"}}[{took:.0f}s])'
    )
    for prometheus in fleet.prometheis:
        assert "server-2:" not in prometheus.machine.get(PROMETHEUS_PORT, "/api/v1/targets").text
        assert prometheus.query(alerts) == []
    told = [
        alert.labels for alert in receiver.told(started, "firing") if "server-2" in alert.labels.get("instance", "")
    ]
    assert [labels for labels in told if labels["alertname"] != "HostCpuBusy"] == []

    units = "find /etc/systemd/system /lib/systemd/system -name 'model-server*' -o -name 'prometheus-node-exporter*'"
    assert gone.run(units) == ""
    running = gone.shell().run("systemctl is-active model-server model-server.socket prometheus-node-exporter").stdout
    assert set(running.split()) <= {"inactive", "unknown"}
    assert fleet.servers[0].ready()

    again = ansible.run(*DECOMMISSION)
    assert "changed=0" in again, again
