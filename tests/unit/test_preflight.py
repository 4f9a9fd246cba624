"""Wrong variables stop in preflight, each with a sentence that says what to change."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

pytest.importorskip("ansible")

REPOSITORY = Path(__file__).parents[2]
DIGEST = "0" * 64
FOCAL = {"distribution": "Ubuntu", "distribution_version": "20.04", "service_mgr": "systemd", "processor_vcpus": 2}
MAIL = {
    "alertmanager_email_to": "duty@example.org, Second Line <second@example.org>",
    "alertmanager_smtp_smarthost": "mail.example.org:587",
    "alertmanager_smtp_from": "alerts@example.org",
}

# group → host → its variables, and what preflight says; one run judges all hosts of a group at once
WRONG: Dict[str, Dict[str, Any]] = {
    "model_servers": {
        "negative_port": ({"model_server_port": -1}, "model_server_port is -1; set it to a number from 1 to 65535."),
        "high_port": ({"model_server_port": 65536}, "set it to a number from 1 to 65535."),
        "no_port": ({"model_server_port": "http"}, "model_server_port is http; set it to a number from 1 to 65535."),
        "no_worker": ({"model_server_workers": 0}, "set it to a number from 1 to 256."),
        "name_as_address": ({"model_server_listen_address": "eth0"}, "set it to an IPv4 address, or"),
        "unknown_torch": ({"model_server_torch_source": "conda"}, "is 'conda'; set it to pip or distro."),
        "url_without_checksum": (
            {"model_server_weights_url": "https://example.org/w.pt"},
            "set model_server_weights_sha256 to",
        ),
        "checksum_without_url": ({"model_server_weights_sha256": DIGEST}, "set model_server_weights_url as well"),
        "short_checksum": (
            {"model_server_weights_url": "https://example.org/w.pt", "model_server_weights_sha256": "abc"},
            "set it to the 64 hexadecimal digits",
        ),
        "path_as_url": (
            {"model_server_weights_url": "/srv/w.pt", "model_server_weights_sha256": DIGEST},
            "set it to an http, https or file URL.",
        ),
        "old_system": (
            {"os": {"distribution_version": "18.04"}},
            "Ubuntu 18.04 is not supported; deploy to Ubuntu 20.04 or later",
        ),
        "other_system": (
            {"os": {"distribution": "Fedora", "distribution_version": "40"}},
            "Fedora 40 is not supported; deploy to Ubuntu 20.04 or later, or Debian 11 or later.",
        ),
        "no_systemd": ({"os": {"service_mgr": "openrc"}}, "the model server needs systemd."),
        "distro_torch_on_focal": ({"model_server_torch_source": "distro"}, "set model_server_torch_source to pip."),
        "distro_torch_elsewhere": (
            {"model_server_torch_source": "distro", "model_server_python": sys.executable},
            "set model_server_python to /usr/bin/python3",
        ),
        "missing_python": ({"model_server_python": "/usr/bin/python0"}, "full path of a Python 3.8 or later"),
        "unknown_state": ({"model_server_state": "gone"}, "set it to present or absent."),
        "missing_images": (
            {"model_server_reference_images": "/no/such/directory"},
            "is /no/such/directory, where this controller finds 0 images; set it to a directory with 10 or more.",
        ),
        "directory_without_images": (
            {"model_server_reference_images": str(REPOSITORY / "script")},
            "finds 0 images; set it to a directory",
        ),
    },
    "monitoring": {
        "old_system": (
            {"os": {"distribution_version": "18.04"}},
            "runs Ubuntu 18.04; use a host with Ubuntu 20.04 or later",
        ),
        "exporter_port": ({"node_exporter_port": -1}, "node_exporter_port is '-1'; set it to a port from 1 to 65535."),
        "two_flags_in_one": ({"node_exporter_extra_args": ["--a --b"]}, "without spaces or quotes."),
        "prometheus_port": ({"prometheus_port": 0}, "prometheus_port is '0'; set it to a port from 1 to 65535."),
        "alertmanager_port": ({"alertmanager_port": 0}, "alertmanager_port is '0'; set it to a port from 1 to 65535."),
        "no_webhook": (
            {"alertmanager_webhook_url": "example.org"},
            "set it to one that begins with http:// or https://",
        ),
        "slack_without_channel": (
            {"alertmanager_slack_url": "https://example.org/s"},
            "set alertmanager_slack_channel",
        ),
        "channel_without_slack": ({"alertmanager_slack_channel": "#alerts"}, "set alertmanager_slack_url to"),
        "mail_to_no_address": ({**MAIL, "alertmanager_email_to": "duty"}, "is 'duty'; set it to addresses such as"),
        "mail_without_server": ({**MAIL, "alertmanager_smtp_smarthost": ""}, "set alertmanager_smtp_smarthost"),
        "mail_without_port": ({**MAIL, "alertmanager_smtp_smarthost": "mail"}, "is 'mail'; set it to host:port"),
        "mail_without_sender": ({**MAIL, "alertmanager_smtp_from": ""}, "set alertmanager_smtp_from to an address"),
        "mail_without_password": ({**MAIL, "alertmanager_smtp_username": "duty"}, "set both or neither."),
        "two_units": ({"alertmanager_group_wait": "1m30s"}, "set it to one number and one unit, such as 10s."),
        "package_without_checksum": ({"grafana_deb": "https://example.org/grafana.deb"}, "set grafana_deb_sha256 to"),
        "weak_password": ({"grafana_admin_password": "admin"}, "grafana_admin_password"),
    },
    "load_generators": {
        "no_target": ({"locust_host": ""}, "set it to the URL of the model server"),
        "no_users": ({"locust_users": 0}, "locust_users is 0; set it to 1 or more."),
        "standing_still": ({"locust_spawn_rate": 0}, "set it to more than 0 users a second."),
        "no_length": ({"locust_run_time": "forever"}, "set it to a length like 60s, 5m or 1h30m."),
        "old_system": ({"os": {"distribution_version": "18.04"}}, "Ubuntu 18.04 is not supported"),
    },
}
RIGHT: Dict[str, Dict[str, Any]] = {
    "model_servers": {
        "as_it_is": {},
        "own_weights": {"model_server_weights_url": "https://example.org/w.pt", "model_server_weights_sha256": DIGEST},
        "address": {"model_server_listen_address": "[::]", "model_server_port": "65535"},
        "own_images": {"model_server_reference_images": str(REPOSITORY / "load_test" / "images")},
    },
    "monitoring": {
        "as_it_is": {},
        "address": {"prometheus_listen_address": "[::1]", "node_exporter_listen_address": "10.0.0.1"},
        "flag": {"node_exporter_extra_args": ["--collector.ntp"]},
        "mail": {**MAIL, "alertmanager_smtp_username": "duty", "alertmanager_smtp_password": "secret"},
        "slack": {"alertmanager_slack_url": "https://example.org/s", "alertmanager_slack_channel": "#alerts"},
        "webhook": {"alertmanager_webhook_url": "http://load:9099/"},
    },
    "load_generators": {"as_it_is": {}, "long_run": {"locust_run_time": "1h30m"}},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Dict[str, str]]:
    """Run preflight over a local host for each set of variables; group → host → what stopped it."""
    return {group: preflight(tmp_path_factory.mktemp(group), group) for group in WRONG}


def preflight(directory: Path, group: str) -> Dict[str, str]:
    hosts = {**{name: variables for name, (variables, _) in WRONG[group].items()}, **RIGHT[group]}
    inventory = {
        "all": {
            "vars": {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "ansible_become": False,
            }
        },
        group: {
            "hosts": {
                name: {**variables, "os": {**FOCAL, **variables.get("os", {})}} for name, variables in hosts.items()
            },
            "vars": {"locust_host": "http://server:8000"},
        },
    }
    facts = {name: f"{{{{ os.{name} }}}}" for name in FOCAL}
    plays: List[Dict[str, Any]] = [
        {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.set_fact": {**facts, "cacheable": True}}]},
    ]
    if group == "monitoring":
        # These roles judge task by task, and in the playbook the first host to fail ends it for the others.
        roles = [
            {"name": role, "tasks_from": "preflight"}
            for role in ("node_exporter", "alertmanager", "prometheus", "grafana")
        ]
        tasks = [{"ansible.builtin.import_role": role} for role in roles]
        plays.append({"hosts": group, "gather_facts": False, "tasks": tasks})
    else:
        plays.append({"ansible.builtin.import_playbook": str(REPOSITORY / "playbooks" / "preflight.yml")})
    (directory / "hosts.json").write_text(json.dumps(inventory))
    (directory / "play.yml").write_text(json.dumps(plays))
    run = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "hosts.json", "play.yml", "--forks", "8"],
        cwd=directory,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_HOME": str(directory),
            "ANSIBLE_ROLES_PATH": str(REPOSITORY / "roles"),
            "ANSIBLE_GATHERING": "explicit",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    judged = re.findall(r"^(?:fatal|ok): \[(\w+)\]", run.stdout, flags=re.MULTILINE)
    assert set(judged) == set(hosts), run.stdout
    stopped = re.findall(r"^fatal: \[(\w+)\]: FAILED! => (\{.*\})$", run.stdout, flags=re.MULTILINE)
    return {host: json.loads(result)["msg"] for host, result in stopped}


@pytest.mark.parametrize(("group", "host"), [(group, host) for group in WRONG for host in WRONG[group]])
def test_wrong_variable_is_told_in_a_sentence(said: Dict[str, Dict[str, str]], group: str, host: str) -> None:
    _, sentence = WRONG[group][host]

    assert sentence in said[group][host]


def test_no_sentence_repeats_a_secret(said: Dict[str, Dict[str, str]]) -> None:
    assert "example.org" not in said["monitoring"]["no_webhook"] + said["monitoring"]["slack_without_channel"]


def test_right_variables_pass(said: Dict[str, Dict[str, str]]) -> None:
    assert {group: set(stopped) for group, stopped in said.items()} == {
        group: set(hosts) for group, hosts in WRONG.items()
    }
