"""What the role does on a host that gets a shadow; systemctl is a stand-in."""

import json
import shutil
import sys
from pathlib import Path
from typing import List, Tuple

import pytest

from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")

SYSTEMCTL = """\
cd {directory}
case $1 in
  show) echo LoadState=loaded; if [ -e active ]; then echo ActiveState=active; else echo ActiveState=inactive; fi ;;
  is-enabled) echo static ;;
  start | restart) echo $1 >>log; grep -q bundles/bad shadow-link && exit 1; touch active ;;
  *) echo $1 >>log ; [ $1 != stop ] || rm -f active ;;
esac
"""
JOURNAL = "model server: shadow: weights.pt has another checksum."


class Host:
    """A host in a directory, on which the bundle `fruits-1` serves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(str(ROLES / "model_server"), str(directory / "roles" / "model_server"))
        for name in ("shadow", "shadow_end"):
            tasks = directory / "roles" / "model_server" / "tasks" / f"{name}.yml"
            tasks.write_text(tasks.read_text().replace("/etc/systemd/system/m", f"{directory}/units/m"))
        for place in ("units", "bundles", "home/current/venv/bin"):
            (directory / place).mkdir(parents=True)
        (directory / "current").symlink_to("/var/lib/model-server/bundles/fruits-1")
        self.program = directory / "home/current/venv/bin/model-server"
        self.program.write_text("#!/bin/sh\n")
        self.program.chmod(0o755)

    def play(self, tasks: str = "shadow", bundle: str = "fruits-2", share: float = 10) -> Tuple[str, List[str]]:
        """Run tasks of the role; return what the play says, and what systemd was told."""
        (self.directory / "log").write_text("")
        (self.directory / "bundles" / bundle).mkdir(exist_ok=True)
        role = {"ansible.builtin.include_role": {"name": "model_server", "tasks_from": tasks}}
        play = {"hosts": "localhost", "gather_facts": False, "tasks": [role]}
        (self.directory / "play.yml").write_text(json.dumps([play]))
        given = {
            "ansible_python_interpreter": sys.executable,
            "ansible_managed": "Managed",
            "__model_server_data": str(self.directory),
            "__model_server_home": f"{self.directory}/home",
            "__model_server_bundle": bundle,
            "__model_server_shadow_share": share,
        }
        link = f"readlink {self.directory}/shadow >{self.directory}/shadow-link\n"
        programs = {
            "systemctl": link + SYSTEMCTL.format(directory=self.directory),
            "journalctl": f"echo Started.; echo '{JOURNAL}'; echo Failed.",
        }
        options = ("-e", json.dumps(given), "play.yml")
        run = run_play(self.directory, *options, programs=programs, ROLES_PATH=str(self.directory / "roles"))
        return run.stdout, (self.directory / "log").read_text().splitlines()

    def names(self) -> List[str]:
        """Return what there is of a shadow."""
        return [
            name
            for name in ("shadow", "units/model-server-shadow.service")
            if (self.directory / name).is_symlink() or (self.directory / name).exists()
        ]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_shadow_is_started_once_and_restarted_when_it_changes(host: Host) -> None:
    said, told = host.play()
    assert "failed=0" in said, said
    assert told == ["daemon-reload", "start"]
    assert (host.directory / "shadow").resolve().name == "fruits-2"

    said, told = host.play()
    assert ("changed=0" in said, told) == (True, []), said

    _, told = host.play(bundle="fruits-3")
    assert told == ["restart"]
    assert (host.directory / "shadow").resolve().name == "fruits-3"

    _, told = host.play(bundle="fruits-3", share=20)
    assert told == ["daemon-reload", "restart"]

    said, told = host.play("shadow_end")
    assert "failed=0" in said, said
    assert (told, host.names()) == (["stop", "daemon-reload"], [])
    said, told = host.play("shadow_end")
    assert ("changed=0" in said, told) == (True, []), said


def test_reason_of_a_shadow_that_does_not_start_is_told(host: Host) -> None:
    said, _ = host.play(bundle="bad")
    assert "The shadow with the bundle bad does not start on localhost; what serves goes on:" in said, said
    assert JOURNAL in said


def test_bundle_that_serves_and_a_release_without_the_command_are_refused(host: Host) -> None:
    host.program.write_text("#!/bin/sh\nexit 2\n")
    said, told = host.play(bundle="fruits-1")
    assert "The release that serves on localhost knows no shadow; run site.yml" in said, said
    assert "The bundle fruits-1 serves on localhost already; set model_server_bundle to the next one." in said
    assert (told, host.names()) == ([], [])
