"""A shadow on two servers, with stand-ins for what runs on them; what happens where is logged in its order."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from tests.unit.plays import ROLES, pages, run_play

pytest.importorskip("ansible")

PLAYBOOK = Path(__file__).parents[3] / "playbooks" / "shadow.yml"
(PRECEDENCE,) = re.findall(r"(?m)^precedence = (.+)$", (PLAYBOOK.parents[1] / "ansible.cfg").read_text())
PROGRAM = """\
#!/bin/sh
echo "{host} $*" >>{directory}/log
"""
PAGE = """\
predictions_total{{class="apple"}} 900.0
shadow_agreement_ratio nan
shadow_failures_total {failures}
shadow_info{{architecture="none",name="fruits",sha256="0",version="2.0"}} 1.0
shadow_predictions_total{{agrees="false",class="apple"}} {different}
shadow_predictions_total{{agrees="true",class="apple"}} {agreed}
shadow_predictions_total{{agrees="true",class="}} 7"}} 0.0
"""


class Servers:
    """Two hosts, each with a directory; `pages` has what each answers."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.pages = {host: PAGE.format(agreed="490.0", different="10.0", failures="0.0") for host in ("a", "b")}
        (directory / "log").touch()
        for host in self.pages:
            (directory / host).mkdir()
            (directory / host / "shadow").symlink_to("/var/lib/model-server/bundles/fruits-2.0")
            (directory / host / "program").write_text(PROGRAM.format(host=host, directory=directory))
            (directory / host / "program").chmod(0o755)
        shutil.copytree(str(ROLES / "model_server"), str(directory / "roles" / "model_server"))
        for name in ("preflight", "install", "shadow", "shadow_end"):
            done = f"echo {{{{ inventory_hostname }}}} {name} >>{directory}/log"
            task = {"ansible.builtin.command": {"argv": ["sh", "-c", done]}, "changed_when": False}
            (directory / "roles" / "model_server" / "tasks" / f"{name}.yml").write_text(json.dumps([task]))

    def play(self, *arguments: str, **variables: str) -> Tuple[str, List[str]]:
        """Run the playbook; return what it says, and what was done."""
        given = {
            "__model_server_data": f"{self.directory}/{{{{ inventory_hostname }}}}",
            "__model_server_program": f"{self.directory}/{{{{ inventory_hostname }}}}/program",
            "__model_server_url": f"http://127.0.0.1:{self.port}/{{{{ inventory_hostname }}}}",
            "ansible_python_interpreter": sys.executable,
            "model_server_drain_seconds": 0,
            "wait_seconds": 5,
            **variables,
        }
        hosts: Dict[str, Dict[str, str]] = {host: {} for host in self.pages}
        inventory = {
            "model_servers": {"hosts": hosts, "vars": {"ansible_connection": "local", "ansible_become": False}}
        }
        (self.directory / "hosts.json").write_text(json.dumps(inventory))
        options = ("-i", "hosts.json", "-e", json.dumps(given), *arguments, str(PLAYBOOK))
        settings = {"ROLES_PATH": str(self.directory / "roles"), "PRECEDENCE": PRECEDENCE}
        said = run_play(self.directory, *options, programs={"systemctl": "exit 0"}, **settings).stdout
        done = (self.directory / "log").read_text().splitlines()
        (self.directory / "log").write_text("")
        return said, done


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    with pages(lambda path: ("text/plain", hosts.pages[path.split("/")[1]])) as port:
        hosts = Servers(tmp_path, port)
        yield hosts


def test_shadow_is_started_and_its_agreement_told(servers: Servers) -> None:
    said, done = servers.play()

    assert "failed=0" in said, said
    assert sorted(done) == ["a install", "a preflight", "a shadow", "b install", "b preflight", "b shadow"]
    assert "So far, both models agree on 98.00 % of 1000 requests." in said


def test_equal_model_takes_over_on_one_server_after_the_other(servers: Servers) -> None:
    said, done = servers.play(step="promote")

    assert "failed=0" in said, said
    assert done[:2] == ["a serve fruits-2.0", "b serve fruits-2.0"]
    assert sorted(done[2:]) == ["a shadow_end", "b shadow_end"]


@pytest.mark.parametrize(
    ("figures", "variables", "sentence"),
    [
        (
            {"agreed": "3.0", "different": "497.0", "failures": "0.0"},
            {},
            "The takeover is refused, and what serves goes on: both models agree on 49.30 % of 1000 requests, "
            "and min_agreement is 0.95.",
        ),
        (
            {"agreed": "450.0", "different": "0.0", "failures": "50.0"},
            {},
            "both models agree on 94.00 % of 1000 requests, and min_agreement is 0.95.",
        ),
        (
            {"agreed": "469.0", "different": "31.0", "failures": "0.0"},
            {"min_agreement": "0.96"},
            "both models agree on 95.90 % of 1000 requests, and min_agreement is 0.96.",
        ),
        (
            {"agreed": "490.0", "different": "9.0", "failures": "0.0"},
            {},
            "The shadow of b has compared 499 of 500 requests;",
        ),
    ],
    ids=["shuffled", "failing", "bound", "too few"],
)
def test_takeover_is_refused_with_the_figure(
    servers: Servers, figures: Dict[str, str], variables: Dict[str, str], sentence: str
) -> None:
    servers.pages["b"] = PAGE.format(**figures)

    said, done = servers.play(step="promote", **variables)

    assert sentence in said, said
    assert done == []


def test_server_whose_shadow_has_ended_is_named(servers: Servers) -> None:
    servers.pages["b"] = 'predictions_total{class="apple"} 900.0\n'

    said, done = servers.play(step="promote")

    assert "No shadow runs on b; start it by -e share=10" in said, said
    assert done == []


def test_abort_ends_it_and_asks_nothing(servers: Servers) -> None:
    servers.pages = dict.fromkeys(servers.pages, "")

    said, done = servers.play(step="abort")

    assert "failed=0" in said, said
    assert sorted(done) == ["a shadow_end", "b shadow_end"]


def test_variables_that_cannot_be_used_are_named(servers: Servers) -> None:
    said, done = servers.play(step="promot", share="0", min_agreement="95", requests="some")

    assert "step is 'promot'; set it to start, promote or abort." in said, said
    assert "share is '0'; set it to a percentage above 0 to 100." in said
    assert "min_agreement is '95'; set it to a number from 0 to 1." in said
    assert "requests is 'some' and wait_seconds '5'; set them" in said
    assert done == []


def test_unit_is_confined_and_yields_to_the_server(servers: Servers) -> None:
    lookup = "{{ lookup('ansible.builtin.template', 'etc/systemd/system/' ~ item) }}"
    task = {"ansible.builtin.copy": {"content": lookup, "dest": "{{ item }}", "mode": "0644"}}
    units = ["model-server.service.j2", "model-server-shadow.service.j2"]
    (servers.directory / "roles/model_server/tasks/units.yml").write_text(json.dumps([{**task, "loop": units}]))
    role = {"ansible.builtin.include_role": {"name": "model_server", "tasks_from": "units"}}
    variables = {"__model_server_shadow_share": 2.5, "ansible_managed": "Managed"}
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [role]}
    (servers.directory / "play.yml").write_text(json.dumps([play]))

    run = run_play(servers.directory, "play.yml", ROLES_PATH=str(servers.directory / "roles"))

    assert run.returncode == 0, run.stdout
    server, shadow = ((servers.directory / unit).read_text().splitlines() for unit in units)
    assert {"CPUSchedulingPolicy=idle", "OOMScoreAdjust=1000", "RestrictAddressFamilies=AF_UNIX"} <= set(shadow)
    assert any(
        line.endswith("/model-server shadow --bundle /var/lib/model-server/shadow --share 2.5") for line in shadow
    )
    for line in ("ProtectSystem=strict", "SystemCallFilter=~@privileged @resources", "NoNewPrivileges=true"):
        assert line in server
        assert line in shadow
