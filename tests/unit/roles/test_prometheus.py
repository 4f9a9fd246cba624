"""What the monitoring play gives Prometheus: the inventory's targets and the user's, and further configuration."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
import yaml

from tests.unit.plays import run_play

pytest.importorskip("ansible")

ROOT = Path(__file__).parents[3]
ROLE = ROOT / "roles" / "prometheus"
TEMPLATES = {"prometheus.yml": "etc/prometheus/prometheus.yml.j2", "arguments": "etc/default/prometheus.j2"}
INVENTORY: Dict[str, Any] = {
    "all": {
        "hosts": {"server": {"host_address": "192.0.2.1"}, "second": {"host_address": "192.0.2.2"}},
        "vars": {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_become": False,
            "model_server_internal_pages_from": [],
        },
    },
    "model_servers": {"hosts": {"server": {}, "second": {}}},
    "monitoring": {"hosts": {"server": {}}},
}
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
    (play,) = yaml.safe_load((ROOT / "playbooks" / "monitoring.yml").read_text())
    del play["roles"]
    template = {"src": "{{ item.value }}", "dest": "{{ directory }}/{{ item.key }}", "mode": "0600"}
    templates = {name: str(ROLE / "templates" / path) for name, path in TEMPLATES.items()}
    play["gather_facts"] = False
    play["vars"] = {**play.get("vars", {}), "directory": str(directory), "templates": templates}
    play["vars_files"] = [str(ROLE / "vars" / "main.yml")]
    play["tasks"] = [
        {"ansible.builtin.template": template, "loop": "{{ templates | dict2items }}"},
        {"ansible.builtin.copy": {"content": "{{ __prometheus_jobs | to_json }}", "dest": str(directory / "jobs")}},
    ]
    # The defaults of the role have the lowest precedence, the user's variables that of a host.
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    run = playbook(directory, play, variables, defaults)
    assert run.returncode == 0, run.stdout + run.stderr
    return {name: (directory / name).read_text() for name in (*TEMPLATES, "jobs")}


def playbook(
    directory: Path, play: Dict[str, Any], variables: Dict[str, Any], of_all: Dict[str, Any]
) -> "subprocess.CompletedProcess[str]":
    """Run a play with the playbooks' group_vars; the host of the monitoring has variables of its own."""
    inventory = json.loads(json.dumps(INVENTORY))
    inventory["all"]["vars"].update(of_all)
    inventory["all"]["hosts"]["server"].update(variables)
    (directory / "hosts.json").write_text(json.dumps(inventory))
    (directory / "group_vars").symlink_to(ROOT / "playbooks" / "group_vars")
    (directory / "play.yml").write_text(json.dumps([play]))
    return run_play(directory, "-i", "hosts.json", "play.yml")


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
    assert "retention.size" not in plain["arguments"]


def test_further_configuration_is_passed_on_as_it_is(own: Dict[str, str]) -> None:
    configuration = yaml.safe_load(own["prometheus.yml"])

    assert configuration["global"]["external_labels"] == {"site": "north", "rack": "7"}
    assert configuration["remote_write"] == [REMOTE_WRITE]
    assert configuration["scrape_configs"][-1] == EXTRA
    assert " --storage.tsdb.retention.size=50GB" in own["arguments"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")
@pytest.mark.parametrize("files", ["plain", "own"])
def test_promtool_accepts_the_configuration(files: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "prometheus.yml").write_text(request.getfixturevalue(files)["prometheus.yml"])

    subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True, capture_output=True)


def test_preflight_judges_what_the_inventory_computes(tmp_path: Path) -> None:
    facts = {"distribution": "Ubuntu", "distribution_version": "20.04", "cacheable": True}
    preflight = {"name": "prometheus", "tasks_from": "preflight"}
    tasks = [{"ansible.builtin.set_fact": facts}, {"ansible.builtin.import_role": preflight}]
    play = {"hosts": "monitoring", "gather_facts": False, "tasks": tasks}

    run = playbook(tmp_path, play, {"host_address": "ser ver"}, {"prometheus_take_over": True})

    assert "The inventory gives ser ver:8000" in run.stdout
