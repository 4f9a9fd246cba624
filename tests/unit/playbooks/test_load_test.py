"""The load test's playbook, with a program that writes what Locust writes."""

import base64
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, List

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
# Seconds of a run with all users; it gets slower.
HISTORY = "Timestamp,User Count,Type,Name,Requests/s,Failures/s,50%,66%,75%,80%,90%,95%,98%,99%,99.9%,99.99%,100%,"
HISTORY += "Total Request Count,Total Failure Count\n0,0,,Aggregated,0,0" + 11 * ",N/A" + ",0,0\n"
HISTORY += "".join(
    f"{second},100,,Aggregated,16.7,0,{20 + second // 20},21,21,21,21,41,21,{90 + second},95,95,95,{10 * second},0\n"
    for second in range(1, 101)
)
LIMIT = """\
Load,Requests,Failures,50%,99%,Verdict
50.0,500,0,20,90,held
62.5,620,0,20,95,held
78.1,780,0,500,900,broken
97.7,970,3,700,1900,broken
"""
# Of systemd: starts and stops units, and runs what it is given.
SYSTEMD = {
    "systemctl": 'echo "$@" >>{directory}/systemctl; printf "LoadState=loaded\\nActiveState=active\\n"',
    "systemd-run": """\
while :; do case $1 in --*) echo "$1" >>{directory}/systemd-run; shift ;; *) exec "$@" ;; esac; done""",
}
# In place of Locust: keeps its arguments, and writes its files.
LOCUST = """\
#!/bin/sh
case $1 in --version) echo "locust 2.25.0 from /opt/locust (python 3.8.10)"; exit ;; esac
echo "$@" >>{directory}/arguments
{lost}
for argument; do
  case $argument in --csv=*) csv=${{argument#--csv=}} ;; --html=*) html=${{argument#--html=}} ;; esac
done
cp {directory}/stats "${{csv}}_stats.csv"
cp {directory}/history "${{csv}}_stats_history.csv"
[ ! -e {directory}/limit ] || cp {directory}/limit "${{csv}}_limit.csv"
touch "${{csv}}_failures.csv" "${{csv}}_exceptions.csv" "$html"
echo Aggregated
exit 1
"""


def load_test(
    directory: Path,
    *options: str,
    not_sent: int = 0,
    failed: int = 0,
    lost: str = ":",
    programs: Any = None,
    **groups: Any,
) -> str:
    """Run the playbook, also with other groups; return what it says."""
    (directory / "playbooks").mkdir(exist_ok=True)
    for name in ("load_test.yml", "tasks", "templates"):
        if not (directory / "playbooks" / name).exists():
            (directory / "playbooks" / name).symlink_to(PLAYBOOKS / name)
    (directory / "stats").write_text(STATS.format(not_sent=not_sent, failures=failed + not_sent))
    (directory / "history").write_text(HISTORY)
    (directory / "locust").write_text(LOCUST.format(directory=directory, lost=lost))
    (directory / "locust").chmod(0o755)
    (directory / "hosts.json").write_text(json.dumps({"load_generators": {"hosts": {"load": {}}}, **groups}))
    variables = {
        "ansible_python_interpreter": sys.executable,
        "__load_test_locust": f"{{{{ own_locust | default('{directory}/locust') }}}}",
    }
    given = [word for option in options for word in ("-e", option)]
    arguments = ("-i", "hosts.json", "-c", "local", "-e", json.dumps(variables), *given, "playbooks/load_test.yml")
    return run_play(directory, *arguments, programs=programs).stdout


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
    load_test(tmp_path, "users=300", "spawn_rate=30", "run_time=5m", "rate=200.5", "shape=spike")

    plain, full = (tmp_path / "arguments").read_text().splitlines()
    assert plain.startswith("--run-time=60s --only-summary --csv=/")
    assert not {"--users", "--spawn-rate", "--rate", "--shape", "--find-limit"} & {
        word.split("=")[0] for word in plain.split()
    }
    assert {"--run-time=5m", "--users=300", "--spawn-rate=30", "--rate=200.5", "--shape=spike"} < set(full.split())


@pytest.mark.parametrize(
    ("options", "not_sent", "failed", "sentence"),
    [
        (("max_p99_ms=90",), 0, 0, "95.0 ms is above max_p99_ms, which is 90."),
        (("max_p50_ms=19.5",), 0, 0, "20.0 ms is above max_p50_ms, which is 19.5."),
        ((), 0, 1, "The share 0.001 is above max_failure_ratio, which is 0. 1 of 1000 requests failed"),
        ((), 1000, 0, "The share 0.5 is above max_failure_ratio, which is 0. 0 of 1000 requests failed and 1000 could"),
        (("shape=round",), 0, 0, "shape is 'round'; set it to steady, step or spike."),
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


def test_a_long_run_shows_what_has_grown(tmp_path: Path) -> None:
    said = load_test(tmp_path)

    first, last = (line.split() for line in said.replace("\\n", "\n").splitlines() if line.startswith("Median of"))
    assert (first[-3:], last[-3:]) == (["20", "41", "101"], ["24", "41", "181"])


def test_progress_is_printed_while_it_runs(tmp_path: Path) -> None:
    said = load_test(tmp_path)

    assert said.count("100 users, 16.7 requests/s, p50 25 ms, p99 190 ms; until now 1000 requests, 0 failures") == 1


def test_the_highest_load_is_reported(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text(LIMIT)
    said = load_test(tmp_path, "find_limit=true", "rate=50", "max_p50_ms=10", "max_failure_ratio=0.01")

    assert "The highest load that held: 62.5 requests/s" in said
    assert "failed=0" in said, said
    bounds = {"--max-p50-ms=10", "--max-failure-ratio=0.01"}
    assert {"--find-limit", "--run-time=30m", *bounds} < set((tmp_path / "arguments").read_text().split())
    latest = tmp_path / "results" / "latest" / "load"
    assert json.loads((latest / "summary.json").read_text())["limit"] == 62.5
    assert (latest / "locust_limit.csv").read_text() == LIMIT


def test_a_search_without_a_load_that_held_fails(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text(LIMIT.replace("held", "broken"))
    said = load_test(tmp_path, "find_limit=true")

    assert "begin lower with rate or users, or raise the bounds" in said
    assert "failed=1" in said


class Grafana(BaseHTTPRequestHandler):
    """Takes annotations."""

    taken: ClassVar[List[Dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.taken.append({"path": self.path, "login": self.headers["Authorization"], **body})
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def grafana() -> Iterator[int]:
    Grafana.taken.clear()
    with HTTPServer(("127.0.0.1", 0), Grafana) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_grafana_shows_when_it_ran_and_a_silent_one_is_told(tmp_path: Path, grafana: int) -> None:
    (tmp_path / "password").write_text("secret\n")
    hosts = {
        "monitor": {"__grafana_here": f"127.0.0.1:{grafana}"},
        "silent": {"__grafana_here": "127.0.0.1:1"},
        "without": {"__grafana_here": "127.0.0.1:1", "grafana_state": "absent"},
    }
    monitoring = {"hosts": {name: {"ansible_become": False, **local} for name, local in hosts.items()}}
    said = load_test(
        tmp_path, f"__load_test_grafana_password={tmp_path / 'password'}", "rate=50", monitoring=monitoring
    )

    (annotation,) = Grafana.taken
    assert annotation["path"] == "/api/annotations"
    assert base64.b64decode(annotation["login"].split()[1]) == b"admin:secret"
    assert annotation["time"] < annotation["timeEnd"]
    assert annotation["text"].startswith("Load test, 60s, 50 requests/s: results/")
    assert "The load test is no annotation in Grafana on silent" in said
    assert ("Grafana on monitor" in said, "Grafana on without" in said) == (False, False)
    assert "failed=0" in said, said


FLEET = {
    "hosts": {
        "load": {"host_address": "127.0.0.1", "ansible_become": False},
        "load-2": {"host_address": "127.0.0.2", "ansible_become": False},
    }
}


def several(directory: Path, *options: str, fleet: Any = FLEET, **given: Any) -> str:
    programs = {name: script.format(directory=directory) for name, script in SYSTEMD.items()}
    return load_test(directory, *options, programs=programs, load_generators=fleet, **given)


def test_several_load_hosts_run_one_test_and_a_lost_worker_is_told(tmp_path: Path) -> None:
    lost = "[then] host/INFO/locust.runners: Worker load-2_{} failed to send heartbeat, setting state to missing."
    said = several(tmp_path, "rate=50", lost=f"echo '{lost.format('0a1b2c')}' >&2")

    assert (tmp_path / "arguments").exists(), said
    (options,) = (tmp_path / "arguments").read_text().splitlines()
    workers = 2 * int(os.sysconf("SC_NPROCESSORS_ONLN"))
    assert f"--master --expect-workers={workers} " in options
    assert {"--enable-rebalancing", "--rate=50"} < set(options.split())
    closed = (tmp_path / "systemd-run").read_text().splitlines()
    assert "--property=IPAddressDeny=any" in closed
    assert "--property=IPAddressAllow=127.0.0.0/8 ::1 127.0.0.1 127.0.0.2" in closed
    asked = (tmp_path / "systemctl").read_text()
    assert asked.count("restart locust-worker@127.0.0.1.service") == 2
    assert asked.count("stop locust-worker@127.0.0.1.service") == 2
    assert "lost workers, whose part the others do: load-2" in said, said
    assert [path.name for path in (tmp_path / "results" / "latest").iterdir()] == ["load"]
    assert said.count("failed=0") == 2, said


def test_load_hosts_with_different_releases_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho locust 2.47.0 from /opt/locust\n")
    other.chmod(0o755)
    fleet = {"hosts": {**FLEET["hosts"], "load-2": {**FLEET["hosts"]["load-2"], "own_locust": str(other)}}}
    said = several(tmp_path, fleet=fleet)

    assert "have different releases of Locust (load 2.25.0, load-2 2.47.0)" in said
    assert not (tmp_path / "arguments").exists()
