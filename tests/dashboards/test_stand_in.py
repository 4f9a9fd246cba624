"""The stand-in for Grafana: takes our dashboards, and refuses what Grafana would silently ignore."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.dashboards.conftest import FILES, ROOT

SOURCE = ROOT / "molecule" / "shared" / "grafana_stand_in"
INI = """
[security]
admin_user = admin
admin_password = \"\"\"first#one\"\"\"
[dashboards]
min_refresh_interval = 1s
"""
DATASOURCE = {
    "name": "prometheus", "uid": "prometheus", "type": "prometheus", "url": "http://127.0.0.1:9", "isDefault": True,
    "jsonData": {"timeInterval": "1s"},
}  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package; beside Molecule's files it is no part of the project's own import path."""
    monkeypatch.syspath_prepend(str(SOURCE.parent))
    for module in ("configuration", "server"):
        importlib.import_module(f"grafana_stand_in.{module}")
    return importlib.import_module("grafana_stand_in")


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A configuration as the role makes it."""
    for topic in ("datasources", "dashboards"):
        (tmp_path / "provisioning" / topic).mkdir(parents=True)
    (tmp_path / "json").mkdir()
    for file in FILES:
        shutil.copy(file, tmp_path / "json")
    (tmp_path / "grafana.ini").write_text(INI)
    write(tmp_path, "datasources", datasources=[DATASOURCE])
    write(tmp_path, "dashboards", providers=[provider(tmp_path)])
    return tmp_path


def provider(etc: Path) -> dict[str, Any]:
    return {"name": "model-monitoring", "type": "file", "options": {"path": str(etc / "json")}}


def write(etc: Path, topic: str, **content: Any) -> None:
    (etc / "provisioning" / topic / "ours.yaml").write_text(yaml.safe_dump({"apiVersion": 1, **content}))


def settings(stand_in: Any, etc: Path) -> Any:
    paths = [f"cfg:default.paths.data={etc}", f"cfg:default.paths.provisioning={etc / 'provisioning'}"]
    return stand_in.configuration.read_settings(
        etc / "grafana.ini", [*paths, "cfg:server.http_addr=127.0.0.1", "cfg:server.http_port=0"]
    )


def test_takes_the_checked_in_dashboards(stand_in: Any, etc: Path) -> None:
    read = stand_in.configuration.read_provisioning(etc / "provisioning")
    assert sorted(read.dashboards) == [file.stem for file in FILES]


@pytest.mark.parametrize(
    ("ini", "complaint"),
    [
        ("[security]\nadmin_pasword = x", "no such key"),
        ("[dashboard]\nmin_refresh_interval = 1s", "no section"),
        ("[server]\nhttp_port = http", "whole number"),
        ("[users]\nallow_sign_up = no", "true or false"),
        ("[security]\nadmin_password = half#lost", "triple quotes"),
        ("[security]\nadmin_user = a\nadmin_user = b", "not a valid ini"),
    ],
)
def test_refuses_an_ini_that_grafana_would_misread(stand_in: Any, etc: Path, ini: str, complaint: str) -> None:
    (etc / "grafana.ini").write_text(ini)
    with pytest.raises(stand_in.ConfigurationError, match=complaint):
        settings(stand_in, etc)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"is_default": True}, "does not know 'is_default'"),
        ({"url": "server:9090"}, "not an http"),
        ({"jsonData": {"timeIntervall": "1s"}}, "does not know 'timeIntervall'"),
        ({"uid": "a b"}, "characters that Grafana refuses"),
    ],
)
def test_refuses_a_wrong_datasource(stand_in: Any, etc: Path, change: dict[str, Any], complaint: str) -> None:
    write(etc, "datasources", datasources=[{**DATASOURCE, **change}])
    with pytest.raises(stand_in.ConfigurationError, match=complaint):
        stand_in.configuration.read_provisioning(etc / "provisioning")


def test_refuses_a_provider_without_its_directory(stand_in: Any, etc: Path) -> None:
    write(etc, "dashboards", providers=[{**provider(etc), "options": {"path": "/nonexistent"}}])
    with pytest.raises(stand_in.ConfigurationError, match="is not there"):
        stand_in.configuration.read_provisioning(etc / "provisioning")


def test_refuses_a_home_dashboard_that_is_not_there(stand_in: Any, etc: Path) -> None:
    (etc / "grafana.ini").write_text(INI + "default_home_dashboard_path = /nonexistent.json\n")
    with pytest.raises(stand_in.ConfigurationError, match="cannot be read"):
        stand_in.server.Server(settings(stand_in, etc))


@pytest.fixture
def url(stand_in: Any, etc: Path) -> Iterator[str]:
    server = stand_in.server.Server(settings(stand_in, etc))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_stand_in_says_that_it_is_one(url: str) -> None:
    assert requests.get(f"{url}/api/health", timeout=5).json()["version"].endswith("-stand-in")
    assert "stand-in for Grafana" in requests.get(f"{url}/login", timeout=5).text


def test_only_the_admin_can_log_in(url: str) -> None:
    assert requests.get(f"{url}/api/search", timeout=5).status_code == 401
    wrong = requests.post(f"{url}/login", json={"user": "admin", "password": "admin"}, timeout=5)
    assert (wrong.status_code, requests.get(f"{url}/api/org", timeout=5).status_code) == (401, 401)
    right = requests.post(f"{url}/login", json={"user": "admin", "password": "first#one"}, timeout=5)
    assert (right.status_code, right.json()["message"]) == (200, "Logged in")
    found = requests.get(f"{url}/api/search", auth=("admin", "first#one"), timeout=5).json()
    assert [board["uid"] for board in found] == [file.stem for file in FILES]


def test_password_of_the_ini_counts_once(stand_in: Any, etc: Path, url: str) -> None:
    again = {**settings(stand_in, etc), "security.admin_password": "second"}
    database = stand_in.server.Database(again)
    assert not database.check("admin", "second")
    database.set_password("third")
    assert requests.get(f"{url}/api/org", auth=("admin", "third"), timeout=5).status_code == 200


def test_dashboard_made_by_hand_is_in_the_database(stand_in: Any, etc: Path, url: str) -> None:
    board = {"uid": "mine", "title": "Made by hand"}
    login = ("admin", "first#one")
    saved = requests.post(f"{url}/api/dashboards/db", json={"dashboard": board}, auth=login, timeout=5)
    assert saved.status_code == 200
    assert requests.get(f"{url}/api/dashboards/uid/mine", auth=login, timeout=5).json()["dashboard"] == board
    assert stand_in.server.Database(settings(stand_in, etc)).boards() == {"mine": board}


def test_locks_the_account_after_five_failures(url: str) -> None:
    answers = [requests.get(f"{url}/api/org", auth=("admin", "guess"), timeout=5).status_code for _ in range(5)]
    assert answers == [401] * 5
    assert requests.get(f"{url}/api/org", auth=("admin", "first#one"), timeout=5).status_code == 401


def test_is_made_only_of_what_python_3_8_knows() -> None:
    import ast

    for file in SOURCE.glob("*.py"):
        ast.parse(file.read_text(), feature_version=(3, 8))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_builds_the_same_package_twice(tmp_path: Path) -> None:
    sums = set()
    for name in ("one", "two"):
        out = tmp_path / name / "grafana.deb"
        subprocess.run([str(SOURCE / "build.sh"), str(out)], check=True, capture_output=True)
        sums.add(Path(f"{out}.sha256").read_text())
    assert len(sums) == 1
    assert "stand-in" in subprocess.check_output(["dpkg-deb", "--field", str(out), "Version"], text=True)
