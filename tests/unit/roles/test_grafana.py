"""What Grafana's role writes, and what it says of other people's datasources."""

import configparser
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import yaml

from tests.unit.plays import run_play

pytest.importorskip("ansible")

ROLE = Path(__file__).parents[3] / "roles" / "grafana"
NO_DATA = {"results": [{"stat": {"exists": False}}] * 3}


def play(directory: Path, tasks: Any, **variables: Any) -> Tuple[int, str]:
    everything = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    everything["vars_files"] = [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")]
    (directory / "play.json").write_text(json.dumps([everything]))
    variables = {"ansible_python_interpreter": sys.executable, "role_path": str(ROLE), **variables}
    # What listens on the machine of the tests is not judged.
    run = run_play(
        directory,
        *("-i", "host,", "-c", "local", "play.json", "-e", json.dumps(variables)),
        programs={"ss": "true"},
    )
    return run.returncode, " ".join(run.stdout.split())


def written(directory: Path, name: str, **variables: Any) -> str:
    template = {
        "src": str(ROLE / "templates/etc/grafana" / f"{name}.j2"),
        "dest": str(directory / "written"),
        "mode": "0600",
    }
    status, said = play(directory, [{"ansible.builtin.template": template}], __grafana_data=NO_DATA, **variables)
    assert status == 0, said
    return (directory / "written").read_text()


def ini(directory: Path, **variables: Any) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)  # refuses a key that stands twice
    parser.read_string(written(directory, "grafana.ini", **variables))
    return parser


def test_ini_fetches_no_plugin_and_has_no_live(tmp_path: Path) -> None:
    settings = ini(tmp_path)

    assert settings["plugins"]["preinstall_disabled"] == "true"
    assert settings["live"]["max_connections"] == "0"
    assert settings["security"]["secret_key"] == "$__file{/var/lib/grafana/secret_key}"
    assert settings["server"]["http_addr"] == "0.0.0.0"  # noqa: S104 - the role's default


def test_settings_of_the_user_replace_the_roles(tmp_path: Path) -> None:
    mine = {"smtp": {"enabled": True, "password": "a#b"}, "users": {"allow_sign_up": True}}
    settings = ini(tmp_path, grafana_ini=mine, grafana_listen_address="[::1]")

    assert dict(settings["smtp"]) == {"enabled": "true", "password": '"""a#b"""'}
    assert dict(settings["users"]) == {"allow_sign_up": "true", "allow_org_create": "false"}
    assert settings["server"]["http_addr"] == "::1"


@pytest.mark.parametrize(
    ("scraped", "step"), [("500ms", "5s"), ("1s", "5s"), ("5000ms", "5s"), ("15s", "15s"), ("1m", "1m")]
)
def test_panels_move_with_the_scrape_interval(tmp_path: Path, scraped: str, step: str) -> None:
    sources = written(tmp_path, "provisioning/datasources/prometheus.yaml", grafana_scrape_interval=scraped)

    (prometheus,) = yaml.safe_load(sources)["datasources"]
    assert prometheus["jsonData"]["timeInterval"] == step
    assert prometheus["jsonData"]["prometheusType"] == "Prometheus"


def test_alertmanager_is_a_datasource_for_silences(tmp_path: Path) -> None:
    where = "http://127.0.0.1:9093"
    sources = written(tmp_path, "provisioning/datasources/prometheus.yaml", grafana_alertmanager_url=where)

    _, alertmanager = yaml.safe_load(sources)["datasources"]
    assert (alertmanager["type"], alertmanager["url"]) == ("alertmanager", where)
    assert alertmanager["jsonData"] == {"implementation": "prometheus"}


def test_dashboards_are_shown_in_the_folder_of_the_user(tmp_path: Path) -> None:
    (provider,) = yaml.safe_load(
        written(tmp_path, "provisioning/dashboards/model_monitoring.yaml", grafana_folder="Fruit: models")
    )["providers"]

    assert provider["folder"] == "Fruit: models"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"uid": "mine", "title": "Mine", "panels": []}', ""),
        ("{", "is no JSON ("),
        ('{"uid": ["a"], "title": "Mine", "panels": []}', "has no uid; give it one"),
        (
            '{"uid": "mine", "title": "Prometheus Dashboard", "panels": []}',
            "has the title Prometheus Dashboard, as prometheus.json has; give it another.",
        ),
        (
            '{"uid": "mine", "title": "Mine", "panels": [], "__inputs": [{}]}',
            "was exported for sharing and asks for its datasource; export it without that option.",
        ),
        ("[]", "is no dashboard: it has no title or no panels; export the dashboard again."),
        (
            '{"uid": null, "title": "Mine", "panels": []}',
            "has no uid; give it one, so that its address stays the same.",
        ),
        (
            '{"uid": "prometheus", "title": "Mine", "panels": []}',
            "has the uid prometheus, as prometheus.json has; give it another.",
        ),
    ],
)
def test_what_is_wrong_with_a_dashboard_of_the_user_is_told_in_a_sentence(
    tmp_path: Path, content: str, problem: str
) -> None:
    (tmp_path / "mine.json").write_text(content)
    files = ROLE / "files"
    command = [sys.executable, *map(str, (files / "own_dashboards.py", files / "dashboards", tmp_path / "mine.json"))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (run.returncode != 0) == bool(problem)
    assert (f"grafana_dashboards: {tmp_path}/mine.json {problem}" in run.stderr) or not problem


@pytest.mark.parametrize(
    ("source", "clashes"),
    [
        ({"name": "mine", "isDefault": True}, True),
        ({"name": "prometheus", "uid": "abc"}, True),
        ({"name": "mine", "uid": "prometheus"}, True),
        ({"name": "mine", "isDefault": True, "orgId": 2}, False),
        ({"name": "mine", "isDefault": False, "uid": "mine"}, False),
        (None, False),
    ],
)
def test_datasource_of_others_is_named_before_anything_is_touched(
    tmp_path: Path, source: Dict[str, Any], clashes: bool
) -> None:
    status, said = preflight(tmp_path, {"datasources": [source]} if source else None)

    assert (status != 0) == clashes, said
    assert ("etc/mine.yml has the datasource" in said) == clashes


def test_datasources_of_others_that_are_no_yaml_are_named(tmp_path: Path) -> None:
    status, said = preflight(tmp_path, "password: 'a\n")

    assert status != 0
    assert "etc/mine.yml on host is no YAML, and Grafana does not start with it; mend or remove the file." in said
    assert "password" not in said


def test_file_with_a_clashing_datasource_is_kept_under_another_name_when_it_is_taken_over(tmp_path: Path) -> None:
    (move,) = (
        task
        for task in yaml.safe_load((ROLE / "tasks/configure.yml").read_text())
        if "mv" in task.get("ansible.builtin.command", {}).get("argv", [])
    )
    move.pop("notify")
    clashing = {"datasources": [{"name": "mine", "isDefault": True}]}
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "other.yaml").write_text("datasources: [{name: other}]\n")

    status, said = preflight(tmp_path, clashing, move, grafana_take_over=True)

    assert status == 0, said
    assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == ["mine.yml.replaced", "other.yaml"]


def preflight(directory: Path, sources: Any, *tasks: Any, **variables: Any) -> Tuple[int, str]:
    """Judge a host whose Grafana has the file mine.yml: what is no text is written as YAML."""
    (directory / "etc").mkdir(exist_ok=True)
    text = (
        sources if isinstance(sources, str) else yaml.safe_dump({"apiVersion": 1, **sources}) if sources else "# none\n"
    )
    (directory / "etc" / "mine.yml").write_text(text)
    facts = {"distribution": "Ubuntu", "distribution_version": "20.04"}
    before = [
        {"ansible.builtin.set_fact": {**facts, "cacheable": True}},
        {"ansible.builtin.import_tasks": str(ROLE / "tasks/preflight.yml")},
    ]
    return play(directory, [*before, *tasks], __grafana_provisioning=str(directory / "etc"), **variables)
