"""Ansible, over the machines of a converged Molecule scenario and as Molecule calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.integration.machines import SCENARIO

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ansible:
    """Runs its commands with an inventory like Molecule's."""

    inventory: Path

    @classmethod
    def over_molecule(cls, inventory: Path) -> Ansible:
        """Make the inventory in an empty directory."""
        scenario = REPOSITORY / "molecule" / SCENARIO
        settings = yaml.safe_load((REPOSITORY / ".config" / "molecule" / "config.yml").read_text())
        own = yaml.safe_load((scenario / "molecule.yml").read_text())
        host_vars = (scenario / "inventory" / "host_vars", REPOSITORY / "molecule" / "shared" / "host_vars")
        (inventory / "hosts.yml").symlink_to(scenario / "inventory" / "hosts.yml")
        (inventory / "group_vars").symlink_to(REPOSITORY / "inventory" / "group_vars")
        (inventory / "host_vars").symlink_to(next(path for path in host_vars if path.exists()))
        groups: dict[str, Any] = {}
        for platform in own.get("platforms", settings["platforms"]):
            for group in platform.get("groups", []):
                groups.setdefault(group, {"hosts": {}})["hosts"][platform["name"]] = {}
        (inventory / "groups.json").write_text(json.dumps(groups))
        return cls(inventory)

    def start(self, *command: str, repository: Path = REPOSITORY) -> subprocess.Popen[str]:
        """Start a command of Ansible from this or another checkout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment |= {"MOLECULE_PROJECT_DIRECTORY": str(REPOSITORY), "MOLECULE_SCENARIO_NAME": SCENARIO}
        environment |= {"ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [*command, "--inventory", str(self.inventory)],
            cwd=repository,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def attempt(self, *command: str, repository: Path = REPOSITORY) -> tuple[int, str]:
        """Run a command to its end, and return its exit status and what it says."""
        with self.start(*command, repository=repository) as process:
            output, _ = process.communicate()
        return process.returncode, output

    def run(self, *command: str, repository: Path = REPOSITORY) -> str:
        """Run a command that succeeds, and return what it says."""
        status, output = self.attempt(*command, repository=repository)
        assert status == 0, output
        return output

    def kill_at(self, words: str, delay: float, *command: str, repository: Path = REPOSITORY) -> None:
        """Start a command, and kill it and all of its children some seconds after it says `words`.

        What runs on the host by then goes on, as it does when a controller dies.
        """
        said = ""
        with self.start(*command, repository=repository) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said += line
                if words in line:
                    time.sleep(delay)
                    for pid in _with_descendants(process.pid):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    return
        raise AssertionError(f"It ended and did not say {words!r}: {said}")


def _with_descendants(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not: Ansible's workers leave its process group."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    family = [pid]
    for each in family:  # grows meanwhile
        family += [child for child, parent in parents.items() if parent == each]
    return family
