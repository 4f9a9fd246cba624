"""Plays on the machine of the tests, kept apart from its own configuration of Ansible and from what runs on it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Mapping, Optional

ROLES = Path(__file__).parents[2] / "roles"


def run_play(
    directory: Path, *arguments: str, programs: Optional[Mapping[str, str]] = None, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Run `ansible-playbook` in a directory with this repository's roles.

    Args:
        directory: where it runs, and keeps what it writes for itself.
        *arguments: of `ansible-playbook`.
        programs: name → shell script; modules find these before the machine's own.
        **settings: of Ansible: `GATHERING="explicit"` is its ANSIBLE_GATHERING.
    """
    (directory / "bin").mkdir(exist_ok=True)
    for name, script in (programs or {}).items():
        (directory / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / "bin" / name).chmod(0o755)
    own = {"HOME": str(directory), "ROLES_PATH": str(ROLES), "CALLBACK_RESULT_FORMAT": "json", "NOCOLOR": "1"}
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), *arguments],
        cwd=directory,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            **{f"ANSIBLE_{name}": value for name, value in {**own, **settings}.items()},
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
