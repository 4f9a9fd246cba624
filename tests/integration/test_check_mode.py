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
# Every receiver that Alertmanager can have.
RECEIVERS = {
    "alertmanager_webhook_url": f"http://load:9099/{SECRET}",
    "alertmanager_slack_url": f"https://hooks.slack.com/services/{SECRET}",
    "alertmanager_slack_channel": "#alerts",
    "alertmanager_email_to": "duty@example.org",
    "alertmanager_smtp_smarthost": "mail.example.org:587",
    "alertmanager_smtp_from": "alerts@example.org",
    "alertmanager_smtp_username": "duty",
    "alertmanager_smtp_password": SECRET,
}
Ansible = Callable[..., str]


@pytest.fixture(scope="module")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    """Return a function that runs a command of Ansible over Molecule's inventory; it returns what it says."""
    directory = tmp_path_factory.mktemp("inventory")
    (directory / "hosts.yml").symlink_to(REPOSITORY / "molecule" / SCENARIO / "inventory" / "hosts.yml")
    (directory / "group_vars").symlink_to(REPOSITORY / "inventory" / "group_vars")
    (directory / "host_vars").symlink_to(REPOSITORY / "molecule" / "shared" / "host_vars")
    inventory: dict[str, Any] = {"all": {"vars": {"ansible_connection": "community.docker.docker"}}}
    for platform in yaml.safe_load((REPOSITORY / ".config" / "molecule" / "config.yml").read_text())["platforms"]:
        for group in platform["groups"]:
            inventory.setdefault(group, {"hosts": {}})["hosts"][platform["name"]] = {}
    (directory / "groups.json").write_text(json.dumps(inventory))

    def run(*arguments: str) -> str:
        command = [*arguments, "--inventory", str(directory)]
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


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("variables") / "receivers.json"
    file.write_text(json.dumps(RECEIVERS))
    return f"@{file}"


def test_nothing_would_change(server: Machine, load: Machine, ansible: Ansible) -> None:
    output = ansible("ansible-playbook", "site.yml", "--check", "--diff")

    assert changes(output) == {"server": 0, "load": 0}, output


def test_secrets_of_alertmanager_are_not_shown(server: Machine, ansible: Ansible, receivers: str) -> None:
    options = ["--check", "--diff", "--tags", "alertmanager", "--extra-vars", receivers, "-vvv"]
    output = ansible("ansible-playbook", "site.yml", *options)

    assert changes(output) == {"server": 1, "load": 0}, output
    assert SECRET not in output


def test_alertmanager_understands_every_receiver(server: Machine, ansible: Ansible, receivers: str) -> None:
    role, file = REPOSITORY / "roles" / "alertmanager", "/root/every-receiver.yml"
    template = f"src={role}/templates/etc/prometheus/alertmanager.yml.j2 dest={file} validate='amtool check-config %s'"
    variables = [f"@{role}/{place}/main.yml" for place in ("defaults", "vars")] + [receivers]
    options = [word for each in variables for word in ("--extra-vars", each)]
    try:
        ansible("ansible", "server", "--module-name", "ansible.builtin.template", "--args", template, *options)
        content = server.run("cat %s", file)
    finally:
        server.run("rm --force %s", file)

    assert all(f"{kind}_configs" in content for kind in ("webhook", "slack", "email"))
