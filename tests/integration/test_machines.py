"""What systemd runs, as whom, and who may read and write its files."""

from __future__ import annotations

import pytest

from tests.integration.machines import Machine, ModelServer

UNITS = [
    "model-server.socket",
    "model-server.service",
    "prometheus.service",
    "prometheus-alertmanager.service",
    "prometheus-node-exporter.service",
    "grafana-server.service",
]


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_enabled_and_active(server: Machine, unit: str) -> None:
    state = [server.shell().run("systemctl %s %s", verb, unit).stdout.strip() for verb in ("is-enabled", "is-active")]

    assert state == ["enabled", "active"], server.journal(unit)


@pytest.mark.parametrize("name", ["server", "load"])
def test_no_unit_has_failed(name: str, request: pytest.FixtureRequest) -> None:
    machine: Machine = request.getfixturevalue(name)

    assert machine.run("systemctl list-units --failed --plain --no-legend") == ""
    assert machine.run("systemctl is-system-running --wait") == "running"


def test_status_tells_the_state_in_words(server: Machine) -> None:
    status = server.run("systemctl status --no-pager model-server")

    assert "active (running)" in status
    assert "model-server.socket" in status, "not started by its socket"


def test_every_gunicorn_process_is_unprivileged(model_server: ModelServer) -> None:
    uid = model_server.machine.run("id --user model-server")
    processes = model_server.processes()

    assert len(processes) >= 3, "a master and 2 workers are needed to show that metrics are summed"
    for pid, status in processes.items():
        assert status["Uid"].split() == [uid] * 4, f"process {pid}: {status}"
        assert uid != "0"
        # So that a capability can never be gained either, whatever the bounding set allows.
        assert status["NoNewPrivs"] == "1", f"process {pid}"
        for held in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[held], 16) == 0, f"process {pid}: {held} {status[held]}"


def test_model_server_is_confined(server: Machine) -> None:
    *_, verdict = server.run("systemd-analyze security --no-pager model-server.service").splitlines()

    assert float(verdict.split(":")[1].split()[0]) <= 2.0, verdict


def test_model_server_can_only_read_the_system(model_server: ModelServer) -> None:
    """Ask the kernel, from within the namespaces of a worker, which file systems it may write to."""
    machine = model_server.machine
    inside = f"nsenter --target {max(model_server.processes())} --mount"
    places = "/ /etc /usr /var /var/lib/model-server /home /root"

    assert machine.run(f"{inside} sh -c 'for place in {places}; do test -w $place && echo $place; done; true'") == ""
    assert machine.run(f"{inside} ls /root /home").split() == ["/home:", "/root:"]


@pytest.mark.parametrize(
    ("user", "paths"),
    [
        ("model-server", "/etc/model-server /opt/model-server /var/lib/model-server"),
        ("prometheus", "/etc/prometheus /etc/default/prometheus*"),
        ("grafana", "/etc/grafana /etc/default/grafana-server"),
    ],
)
def test_daemon_cannot_write_its_own_configuration(server: Machine, user: str, paths: str) -> None:
    present = server.run(f"ls -d {paths} 2>/dev/null || true")
    # Links are 0777 by nature: what counts is the directory they are in, and what they point to.
    writable = server.shell(user).run(f"find {paths} ! -type l -writable 2>/dev/null").stdout

    assert present, f"none of {paths}"
    assert writable == "", f"{user} can write {writable}"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/model-server/model-server.env",
        "/etc/grafana/grafana.ini",
        "/etc/grafana/admin_password",
        "/etc/prometheus/alertmanager.yml",
    ],
)
def test_others_cannot_read_settings(server: Machine, path: str) -> None:
    assert server.status("test -f %s", path) == 0
    assert server.status("cat %s", path, user="nobody") != 0


def test_alertmanager_opens_no_port_for_a_cluster(server: Machine) -> None:
    sockets = server.run("ss --listening --tcp --udp --numeric --no-header").splitlines()
    ports = {line.split()[4].rpartition(":")[2] for line in sockets}

    assert "9093" in ports
    assert "9094" not in ports


def test_load_generator_is_not_writable_by_its_users(load: Machine) -> None:
    assert load.run("find /opt/locust /etc/locust ! -type l -writable", user="nobody") == ""


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_locust_is_a_command_of_any_user(load: Machine, option: str) -> None:
    assert "locust" in load.run("cd /var/tmp && locust %s", option, user="nobody").lower()
