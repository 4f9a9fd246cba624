"""The load test's playbook, with a program that writes what Locust writes."""

import json
import sys
from pathlib import Path
from typing import List

import pytest

from tests.unit.plays import run_play

pytest.importorskip("ansible")

PLAYBOOKS = Path(__file__).parents[3] / "playbooks"
STATS = """\
Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%
POST,/predict,990,1,16.5,20,40,90
,(not sent),0,{not_sent},0,0,0,0
,Aggregated,1000,{failures},16.7,20,41,95
"""
# In place of Locust: keeps its arguments, and writes its files.
LOCUST = """\
#!/bin/sh
echo "$@" >>{directory}/arguments
for argument; do
  case $argument in --csv=*) csv=${{argument#--csv=}} ;; --html=*) html=${{argument#--html=}} ;; esac
done
cp {directory}/stats "${{csv}}_stats.csv"
touch "${{csv}}_stats_history.csv" "${{csv}}_failures.csv" "${{csv}}_exceptions.csv" "$html"
echo Aggregated
exit 1
"""


def load_test(directory: Path, *options: str, not_sent: int = 0, failed: int = 0) -> str:
    """Run the playbook; return what it says."""
    (directory / "playbooks").mkdir(exist_ok=True)
    for name in ("load_test.yml", "templates"):
        if not (directory / "playbooks" / name).exists():
            (directory / "playbooks" / name).symlink_to(PLAYBOOKS / name)
    (directory / "stats").write_text(STATS.format(not_sent=not_sent, failures=failed + not_sent))
    (directory / "locust").write_text(LOCUST.format(directory=directory))
    (directory / "locust").chmod(0o755)
    (directory / "hosts.json").write_text(json.dumps({"load_generators": {"hosts": {"load": {}}}}))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "__load_test_locust": str(directory / "locust"),
        "__load_test_poll": 1,
    }
    given = [word for option in options for word in ("-e", option)]
    arguments = ("-i", "hosts.json", "-c", "local", "-e", json.dumps(variables), *given, "playbooks/load_test.yml")
    return run_play(directory, *arguments).stdout


def runs(directory: Path) -> List[Path]:
    return sorted(path for path in (directory / "results").iterdir() if not path.is_symlink())


def test_figures_are_kept_and_compared_with_the_run_before(tmp_path: Path) -> None:
    first = load_test(tmp_path)
    (tmp_path / "results" / "latest").resolve().rename(tmp_path / "results" / "earlier")
    (tmp_path / "results" / "latest").unlink()
    (tmp_path / "results" / "latest").symlink_to("earlier")
    second = load_test(tmp_path)

    assert ("failed=0" in first, "failed=0" in second) == (True, True), first + second
    assert ("The run before" in first, "The run before" in second) == (False, True)
    assert len(runs(tmp_path)) == 2
    latest = tmp_path / "results" / "latest" / "load"
    assert json.loads((latest / "summary.json").read_text()) == {
        "requests": 1000,
        "failures": 0,
        "not_sent": 0,
        "requests_per_second": 16.7,
        "p50_ms": 20.0,
        "p95_ms": 41.0,
        "p99_ms": 95.0,
    }
    assert (latest / "locust.html").exists()


def test_options_reach_locust(tmp_path: Path) -> None:
    load_test(tmp_path)
    load_test(tmp_path, "users=300", "spawn_rate=30", "run_time=5m", "rate=200.5")

    plain, full = (tmp_path / "arguments").read_text().splitlines()
    assert plain.startswith("--run-time=60s --only-summary --csv=/")
    assert not {"--users", "--spawn-rate", "--rate"} & {word.split("=")[0] for word in plain.split()}
    assert {"--run-time=5m", "--users=300", "--spawn-rate=30", "--rate=200.5"} < set(full.split())


@pytest.mark.parametrize(
    ("options", "not_sent", "failed", "sentence"),
    [
        (("max_p99_ms=90",), 0, 0, "95.0 ms is above max_p99_ms, which is 90."),
        (("max_p50_ms=19.5",), 0, 0, "20.0 ms is above max_p50_ms, which is 19.5."),
        ((), 0, 1, "The share 0.001 is above max_failure_ratio, which is 0. 1 of 1000 requests failed"),
        ((), 1000, 0, "The share 0.5 is above max_failure_ratio, which is 0. 0 of 1000 requests failed and 1000 could"),
        (("rate=fast",), 0, 0, "rate is 'fast'; set it to a number, or leave it out."),
        (("run_time=soon",), 0, 0, "run_time is 'soon'; set it to a length like 60s, 5m or 1h30m."),
    ],
)
def test_bounds_decide_and_say_which_is_broken(
    tmp_path: Path, options: List[str], not_sent: int, failed: int, sentence: str
) -> None:
    said = load_test(tmp_path, *options, not_sent=not_sent, failed=failed)

    assert sentence in said, said
    assert "failed=1" in said


def test_bounds_that_hold_pass(tmp_path: Path) -> None:
    said = load_test(tmp_path, "max_p50_ms=20", "max_p99_ms=95", "max_failure_ratio=0.002", failed=2)

    assert "failed=0" in said, said
