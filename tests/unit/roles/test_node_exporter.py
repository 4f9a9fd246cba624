"""What is left alone when the node exporter is not wanted: one that the role did not set up."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")


def removed(directory: Path) -> str:
    """Run the removal in check mode, without the package, and return what Ansible says."""
    first, block = yaml.safe_load((ROLES / "node_exporter" / "tasks" / "remove.yml").read_text())
    assert "prometheus-node-exporter" in str(block["block"].pop(0)["ansible.builtin.apt"])
    for task in block["block"]:
        task.pop("notify", None)
    tasks = json.loads(json.dumps([first, block]).replace("/etc/", f"{directory}/etc/"))
    (directory / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    own = json.dumps({"ansible_python_interpreter": sys.executable})
    said = run_play(directory, "-i", "host,", "-c", "local", "-e", own, "--check", "play.yml").stdout
    assert "failed=0" in said, said
    return said


def test_an_exporter_that_the_role_did_not_set_up_is_left_alone(tmp_path: Path) -> None:
    drop_ins = tmp_path / "etc/systemd/system/prometheus-node-exporter.service.d"
    drop_ins.mkdir(parents=True)
    (drop_ins / "own.conf").touch()
    assert "skipped=3" in removed(tmp_path)

    (drop_ins / "service.conf").touch()
    assert "changed=1" in removed(tmp_path)  # the drop-ins; no such user is on the machine of the tests
