"""A deployment as users come to it: Molecule's scenario `ssh` runs this as its verify.

The machines are reached by SSH, as a user whose sudo asks for a password. They are hardened, had a Prometheus and a
node exporter of the distribution, and another package manager was at work. The tests build on each
other, in their order: the last ones take everything away and bring it back.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.integration.machines import Machine, Prometheus, wait_until
from tests.integration.playbooks import Ansible

IMAGE = "/opt/locust/load_test/images/apple_640x480.jpg"
SERVICES = (
    "model-server prometheus prometheus-node-exporter prometheus-alertmanager grafana-server haproxy model-server-probe"
)
PACKAGES = "prometheus prometheus-alertmanager prometheus-node-exporter grafana haproxy"
ROLES = "model_server node_exporter prometheus alertmanager grafana haproxy firewall locust probe"
FILES = "find /etc /home /opt /root /srv /usr/local /var -xdev -not -path '/var/cache/*' -not -path '/var/log/*'"
ABSENT = json.dumps({f"{role}_state": "absent" for role in ROLES.split()})
# What `absent` leaves, by the READMEs of the roles: what the services have collected.
COLLECTED = r"/var/lib/(prometheus|grafana)(/|$)"
# What packages, systemd, sudo, Ansible and the rehearsal's receiver write for themselves.
# Packages stay that others may need, and so does ufw.
RECORDS = (
    r"/var/lib/(before[.]|(apt|dpkg|systemd|sudo|ucf|ufw|python|webhook-receiver)(/|$))"
    r"|/etc/(networks$|(alternatives|rc.[.]d|ufw)/)|/(home/deploy|root)/[.]ansible"
    r"|/etc/systemd/system/multi-user.target.wants/ufw.service$"
    # `apt remove` keeps whether the unit was enabled, and masks it until the package is installed again.
    r"|/etc/systemd/system/(multi-user.target.wants/)?prometheus(-alertmanager)?.service$"
)


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


def main_pids(machine: Machine) -> dict[str, int]:
    return {unit: machine.main_pid(unit) for unit in SERVICES.split()}


def lines(machine: Machine, command: str) -> set[str]:
    return set(machine.run(command).splitlines())


def test_hosts_are_as_hardened_as_they_were_meant(server: Machine, load: Machine, ansible: Ansible) -> None:
    for machine in (server, load):
        assert "noexec" in machine.run("findmnt --noheadings --output OPTIONS /tmp")
        assert machine.run("passwd --status root").split()[1] == "L"
    said = ansible.run(
        "ansible", "all", "--become", "-m", "ansible.builtin.command", "-a", "sh -c 'umask; echo $SUDO_USER'"
    )

    assert said.count("0077") == 2
    assert said.count("deploy") == 2


def test_packages_waited_for_the_other_package_manager(server: Machine) -> None:
    """The first package of the deployment came after the lock was free."""
    began = int(server.run("stat --format %Y /run/another-package-manager"))
    times = server.run("grep ' install ' /var/log/dpkg.log | cut -d' ' -f1,2 | date --file - +%s")
    installed = [int(time) - began for time in times.splitlines()]

    assert [seconds for seconds in installed if 0 <= seconds < 60] == []
    assert [seconds for seconds in installed if seconds >= 60] != []


def test_model_answers_and_is_watched(server: Machine, load: Machine, prometheus: Prometheus) -> None:
    assert classified(load) == "apple"
    assert set(server.run(f"systemctl is-active {SERVICES}").split()) == {"active"}
    jobs = ["alertmanager", "haproxy", "model_server", "node", "probe", "prometheus"]
    # The Prometheus from before has left samples. Other scenarios run beside this one: a scrape may be late.
    fresh = "up == 1 and time() - timestamp(up) < 5"
    wait_until(lambda: sorted(series["metric"]["job"] for series in prometheus.query(fresh)) == jobs, 30, "targets")


def others_go_on(load: Machine) -> None:
    units = "prometheus prometheus-node-exporter"
    files = "/etc/prometheus/prometheus.yml /etc/default/prometheus /etc/default/prometheus-node-exporter"
    assert load.run(f"systemctl is-active {units}").split() == ["active", "active"]
    assert load.run(f"systemctl show --property DropInPaths --value {units}").split() == []
    assert "ansible" not in load.run(f"cat {files}").lower()


def test_services_of_others_go_on(server: Machine, load: Machine) -> None:
    """On the load host nothing of this project replaces what was there, and the firewall lets in who came before."""
    others_go_on(load)
    exporter = load.run("hostname --all-ip-addresses").split()[0] + ":9100"
    assert "node_cpu_seconds_total" in server.run(f"curl --silent --fail --max-time 10 http://{exporter}/metrics")


@pytest.mark.parametrize("options", [["--check", "--diff"], ["--limit", "load"], ["--tags", "grafana"]], ids=" ".join)
def test_again_nothing_changes(ansible: Ansible, options: list[str]) -> None:
    changed, output = site(ansible, *options)

    assert set(changed.values()) == {0}, output


def test_changed_variable_changes_its_service_alone(server: Machine, ansible: Ansible) -> None:
    before = main_pids(server)
    changed, output = site(ansible, "--limit", "server", "--extra-vars", "prometheus_retention_time=20d")
    roles = re.findall(
        r"^(?:TASK|RUNNING HANDLER) \[(\w+) : [^\n]+\n(?:ok: [^\n]+\n)*changed: ", output, flags=re.MULTILINE
    )

    assert set(changed) == {"server"}, output
    assert set(roles) == {"prometheus"}, output
    assert "--storage.tsdb.retention.time=20d" in server.run(
        "cat /proc/%s/cmdline | tr '\\0' ' '", str(main_pids(server)["prometheus"])
    )
    assert {unit for unit, pid in main_pids(server).items() if pid != before[unit]} == {"prometheus"}


def test_absent_leaves_nothing(server: Machine, load: Machine, ansible: Ansible) -> None:
    site(ansible, "--extra-vars", ABSENT)

    others_go_on(load)
    for machine in (server, load):
        left = lines(machine, FILES) - lines(machine, "cat /var/lib/before.files /var/lib/dpkg/info/*.list")
        assert sorted(path for path in left if not re.match(f"{COLLECTED}|{RECORDS}", path)) == []
        users = lines(machine, "getent passwd; getent group") - lines(machine, "cat /var/lib/before.users")
        assert users == set()
    assert set(server.shell().run(f"systemctl is-active {SERVICES}").stdout.split()) == {"inactive"}
    assert (
        lines(server, "dpkg-query --show --showformat='${db:Status-Status} ${Package}\\n'")
        & {f"installed {package}" for package in PACKAGES.split()}
        == set()
    )
    assert server.run("ufw status") == "Status: inactive"
    changed, output = site(ansible, "--extra-vars", ABSENT)
    assert set(changed.values()) == {0}, output


def test_back(server: Machine, load: Machine, ansible: Ansible) -> None:
    _, output = site(ansible)

    assert "Prometheus gets no figures of Locust on load," in output
    assert classified(load) == "apple"
    assert set(server.run(f"systemctl is-active {SERVICES}").split()) == {"active"}
