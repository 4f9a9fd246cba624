"""What the screen says when packages are not to be had at once: by programs that answer as apt's do."""

import json
import sys
from pathlib import Path
from typing import Dict

import pytest

from tests.unit.plays import run_play

pytest.importorskip("ansible")

TASKS = Path(__file__).parents[3] / "roles" / "host" / "tasks" / "package_lists.yml"
REFUSED = (
    "W: GPG error: https://apt.example.org stable InRelease: signatures were invalid: EXPKEYSIG 963FA27710458545 Old"
)
UNREACHED = "W: Failed to fetch https://gone.example.org/InRelease  Could not resolve 'gone.example.org'"
SUMMARY = "E: Some index files failed to download. They have been ignored, or old ones used instead."


def screen(directory: Path, locks: str = "", complaints: str = "", status: int = 0) -> str:
    """Run the tasks twice, as two roles do, and return what is said."""
    (directory / "said").write_text(complaints)
    (directory / "locks").write_text(locks)
    programs = {
        "lslocks": f"cat {directory}/locks",
        "apt-get": f"echo >> {directory}/updates; cat {directory}/said >&2; exit {status}",
    }
    # Lists of the last hour would be good enough; the first of the two is told that they are not.
    imports = [{"ansible.builtin.import_tasks": str(TASKS)}, {"ansible.builtin.import_tasks": str(TASKS)}]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{**imports[0], "vars": {"__host_package_lists_due": True}}, imports[1]],
    }
    (directory / "play.json").write_text(json.dumps([play]))
    python = f"ansible_python_interpreter={sys.executable}"
    run = run_play(directory, "-i", "host,", "-c", "local", "play.json", "-e", python, programs=programs)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (directory / "updates").read_text() == "\n", "asked once for both"
    return run.stdout


def test_broken_repositories_are_named_and_stop_nothing(tmp_path: Path) -> None:
    said = screen(tmp_path, complaints=f"{REFUSED}\n{UNREACHED}\n{SUMMARY}\n", status=100)

    assert said.count("WARNING: this host has a repository that apt cannot use;") == 1
    assert "EXPKEYSIG 963FA27710458545" in said
    assert "https://gone.example.org/InRelease" in said
    assert "Some index files" not in said


def test_another_package_manager_is_named(tmp_path: Path) -> None:
    said = screen(tmp_path, locks="cron 12 /run/crond.pid\nunattended-upgr 345 /var/lib/dpkg/lock-frontend\n")

    assert "unattended-upgr (process 345) holds the lock /var/lib/dpkg/lock-frontend;" in said
    assert "WARNING: this host" not in said


def test_nothing_is_said_where_nothing_is_wrong(tmp_path: Path) -> None:
    said = screen(
        tmp_path, locks="(undefined) -1\ncron 12 /run/crond.pid\n", complaints="W: Target Packages is twice\n"
    )

    assert "holds the lock" not in said
    assert "WARNING: this host" not in said


@pytest.mark.parametrize(("installed", "is_asked"), [({"curl": "8.5"}, False), ({"wget": "1.2"}, True)])
def test_a_host_with_its_packages_is_not_asked_for_lists(
    tmp_path: Path, installed: Dict[str, str], is_asked: bool
) -> None:
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars": {"__host_packages": ["curl"], "__host_installed": installed, "__host_package_lists_due": True},
        "tasks": [{"ansible.builtin.import_tasks": str(TASKS.with_name("packages.yml"))}],
    }
    (tmp_path / "play.json").write_text(json.dumps([play]))
    programs = {"lslocks": ":", "apt-get": f"echo >> {tmp_path}/updates; exit 100"}
    python = f"ansible_python_interpreter={sys.executable}"

    run_play(tmp_path, "-i", "host,", "-c", "local", "play.json", "-e", python, programs=programs)

    assert (tmp_path / "updates").exists() == is_asked
