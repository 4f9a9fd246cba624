"""What `ansible-playbook --check --diff` says of the deployed machines: nothing would change, and no secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.machines import SCENARIO, Machine

REPOSITORY = Path(__file__).parents[2]
SECRET = "correct-horse-battery-staple"
Check = Callable[..., str]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Return a function that runs a playbook in check mode over Molecule's inventory."""
    directory = tmp_path_factory.mktemp("inventory")
    (directory / "hosts.yml").symlink_to(REPOSITORY / "molecule" / SCENARIO / "inventory" / "hosts.yml")
    (directory / "group_vars").symlink_to(REPOSITORY / "inventory" / "group_vars")
    (directory / "host_vars").symlink_to(REPOSITORY / "molecule" / "shared" / "host_vars")
    inventory: dict[str, Any] = {"all": {"vars": {"ansible_connection": "community.docker.docker"}}}
    for platform in yaml.safe_load((REPOSITORY / ".config" / "molecule" / "config.yml").read_text())["platforms"]:
        for group in platform["groups"]:
            inventory.setdefault(group, {"hosts": {}})["hosts"][platform["name"]] = {}
    (directory / "groups.json").write_text(json.dumps(inventory))

    def run(*options: str) -> str:
        command = ["ansible-playbook", "site.yml", "--check", "--diff", "--inventory", str(directory), *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment |= {"MOLECULE_PROJECT_DIRECTORY": str(REPOSITORY), "MOLECULE_SCENARIO_NAME": SCENARIO}
        environment |= {"ANSIBLE_NOCOLOR": "1"}
        result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    return run


def changes(output: str) -> dict[str, int]:
    """Return how many tasks would change something on each host, by the recap of a run."""
    return {host: int(count) for host, count in re.findall(r"^(\w+) +: .*\bchanged=(\d+)", output, flags=re.MULTILINE)}


def test_nothing_would_change(server: Machine, load: Machine, check: Check) -> None:
    output = check()

    assert changes(output) == {"server": 0, "load": 0}, output


def test_secrets_of_alertmanager_are_not_shown(server: Machine, check: Check, tmp_path: Path) -> None:
    secrets = {
        "alertmanager_webhook_url": f"http://load:9099/{SECRET}",
        "alertmanager_slack_url": f"https://hooks.slack.com/services/{SECRET}",
        "alertmanager_slack_channel": "#alerts",
        "alertmanager_email_to": "duty@example.org",
        "alertmanager_smtp_smarthost": "mail.example.org:587",
        "alertmanager_smtp_from": "alerts@example.org",
        "alertmanager_smtp_username": "duty",
        "alertmanager_smtp_password": SECRET,
    }
    (tmp_path / "secrets.json").write_text(json.dumps(secrets))

    output = check("--tags", "alertmanager", "--extra-vars", f"@{tmp_path / 'secrets.json'}", "-vvv")

    assert changes(output) == {"server": 1, "load": 0}, output
    assert SECRET not in output
