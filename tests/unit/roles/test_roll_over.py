"""Servers of a fleet change one after the other; what happens on each is logged in place of it."""

import json
import shutil
import sys
from pathlib import Path
from typing import List, Tuple

import pytest
import yaml

from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")

# In place of model-server-deployment: each host has one of its own.
PROGRAM = """\
#!/bin/sh
echo "{host} $1, drained for $MODEL_SERVER_DRAIN_SECONDS s" >>{log}
[ "{host}" != "{broken}" ] || {{ echo "{host} does not serve." >&2; exit 1; }}
"""


def roll_over(
    directory: Path, broken: str = "", drain_seconds: int = 3, absent: str = "", others_serve: bool = True
) -> Tuple[str, List[str]]:
    """Run the part of the role that changes three servers; return what the screen says, and what was done where."""
    log = directory / "log"
    log.touch()
    for host in "abc":
        (directory / host).write_text(PROGRAM.format(host=host, log=log, broken=broken))
        (directory / host).chmod(0o755)
    shutil.copytree(ROLES / "model_server", directory / "roles" / "model_server")
    service = directory / "roles" / "model_server" / "tasks" / "service.yml"
    (turns,) = (
        task for task in yaml.safe_load(service.read_text()) if task["name"] == "Service is rolled over if they differ"
    )
    present = "inventory_hostname not in absent"
    difference = {"ansible.builtin.command": "false", "register": "__model_server_difference", "failed_when": False}
    service.write_text(json.dumps([{**difference, "when": present}, {**turns, "when": present}]))
    role = {"ansible.builtin.import_role": {"name": "model_server", "tasks_from": "service"}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [role]}
    (directory / "play.yml").write_text(json.dumps([play]))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "__model_server_program": f"{directory}/{{{{ inventory_hostname }}}}",
        "model_server_drain_seconds": drain_seconds,
        "absent": absent,
    }
    nobody = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    hosts = {host: nobody if host in absent else {} for host in "abc"}
    (directory / "hosts.json").write_text(json.dumps({"model_servers": {"hosts": hosts}}))
    arguments = ("-i", "hosts.json", "-c", "local", "-e", json.dumps(variables), "play.yml")
    programs = {"systemctl": f"exit {0 if others_serve else 3}"}
    run = run_play(directory, *arguments, programs=programs, ROLES_PATH=str(directory / "roles"))
    return run.stdout, log.read_text().splitlines()


def test_one_server_after_the_other_is_drained_and_changed(tmp_path: Path) -> None:
    said, done = roll_over(tmp_path)

    assert done == [f"{host} apply, drained for 3 s" for host in "abc"], said
    assert "failed=0" in said


def test_the_first_that_fails_ends_the_play_and_the_rest_stay_as_they_are(tmp_path: Path) -> None:
    said, done = roll_over(tmp_path, broken="b")

    assert done == ["a apply, drained for 3 s", "b apply, drained for 3 s"], said
    assert "b does not serve." in said


def test_server_that_is_absent_has_no_turn_and_need_not_answer(tmp_path: Path) -> None:
    said, done = roll_over(tmp_path, absent="a")

    assert done == ["b apply, drained for 3 s", "c apply, drained for 3 s"], said
    assert "failed=0" in said


def test_the_last_server_that_serves_stays_in_service(tmp_path: Path) -> None:
    said, done = roll_over(tmp_path, others_serve=False)

    assert done == [f"{host} apply, drained for 0 s" for host in "abc"], said


def test_a_single_server_stays_in_service(tmp_path: Path) -> None:
    _, done = roll_over(tmp_path, drain_seconds=0, absent="bc")

    assert done == ["a apply, drained for 0 s"]
