"""Plays run by the repository's ansible.cfg, with Mitogen and without it."""

import json
from pathlib import Path

import pytest

from tests.unit.plays import run_play

pytest.importorskip("ansible")

CONFIGURATION = Path(__file__).parents[3] / "ansible.cfg"
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.command: sh -c 'ps -o args= $PPID'
      register: caller
    - ansible.builtin.assert:
        that: ('mitogen' in caller.stdout) == is_installed
        fail_msg: "{{ caller.stdout }}"
"""


@pytest.mark.parametrize("is_installed", [True, False])
def test_plays_run_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool) -> None:
    if is_installed:
        pytest.importorskip("ansible_mitogen")
    else:
        (tmp_path / "ansible_mitogen.py").write_text("raise ImportError('not installed')\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "play.yml").write_text(PLAY)

    result = run_play(
        tmp_path,
        "play.yml",
        "-e",
        json.dumps({"is_installed": is_installed}),
        CONFIG=str(CONFIGURATION),
        LOCALHOST_WARNING="false",
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout + result.stderr
