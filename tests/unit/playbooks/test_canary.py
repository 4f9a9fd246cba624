"""A canary among two servers behind a door, with stand-ins for what runs on them, which log what is done."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import yaml

from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")

PLAYBOOKS = Path(__file__).parents[3] / "playbooks"
(PRECEDENCE,) = re.findall(r"(?m)^precedence = (.+)$", (PLAYBOOKS.parent / "ansible.cfg").read_text())
ADDRESSES = {"server-1": "192.0.2.11", "server-2": "192.0.2.12", "door": "192.0.2.10"}
HAPROXY = """\
# Role haproxy of the model monitoring stack.
backend model_servers
    balance leastconn
    default-server inter 1s fastinter 500ms fall 2 rise 2
    server 192.0.2.11:8000 192.0.2.11:8000 check
    server 192.0.2.12:8000 192.0.2.12:8000 check
"""
SHARE = "    use-server 192.0.2.12:8000 if { rand(10000) lt 1000 } || { nbsrv(model_servers) eq 0 }\n"
# Serves what it is told to, if it can be loaded.
PROGRAM = """\
#!/bin/sh
echo "{host} $*" >>{directory}/log
case $1 in
  serve)
    [ $2 != broken-1.0 ] || {{ echo "It does not load." >&2; exit 1; }}
    ln -sfn /var/lib/model-server/bundles/$2 {directory}/{host}/current ;;
  resume)
    [ -e {directory}/{host}/drained ] || echo "The server was not drained; nothing was changed."
    rm -f {directory}/{host}/drained ;;
  drain) touch {directory}/{host}/drained ;;
esac
"""


class Fleet:
    """Hosts of an inventory, each with a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.next, self.haproxy_state = directory, "fruits-2.0", "present"
        for host in ADDRESSES:
            (directory / host).mkdir()
            (directory / host / "program").write_text(PROGRAM.format(host=host, directory=directory))
            (directory / host / "program").chmod(0o755)
            (directory / host / "current").symlink_to("/var/lib/model-server/bundles/fruits-1.0")
        self.configuration = directory / "door" / "haproxy.cfg"
        self.configuration.write_text(HAPROXY)
        shutil.copytree(str(ROLES / "model_server"), str(directory / "roles" / "model_server"))
        shutil.copytree(str(ROLES / "haproxy"), str(directory / "roles" / "haproxy"))
        places = {
            "haproxy/tasks/canary.yml": ("/etc/haproxy/haproxy.cfg", str(self.configuration)),
            "model_server/tasks/drain.yml": ("/run/model-server", f"{directory}/{{{{ inventory_hostname }}}}"),
            "model_server/tasks/others.yml": ("/run/model-server", f"{directory}/{{{{ item }}}}"),
        }
        for name, (place, own) in places.items():
            file = directory / "roles" / name
            file.write_text(file.read_text().replace(place, own))
        named: Dict[str, Any] = {"ansible.builtin.set_fact": {"__model_server_bundle": "{{ next }}"}}
        (directory / "roles/model_server/tasks/install.yml").write_text(json.dumps([named]))
        canary = [{"ansible.builtin.import_tasks": "no_canary.yml", "when": "__model_server_canary is not defined"}]
        (directory / "roles/model_server/tasks/preflight.yml").write_text(json.dumps(canary))
        (directory / "playbooks").mkdir()
        for name in ("canary.yml", "rollback.yml", "group_vars"):
            (directory / "playbooks" / name).symlink_to(PLAYBOOKS / name)

    def play(self, *arguments: str, playbook: str = "canary", **variables: str) -> Tuple[str, List[str]]:
        """Run a playbook; return what it says, and what was done."""
        (self.directory / "log").write_text("")
        hosts: Dict[str, Any] = {
            host: {
                "host_address": address,
                "ansible_connection": "local",
                "__model_server_at": f"{address}:8000",
                "__haproxy_metrics_at": "127.0.0.1:1",
            }
            for host, address in ADDRESSES.items()
        }
        common = {"haproxy_state": self.haproxy_state, "ansible_become": False}
        inventory = {
            "all": {"hosts": hosts, "vars": common},
            "model_servers": {"hosts": {"server-1": {}, "server-2": {}}},
            "load_balancers": {"hosts": {"door": {}}},
        }
        (self.directory / "hosts.json").write_text(json.dumps(inventory))
        own = f"{self.directory}/{{{{ inventory_hostname }}}}"
        given = {
            "ansible_python_interpreter": sys.executable,
            "__canary_data": own,
            "__model_server_data": own,
            "__model_server_program": f"{own}/program",
            "model_server_drain_seconds": 1,
            "next": self.next,
            **variables,
        }
        programs = {"systemctl": "exit 0", "haproxy": f"echo door checks >>{self.directory}/log"}
        options = ("-i", "hosts.json", "-e", json.dumps(given), *arguments, f"playbooks/{playbook}.yml")
        settings = {"ROLES_PATH": str(self.directory / "roles"), "PRECEDENCE": PRECEDENCE}
        said = run_play(self.directory, *options, programs=programs, **settings).stdout
        return said, [line for line in (self.directory / "log").read_text().splitlines() if line != "door checks"]

    def bundles(self) -> List[str]:
        return [(self.directory / host / "current").resolve().name for host in ("server-1", "server-2")]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_canary_is_drained_until_the_door_knows_its_share(fleet: Fleet) -> None:
    said, done = fleet.play()

    assert "failed=0" in said, said
    assert done == ["server-2 drain", "server-2 serve fruits-2.0", "server-2 resume"]
    assert fleet.bundles() == ["fruits-1.0", "fruits-2.0"]
    text = fleet.configuration.read_text()
    assert SHARE in text
    assert "    server 192.0.2.11:8000 192.0.2.11:8000 check\n" in text
    assert "    server 192.0.2.12:8000 192.0.2.12:8000 weight 0 check\n" in text
    assert "server-2 serves the bundle fruits-2.0 for 10 % of the traffic" in said

    said, done = fleet.play()
    assert ("failed=0" in said, "changed=0" in said, done) == (True, True, ["server-2 resume"]), said
    assert fleet.configuration.read_text() == text

    fleet.play(share="2.5")
    assert fleet.configuration.read_text() == text.replace("lt 1000", "lt 250")


def test_promoted_bundle_serves_everywhere(fleet: Fleet) -> None:
    fleet.play()

    said, done = fleet.play(step="promote")

    assert "failed=0" in said, said
    assert done == ["server-1 serve fruits-2.0", "server-2 resume"]
    assert fleet.bundles() == ["fruits-2.0", "fruits-2.0"]
    assert fleet.configuration.read_text() == HAPROXY
    said, _ = fleet.play(step="promote")
    assert "There is no canary to promote; start one by -e share=10." in said


def test_aborted_canary_serves_what_it_served_before(fleet: Fleet) -> None:
    fleet.play()
    fleet.next = "fruits-3.0"  # the inventory goes on

    said, done = fleet.play(step="abort")

    assert "failed=0" in said, said
    assert done == ["server-2 drain", "server-2 serve fruits-1.0", "server-2 resume"]
    assert fleet.bundles() == ["fruits-1.0", "fruits-1.0"]
    assert fleet.configuration.read_text() == HAPROXY
    assert not (fleet.directory / "server-2" / "canary").exists()


def test_bundle_that_does_not_load_gets_no_traffic_and_can_be_aborted(fleet: Fleet) -> None:
    fleet.next = "broken-1.0"
    said, done = fleet.play()
    assert "It does not load." in said, said
    assert done == ["server-2 drain", "server-2 serve broken-1.0"]
    assert fleet.configuration.read_text() == HAPROXY

    said, done = fleet.play(step="abort")
    assert "failed=0" in said, said
    assert done == ["server-2 resume"]
    assert fleet.bundles() == ["fruits-1.0", "fruits-1.0"]


def test_another_canary_or_bundle_is_refused_while_one_goes_on(fleet: Fleet) -> None:
    fleet.play()
    before = fleet.configuration.read_text()

    said, done = fleet.play(canary="server-1")
    assert "server-2 is the canary already, and not server-1; end it first" in said, said
    assert done == []

    fleet.next = "fruits-3.0"
    said, done = fleet.play()
    assert "The canary has the bundle fruits-2.0, and the inventory fruits-3.0; end it first" in said, said
    assert (done, fleet.configuration.read_text()) == ([], before)


def test_other_plays_do_not_end_it_unnoticed(fleet: Fleet) -> None:
    fleet.play()

    said, done = fleet.play(playbook="rollback")

    assert "server-2 serves the bundle fruits-2.0 for a share of the traffic, and this would end that" in said, said
    assert done == []


def test_front_door_is_not_written_without_the_share(fleet: Fleet) -> None:
    fleet.play()
    preflight = fleet.directory / "roles" / "haproxy" / "tasks" / "preflight.yml"
    names = ("Configuration on the host is looked at", "Canary is looked for", "No canary would be ended")
    text = preflight.read_text().replace("/etc/haproxy/haproxy.cfg", str(fleet.configuration))
    preflight.write_text(json.dumps([task for task in yaml.safe_load(text) if task["name"] in names]))
    role = {"ansible.builtin.include_role": {"name": "haproxy", "tasks_from": "preflight"}}
    play = {"hosts": "load_balancers", "gather_facts": False, "tasks": [role]}
    (fleet.directory / "playbooks" / "door.yml").write_text(json.dumps([play]))

    said, _ = fleet.play(playbook="door")
    assert "The front door on door gives 192.0.2.12:8000 a share of the traffic, and this would end that" in said, said

    fleet.configuration.write_text(HAPROXY)
    said, _ = fleet.play(playbook="door")
    assert "failed=0" in said, said


def test_what_cannot_be_is_refused(fleet: Fleet) -> None:
    said, done = fleet.play("-l", "server-2", step="begin", share="0", canary="server-3")
    assert "step is 'begin'; set it to start, promote or abort." in said, said
    assert "share is '0'; set it to a percentage from 0.01 to 99.99." in said
    assert "canary is 'server-3'; set it to one of server-1, server-2." in said
    assert "--limit leaves model servers out" in said
    assert done == []

    fleet.haproxy_state = "absent"
    said, done = fleet.play()
    assert "A canary needs two model servers behind a front door (haproxy_state: present)" in said, said
    assert "let the next bundle see copies of requests by playbooks/shadow.yml." in said

    fleet.haproxy_state, fleet.next = "present", "fruits-1.0"
    said, done = fleet.play()
    assert "The bundle fruits-1.0 serves on server-1 already; set model_server_bundle to the next one." in said, said
    assert done == []
