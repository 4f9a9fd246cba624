"""A deployment on a network without a way out: Molecule's scenario `offline` runs this as its verify."""

from __future__ import annotations

import json

from tests.integration.machines import Machine

IMAGE = "/opt/locust/load_test/images/apple_640x480.jpg"


def test_machines_have_no_way_out(server: Machine, load: Machine) -> None:
    for machine in (server, load):
        assert machine.status("curl --silent --max-time 5 http://deb.debian.org/") != 0


def test_model_answers_the_load_host(load: Machine) -> None:
    answer = load.run(f"curl --silent --fail --insecure --max-time 30 -F file=@{IMAGE} https://server/predict")

    assert json.loads(answer)["likely_class"] == "apple"


def test_locust_runs(load: Machine) -> None:
    assert "locust" in load.run("locust --version")


def test_load_host_is_watched_and_closed(server: Machine, load: Machine) -> None:
    assert "node_cpu_seconds_total" in server.run("curl --silent --fail http://load:9100/metrics")
    assert "Status: active" in load.run("ufw status")


def test_own_configuration_of_apt_and_pip_is_as_before(server: Machine, load: Machine) -> None:
    for machine in (server, load):
        assert "offline" not in machine.run("apt-config dump")
        assert "offline" not in machine.run("cat /etc/apt/sources.list /etc/pip.conf || true")
        assert machine.run("ls /etc/apt/sources.list.d") == ""


def test_hosts_got_what_their_roles_need(server: Machine, load: Machine) -> None:
    home = "/var/cache/model-monitoring-offline"
    assert "torch" not in load.run(f"ls -R {home}")
    assert "locust" not in server.run(f"ls -R {home}")
