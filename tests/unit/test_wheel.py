"""A release is named after its sources, and its wheel is made of nothing else; the wheel is built in preflight."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Dict

import pytest

from tests.unit.plays import run_play

pytest.importorskip("hatchling")
pytest.importorskip("ansible")

REPOSITORY = Path(__file__).parents[2]
FACTS = {
    "distribution": "Ubuntu",
    "distribution_version": "20.04",
    "service_mgr": "systemd",
    "processor_vcpus": 2,
    "architecture": "x86_64",
}


def build(sources: Path) -> bytes:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "build"]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    (wheel,) = (sources / "build").iterdir()
    return wheel.read_bytes()


def preflight(sources: Path, hosts: Dict[str, Dict[str, Any]], check: bool = False) -> Dict[str, Dict[str, Any]]:
    """Run the role's preflight on local hosts; host → its release and wheel, or why it was stopped."""
    shown = {
        "release": "{{ __model_server_wanted_release }}",
        "wheel": "{{ __model_server_wheel_build.stdout is defined }}",
    }
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars": {"ansible_facts": FACTS, "role_path": str(sources / "roles" / "model_server")},
        "tasks": [
            {"ansible.builtin.import_role": {"name": "model_server", "tasks_from": "preflight"}},
            {"ansible.builtin.debug": {"msg": shown}},
        ],
    }
    local = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "model_server_python": sys.executable,
    }
    (sources / "play.yml").write_text(json.dumps([play]))
    (sources / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": local}}))
    run = run_play(
        sources,
        *("-i", "hosts.json", "-e", f"__model_server_home={sources}/home", "play.yml", *(["--check"] if check else [])),
        programs={"ss": "true"},  # what listens on the machine of the tests is not judged
        ROLES_PATH=str(sources / "roles"),
        STDOUT_CALLBACK="ansible.posix.json",
    )
    (told,) = json.loads(run.stdout)["plays"]
    return {
        host: next(
            task["hosts"][host]["msg"] for task in reversed(told["tasks"]) if "msg" in task["hosts"].get(host, {})
        )
        for host in hosts
    }


def release(sources: Path) -> str:
    return str(preflight(sources, {"server": {}})["server"]["release"])


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for folder in ("model_server", "roles/host", "roles/model_server"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_wheel_is_made_of_the_sources_alone(sources: Path) -> None:
    before = build(sources)
    cache = sources / "model_server" / "__pycache__"
    cache.mkdir()
    (cache / "app.cpython-38.pyc").write_bytes(b"compiled")
    (sources / "model_server" / "app.py.orig").write_text("left by an editor")
    for path in sources.rglob("*.py"):
        os.utime(path, (1, 1))

    assert build(sources) == before


def test_a_changed_source_changes_the_wheel(sources: Path) -> None:
    before = build(sources)
    with (sources / "model_server" / "app.py").open("a") as source:
        source.write("# changed\n")

    assert build(sources) != before


def test_wheel_has_all_files_of_the_package(sources: Path) -> None:
    build(sources)
    (wheel,) = (sources / "build").iterdir()

    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    tracked = subprocess.run(
        ["git", "ls-files", "model_server"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.split()
    assert packed == set(tracked)


def test_release_is_named_after_what_is_in_the_wheel(sources: Path) -> None:
    before = release(sources)
    build(sources)
    (sources / "model_server" / "app.pyc").write_bytes(b"compiled")
    change(sources / "pyproject.toml", "line-length = 120", "line-length = 100")
    assert release(sources) == before, "another name of the same sources"
    assert before.startswith("0.1.0-")

    names = {before}
    change(sources / "pyproject.toml", '"fastapi>=0.115"', '"fastapi>=0.116"')
    names.add(release(sources))
    (sources / "model_server" / "app.py").rename(sources / "model_server" / "application.py")
    names.add(release(sources))
    assert len(names) == 3, "the same name of other sources"


@pytest.mark.parametrize("check", [False, True])
def test_wheel_is_built_though_the_first_server_goes(sources: Path, check: bool) -> None:
    told = preflight(sources, {"goes": {"model_server_state": "absent"}, "stays": {}}, check)

    assert told["stays"]["wheel"]
    assert [path.suffix for path in (sources / "build").iterdir()] == [".whl"]


def test_wheel_of_a_release_that_is_there_is_not_built(sources: Path) -> None:
    complete = sources / "home" / "releases" / release(sources) / ".complete"
    complete.parent.mkdir(parents=True)
    complete.touch()
    shutil.rmtree(sources / "build")

    preflight(sources, {"goes": {"model_server_state": "absent"}, "has_it": {}})

    assert not (sources / "build").exists()


def test_build_that_fails_is_told_in_preflight(sources: Path) -> None:
    change(sources / "pyproject.toml", 'name = "model-server"', "name = 5")

    told = preflight(sources, {"server": {}})

    assert str(told["server"]).startswith("The wheel could not be built on the controller. Run script/bootstrap")
