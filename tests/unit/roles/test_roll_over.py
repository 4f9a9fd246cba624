"""Servers of a fleet change one after the other, drained; what happens on each is logged in place of it."""

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
echo "{host} $1" >>{log}
[ "{host} $1" != "{broken}" ] || {{ echo "{host} does not serve." >&2; exit 1; }}
"""


def roll_over(directory: Path, broken: str = "", drain_seconds: int = 1, differ: str = "abc") -> Tuple[str, List[str]]:
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
    difference = {"__model_server_difference": {"rc": "{{ (inventory_hostname in differ) | int }}"}}
    service.write_text(json.dumps([{"ansible.builtin.set_fact": difference}, turns]))
    role = {"ansible.builtin.import_role": {"name": "model_server", "tasks_from": "service"}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [role]}
    (directory / "play.yml").write_text(json.dumps([play]))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "__model_server_program": f"{directory}/{{{{ inventory_hostname }}}}",
        "model_server_drain_seconds": drain_seconds,
        "differ": differ,
    }
    arguments = ("-i", "a,b,c,", "-c", "local", "-e", json.dumps(variables), "play.yml")
    run = run_play(directory, *arguments, ROLES_PATH=str(directory / "roles"))
    return run.stdout, log.read_text().splitlines()


def test_one_server_after_the_other_is_drained_changed_and_put_back(tmp_path: Path) -> None:
    said, done = roll_over(tmp_path)

    assert done == [f"{host} {verb}" for host in "abc" for verb in ("drain", "apply", "resume")], said
    assert "failed=0" in said


def test_the_first_that_fails_is_put_back_and_the_rest_stay_as_they_are(tmp_path: Path) -> None:
    said, done = roll_over(tmp_path, broken="b apply")

    assert done == ["a drain", "a apply", "a resume", "b drain", "b apply", "b resume"], said
    assert "b does not serve." in said


def test_server_that_cannot_be_drained_is_changed_without(tmp_path: Path) -> None:
    said, done = roll_over(tmp_path, broken="b drain", differ="bc")

    assert done == ["b drain", "b apply", "c drain", "c apply", "c resume"], said
    assert "failed=0" in said


def test_a_single_server_stays_in_service(tmp_path: Path) -> None:
    _, done = roll_over(tmp_path, drain_seconds=0, differ="a")

    assert done == ["a apply"]
