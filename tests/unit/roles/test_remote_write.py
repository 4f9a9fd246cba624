"""Samples of the monitoring hosts arrive in a store: a Prometheus that takes what others write to it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Set, Tuple

import pytest

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.roles import daemons

pytest.importorskip("ansible")


@daemons.needs("prometheus", "--web.enable-remote-write-receiver")
def test_a_store_gets_the_samples_of_both_and_can_tell_them_apart(tmp_path: Path) -> None:
    (port,) = daemons.free_ports(1)
    store = f"127.0.0.1:{port}"
    # By default, samples wait 5 s for others.
    remote_write = {"url": f"http://{store}/api/v1/write", "queue_config": {"batch_send_deadline": "200ms"}}
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


def written(store: str) -> Set[Tuple[str, str]]:
    """Return which Prometheus is up in the store, and by which other that was written."""
    found = daemons.query(store, 'up{job="prometheus", site="north"} == 1')
    return {(each["metric"]["instance"], each["metric"].get("prometheus_replica", "")) for each in found}
