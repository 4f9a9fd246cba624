"""Several Prometheis share the model servers and node exporters: each target is scraped by exactly one of them."""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Dict, Iterator, List

import pytest
import yaml

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.roles import daemons

pytest.importorskip("ansible")

# Nobody listens there: who is to be scraped is known all the same.
SHARED = [f"127.0.0.4:{port}" for port in range(1, 41)]
OF_THE_FIRST = [f"127.0.0.2:{port}" for port in range(1, 21)]
DATABASES = ["127.0.0.4:9187", "127.0.0.5:9187"]
JOBS = {"model_server": SHARED, "node": OF_THE_FIRST, "database": DATABASES}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[List[daemons.Host]]:
    with daemons.Webhook() as webhook:
        yield daemons.deployed_hosts(
            tmp_path_factory.mktemp("shards"),
            webhook,
            prometheus_shards=2,
            prometheus_targets=JOBS,
            node_exporter_state="absent",
        )


def scraped(host: daemons.Host) -> Dict[str, List[str]]:
    """Return the instances that the Prometheus of a host scrapes by their jobs."""
    jobs: Dict[str, List[str]] = {}
    for target in daemons.ask(f"http://{host.prometheus}/api/v1/targets?state=active")["data"]["activeTargets"]:
        jobs.setdefault(target["labels"]["job"], []).append(target["labels"]["instance"])
    return jobs


def has_all_jobs(host: daemons.Host) -> bool:
    return scraped(host).keys() == {"prometheus", "alertmanager", *JOBS}


@daemons.needs("prometheus")
def test_each_target_is_scraped_by_exactly_one_shard_and_what_watches_by_all(
    hosts: List[daemons.Host], tmp_path: Path
) -> None:
    first, second = hosts
    # The first host reaches its own by the loopback address.
    jobs = json.loads(first.files["jobs"])
    first.files["jobs"] = json.dumps({**jobs, "node": [target.replace(".2:", ".1:") for target in OF_THE_FIRST]})
    with ExitStack() as stack:
        for host in hosts:
            stack.enter_context(daemons.prometheus(tmp_path / host.name, host))
        for host in hosts:
            wait_for(partial(has_all_jobs, host), 15, "all jobs have targets")
        found = [scraped(host) for host in hosts]

    for job, targets in (("model_server", SHARED), ("node", OF_THE_FIRST)):
        assert sorted(found[0][job] + found[1][job]) == sorted(targets)
        assert all(each[job] for each in found)
    for each in found:
        assert sorted(each["prometheus"]) == [first.prometheus, second.prometheus]
        assert sorted(each["alertmanager"]) == [first.alertmanager, second.alertmanager]
        assert sorted(each["database"]) == DATABASES
    # What the role waits for at its end.
    for host, each in zip(hosts, found):
        expected = [f"{job} {instance}" for job, instances in each.items() for instance in instances]
        assert sorted(json.loads(host.files["expected"])) == sorted(expected)


def test_a_store_can_tell_shards_apart_and_alertmanagers_need_not(hosts: List[daemons.Host]) -> None:
    for number, host in enumerate(hosts):
        configuration = yaml.safe_load(host.files["prometheus.yml"])
        labels = configuration["global"]["external_labels"]
        (rule,) = configuration["alerting"]["alert_relabel_configs"]

        assert labels == {"prometheus_replica": host.name, "prometheus_shard": str(number)}
        assert rule == {"regex": "prometheus_replica|prometheus_shard", "action": "labeldrop"}
