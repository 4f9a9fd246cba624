"""The decommissioning of hosts, with stand-ins for what runs on them; what happens where is logged in its order.

Each host has a directory of its own. Haproxy reads its file when it is reloaded, Prometheus its targets at once.
"""

import json
import re
import shutil
import sys
from itertools import chain
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import yaml

from tests.unit.plays import ROLES, pages, run_play

pytest.importorskip("ansible")

PLAYBOOKS = Path(__file__).parents[3] / "playbooks"
(PRECEDENCE,) = re.findall(r"(?m)^precedence = (.+)$", (PLAYBOOKS.parent / "ansible.cfg").read_text())
ADDRESSES = {
    "server-1": "192.0.2.11",
    "server-2": "192.0.2.12",
    "door": "192.0.2.10",
    "door-2": "192.0.2.9",
    "monitor": "192.0.2.20",
    "monitor-2": "192.0.2.21",
    "load": "192.0.2.31",
}
GROUPS = {
    "model_servers": ["server-1", "server-2"],
    "load_balancers": ["door"],
    "monitoring": ["monitor"],
    "load_generators": ["load"],
}
HAPROXY = """\
# Role haproxy of the model monitoring stack.
backend model_servers
    default-server inter 1s fastinter 500ms fall 2 rise 2
    server 192.0.2.11:8000 192.0.2.11:8000 check
    server 192.0.2.12:8000 192.0.2.12:8000 check
backend grafana
    server 192.0.2.20:3000 192.0.2.20:3000
"""
TARGETS = {
    "model_server": ["192.0.2.11:8000", "192.0.2.12:8000"],
    "node": ["192.0.2.11:9100", "192.0.2.12:9100", "127.0.0.1:9100"],
    "haproxy": ["192.0.2.10:8404"],
    "load_generator": ["192.0.2.31:9100"],
    "alertmanager": ["127.0.0.1:9093"],
}
# HOST is the host that a module runs for.
SYSTEMCTL = """\
case "$*" in
  is-active*model-server*) test -e {directory}/$HOST/serves ;;
  "reload haproxy.service") echo "$HOST reloads haproxy" >>{directory}/log
    {works} cp {directory}/$HOST/haproxy/haproxy.cfg {directory}/$HOST/running ;;
  *) echo "$HOST systemctl $*" >>{directory}/log ;;
esac
"""
PYTHON3 = """\
[ "$1" != -m ] || exec {python} "$@"
cat >/dev/null
echo "$HOST firewall $2 $3" >>{directory}/log
[ "$4" = --dry-run ] || echo deleted
"""
# In place of a role that is removed; a model server tells who still knows it.
GONE = """\
echo "$HOST is without {role}" >>{directory}/log
[ {role} = model_server ] || exit 0
rm -f {directory}/$HOST/serves
grep -lF 192.0.2.12: {directory}/door/running {directory}/monitor/targets/model* >>{directory}/log
exit 0
"""
# Roles that are not only removed, with the files that stay as they are.
REAL = {"model_server": ["others", "drain"], "haproxy": ["forget"], "prometheus": ["forget"], "firewall": ["forget"]}
ABSENT = ("alertmanager", "probe", "grafana", "node_exporter", "locust", "offline")


class Fleet:
    """Hosts of an inventory, each with a directory."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.groups = {group: list(hosts) for group, hosts in GROUPS.items()}
        self.dead: List[str] = []
        self.absent: List[str] = []  # of state `absent`: without a model server
        self.haproxy_reloads = True
        (directory / "log").touch()
        for host in ADDRESSES:
            (directory / host / "run").mkdir(parents=True)
            (directory / host / "program").write_text(f"#!/bin/sh\necho '{host} '$1 >>{directory}/log\n")
            (directory / host / "python").write_text(f'#!/bin/sh\nHOST={host} exec {sys.executable} "$@"\n')
            for name in ("program", "python"):
                (directory / host / name).chmod(0o755)
        for host in GROUPS["model_servers"]:
            (directory / host / "serves").touch()
        (directory / "door" / "haproxy").mkdir()
        (directory / "door" / "haproxy" / "haproxy.cfg").write_text(HAPROXY)
        (directory / "door" / "running").write_text(HAPROXY)
        (directory / "monitor" / "targets").mkdir()
        for job, targets in TARGETS.items():
            text = json.dumps([{"targets": targets}], indent=2) + "\n"
            file = directory / "monitor" / "targets" / f"model_monitoring_{job}.json"
            file.write_text(text)
            file.chmod(0o640)
        (directory / "monitor" / "targets" / "own.json").write_text('[{"targets": ["192.0.2.12:8000"]}]')
        self._roles()
        (directory / "playbooks").mkdir()
        for name in ("decommission.yml", "group_vars"):
            (directory / "playbooks" / name).symlink_to(PLAYBOOKS / name)

    def _roles(self) -> None:
        places = {
            "/etc/haproxy": f"{self.directory}/{{{{ __decommission_at }}}}/haproxy",
            "/etc/prometheus/targets": f"{self.directory}/{{{{ __decommission_at }}}}/targets",
            "/run/model-server": f"{self.directory}/{{{{ item | default(inventory_hostname) }}}}/run",
        }
        for role in (*REAL, *ABSENT):
            tasks = self.directory / "roles" / role / "tasks"
            if role in REAL:
                shutil.copytree(str(ROLES / role), str(tasks.parent))
            else:
                tasks.mkdir(parents=True)
            for name in REAL.get(role, []):
                text = json.dumps(yaml.safe_load((tasks / f"{name}.yml").read_text()))
                for place, own in places.items():
                    text = text.replace(place, own)
                (tasks / f"{name}.yml").write_text(text)
            gone = GONE.format(role=role, directory=self.directory)
            removed = [{"ansible.builtin.command": {"argv": ["sh", "-c", gone]}, "changed_when": False}]
            asserted = {"ansible.builtin.assert": {"that": f"{role}_state == 'absent'"}}
            (tasks / "remove.yml").write_text(json.dumps(removed))
            (tasks / "main.yml").write_text(json.dumps([asserted, *removed]))

    def decommission(self, *arguments: str) -> str:
        """Run the playbook; return what it says."""
        hosts: Dict[str, Dict[str, Any]] = {}
        for host, address in ADDRESSES.items():
            hosts[host] = {"host_address": address, "ansible_connection": "local"}
            hosts[host]["ansible_python_interpreter"] = str(self.directory / host / "python")
            hosts[host]["model_server_state"] = "absent" if host in self.absent else "present"
            if host in self.dead:
                hosts[host].update({"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1})
        ours = {"haproxy_metrics_listen_address": "127.0.0.1", "haproxy_metrics_port": self.port}
        inventory = {
            "all": {"hosts": hosts, "vars": {"haproxy_state": "present", "ansible_become": False}},
            **{group: {"hosts": {name: {} for name in names}} for group, names in self.groups.items()},
        }
        hosts["door"].update(ours)
        hosts["monitor"].update({"prometheus_port": self.port})
        (self.directory / "hosts.json").write_text(json.dumps(inventory))
        variables = {
            "__model_server_program": f"{self.directory}/{{{{ inventory_hostname }}}}/program",
            "model_server_drain_seconds": 1,
        }
        works = "" if self.haproxy_reloads else "false &&"
        programs = {
            "systemctl": SYSTEMCTL.format(directory=self.directory, works=works),
            "python3": PYTHON3.format(directory=self.directory, python=sys.executable),
            "haproxy": f'grep -q "^backend model_servers$" "$3" && echo "$HOST checks" >>{self.directory}/log',
        }
        given = ("-i", "hosts.json", "-e", json.dumps(variables), *arguments, "playbooks/decommission.yml")
        settings = {"ROLES_PATH": str(self.directory / "roles"), "PRECEDENCE": PRECEDENCE}
        return run_play(self.directory, *given, programs=programs, **settings).stdout

    def log(self) -> List[str]:
        """Return what was done since the last call."""
        lines = (self.directory / "log").read_text().splitlines()
        (self.directory / "log").write_text("")
        return lines

    def targets(self) -> Dict[str, List[str]]:
        files = (self.directory / "monitor" / "targets").glob("model_monitoring_*.json")
        return {
            file.stem.replace("model_monitoring_", ""): json.loads(file.read_text())[0]["targets"] for file in files
        }

    def servers(self, what: str = "running") -> List[str]:
        """Return the servers that haproxy has, or its file."""
        return re.findall(r"(?m)^    server (\S+)", (self.directory / "door" / what).read_text())

    def files(self) -> Dict[str, str]:
        """Return what is on the hosts."""
        paths = [path for host in ADDRESSES for path in (self.directory / host).rglob("*") if path.is_file()]
        return {str(path): path.read_text() for path in paths}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    def page(path: str) -> Tuple[str, str]:
        """Return haproxy's metrics, or Prometheus' targets."""
        if path == "/metrics":
            names = hosts.servers()
            return "text/plain", "".join(f'haproxy_server_status{{server="{name}"}} 1\n' for name in names)
        active = [{"discoveredLabels": {"__address__": target}} for target in chain(*hosts.targets().values())]
        return "application/json", json.dumps({"data": {"activeTargets": active}})

    with pages(page) as port:
        hosts = Fleet(tmp_path, port)
        yield hosts


def test_server_is_drained_and_forgotten_before_it_goes(fleet: Fleet) -> None:
    said = fleet.decommission("-l", "server-2")

    assert "failed=0" in said, said
    assert fleet.log() == [
        "server-2 drain",
        "door checks",
        "door reloads haproxy",
        "server-2 is without model_server",  # nobody knows it any more
        "server-2 is without node_exporter",
        "server-2 is without firewall",
        "server-2 is without offline",
    ]
    assert fleet.servers("haproxy/haproxy.cfg") == ["192.0.2.11:8000", "192.0.2.20:3000"]
    assert fleet.targets() == {
        **TARGETS,
        "model_server": ["192.0.2.11:8000"],
        "node": ["192.0.2.11:9100", "127.0.0.1:9100"],
    }
    assert "Now delete server-2 from the inventory" in said


def test_canary_goes_with_its_share(fleet: Fleet) -> None:
    share = "    use-server 192.0.2.12:8000 if { rand(10000) lt 1000 } || { nbsrv(model_servers) eq 0 }\n"
    server = "    server 192.0.2.12:8000 192.0.2.12:8000"
    for name in ("haproxy/haproxy.cfg", "running"):
        text = HAPROXY.replace(f"{server} check", f"{server} weight 0 check")
        (fleet.directory / "door" / name).write_text(
            text.replace("backend model_servers\n", f"backend model_servers\n{share}")
        )

    said = fleet.decommission("-l", "server-2")

    assert "failed=0" in said, said
    assert "192.0.2.12" not in (fleet.directory / "door" / "running").read_text()


def test_a_second_run_changes_nothing(fleet: Fleet) -> None:
    fleet.decommission("-l", "server-2")
    fleet.log()
    before = fleet.files()

    said = fleet.decommission("-l", "server-2")

    assert ("failed=0" in said, "changed=0" in said) == (True, True), said
    assert fleet.files() == before
    assert [line for line in fleet.log() if "is without" not in line] == []


def test_check_mode_tells_and_changes_nothing(fleet: Fleet) -> None:
    before = fleet.files()

    said = fleet.decommission("-l", "server-2", "--check")

    assert "failed=0" in said, said
    assert "changed=0" not in said
    assert fleet.files() == before
    assert fleet.log() == []
    assert "Nothing was changed (--check)" in said


def test_an_interrupted_run_is_completed(fleet: Fleet) -> None:
    # It ended after haproxy's file had been written, and before haproxy had read it.
    configuration = fleet.directory / "door" / "haproxy" / "haproxy.cfg"
    configuration.write_text(re.sub(r"(?m)^    server 192\.0\.2\.12.*\n", "", HAPROXY))
    (fleet.directory / "server-2" / "run" / "drained").touch()

    said = fleet.decommission("-l", "server-2")

    assert "failed=0" in said, said
    assert fleet.log()[:2] == ["door reloads haproxy", "server-2 is without model_server"]


def test_server_stays_while_a_front_door_sends_to_it(fleet: Fleet) -> None:
    (fleet.directory / "roles/haproxy/tasks/forget.yml").write_text(
        (fleet.directory / "roles/haproxy/tasks/forget.yml").read_text().replace('"retries": 30', '"retries": 1')
    )
    fleet.haproxy_reloads = False

    said = fleet.decommission("-l", "server-2")

    assert "failed=1" in said, said
    assert [line for line in fleet.log() if "is without" in line] == []
    assert fleet.targets() == TARGETS


def test_host_that_does_not_answer_is_forgotten(fleet: Fleet) -> None:
    fleet.dead = ["server-2"]

    said = fleet.decommission("-l", "server-2")

    assert "failed=0" in said, said
    assert fleet.log() == ["door checks", "door reloads haproxy"], said
    assert fleet.servers() == ["192.0.2.11:8000", "192.0.2.20:3000"]
    assert "192.0.2.12" not in str(fleet.targets())
    assert "server-2 does not answer: the other hosts no longer know it" in said
    assert "what it has stays on it (model server, node exporter)." in said


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ("", "--limit is not set, and server-1, server-2, "),
        ("all", "--limit is 'all', and server-1, server-2, "),
        (
            "model_servers",
            "--limit is 'model_servers', and server-1, server-2 would be decommissioned; set it to the name",
        ),
        ("server-*", "--limit is 'server-*', and "),
        ("all,!door", "--limit is 'all,!door', and "),
    ],
)
def test_hosts_must_be_named(fleet: Fleet, limit: str, sentence: str) -> None:
    before = fleet.files()

    said = fleet.decommission(*(["-l", limit] if limit else []), "-e", "decommission_last=true")

    assert sentence in said, said
    assert "changed=0" in said
    assert "ok=1" not in said
    assert fleet.files() == before
    assert fleet.log() == []


@pytest.mark.parametrize(
    ("limit", "dead", "sentence"),
    [
        ("server-1,server-2", "", "No model server but server-1, server-2 is in service, and clients would have none;"),
        ("server-2", "server-1", "No model server but server-2 is in service, and clients would have none;"),
        (
            "monitor",
            "",
            "No monitoring host but monitor is in the inventory, and nobody would watch server-1, server-2;",
        ),
        ("door", "", "No front door but door is in the inventory, and nobody would reach server-1, server-2;"),
    ],
)
def test_the_last_one_stays_unless_it_is_said(fleet: Fleet, limit: str, dead: str, sentence: str) -> None:
    fleet.dead = dead.split()
    before = fleet.files()

    refused = fleet.decommission("-l", limit)
    assert sentence in refused, refused
    assert (fleet.files(), fleet.log()) == (before, [])

    said = fleet.decommission("-l", limit, "-e", "decommission_last=true")
    assert "failed=0" in said, said
    assert len(fleet.log()) > 1


def test_host_without_a_model_server_is_not_missed(fleet: Fleet) -> None:
    fleet.absent, fleet.dead = ["server-2"], ["server-1"]

    said = fleet.decommission("-l", "server-2")

    assert "failed=0" in said, said
    assert "server-2 is without node_exporter" in fleet.log()


def test_host_that_would_have_to_forget_must_answer(fleet: Fleet) -> None:
    fleet.dead = ["door"]
    before = fleet.files()

    said = fleet.decommission("-l", "server-2")

    assert "door would have to forget server-2, and does not answer;" in said, said
    assert (fleet.files(), fleet.log()) == (before, [])


def test_firewalls_and_the_door_forget_a_monitoring_host(fleet: Fleet) -> None:
    fleet.groups["monitoring"] = ["monitor", "monitor-2"]
    (fleet.directory / "monitor-2" / "targets").mkdir()

    said = fleet.decommission("-l", "monitor")

    assert "failed=0" in said, said
    log = fleet.log()
    # Whoever watches goes first.
    gone = [line.split()[-1] for line in log if line.startswith("monitor is without")]
    assert gone == ["prometheus", "alertmanager", "probe", "grafana", "node_exporter", "firewall", "offline"]
    forgotten = (
        '{"from": ["192.0.2.20"], "ports": ["8000", "9100", "%s", "3000", "9090", "9093", "9094", "9094/udp", "5557"]}'
    )
    assert [line for line in log if "firewall forget" in line] == [
        f"server-1 firewall forget {forgotten % 8404}",
        f"server-2 firewall forget {forgotten % 8404}",
        f"monitor-2 firewall forget {forgotten % 8404}",
        f"door firewall forget {forgotten % fleet.port}",
        f"load firewall forget {forgotten % 8404}",
    ]
    assert fleet.servers() == ["192.0.2.11:8000", "192.0.2.12:8000", "192.0.2.21:3000"]


def test_prometheus_forgets_a_front_door(fleet: Fleet) -> None:
    fleet.groups["load_balancers"] = ["door-2", "door"]
    (fleet.directory / "door-2" / "haproxy").mkdir()
    targets = fleet.directory / "monitor" / "targets" / "model_monitoring_haproxy.json"
    targets.write_text('[{"targets": ["192.0.2.9:8404", "192.0.2.10:8404"]}]')

    said = fleet.decommission("-l", "door-2")

    assert "failed=0" in said, said
    assert fleet.targets()["haproxy"] == ["192.0.2.10:8404"]
    assert [line for line in fleet.log() if line.startswith("door-2")] == [
        "door-2 is without haproxy",
        "door-2 is without firewall",
        "door-2 is without offline",
    ]


def test_prometheus_forgets_a_load_host(fleet: Fleet) -> None:
    said = fleet.decommission("-l", "load")

    assert "failed=0" in said, said
    assert fleet.targets() == {**TARGETS, "load_generator": []}
    assert fleet.log() == [f"load is without {role}" for role in ("node_exporter", "locust", "firewall", "offline")]
