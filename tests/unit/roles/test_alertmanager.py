"""Alertmanagers of several monitoring hosts are a cluster, and tell each alert once."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.plays import ROLES
from tests.unit.roles import daemons, monitoring_play

pytest.importorskip("ansible")

needs_alertmanager = daemons.needs("prometheus-alertmanager")
ALERT = {"alertname": "HostMemoryLow", "job": "node", "instance": "a:9100"}

Files = Dict[str, Dict[str, str]]


def flags(files: Files, host: str) -> Dict[str, Any]:
    """Return the arguments of an Alertmanager: name → value, or all values of --cluster.peer."""
    pairs = [given.split("=", 1) for given in daemons.arguments(files[host]["alertmanager arguments"])]
    peers = [value for name, value in pairs if name == "--cluster.peer"]
    return {**dict(pairs), "--cluster.peer": peers}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Five monitoring hosts, of which one has no Alertmanager."""
    hosts = {
        "one": {"host_address": "192.0.2.1"},
        "two": {"host_address": "two.example.org", "alertmanager_cluster_port": 9194},
        "three": {"host_address": "2001:db8::3"},
        "four": {"host_address": "four", "facts": {"default_ipv4": {"address": "192.0.2.5"}}},
        "without": {"host_address": "192.0.2.4", "alertmanager_state": "absent"},
    }
    return monitoring_play.written(tmp_path_factory.mktemp("several"), hosts, {"monitoring": [*hosts]})


def test_a_single_one_has_no_cluster(tmp_path: Path) -> None:
    files = monitoring_play.written(tmp_path, {"one": {"host_address": "192.0.2.1"}}, {"monitoring": ["one"]})

    assert flags(files, "one") == {
        "--web.listen-address": "127.0.0.1:9093",
        "--cluster.listen-address": "",
        "--cluster.peer": [],
    }


def test_each_has_all_others_as_its_peers(several: Files) -> None:
    assert flags(several, "one")["--cluster.peer"] == ["two.example.org:9194", "[2001:db8::3]:9094", "four:9094"]
    assert flags(several, "two")["--cluster.peer"] == ["192.0.2.1:9094", "[2001:db8::3]:9094", "four:9094"]


def test_each_says_by_which_address_it_is_reached_if_that_is_known(several: Files) -> None:
    cluster = {
        host: [flags(several, host).get(f"--cluster.{flag}-address") for flag in ("listen", "advertise")]
        for host in ("one", "two", "three", "four")
    }

    assert cluster == {
        "one": ["0.0.0.0:9094", "192.0.2.1:9094"],
        "two": ["0.0.0.0:9194", None],
        "three": ["[::]:9094", "[2001:db8::3]:9094"],
        "four": ["0.0.0.0:9094", "192.0.2.5:9094"],
    }


def test_unit_lets_one_that_does_not_know_its_address_look_for_it(several: Files) -> None:
    looks = {host: "AF_NETLINK" in several[host]["alertmanager unit"] for host in ("one", "two", "three", "four")}

    assert looks == {"one": False, "two": True, "three": False, "four": False}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuple[List[daemons.Host], daemons.Webhook]]:
    with daemons.Webhook() as webhook:
        yield daemons.deployed_hosts(tmp_path_factory.mktemp("cluster"), webhook), webhook


Cluster = Tuple[List[daemons.Host], daemons.Webhook]


@needs_alertmanager
def test_an_alert_that_both_get_is_told_once_and_by_the_other_if_one_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    (first, second), webhook = cluster
    later = {**ALERT, "instance": "b:9100"}
    with daemons.alertmanager(tmp_path / "1", first) as process, daemons.alertmanager(tmp_path / "2", second):
        for host in (first, second):
            daemons.post_alerts(host.alertmanager, ALERT)
        wait_for(lambda: webhook.told(**ALERT), 10, "the alert of both is told")
        # The one whose turn is second looks after the timeout whether it has been told.
        time.sleep(daemons.PEER_TIMEOUT + 1)
        assert len(webhook.told(**ALERT)) == 1

        process.kill()
        daemons.post_alerts(second.alertmanager, later)
        wait_for(lambda: webhook.told(**later), 10, "the alert of the one that is left is told")


@needs_alertmanager
def test_without_a_cluster_both_would_tell_it(cluster: Cluster, tmp_path: Path) -> None:
    hosts, webhook = cluster
    alert = {**ALERT, "instance": "c:9100"}
    alone = [daemons.Host(host.name, "", (0, 0), host.files) for host in hosts]
    for host, of_cluster in zip(alone, hosts):
        host.alertmanager = of_cluster.alertmanager
        host.files["alertmanager arguments"] = (
            f'ARGS="--web.listen-address={host.alertmanager} --cluster.listen-address="'
        )
    with daemons.alertmanager(tmp_path / "1", alone[0]), daemons.alertmanager(tmp_path / "2", alone[1]):
        for host in alone:
            daemons.post_alerts(host.alertmanager, alert)

        wait_for(lambda: len(webhook.told(**alert)) == 2, 5, "the alert is told twice")


@needs_alertmanager
def test_what_says_that_an_alertmanager_is_down_inhibits_what_it_costs_the_others(
    cluster: Cluster, tmp_path: Path
) -> None:
    (host, _), webhook = cluster
    down = {"alertname": "TargetDown", "job": "alertmanager", "instance": "b:9093"}
    symptom = {"alertname": "PrometheusNotificationsFail", "job": "prometheus", "instance": "a:9090"}
    other = {**symptom, "alertname": "PrometheusStorageFails"}
    with daemons.alertmanager(tmp_path / "1", host):
        daemons.post_alerts(host.alertmanager, down, symptom, other)
        wait_for(lambda: webhook.told(**other) and webhook.told(**down), 10, "what is no symptom is told")
        time.sleep(0.5)

        assert webhook.told(**symptom) == []


@needs_alertmanager
@daemons.needs("prometheus", "--rules.alert.resend-delay=1s")
def test_heartbeats_end_with_prometheus(tmp_path: Path) -> None:
    """By itself Prometheus says of an alert that it lasts four minutes more; here it is four seconds."""

    def beats() -> List[Any]:
        return beating.told(alertname="Watchdog")

    (tmp_path / "play").mkdir()
    with ExitStack() as stack:
        webhook, beating = (stack.enter_context(daemons.Webhook()) for _ in range(2))
        host, _ = daemons.deployed_hosts(
            tmp_path / "play",
            webhook,
            alertmanager_heartbeat_url=beating.url,
            alertmanager_heartbeat_interval="1s",
        )
        rules = (ROLES / "prometheus/files/rules/watchdog.yml").read_text()
        host.files["rules.yml"] = rules.replace("interval: 30s", "interval: 1s")
        stack.enter_context(daemons.alertmanager(tmp_path / "alertmanager", host))
        resend = "--rules.alert.resend-delay=1s"
        process = stack.enter_context(daemons.prometheus(tmp_path / "prometheus", host, resend))
        wait_for(lambda: len(beats()) > 2, 15, "it beats")

        process.kill()
        wait_for(lambda: _a_while_ago(beats, 3) == len(beats()), 15, "it has stopped")
        assert webhook.told(alertname="Watchdog") == [], "nobody else gets it"


def _a_while_ago(beats: Callable[[], List[Any]], seconds: float) -> int:
    number = len(beats())
    time.sleep(seconds)
    return number
