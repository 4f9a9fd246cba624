"""What systemd runs, as whom, and who may read and write its files."""

from __future__ import annotations

import re

import pytest

from tests.integration.machines import Machine, ModelServer

UNITS = [
    "model-server.service",
    "prometheus.service",
    "prometheus-alertmanager.service",
    "prometheus-node-exporter.service",
    "grafana-server.service",
    "haproxy.service",
]


@pytest.mark.parametrize("unit", UNITS)
def test_unit_is_enabled_and_active(server: Machine, unit: str) -> None:
    state = [server.shell().run("systemctl %s %s", verb, unit).stdout.strip() for verb in ("is-enabled", "is-active")]

    assert state == ["enabled", "active"], server.journal(unit)


def test_socket_is_started_by_the_service_alone(server: Machine) -> None:
    state = [
        server.shell().run("systemctl %s model-server.socket", verb).stdout.strip()
        for verb in ("is-enabled", "is-active")
    ]

    assert state == ["static", "active"], server.journal("model-server.socket")


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


def mounts_of(server: Machine, unit: str) -> list[list[str]]:
    """Return the fields of the mounts that a daemon can reach: see proc(5), mountinfo."""
    lines = server.run(f"cat /proc/{server.main_pid(unit)}/mountinfo").splitlines()
    mounts = [line.split() for line in lines]
    # `docker cp`, by which files are fetched from a machine, leaves mounts in the directory that /sys covers.
    covered = {
        mount[0]
        for mount in mounts
        if any(mount[1] == other[1] and mount[4].startswith(f"{other[4]}/") for other in mounts)
    }
    while beneath := {mount[0] for mount in mounts if mount[1] in covered} - covered:
        covered |= beneath
    return [mount for mount in mounts if mount[0] not in covered]


# Exposure by systemd-analyze security: 10 is a service without any limits.
@pytest.mark.parametrize(
    ("unit", "exposure"),
    [
        ("model-server", 2.0),
        ("prometheus", 2.5),
        ("prometheus-alertmanager", 2.5),
        ("prometheus-node-exporter", 2.5),
        ("grafana-server", 2.5),
        ("haproxy", 3.5),
        ("model-server-probe", 2.0),
    ],
)
def test_daemon_is_confined(server: Machine, unit: str, exposure: float) -> None:
    assert exposure_of(server, unit) <= exposure


def exposure_of(machine: Machine, unit: str) -> float:
    *_, verdict = machine.run(f"systemd-analyze security --no-pager {unit}.service").splitlines()
    return float(verdict.split(":")[1].split()[0])


def test_page_of_locust_is_for_its_own_host_and_confined(load: Machine) -> None:
    listening = load.run("ss -Hltn sport = :8089").split()

    assert "127.0.0.1:8089" in listening
    assert len(listening) == 5, listening
    assert "Locust" in load.run("curl --silent --fail http://127.0.0.1:8089/")
    assert exposure_of(load, "locust-web") <= 2.5


@pytest.mark.parametrize(
    ("unit", "own"),
    [
        ("model-server", {"/run/model-server", "/var/lib/model-server/samples"}),
        ("prometheus", {"/var/lib/prometheus"}),
        ("prometheus-alertmanager", {"/var/lib/prometheus"}),
        ("prometheus-node-exporter", set()),
        ("grafana-server", {"/run/grafana", "/var/lib/grafana", "/var/log/grafana"}),
    ],
)
def test_daemon_can_only_write_its_own_places(server: Machine, unit: str, own: set[str]) -> None:
    mounts = mounts_of(server, unit)
    writable = {mount[4] for mount in mounts if "rw" in mount[5].split(",")}

    assert "/" in {mount[4] for mount in mounts} - writable
    # Shared by all processes, and guarded by the owners of what is in them; /tmp is the daemon's own.
    common = re.compile("/(dev|proc|tmp|var/tmp)(/|$)|/run(/lock)?$")
    assert {place for place in writable if not common.match(place)} <= own


@pytest.mark.parametrize("unit", ["model-server", "prometheus", "prometheus-alertmanager", "grafana-server"])
def test_daemon_does_not_see_home_directories(server: Machine, unit: str) -> None:
    hidden = {mount[4] for mount in mounts_of(server, unit) if mount[3].endswith("/systemd/inaccessible/dir")}

    assert {"/home", "/root"} <= hidden


def test_node_exporter_runs_as_a_user_of_its_own(server: Machine) -> None:
    pid = server.main_pid("prometheus-node-exporter")

    assert server.run(f"stat --format %U /proc/{pid}") == "node-exporter"
    assert server.status("cat /etc/prometheus/alertmanager.yml", user="node-exporter") != 0


def test_node_exporter_still_asks_for_the_clock(server: Machine) -> None:
    metrics = server.run("curl --silent --show-error http://127.0.0.1:9100/metrics")

    assert "node_timex_offset_seconds " in metrics
    assert 'node_scrape_collector_success{collector="timex"} 1' in metrics
    assert 'node_scrape_collector_success{collector="filesystem"} 1' in metrics
    assert 'collector="systemd"' not in metrics, "it takes three times the work of all others"


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
    # Samples are what the model server writes.
    writable = server.shell(user).run(f"find {paths} -name samples -prune -o ! -type l -writable -print").stdout

    assert present, f"none of {paths}"
    assert writable == "", f"{user} can write {writable}"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/model-server/model-server.env",
        "/etc/grafana/grafana.ini",
        "/etc/grafana/admin_password",
        "/var/lib/grafana/secret_key",
        "/etc/prometheus/alertmanager.yml",
        "/etc/haproxy/haproxy.cfg",
        "/etc/haproxy/certificates/self-made.pem",
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
