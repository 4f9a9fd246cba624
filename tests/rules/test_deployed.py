"""The rule files as the role writes them, with a host's own durations and its own place for runbooks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "prometheus"
RULES = sorted((ROLE / "files" / "rules").glob("*.yml"))
ALERTS = re.findall(r"- alert: (\w+)", "".join(path.read_text(encoding="utf-8") for path in RULES))
RUNBOOKS = "https://runbooks.example.org/model"
GRAFANA = "https://models.example.org/grafana/"

each_file = pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of three hosts: as they are, with every `for` replaced, with one."""
    directory = tmp_path_factory.mktemp("deployed")
    durations: dict[str, dict[str, str]] = {
        "plain": {},
        "every": {alert: f"{number}s" for number, alert in enumerate(ALERTS)},
        "one": {"TargetDown": "5s"},
    }
    hosts = {
        host: {
            "prometheus_alert_for": alert_for,
            "prometheus_runbooks_url": "docs/runbooks.md" if host == "plain" else RUNBOOKS,
            "prometheus_dashboards_url": "" if host == "plain" else GRAFANA,
            "prometheus_objective_p50_seconds": 0.05 if host == "plain" else 0.08,
            "prometheus_objective_p99_seconds": 0.3,
            "prometheus_objective_success_ratio": 0.99 if host == "plain" else 0.999,
            "prometheus_objective_days": 30 if host == "plain" else 7,
        }
        for host, alert_for in durations.items()
    }
    panels = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))["__prometheus_panels"]
    local = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "__prometheus_panels": panels,
    }
    task = {
        "ansible.builtin.template": {
            "src": str(ROLE / "templates/etc/prometheus/rules/rules.yml.j2"),
            "dest": str(directory / "{{ inventory_hostname }}_{{ item | basename }}"),
            "mode": "0600",
        },
        "loop": [str(path) for path in RULES],
    }
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": local}}))
    (directory / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    run = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "hosts.json", "play.yml"],
        cwd=directory,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_HOME": str(directory),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return directory


def alerts(directory: Path, host: str) -> dict[str, Any]:
    groups = [
        group
        for path in RULES
        for group in yaml.safe_load((directory / f"{host}_{path.name}").read_text(encoding="utf-8"))["groups"]
    ]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


@each_file
def test_file_says_what_the_one_in_the_role_says_under_a_header(deployed: Path, path: Path) -> None:
    text = (deployed / f"plain_{path.name}").read_text(encoding="utf-8")
    given, found = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text)
    for group in (*given["groups"], *found["groups"]):
        for rule in group["rules"]:
            rule["expr"] = rule["expr"].strip()

    assert text.startswith("#")
    assert found == given


@each_file
def test_expressions_are_written_in_lines_of_their_own(deployed: Path, path: Path) -> None:
    text = (deployed / f"plain_{path.name}").read_text(encoding="utf-8")

    assert all(line.endswith("expr: |") for line in text.splitlines() if "expr:" in line)


def test_each_alert_takes_its_own_duration(deployed: Path) -> None:
    found = {alert: rule["for"] for alert, rule in alerts(deployed, "every").items()}

    assert found == {alert: f"{number}s" for number, alert in enumerate(ALERTS)}


def test_alerts_that_are_not_named_keep_theirs(deployed: Path) -> None:
    before, after = alerts(deployed, "plain"), alerts(deployed, "one")

    assert [alert for alert in ALERTS if before[alert]["for"] != after[alert]["for"]] == ["TargetDown"]


def test_alerts_link_to_the_panels_of_the_users_grafana(deployed: Path) -> None:
    found = {alert: rule["annotations"].get("panel_url", "") for alert, rule in alerts(deployed, "one").items()}

    assert found["LatencyP99AboveObjective"].startswith(f"{GRAFANA}d/model-monitoring?viewPanel=")
    assert found["TargetDown"].startswith(f"{GRAFANA}d/prometheus?viewPanel=")
    assert found["HostClockSkew"] == "", "no panel shows it"


def test_objectives_are_those_of_the_host(deployed: Path) -> None:
    groups = yaml.safe_load((deployed / "every_objectives.yml").read_text(encoding="utf-8"))["groups"]
    found = {rule["record"]: rule["expr"].strip() for group in groups for rule in group["rules"]}

    assert found["objective:latency_p50:seconds"] == "vector(0.08)"
    assert found["objective:latency_p99:seconds"] == "vector(0.3)"
    assert found["objective:success:ratio"] == "vector(0.999)"
    assert found["objective:window:days"] == "vector(7)"
    assert "increase1m[7d]))" in (deployed / "every_model.yml").read_text(encoding="utf-8")


def test_links_lead_to_the_runbooks(deployed: Path) -> None:
    found = {rule["annotations"]["runbook_url"] for rule in alerts(deployed, "every").values()}

    assert found == {f"{RUNBOOKS}#{alert.lower()}" for alert in ALERTS}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (package prometheus)")
@each_file
def test_promtool_accepts_the_changed_file(deployed: Path, path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", deployed / f"every_{path.name}"], check=True, capture_output=True)
