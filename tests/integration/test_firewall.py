"""What another machine can reach, and that nobody locks himself out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Tell
from tests.integration.machines import Machine
from tests.integration.playbooks import Ansible

SSH = 22
# Prints the ports of a host on which a connection is possible.
SCAN = """
import asyncio, resource, socket, sys
async def main():
    slots = asyncio.Semaphore(2000)
    address = socket.gethostbyname(sys.argv[1])
    async def is_open(port):
        async with slots:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 1)
            except (OSError, asyncio.TimeoutError):
                return False
            writer.close()
            return True
    ports = range(1, 65536)
    print(*(port for port, found in zip(ports, await asyncio.gather(*map(is_open, ports))) if found))
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
asyncio.run(main())
"""


def scanned(machine: Machine, host: str) -> set[int]:
    """Return all ports of the host that are open to this machine."""
    return set(map(int, machine.run("python3 -c %s %s", SCAN, host).split()))


def can_connect(machine: Machine, host: str, port: int) -> bool:
    return machine.status("timeout 3 bash -c %s", f"</dev/tcp/{host}/{port}") == 0


@pytest.fixture
def ssh(server: Machine, tmp_path: Path) -> Iterator[list[str]]:
    """Return what makes Ansible reach the server by SSH, as root with a key that lasts for one test."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    server.run("install --mode 0700 --directory /root/.ssh")
    server.run("printf '%%s\\n' %s > /root/.ssh/authorized_keys", key.with_suffix(".pub").read_text().strip())
    variables = {
        "ansible_connection": "ssh",
        "ansible_host": server.address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_host_key_checking": False,
        "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null -o ControlPath=none",
    }
    yield ["--extra-vars", json.dumps(variables)]
    server.run("rm -r /root/.ssh")


def test_only_what_is_meant_is_open_to_others(server: Machine, load: Machine, tell: Tell) -> None:
    listening = server.run("ss --listening --tcp --numeric --no-header").splitlines()
    addresses = {int(line.split()[3].rpartition(":")[2]): line.split()[3] for line in listening}
    ports = {port for port, address in addresses.items() if not address.startswith("127.")}
    assert {8000, 9090, 9093, 9100} <= ports

    # Those that listen once more, one by one: a busy machine may answer a scan too late.
    found = scanned(load, "server") | {port for port in ports if can_connect(load, "server", port)}

    assert found == {SSH, 80, 443}
    tell("port scan of the server from the load host", f"open: {', '.join(map(str, sorted(found)))}")


def test_load_host_is_open_to_those_who_watch_it_alone(server: Machine, load: Machine, stranger: Machine) -> None:
    assert "9100" in load.run("ss --listening --tcp --numeric --no-header")
    assert can_connect(server, "load", 9100)
    assert not can_connect(stranger, "load", 9100)


def test_firewall_stays_on(server: Machine) -> None:
    assert "Status: active" in server.run("ufw status")
    assert server.run("systemctl is-enabled ufw") == "enabled"
    assert "model-monitoring-firewall-undo" not in server.run("systemctl list-timers --all --no-pager")


def test_wrong_list_does_not_lock_out_whoever_runs_the_play(
    server: Machine, load: Machine, ansible: Ansible, ssh: list[str]
) -> None:
    wrong = ["--extra-vars", json.dumps({"firewall_ssh_from": ["192.0.2.1"]})]
    try:
        server.run("ufw disable")
        for _ in range(2):
            ansible.run("ansible-playbook", "playbooks/firewall.yml", "--limit", "server", *ssh, *wrong)
        assert not can_connect(load, "server", SSH)
        assert can_connect(load, "server", 443)
    finally:
        ansible.run("ansible-playbook", "playbooks/firewall.yml")
    assert can_connect(load, "server", SSH)


def test_service_that_would_be_closed_is_named(server: Machine, load: Machine, ansible: Ansible) -> None:
    server.run("ufw disable")
    server.run("systemd-run --unit=stranger python3 -m http.server 8888")
    try:
        status, said = ansible.attempt("ansible-playbook", "playbooks/firewall.yml")
        assert status != 0
        assert "8888/tcp (python3)" in said
        assert "firewall_open_ports: [8888/tcp]" in said
        ansible.run(
            "ansible-playbook", "playbooks/firewall.yml", "--extra-vars", '{"firewall_open_ports": ["8888/tcp"]}'
        )
        assert can_connect(load, "server", 8888)
    finally:
        server.run("systemctl stop stranger")
        ansible.run("ansible-playbook", "playbooks/firewall.yml")
    assert "8888" not in server.run("ufw status")
