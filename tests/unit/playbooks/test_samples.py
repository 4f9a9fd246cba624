"""Samples of several servers come to the controller; the command that packs them is the real one."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from model_server.metrics.samples import SampleReason
from model_server.server.ring import Ring
from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")

PLAYBOOK = Path(__file__).parents[3] / "playbooks" / "samples.yml"
(PRECEDENCE,) = re.findall(r"(?m)^precedence = (.+)$", (PLAYBOOK.parents[1] / "ansible.cfg").read_text())
COMMAND = f'#!/bin/sh\ncd {PLAYBOOK.parents[1]} && exec {sys.executable} -m model_server "$@"\n'
# The tests may not change their user.
SYSTEMD_RUN = 'while :; do case $1 in --*) echo "$1" >>{directory}/systemd-run; shift ;; *) exec "$@" ;; esac; done'
CONFINED = ("ProtectSystem=strict", "PrivateTmp=yes", "PrivateNetwork=yes", "NoNewPrivileges=yes", "MemoryMax=1G")


class Servers:
    """Hosts, each with a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts: Dict[str, Dict[str, Any]] = {}

    def add(self, host: str, **variables: Any) -> Path:
        """Add a host, and return the directory of its ring."""
        self.hosts[host] = variables
        program = self.directory / host / "home" / "current" / "venv" / "bin" / "model-server"
        program.parent.mkdir(parents=True)
        program.write_text(COMMAND)
        program.chmod(0o755)
        return self.directory / host / "ring"

    def play(self, *arguments: str) -> Tuple[str, List[Path]]:
        """Run the playbook; return what it says, and the folders of all hosts on the controller."""
        given = {
            "__model_server_samples": f"{self.directory}/{{{{ inventory_hostname }}}}/ring",
            "__model_server_home": f"{self.directory}/{{{{ inventory_hostname }}}}/home",
            "ansible_python_interpreter": sys.executable,
            "samples": str(self.directory / "samples"),
        }
        own = {"ansible_connection": "local", "ansible_become": False}
        (self.directory / "hosts.json").write_text(json.dumps({"model_servers": {"hosts": self.hosts, "vars": own}}))
        options = ("-i", "hosts.json", "-e", json.dumps(given), *arguments, str(PLAYBOOK))
        programs = {"systemd-run": SYSTEMD_RUN.format(directory=self.directory)}
        said = run_play(self.directory, *options, programs=programs, PRECEDENCE=PRECEDENCE).stdout
        return said, sorted((self.directory / "samples").glob("*/*"))


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


def fill(ring: Path, image: bytes) -> None:
    for reason in (SampleReason.OUTLYING, SampleReason.OUTLYING, SampleReason.REJECTED):
        answer = {"class": "apple", "confidence": 0.3, "prediction_id": "id"}
        Ring(ring, 10_000_000).keep(reason, image, ".jpg", answer)


def remains() -> List[Path]:
    return list(Path("/var/tmp").glob("samples-*"))  # noqa: S108 - where the play has its folder


def test_samples_of_each_server_come_to_a_folder_of_its_own(servers: Servers, encode: Callable[..., bytes]) -> None:
    before = remains()
    fill(servers.add("a"), encode())
    servers.add("b")
    servers.add("c").mkdir()
    servers.add("d", model_server_state="absent")
    said, folders = servers.play()

    assert said.count("failed=0") == 3, said  # of a host without a model server nothing is said
    assert "failed=1" not in said
    assert [folder.name for folder in folders] == ["a"]
    (folder,) = folders
    assert sorted(path.name for path in folder.iterdir()) == ["contact-sheet.png", "labels.csv", "outlying", "rejected"]
    assert len(list(folder.glob("outlying/*.jpg"))) == len(list(folder.glob("outlying/*.json"))) == 2
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*.*")} == {0o600}
    assert f"{folder}: 1 rejected, 0 uncertain, 2 outlying. Look at contact-sheet.png; fill in labels.csv." in said
    assert "a has 2 outlying, 1 rejected." in said
    assert "b keeps no images; set model_server_samples_max_bytes to the bytes that they may take" in said
    assert "c has kept no image so far: none was rejected, uncertain or outlying." in said
    assert remains() == before
    options = (servers.directory / "systemd-run").read_text().splitlines()
    assert {"--pipe", "--wait", "--uid=model-server", *(f"--property={name}" for name in CONFINED)} <= set(options)


def test_a_relative_place_is_where_the_user_stands(servers: Servers, encode: Callable[..., bytes]) -> None:
    fill(servers.add("a"), encode())
    said, _ = servers.play("-e", "samples=some/where")
    assert "failed=0" in said, said
    assert len(list((servers.directory / "some" / "where").glob("*/a/contact-sheet.png"))) == 1


def test_an_archive_of_something_else_is_not_unpacked(servers: Servers, encode: Callable[..., bytes]) -> None:
    fill(servers.add("a"), encode())
    program = servers.directory / "a" / "home" / "current" / "venv" / "bin" / "model-server"
    (servers.directory / "stranger").symlink_to("/etc/passwd")
    program.write_text(f"#!/bin/sh\ntar --create --directory {servers.directory} stranger; echo 'samples: 1' >&2\n")
    said, (folder,) = servers.play()

    assert "failed=1" in said, said
    assert "The archive of the host's samples is not taken: it has 'stranger', which is no file of samples." in said
    assert list(folder.iterdir()) == []


def test_check_mode_tells_how_many_there_are(servers: Servers, encode: Callable[..., bytes]) -> None:
    fill(servers.add("a"), encode())
    said, folders = servers.play("--check")

    assert "failed=0" in said, said
    assert "a has 2 outlying, 1 rejected." in said
    assert folders == []


def test_a_command_that_fails_says_why_and_leaves_nothing(servers: Servers, encode: Callable[..., bytes]) -> None:
    before = remains()
    ring = servers.add("a")
    fill(ring, encode())
    program = servers.directory / "a" / "home" / "current" / "venv" / "bin" / "model-server"
    program.write_text("#!/bin/sh\necho 'samples: - cannot be written: No space left on device.' >&2; exit 1\n")
    said, _ = servers.play()

    assert "failed=1" in said, said
    assert "samples: - cannot be written: No space left on device." in said
    assert remains() == before


@pytest.mark.parametrize("max_bytes", [0, 50_000_000])
def test_the_service_may_write_samples_only_where_they_are_kept(tmp_path: Path, max_bytes: int) -> None:
    lookup = "{{ lookup('ansible.builtin.template', item) }}"
    templates = ["etc/systemd/system/model-server.service.j2", "etc/model-server/next/model-server.env.j2"]
    task = {
        "ansible.builtin.copy": {"content": lookup, "dest": f"{tmp_path}/{{{{ item | basename }}}}", "mode": "0644"}
    }
    shutil.copytree(str(ROLES / "model_server"), str(tmp_path / "roles" / "model_server"))
    (tmp_path / "roles/model_server/tasks/units.yml").write_text(json.dumps([{**task, "loop": templates}]))
    role = {"ansible.builtin.include_role": {"name": "model_server", "tasks_from": "units"}}
    variables = {"model_server_samples_max_bytes": max_bytes, "ansible_managed": "Managed"}
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [role]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    run = run_play(tmp_path, "play.yml", ROLES_PATH=str(tmp_path / "roles"))

    assert run.returncode == 0, run.stdout
    unit, settings = ((tmp_path / Path(template).name).read_text().splitlines() for template in templates)
    assert [line for line in unit if "samples" in line or "StateDirectory" in line] == (
        []
        if not max_bytes
        else [
            "# /var/lib/model-server/samples: images of clients, for the service alone.",
            "StateDirectory=model-server/samples",
            "StateDirectoryMode=0700",
            "# The service reads its files, writes below /run and its samples, and listens: everything else is closed.",
        ]
    )
    assert [line for line in settings if "SAMPLES" in line] == (
        []
        if not max_bytes
        else [
            "MODEL_SERVER_SAMPLES_DIRECTORY=/var/lib/model-server/samples",
            "MODEL_SERVER_SAMPLES_MAX_BYTES=50000000",
            "MODEL_SERVER_SAMPLES_BELOW_CONFIDENCE=0.5",
        ]
    )
