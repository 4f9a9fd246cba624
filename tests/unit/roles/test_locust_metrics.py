"""Where Locust leaves its figures on a load host, and who may write there."""

import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")

ROLE = ROLES / "locust"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")


def configured(**variables: Any) -> str:
    """Return the configuration of Locust; `ansible_managed` is not what is judged."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)  # noqa: S701 - no HTML
    environment.filters.update(bool=bool, comment=lambda text: f"# {text}")
    template = (ROLE / "templates/etc/locust/locust.conf.j2").read_text()
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    return environment.from_string(template).render(
        **{**defaults, "ansible_managed": "", "__locust_home": "/opt/locust", **variables}
    )


def test_locust_is_told_the_directory() -> None:
    assert "\nmetrics-directory = /var/metrics\n" in configured(locust_metrics_directory="/var/metrics")
    assert "metrics-directory" not in configured()
    assert "/load_test/locustfile.py,/opt/locust/load_test/client_metrics.py\n" in configured()


def run(directory: Path, phase: str, metrics: str, *options: str) -> str:
    tasks = yaml.safe_load((ROLE / "tasks" / f"{phase}.yml").read_text())
    if phase == "configure":  # what is in /etc and /usr is not the tests'
        tasks = [task for task in tasks if "template" not in str(task) and "/etc/locust" not in str(task)]
    text = json.dumps(tasks).replace("/usr/local/bin/", f"{directory}/").replace("/etc/", f"{directory}/")
    play = {"hosts": "all", "gather_facts": False, "tasks": json.loads(text)}
    (directory / "play.yml").write_text(json.dumps([play]))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "__locust_home": str(directory / "locust"),
        "__locust_metrics_user_probe": {"stdout": "nobody"},
        "locust_metrics_directory": metrics,
    }
    done = run_play(directory, "-i", "host,", "-c", "local", "-e", json.dumps(variables), *options, "play.yml")
    assert "failed=0" in done.stdout, done.stdout
    return done.stdout


@needs_root
def test_the_user_who_runs_locust_alone_may_write(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir(mode=0o777)

    run(tmp_path, "configure", str(metrics))

    found = metrics.stat()
    assert (pwd.getpwuid(found.st_uid).pw_name, found.st_mode & 0o777) == ("nobody", 0o755)
    assert "changed=0" in run(tmp_path, "configure", str(metrics))


@needs_root
def test_without_a_directory_it_is_said_that_prometheus_gets_no_figures(tmp_path: Path) -> None:
    said = run(tmp_path, "configure", "")

    assert "Prometheus gets no figures of Locust on host, because its locust_metrics_directory is empty;" in said


@needs_root
def test_removal_takes_the_directory_back_and_makes_none(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    run(tmp_path, "configure", str(metrics))
    for name in ("locust.prom", "others.prom"):
        (metrics / name).touch()

    run(tmp_path, "remove", str(metrics))

    assert metrics.stat().st_uid == 0
    assert [path.name for path in metrics.iterdir()] == ["others.prom"]
    assert "changed=0" in run(tmp_path, "remove", str(metrics))
    assert "changed=0" in run(tmp_path, "remove", str(tmp_path / "none"))
    assert "changed=0" in run(tmp_path, "remove", "")
    assert not (tmp_path / "none").exists()
