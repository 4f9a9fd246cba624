"""A deployment as users come to it: Molecule's scenario `ssh` runs this as its verify.

The machines are reached by SSH, as a user whose sudo asks for a password. They are hardened, had a Prometheus and a
node exporter of the distribution, and another package manager was at work. The tests build on each other, in their order:
the last ones take everything away and bring it back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest
import yaml

from tests.integration.machines import Machine, Prometheus, wait_until
from tests.integration.playbooks import Ansible

IMAGE = "/opt/locust/load_test/images/apple_640x480.jpg"
ROLES = (
    "model_server",
    "node_exporter",
    "prometheus",
    "alertmanager",
    "grafana",
    "haproxy",
    "firewall",
    "locust",
)
SERVICES = ("model-server", "prometheus", "prometheus-node-exporter", "prometheus-alertmanager", "grafana-server", "haproxy")
# What `absent` leaves, by the READMEs of the roles: what the services have collected.
KEPT = r"/var/lib/(prometheus|grafana)(/|$)"
# What belongs to packages that stay, because others may use them by now (ufw, curl, python3-venv, what packages need).
PACKAGES = r"/var/lib/(apt|dpkg|systemd|ucf|ufw|python)(/|$)|/etc/(ufw|alternatives|rc\d\.d|default|init\.d|ssl|python3[^/]*)(/|$)"


@pytest.fixture(scope="module")
def server() -> Machine:
    return Machine("model-monitoring-ssh-server")


@pytest.fixture(scope="module")
def load() -> Machine:
    return Machine("model-monitoring-ssh-load")


@pytest.fixture(scope="module")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    return Ansible.over_molecule(tmp_path_factory.mktemp("inventory"))


def site(ansible: Ansible, *options: str) -> tuple[dict[str, int], str]:
    """Run site.yml, and return how many tasks changed something on each host, and what was said."""
    output = ansible.run("ansible-playbook", "site.yml", *options)
    recap = re.findall(r"^(\w+) +: .*\bchanged=(\d+)", output, flags=re.MULTILINE)
    return {host: int(count) for host, count in recap}, output


def classified(load: Machine) -> str:
    """Return what the load host hears from the front door about the picture of an apple."""
    url = "https://$(getent hosts server | cut -d' ' -f1)/predict"
    answer = load.run(f"curl --silent --show-error --fail --insecure --max-time 30 -F file=@{IMAGE} {url}")
    return str(json.loads(answer)["likely_class"])


def lines(machine: Machine, command: str) -> set[str]:
    return set(machine.run(command).splitlines())


def test_hosts_are_as_hardened_as_they_were_meant(server: Machine, load: Machine, ansible: Ansible) -> None:
    for machine in (server, load):
        assert "noexec" in machine.run("findmnt --noheadings --output OPTIONS /tmp")
        assert machine.run("passwd --status root").split()[1] == "L"
    said = ansible.run("ansible", "all", "--become", "-m", "ansible.builtin.command", "-a", "sh -c 'umask; logname'")

    assert said.count("0077") == 2
    assert said.count("deploy") == 2


def test_packages_waited_for_the_other_package_manager(server: Machine) -> None:
    """The first package of the deployment came after the lock was free."""
    unit = "another-package-manager"
    times = server.run(f"journalctl --unit {unit} --output short-unix --no-pager | cut -d. -f1").splitlines()
    began, ended = (int(time) for time in (times[0], times[-1]) if time.isdigit())
    installed = [
        int(server.run("date --date %s +%%s".replace("%%", "%"), " ".join(line.split()[:2])))
        for line in server.run("grep ' install ' /var/log/dpkg.log").splitlines()
    ]

    assert ended - began >= 59
    assert not [moment for moment in installed if began < moment < ended - 1]
    assert [moment for moment in installed if moment >= ended - 1]


def test_model_answers_and_is_watched(server: Machine, load: Machine) -> None:
    assert classified(load) == "apple"
    assert server.run("systemctl is-active %s" % " ".join(SERVICES)).split() == ["active"] * len(SERVICES)
    up = server.run("curl --silent --fail http://127.0.0.1:9090/prometheus/api/v1/query?query=up")
    values = {series["metric"]["job"]: series["value"][1] for series in json.loads(up)["data"]["result"]}

    assert values == dict.fromkeys(("model_server", "node", "prometheus", "alertmanager", "haproxy"), "1")


def test_services_of_others_go_on(load: Machine) -> None:
    """On the load host nothing of this project replaces what was there."""
    assert load.run("systemctl is-active prometheus prometheus-node-exporter").split() == ["active", "active"]
    assert "ansible" not in load.run("cat /etc/prometheus/prometheus.yml /etc/default/prometheus").lower()
