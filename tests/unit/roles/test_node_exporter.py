"""Its flags, and what is left alone when it is not wanted: an exporter that the role did not set up."""

import json
import sys
from pathlib import Path
from typing import List

import pytest
import yaml

from tests.unit.plays import ROLES, run_play
from tests.unit.roles.daemons import arguments

pytest.importorskip("ansible")


@pytest.mark.parametrize(
    ("extra", "flags"),
    [
        ([], ["--no-collector.systemd"]),
        (["--no-collector.netclass"], ["--no-collector.systemd", "--no-collector.netclass"]),
        (["--collector.systemd.unit-include=a.+"], ["--collector.systemd.unit-include=a.+"]),
        (["--collector.systemd"], ["--collector.systemd"]),
        (["--no-collector.systemd"], ["--no-collector.systemd"]),
    ],
)
def test_units_of_systemd_are_asked_for_only_where_they_are_wanted(
    extra: List[str], flags: List[str], tmp_path: Path
) -> None:
    own = {
        "node_exporter_extra_args": extra,
        "node_exporter_listen_address": "0.0.0.0",  # noqa: S104 - the role's default
        "node_exporter_port": 9100,
    }
    template = ROLES / "node_exporter" / "templates" / "etc" / "default" / "prometheus-node-exporter.j2"
    write = {"src": str(template), "dest": str(tmp_path / "written")}
    tasks = [{"ansible.builtin.template": write}]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    own["ansible_python_interpreter"] = sys.executable
    said = run_play(tmp_path, "-i", "host,", "-c", "local", "-e", json.dumps(own), "play.yml").stdout
    assert "failed=0" in said, said
    assert arguments((tmp_path / "written").read_text()) == ["--web.listen-address=0.0.0.0:9100", *flags]


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
