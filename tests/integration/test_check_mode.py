"""What `ansible-playbook --check --diff` shows: no secret. That nothing would change is for `tests/ssh`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.machines import Machine
from tests.integration.playbooks import REPOSITORY, Ansible

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


# Where the other roles take one.
SECRETS = {
    "model_server_api_keys": [{"name": "shop", "secret": f"{SECRET}-of-the-shop"}],
    "model_server_feedback_keys": [f"{SECRET}-that-signs"],
    "haproxy_operators": [{"name": "duty", "password": SECRET}],
    "grafana_admin_password": SECRET,
    "grafana_prometheus_url": f"http://user:{SECRET}@127.0.0.1:9090",
    "model_server_torch_index_url": f"https://user:{SECRET}@example.org/simple",
}


def changes(output: str) -> dict[str, int]:
    """Return how many tasks would change something on each host, by the recap of a run."""
    return {host: int(count) for host, count in re.findall(r"^(\w+) +: .*\bchanged=(\d+)", output, flags=re.MULTILINE)}


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("variables") / "receivers.json"
    file.write_text(json.dumps(RECEIVERS))
    return f"@{file}"


def test_secrets_of_alertmanager_are_not_shown(server: Machine, ansible: Ansible, receivers: str) -> None:
    options = ["--check", "--diff", "--tags", "alertmanager", "--extra-vars", receivers, "-vvv"]
    output = ansible.run("ansible-playbook", "site.yml", *options)

    assert changes(output) == {"server": 1, "load": 0}, output
    assert SECRET not in output


def test_no_secret_is_shown(ansible: Ansible, tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(json.dumps(SECRETS))
    options = ["--check", "--diff", "--limit", "server", "--extra-vars", f"@{tmp_path}/secrets.json", "-vvv"]
    output = ansible.run("ansible-playbook", "site.yml", *options)

    assert changes(output)["server"] >= 3, output
    assert SECRET not in output


def test_alertmanager_understands_every_receiver(server: Machine, ansible: Ansible, receivers: str) -> None:
    role, file = REPOSITORY / "roles" / "alertmanager", "/root/every-receiver.yml"
    template = f"src={role}/templates/etc/prometheus/alertmanager.yml.j2 dest={file} validate='amtool check-config %s'"
    variables = [f"@{role}/{place}/main.yml" for place in ("defaults", "vars")] + [receivers]
    options = [word for each in variables for word in ("--extra-vars", each)]
    try:
        ansible.run("ansible", "server", "--module-name", "ansible.builtin.template", "--args", template, *options)
        content = server.run("cat %s", file)
    finally:
        server.run("rm --force %s", file)

    assert all(f"{kind}_configs" in content for kind in ("webhook", "slack", "email"))
