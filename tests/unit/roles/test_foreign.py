"""What a host has that the roles of the monitoring did not set up, on a host that the test plays."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List

import pytest
import yaml

from tests.unit.plays import run_play

ROLES = Path(__file__).parents[3] / "roles"
PROGRAM = ROLES / "host" / "files" / "foreign.py"
CONFIGURATION = "/etc/prometheus/prometheus.yml"
STOCK_DIGEST = "72e6225074d4688085433eea256544e8"  # MD5 of "stock\n", as dpkg keeps it
SERVICE: Dict[str, Any] = {
    "role": "prometheus",
    "name": "a Prometheus",
    "take_over": False,
    "package": "prometheus",
    "unit": "prometheus.service",
    "address": "127.0.0.1",
    "port": 9090,
    "programs": ["prometheus"],
    "files": {CONFIGURATION: ["# ours", "# ours, too"], "/etc/default/prometheus": ["# ours"]},
}
OWN = 'LISTEN 0 4096 127.0.0.1:9090 0.0.0.0:* users:(("prometheus",pid=7,fd=7))'
FOREIGN = 'LISTEN 0 4096 *:9090 *:* users:(("prometheus",pid=8,fd=7))'
CONTAINER = 'LISTEN 0 4096 0.0.0.0:9090 0.0.0.0:* users:(("docker-proxy",pid=9,fd=4))'
IN_A_POD = 'LISTEN 0 4096 *:9090 *:* users:(("prometheus",pid=10,fd=7))'
NAMELESS = "LISTEN 0 4096 *:9090 *:*"
ELSEWHERE = 'LISTEN 0 4096 192.0.2.1:9090 0.0.0.0:* users:(("prometheus",pid=8,fd=7))'
UNITS = {"prometheus.service": "7", "prom.service": "8", "docker.service": "1"}
GROUPS = {
    "8": "12:pids:/system.slice/other.service\n1:name=systemd:/system.slice/prom.service\n",
    "9": "0::/system.slice/docker.service\n",
    "10": "0::/system.slice/docker.service\n",
}


@pytest.fixture(name="foreign")
def _foreign() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Host:
    """The commands and files of a host."""

    def __init__(self, program: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program, self.root = program, root
        self.sockets, self.conffiles, self.units = "", "", dict(UNITS)
        monkeypatch.setattr(program, "run", self.run)
        for pid, groups in GROUPS.items():
            self.write(f"/proc/{pid}/cgroup", groups)

    def run(self, *command: str) -> str:
        return {
            "ss": "\n".join(
                line for line in self.sockets.splitlines() if f"{line.split()[3]}|".endswith(f"{command[-1][8:]}|")
            ),
            "dpkg-query": self.conffiles,
            "systemctl": self.units.get(command[-1], "0"),
        }[command[0]]

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def report(self, **changed: Any) -> Any:
        return self.program.report({**SERVICE, **changed}, self.root)


@pytest.fixture(name="host")
def _host(foreign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(foreign, tmp_path, monkeypatch)


NOTHING: Dict[str, Any] = {"role": "prometheus", "files": [], "unit_file": "", "stop": "", "problems": []}


def test_bare_host_has_nothing(host: Host) -> None:
    host.units = {}

    assert host.report() == NOTHING


def test_what_the_role_has_set_up_is_not_foreign(host: Host) -> None:
    host.sockets = OWN
    host.write(CONFIGURATION, "# ours\nglobal:\n")

    assert host.report() == NOTHING


def test_what_the_package_left_is_taken_over_silently(host: Host) -> None:
    host.sockets = OWN.replace("127.0.0.1", "*", 1)
    host.write(CONFIGURATION, "stock\n")
    host.conffiles = f" /etc/init.d/prometheus 0\n {CONFIGURATION} {STOCK_DIGEST}\n"

    assert host.report() == NOTHING


@pytest.mark.parametrize("conffiles", ["", f" {CONFIGURATION} {'0' * 32}\n"], ids=["no package", "changed"])
def test_file_of_others_is_said_and_gets_a_backup_when_it_is_taken_over(host: Host, conffiles: str) -> None:
    host.write(CONFIGURATION, "global:\n")
    host.conffiles = conffiles

    assert host.report()["problems"] == [
        "This host has a Prometheus already, which this role did not set up: /etc/prometheus/prometheus.yml; "
        "set prometheus_take_over to true to replace it and keep backups of its files."
    ]
    assert host.report(take_over=True) == {**NOTHING, "files": [CONFIGURATION]}


def test_what_the_packages_script_made_of_a_sample_is_not_foreign(host: Host) -> None:
    ini, sample = "/etc/grafana/grafana.ini", "/usr/share/grafana/conf/sample.ini"
    host.write(ini, "stock\n")
    grafana = {"files": {ini: ["# ours"]}, "samples": {ini: sample}}

    assert host.report(**grafana)["files"] == [ini]
    host.write(sample, "stock\n")
    assert host.report(**grafana) == NOTHING


def test_service_of_others_on_the_port_is_said_with_its_unit(host: Host) -> None:
    host.sockets = FOREIGN

    assert host.report()["problems"] == [
        "This host has a Prometheus already, which this role did not set up: prometheus (process 8) of prom.service "
        "on port 9090; set prometheus_take_over to true to replace it and keep backups of its files, "
        "or prometheus_port to another port."
    ]
    assert host.report(take_over=True) == {**NOTHING, "stop": "prom.service"}


def test_unit_file_in_place_of_the_packages_is_said(host: Host) -> None:
    host.write("/etc/systemd/system/prometheus.service", "[Service]\n")
    host.sockets = OWN

    assert "set up: /etc/systemd/system/prometheus.service; set" in host.report()["problems"][0]
    assert host.report(take_over=True)["unit_file"] == "/etc/systemd/system/prometheus.service"


def test_mask_of_a_package_that_was_removed_is_not_foreign(host: Host) -> None:
    """The package takes it away when it is installed again, but not a mask of the user's."""
    mask = host.root / "etc/systemd/system/prometheus.service"
    mask.parent.mkdir(parents=True)
    mask.symlink_to("/dev/null")
    host.units = {}
    assert host.report(take_over=True)["unit_file"] == "/etc/systemd/system/prometheus.service"

    host.write("/var/lib/systemd/deb-systemd-helper-masked/prometheus.service", "")
    assert host.report() == NOTHING


@pytest.mark.parametrize(
    ("sockets", "process"),
    [(CONTAINER, "docker-proxy (process 9)"), (IN_A_POD, "prometheus (process 10)"), (NAMELESS, "another process")],
    ids=["port of a container", "process of a container", "nameless"],
)
def test_process_that_only_a_person_can_stop_is_said_even_when_taken_over(
    host: Host, sockets: str, process: str
) -> None:
    host.sockets = sockets
    host.units.pop("prometheus.service")

    assert host.report(take_over=True) == {
        **NOTHING,
        "problems": [f"Port 9090 is taken by {process}; stop it or set prometheus_port to another port."],
    }


def test_another_port_is_no_way_out_where_a_file_is_foreign(host: Host) -> None:
    host.sockets = CONTAINER
    host.write(CONFIGURATION, "global:\n")

    files, port = host.report()["problems"]

    assert files.endswith("set prometheus_take_over to true to replace it and keep backups of its files.")
    assert port.startswith("Port 9090 is taken by docker-proxy (process 9);")


def test_socket_whose_process_cannot_be_seen_is_the_services_while_that_runs(host: Host) -> None:
    host.sockets = NAMELESS

    assert host.report() == NOTHING


def test_another_address_is_no_conflict(host: Host) -> None:
    host.sockets = ELSEWHERE

    assert host.report() == NOTHING
    assert host.report(address="[::]")["stop"] == "prom.service"


def test_further_port_that_another_process_has_is_said(host: Host) -> None:
    cluster = {"variable": "alertmanager_cluster_port", "address": "[::]", "port": 9094}
    host.sockets = CONTAINER.replace(":9090", ":9094")

    assert host.report()["problems"] == []
    assert host.report(further_ports=[cluster])["problems"] == [
        "Port 9094 is taken by docker-proxy (process 9); stop it or set alertmanager_cluster_port to another port."
    ]


def test_further_port_of_what_gives_way_is_not_said(host: Host) -> None:
    cluster = {"variable": "alertmanager_cluster_port", "address": "[::]", "port": 9094}
    host.sockets = f"{FOREIGN}\n{FOREIGN.replace(':9090', ':9094')}"

    assert host.report(further_ports=[cluster], take_over=True)["problems"] == []


@pytest.mark.parametrize("role", ["prometheus", "alertmanager", "node_exporter", "grafana"])
def test_each_file_of_a_role_has_the_line_by_which_it_is_known(role: str) -> None:
    service = yaml.safe_load((ROLES / role / "vars" / "main.yml").read_text())[f"__{role}_service"]
    unknown: List[str] = [
        path
        for path, lines in service["files"].items()
        if not any(line in (ROLES / role / f"templates{path}.j2").read_text() for line in lines)
    ]

    assert service["files"]
    assert unknown == []


@pytest.mark.parametrize("role", ["prometheus", "alertmanager", "node_exporter", "grafana"])
def test_phases_know_what_the_host_has_where_preflight_is_skipped(tmp_path: Path, role: str) -> None:
    """With a phase that says what it knows, in place of its own tasks."""
    shutil.copytree(ROLES / "host", tmp_path / "roles" / "host")
    shutil.copytree(ROLES / role, tmp_path / "roles" / role)
    says = {"ansible.builtin.debug": {"msg": f"known: {{{{ __{role}_foreign.role }}}}"}}
    (tmp_path / "roles" / role / "tasks" / "configure.yml").write_text(json.dumps([says]))
    skipped = ("--tags", f"{role}_configure", "--skip-tags", f"{role}_preflight")

    said = play(tmp_path, {"roles": [role]}, *skipped, ROLES_PATH=str(tmp_path / "roles"))

    assert f"known: {role}" in said


def test_what_has_given_way_does_not_give_way_again(tmp_path: Path) -> None:
    """As on a model server with the monitoring, which gets the node exporter twice in a run."""
    unit = tmp_path / "exporter.service"
    unit.write_text("[Service]\n")
    found = {"role": "node_exporter", "files": [], "unit_file": str(unit), "stop": ""}
    again = {
        "ansible.builtin.import_role": {"name": "host", "tasks_from": "take_over"},
        "vars": {"__host_foreign": "{{ __host_foreign_services.node_exporter }}", "__host_restart": "Restart"},
    }
    tasks = [{"ansible.builtin.set_fact": {"__host_foreign_services": {"node_exporter": found}}}, again, again]
    handlers = [{"name": "Restart", "ansible.builtin.debug": {"msg": "restarted"}}]

    stopped = "case $1 in show) printf 'LoadState=loaded\\nActiveState=inactive\\n' ;; is-enabled) exit 1 ;; esac"

    said = play(tmp_path, {"tasks": tasks, "handlers": handlers}, programs={"systemctl": stopped})

    assert "failed=0" in said, said
    assert (tmp_path / "exporter.service.replaced").exists()


def play(directory: Path, parts: Dict[str, Any], *options: str, **settings: Any) -> str:
    pytest.importorskip("ansible")
    (directory / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, **parts}]))
    interpreter = f"ansible_python_interpreter={sys.executable}"
    return run_play(
        directory, *("-i", "host,", "-c", "local", "-e", interpreter, "play.yml"), *options, **settings
    ).stdout
