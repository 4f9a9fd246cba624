"""A load test of two load hosts through the front door, one of which is lost on the way."""

from __future__ import annotations

import csv
import json
import time

from tests.cluster.conftest import Fleet
from tests.integration.conftest import Tell
from tests.integration.machines import SCENARIO, Machine, wait_until
from tests.integration.playbooks import REPOSITORY, Ansible

RUN = ("ansible-playbook", "playbooks/load_test.yml", "--extra-vars", "run_time=45s users=20 spawn_rate=20")
RESULTS = REPOSITORY / "results" / "latest" / "load"
WORKER = "locust-worker@load.service"


def is_active(machine: Machine, unit: str) -> bool:
    return machine.run(f"systemctl is-active {unit} || true").strip() == "active"


def test_load_test_goes_on_without_a_worker_that_is_killed(
    fleet: Fleet, load: Machine, ansible: Ansible, tell: Tell
) -> None:
    second = Machine(f"model-monitoring-{SCENARIO}-load-2")
    began = time.time()
    with ansible.start(*RUN) as play:
        wait_until(lambda: is_active(second, WORKER), timeout=60, what="the worker of the second load host")
        sending = "locust_users == 20"
        wait_until(lambda: fleet.prometheis[0].query(sending), timeout=60, what="all users")
        second.run(f"systemctl kill --kill-who=all --signal=KILL {WORKER}")
        said, _ = play.communicate()

    assert play.returncode == 0, said
    assert "lost workers, whose part the others do: load-2" in said
    summary = json.loads((RESULTS / "summary.json").read_text())
    with (RESULTS / "locust_stats_history.csv").open(newline="") as file:
        seconds = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    users = [int(row["User Count"]) for row in seconds if row["User Count"] != "0"]
    tell(
        "load test that loses the worker of one of two load hosts",
        f"{summary['failures']} of {summary['requests']} requests failed; {users[-1]} users at the end",
    )
    assert RESULTS.parent.stat().st_mtime > began, "these are the figures of another run"
    assert summary["failures"] == 0
    assert users[-1] == 20, "the others do its part"
    assert not is_active(load, WORKER)
    assert not is_active(second, WORKER)
