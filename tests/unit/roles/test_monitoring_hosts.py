"""Two monitoring hosts that watch the same and each other: an alert is told once, and by the other if one is lost."""

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Set, Tuple

import pytest

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.roles import daemons

pytest.importorskip("ansible")


DOWN = "127.0.0.4:9"  # nobody listens there


@daemons.needs("prometheus")
@daemons.needs("prometheus-alertmanager")
def test_both_tell_an_alert_once_and_a_lost_host_is_told_by_the_other(tmp_path: Path) -> None:
    (tmp_path / "play").mkdir()
    with ExitStack() as stack:
        webhook = stack.enter_context(daemons.Webhook())
        hosts = daemons.deployed_hosts(
            tmp_path / "play", webhook, node_exporter_state="absent", prometheus_targets={"database": [DOWN]}
        )
        alertmanagers = [
            stack.enter_context(daemons.alertmanager(tmp_path / f"alertmanager-{host.name}", host)) for host in hosts
        ]
        prometheis = [
            stack.enter_context(daemons.prometheus(tmp_path / f"prometheus-{host.name}", host)) for host in hosts
        ]

        database = {"alertname": "TargetDown", "job": "database"}
        wait_for(lambda: webhook.told(**database), 15, "the target that is down for both is told")
        time.sleep(daemons.PEER_TIMEOUT + 1)
        assert webhook.told(**database) == [{**database, "instance": DOWN, "severity": "critical"}]
        assert [up(host) for host in hosts] == [
            {(job, getattr(host, job)) for host in hosts for job in ("prometheus", "alertmanager")}
        ] * 2

        # The first host loses its power.
        lost = hosts[0]
        alertmanagers[0].kill()
        prometheis[0].kill()
        for job in ("prometheus", "alertmanager"):
            alert = {"alertname": "TargetDown", "job": job, "instance": getattr(lost, job)}
            wait_for(partial(webhook.told, **alert), 15, f"{job} of the lost host is told")


def up(host: daemons.Host) -> Set[Tuple[str, str]]:
    """Return job and instance of what answers the Prometheus of a host."""
    return {(each["metric"]["job"], each["metric"]["instance"]) for each in daemons.query(host.prometheus, "up == 1")}
