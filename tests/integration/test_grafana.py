"""Grafana as a browser finds it: its login, its data source, its dashboards."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.integration.machines import SCENARIO, Machine
from tests.integration.playbooks import Ansible

REPOSITORY = Path(__file__).parents[2]
DASHBOARDS = sorted((REPOSITORY / "roles/grafana/files/dashboards").glob("*.json"))
PASSWORD_FILE = REPOSITORY / "credentials" / SCENARIO / "grafana-admin-server"


@pytest.fixture(scope="module")
def password() -> str:
    return PASSWORD_FILE.read_text().strip()


def grafana(server: Machine, password: str) -> httpx.Client:
    return server.door("/grafana", auth=("admin", password))


def test_health(server: Machine) -> None:
    with server.door("/grafana") as client:
        health = client.get("/api/health")

    assert (health.status_code, health.json()["database"]) == (200, "ok")


def test_generated_password_stays_with_its_owner(password: str) -> None:
    assert len(password) >= 20
    assert stat.filemode(PASSWORD_FILE.stat().st_mode) == "-rw-------"
    ignored = subprocess.run(["git", "check-ignore", "--quiet", PASSWORD_FILE], cwd=REPOSITORY, check=False)
    assert ignored.returncode != 1, "git would take it in"  # 128 where there is no repository


def test_login_with_the_generated_password(server: Machine, password: str) -> None:
    with server.door("/grafana") as client:
        answer = client.post("/login", json={"user": "admin", "password": password})

    assert answer.status_code == 200, answer.text
    with grafana(server, password) as client:
        assert client.get("/api/org").status_code == 200


def test_second_controller_takes_the_password_from_the_host(
    server: Machine, ansible: Ansible, password: str, tmp_path: Path
) -> None:
    empty = tmp_path / "credentials"
    play = ("ansible-playbook", "playbooks/monitoring.yml", "--tags", "grafana_configure,grafana_verify")
    ansible.run(*play, "--extra-vars", f"grafana_credentials_dir={empty}")

    kept = empty / "grafana-admin-server"
    assert (kept.read_text(), stat.filemode(kept.stat().st_mode)) == (password, "-rw-------")
    with grafana(server, password) as client:
        assert client.get("/api/org").status_code == 200


def test_login_as_admin_admin_is_refused(server: Machine) -> None:
    # Two attempts in all: Grafana locks an account out after five in five minutes.
    with server.door("/grafana") as client:
        assert client.post("/login", json={"user": "admin", "password": "admin"}).status_code == 401
    with grafana(server, "admin") as client:
        assert client.get("/api/org").status_code == 401


def test_anonymous_visitor_sees_nothing(server: Machine) -> None:
    with server.door("/grafana") as client:
        assert client.get("/api/datasources").status_code == 401


def test_datasource_is_live(server: Machine, password: str) -> None:
    with grafana(server, password) as client:
        source = client.get("/api/datasources/uid/prometheus").json()
        query = "/api/datasources/proxy/uid/prometheus/api/v1/query"
        answer = client.get(query, params={"query": "up == 1 and time() - timestamp(up) < 5"})

    assert source["isDefault"] is True
    assert source["jsonData"]["timeInterval"] == "5s"  # the least step of the panels
    assert answer.status_code == 200, answer.text
    jobs = sorted(series["metric"]["job"] for series in answer.json()["data"]["result"])
    assert jobs == ["alertmanager", "haproxy", "load_generator", "model_server", "node", "probe", "prometheus"]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_dashboard_is_provisioned(server: Machine, password: str, file: Path) -> None:
    wanted = json.loads(file.read_text())

    with grafana(server, password) as client:
        answer = client.get(f"/api/dashboards/uid/{wanted['uid']}")

    assert answer.status_code == 200, answer.text
    assert answer.json()["dashboard"]["title"] == wanted["title"]
    assert answer.json()["meta"]["provisioned"] is True
