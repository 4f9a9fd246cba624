"""Samples of the monitoring hosts arrive in a store: a Prometheus that takes what others write to it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Set, Tuple

import pytest
import yaml

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.plays import ROLES
from tests.unit.roles import daemons
from tests.unit.roles.monitoring_play import RULES

pytest.importorskip("ansible")


@daemons.needs("prometheus", "--web.enable-remote-write-receiver")
def test_a_store_gets_the_samples_of_both_and_can_tell_them_apart(tmp_path: Path) -> None:
    (port,) = daemons.free_ports(1)
    store = f"127.0.0.1:{port}"
    remote_write = remote_write_to(store)
    (tmp_path / "play").mkdir()
    with ExitStack() as stack:
        webhook = stack.enter_context(daemons.Webhook())
        first, second = daemons.deployed_hosts(
            tmp_path / "play",
            webhook,
            prometheus_external_labels={"site": "north"},
            prometheus_remote_write=[remote_write],
        )
        stack.enter_context(daemons.store(tmp_path / "store", store))
        for host in (first, second):
            stack.enter_context(daemons.prometheus(tmp_path / host.name, host))

        wait_for(
            lambda: written(store) == {(host.prometheus, by) for host in (first, second) for by in ("first", "second")},
            15,
            "what both say of both is in the store",
        )


@daemons.needs("prometheus", "--web.enable-remote-write-receiver")
def test_a_store_that_takes_nothing_lags_until_it_does(tmp_path: Path) -> None:
    groups = yaml.safe_load((ROLES / RULES).read_text())["groups"]
    (rule,) = (rule for group in groups for rule in group["rules"] if rule.get("alert") == "PrometheusRemoteWriteLags")
    limit = "> 120"
    assert limit in rule["expr"]
    lag = rule["expr"].replace(limit, "> 3")
    (port,) = daemons.free_ports(1)
    store = f"127.0.0.1:{port}"
    remote_write = remote_write_to(store)
    (tmp_path / "play").mkdir()
    with ExitStack() as stack:
        webhook = stack.enter_context(daemons.Webhook())
        host, _ = daemons.deployed_hosts(tmp_path / "play", webhook, prometheus_remote_write=[remote_write])
        stack.enter_context(daemons.prometheus(tmp_path / host.name, host))

        wait_for(lambda: daemons.query(host.prometheus, lag), 15, "the store lags")
        (late,) = daemons.query(host.prometheus, lag)
        assert late["metric"]["url"] == remote_write["url"]
        stack.enter_context(daemons.store(tmp_path / "store", store))
        wait_for(lambda: not daemons.query(host.prometheus, lag), 30, "the store has caught up")


def remote_write_to(store: str) -> Dict[str, Any]:
    """Return the configuration; by default, samples wait 5 s for others."""
    return {"url": f"http://{store}/api/v1/write", "queue_config": {"batch_send_deadline": "200ms"}}


def written(store: str) -> Set[Tuple[str, str]]:
    """Return which Prometheus is up in the store, and by which other that was written."""
    found = daemons.query(store, 'up{job="prometheus", site="north"} == 1')
    return {(each["metric"]["instance"], each["metric"].get("prometheus_replica", "")) for each in found}
