"""What the monitoring play gives Prometheus: the inventory's targets and the user's, and further configuration."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict

import pytest
import yaml

from tests.unit.roles import monitoring_play

pytest.importorskip("ansible")

GROUPS = {"model_servers": ["server", "second"], "monitoring": ["server"]}
REMOTE_WRITE = {"url": "https://samples.example.org/write", "basic_auth": {"username": "us", "password": "a: #secret"}}
EXTRA = {
    "job_name": "blackbox",
    "metrics_path": "/probe",
    "params": {"module": ["http_2xx"]},
    "static_configs": [{"targets": ["probe.example.org:9115"], "labels": {"site": "über"}}],
    "relabel_configs": [{"source_labels": ["__address__"], "regex": "(.*)", "replacement": "$1", "target_label": "a"}],
}


def written(directory: Path, variables: Dict[str, Any]) -> Dict[str, str]:
    """Return what the monitoring play writes on a host whose inventory has these variables of the user."""
    hosts = {"server": {"host_address": "192.0.2.1", **variables}, "second": {"host_address": "192.0.2.2"}}
    return monitoring_play.written(directory, hosts, GROUPS)["server"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    return written(tmp_path_factory.mktemp("plain"), {})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    return written(
        tmp_path_factory.mktemp("own"),
        {
            "prometheus_targets": {"node": ["db:9100", "192.0.2.2:9100"], "database": ["db:9187"]},
            "prometheus_alertmanagers": ["alerts.example.org:9093", "127.0.0.1:9093"],
            "prometheus_external_labels": {"site": "north", "rack": 7},
            "prometheus_remote_write": [REMOTE_WRITE],
            "prometheus_extra_scrape_configs": [EXTRA],
            "prometheus_retention_size": "50GB",
        },
    )


def alertmanagers(files: Dict[str, str]) -> Any:
    configuration = yaml.safe_load(files["prometheus.yml"])
    return configuration["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]


def test_targets_of_the_inventory_and_of_the_user_add_up(plain: Dict[str, str], own: Dict[str, str]) -> None:
    before, after = json.loads(plain["jobs"]), json.loads(own["jobs"])

    assert before["model_server"] == ["192.0.2.1:8000", "192.0.2.2:8000"]
    assert sorted(after["node"]) == sorted({*before["node"], "db:9100"})
    assert after == {**before, "node": after["node"], "database": ["db:9187"]}
    jobs = [job["job_name"] for job in yaml.safe_load(own["prometheus.yml"])["scrape_configs"]]
    assert sorted(jobs) == sorted(["prometheus", *after, "blackbox"])


def test_alertmanagers_of_the_inventory_and_of_the_user_add_up(plain: Dict[str, str], own: Dict[str, str]) -> None:
    assert alertmanagers(plain) == ["127.0.0.1:9093"]
    assert sorted(alertmanagers(own)) == ["127.0.0.1:9093", "alerts.example.org:9093"]


def test_without_further_configuration_there_is_none(plain: Dict[str, str]) -> None:
    assert set(yaml.safe_load(plain["prometheus.yml"])) == {"global", "rule_files", "alerting", "scrape_configs"}
    assert "external_labels" not in plain["prometheus.yml"]
    assert "retention.size" not in plain["prometheus arguments"]


def test_further_configuration_is_passed_on_as_it_is(own: Dict[str, str]) -> None:
    configuration = yaml.safe_load(own["prometheus.yml"])

    assert configuration["global"]["external_labels"] == {"site": "north", "rack": "7"}
    assert configuration["remote_write"] == [REMOTE_WRITE]
    assert configuration["scrape_configs"][-1] == EXTRA
    assert " --storage.tsdb.retention.size=50GB" in own["prometheus arguments"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")
@pytest.mark.parametrize("host", ["plain", "own", "one", "two"])
def test_promtool_accepts_the_configuration(
    host: str, tmp_path: Path, plain: Dict[str, str], own: Dict[str, str], several: Dict[str, Dict[str, str]]
) -> None:
    files = {"plain": plain, "own": own, **several}[host]
    (tmp_path / "prometheus.yml").write_text(files["prometheus.yml"])

    subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Dict[str, str]]:
    """Three monitoring hosts, of which one has no Alertmanager, and one no Prometheus."""
    hosts = {
        "one": {"host_address": "192.0.2.1", "prometheus_external_labels": {"site": "north"}},
        "two": {"host_address": "2001:db8::2", "prometheus_port": 9091, "alertmanager_state": "absent"},
        "three": {"host_address": "three.example.org", "prometheus_state": "absent"},
    }
    return monitoring_play.written(tmp_path_factory.mktemp("several"), hosts, {"monitoring": [*hosts]})


def test_each_of_several_sends_to_all_alertmanagers(several: Dict[str, Dict[str, str]]) -> None:
    assert alertmanagers(several["one"]) == ["127.0.0.1:9093", "three.example.org:9093"]
    assert alertmanagers(several["two"]) == ["192.0.2.1:9093", "three.example.org:9093"]


def test_each_of_several_scrapes_all_that_watch_by_the_same_names(several: Dict[str, Dict[str, str]]) -> None:
    watching = {
        "prometheus 192.0.2.1:9090",
        "prometheus [2001:db8::2]:9091",
        "alertmanager 192.0.2.1:9093",
        "alertmanager three.example.org:9093",
        "node 192.0.2.1:9100",
        "node [2001:db8::2]:9100",
        "node three.example.org:9100",
    }

    assert [set(json.loads(several[host]["expected"])) for host in ("one", "two")] == [watching] * 2


def test_each_of_several_has_a_label_that_alerts_do_not_have(several: Dict[str, Dict[str, str]]) -> None:
    one, two = (yaml.safe_load(several[host]["prometheus.yml"]) for host in ("one", "two"))

    assert one["global"]["external_labels"] == {"site": "north", "prometheus_replica": "one"}
    assert two["global"]["external_labels"] == {"prometheus_replica": "two"}
    for configuration in (one, two):
        (rule,) = configuration["alerting"]["alert_relabel_configs"]
        assert rule == {"regex": "prometheus_replica", "action": "labeldrop"}


def test_a_single_one_names_itself_as_before(plain: Dict[str, str]) -> None:
    job = yaml.safe_load(plain["prometheus.yml"])["scrape_configs"][0]

    assert job == {"job_name": "prometheus", "static_configs": [{"targets": ["127.0.0.1:9090"]}]}
    assert "prometheus 127.0.0.1:9090" in json.loads(plain["expected"])


def test_several_listen_for_each_other(several: Dict[str, Dict[str, str]], plain: Dict[str, str]) -> None:
    listening = [files["prometheus arguments"].split("listen-address=")[1].split()[0] for files in several.values()]

    assert listening == ["0.0.0.0:9090", "[::]:9091", "0.0.0.0:9090"]
    assert "listen-address=127.0.0.1:9090 " in plain["prometheus arguments"]


def test_firewall_opens_them_for_each_other_alone(several: Dict[str, Dict[str, str]], plain: Dict[str, str]) -> None:
    wanted = {host: json.loads(files["firewall"]) for host, files in several.items()}
    alone = json.loads(plain["firewall"])

    assert {host: each["ports"]["other_monitors"] for host, each in wanted.items()} == {
        "one": ["9090", "9093", "9094", "9094/udp"],
        "two": ["9091", "9093"],
        "three": ["9090", "9093", "9094", "9094/udp"],
    }
    assert wanted["one"]["from"]["other_monitors"] == ["2001:db8::2", "three.example.org"]
    assert wanted["one"]["from"]["scrape"] == ["192.0.2.1", "2001:db8::2", "three.example.org"]
    assert wanted["one"]["from"]["monitoring"] == []
    assert alone["ports"]["other_monitors"] == alone["from"]["other_monitors"] == []


def test_load_hosts_are_a_job_of_their_own(tmp_path: Path) -> None:
    """A host that is a server, too, is one; an exporter that is not ours is not scraped. Each may be a master."""
    hosts = {
        "server": {"host_address": "192.0.2.1"},
        "load": {"host_address": "192.0.2.31"},
        "bare": {"host_address": "192.0.2.32", "node_exporter_state": "absent"},
    }
    groups = {"model_servers": ["server"], "monitoring": ["server"], "load_generators": ["server", "load", "bare"]}
    texts = monitoring_play.written(tmp_path, hosts, groups)["server"]
    jobs, firewall = json.loads(texts["jobs"]), json.loads(texts["firewall"])

    assert jobs["load_generator"] == ["192.0.2.31:9100"]
    assert jobs["node"] == ["127.0.0.1:9100"]
    assert firewall["ports"]["other_load_hosts"] == ["5557"]
    assert firewall["from"]["other_load_hosts"] == ["192.0.2.31", "192.0.2.32"]


def test_preflight_judges_what_the_inventory_computes(tmp_path: Path) -> None:
    facts = {"distribution": "Ubuntu", "distribution_version": "20.04", "cacheable": True}
    preflight = {"name": "prometheus", "tasks_from": "preflight"}
    tasks = [{"ansible.builtin.set_fact": facts}, {"ansible.builtin.import_role": preflight}]
    play = {"hosts": "monitoring", "gather_facts": False, "tasks": tasks}

    hosts = {"server": {"host_address": "ser ver"}, "second": {}}
    run = monitoring_play.run_on(tmp_path, play, hosts, GROUPS, {"prometheus_take_over": True})

    assert "The inventory gives ser ver:8000" in run.stdout
