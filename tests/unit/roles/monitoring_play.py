"""What the monitoring play writes on its hosts, with the wiring of the playbooks and the defaults of the roles."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

import yaml

from tests.unit.plays import ROLES, run_play

PLAYBOOKS = ROLES.parent / "playbooks"
# name → the template
FILES = {
    "prometheus.yml": "prometheus/templates/etc/prometheus/prometheus.yml.j2",
    "prometheus arguments": "prometheus/templates/etc/default/prometheus.j2",
    "alertmanager.yml": "alertmanager/templates/etc/prometheus/alertmanager.yml.j2",
    "alertmanager arguments": "alertmanager/templates/etc/default/prometheus-alertmanager.j2",
    "alertmanager unit": (
        "alertmanager/templates/etc/systemd/system/prometheus-alertmanager.service.d/service.conf.j2"
    ),
    "rules.yml": "prometheus/templates/etc/prometheus/rules/rules.yml.j2",
}
# name → what the play says, as JSON
SAID = {"jobs": "__prometheus_jobs", "expected": "__prometheus_expected", "firewall": "__firewall_wanted"}
# What `rules.yml` is made of.
RULES = "prometheus/files/rules/prometheus.yml"

Groups = Mapping[str, Sequence[str]]


def written(directory: Path, hosts: Mapping[str, Any], groups: Groups) -> Dict[str, Dict[str, str]]:
    """Return what the play writes: host of `monitoring` → name of `FILES` or `SAID` → text.

    Args:
        directory: an empty one.
        hosts: name → the variables that a user gives it; `facts` is what Ansible finds on it.
        groups: of the inventory: name → its hosts.
    """
    # The defaults of the roles have the lowest precedence, the user's variables that of a host.
    defaults: Dict[str, Any] = {}
    for role in ("firewall", "alertmanager", "prometheus"):
        defaults.update(yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text()))
    play = play_of(directory)
    if any("facts" in variables for variables in hosts.values()):
        found = {"default_ipv4": "{{ facts.default_ipv4 }}", "cacheable": True}
        play["tasks"].insert(0, {"ansible.builtin.set_fact": found, "when": "facts is defined"})
    run = run_on(directory, play, hosts, groups, defaults)
    assert run.returncode == 0, run.stdout + run.stderr
    texts = {host: json.loads((directory / f"{host}.json").read_text()) for host in groups["monitoring"]}
    # Ansible may have read JSON as what it is.
    return {
        host: {name: text if isinstance(text, str) else json.dumps(text) for name, text in of_host.items()}
        for host, of_host in texts.items()
    }


def run_on(
    directory: Path, play: Dict[str, Any], hosts: Mapping[str, Any], groups: Groups, of_all: Mapping[str, Any]
) -> "subprocess.CompletedProcess[str]":
    """Run a play beside the playbooks' group_vars; `of_all` are variables of all hosts."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
    inventory = {
        "all": {"hosts": dict(hosts), "vars": {**local, "model_server_internal_pages_from": [], **of_all}},
        **{group: {"hosts": {host: {} for host in members}} for group, members in groups.items()},
    }
    (directory / "hosts.json").write_text(json.dumps(inventory))
    (directory / "group_vars").symlink_to(PLAYBOOKS / "group_vars")
    (directory / "play.yml").write_text(json.dumps([play]))
    return run_play(directory, "-i", "hosts.json", "play.yml")


def play_of(directory: Path) -> Dict[str, Any]:
    play: Dict[str, Any]
    (play,) = yaml.safe_load((PLAYBOOKS / "monitoring.yml").read_text())
    del play["roles"], play["post_tasks"]
    play["gather_facts"] = False
    play["vars_files"] = [
        str(ROLES / role / "vars" / "main.yml") for role in ("firewall", "alertmanager", "prometheus")
    ]
    texts = {name: f"{{{{ lookup('ansible.builtin.template', '{ROLES / path}') }}}}" for name, path in FILES.items()}
    said = {name: f"{{{{ {expression} | to_json }}}}" for name, expression in SAID.items()}
    # One task: each takes a second for some hosts.
    copy = {
        "content": "{{ texts | to_json }}",
        "dest": f"{directory}/{{{{ inventory_hostname }}}}.json",
        "mode": "0600",
    }
    variables = {"item": str(ROLES / RULES), "texts": {**texts, **said}}
    play["tasks"] = [{"ansible.builtin.copy": copy, "vars": variables}]
    return play
