"""Which files of the load test reach the load host: what Locust loads, and images of any suffix that it reads."""

import json
import os
import sys
from pathlib import Path
from typing import Set

import pytest
import yaml

from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")

TASKS = ROLES / "locust" / "tasks" / "install.yml"
LOADED = ("locustfile.py", "client_metrics.py")


def deploy(directory: Path) -> Set[str]:
    """Run the part of the role that copies the load test; return what is on the host then."""
    names = [task["name"] for task in yaml.safe_load(TASKS.read_text())]
    first = names.index("Files of the load test are known on the controller")
    handler = {"name": "Restart Locust's page", "ansible.builtin.debug": {"msg": "there is none"}}
    tasks = yaml.safe_load(TASKS.read_text())[first:]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks, "handlers": [handler]}
    (directory / "play.yml").write_text(json.dumps([play]))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "__locust_load_test": str(directory / "load_test"),
        "__locust_home": str(directory / "host"),
    }
    run = run_play(directory, "-i", "host,", "-c", "local", "-e", json.dumps(variables), "play.yml")
    assert "failed=0" in run.stdout, run.stdout
    there = directory / "host" / "load_test"
    return {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}


@pytest.mark.skipif(os.geteuid() != 0, reason="the files on a host are root's")
def test_images_are_jpegs_by_any_suffix_and_those_that_are_gone_are_removed(tmp_path: Path) -> None:
    (tmp_path / "load_test" / "images").mkdir(parents=True)
    (tmp_path / "host" / "load_test").mkdir(parents=True)
    for name in (*LOADED, "locust.conf", "images/a.jpg", "images/b.JPG", "images/c.jpeg", "images/d.png"):
        (tmp_path / "load_test" / name).touch()

    assert deploy(tmp_path) == {*LOADED, "images/a.jpg", "images/b.JPG", "images/c.jpeg"}

    (tmp_path / "load_test" / "images" / "b.JPG").unlink()

    assert deploy(tmp_path) == {*LOADED, "images/a.jpg", "images/c.jpeg"}
