"""The load test as Locust runs it, against a small server that counts."""

import csv
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Dict, Iterator, List, Optional, Sequence, Type

import pytest

from tests.unit.model_server.server.gunicorn_process import wait_for

pytest.importorskip("locust.stats", reason="needs Locust", exc_type=ImportError)

ROOT = Path(__file__).parents[3]
LOCUSTFILE = ROOT / "load_test" / "locustfile.py"
COMMAND = ROOT / "roles" / "locust" / "templates" / "usr" / "local" / "bin" / "locust.j2"


class Counting(ThreadingHTTPServer):
    """Answers every request with 400 and records its path."""

    daemon_threads = True
    request_queue_size = 128  # all users connect at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.paths: List[str] = []
        self.seconds = 0.0  # that an answer takes
        self.one_at_a_time = threading.Lock()  # gevent's, since Locust is imported: Python's would stop all its threads
        self.running = Event()  # answers wait for it
        self.running.set()


class Answering(BaseHTTPRequestHandler):
    server: Counting
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.paths.append(self.path)
        self.server.running.wait()
        with self.server.one_at_a_time:
            time.sleep(self.server.seconds)
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Run(subprocess.Popen):  # type: ignore[type-arg] # Python 3.8 has no Popen[str]
    """A run of Locust as a context: one that a test gives up is killed, where others would send for ever."""

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


@pytest.fixture
def server() -> Iterator[Counting]:
    with Counting() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def locust(directory: Path, server: Counting, *options: str, locustfile: Path = LOCUSTFILE) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "locust", "--locustfile", str(locustfile), "--headless"]
    command += [] if "--worker" in options else ["--csv", "run", "--stop-timeout", "10"]
    command += ["--host", f"http://127.0.0.1:{server.server_port}", *options]
    return Run(
        command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def asked(port: str, path: str, form: str = "") -> str:
    """Return what Locust's page answers; nothing while it is not there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", form.encode() or None, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def rows(directory: Path) -> Dict[str, Dict[str, str]]:
    """Return the lines of the figures by the name of what was asked for; the sum of all is `Aggregated`."""
    return {row["Name"]: row for row in csv.DictReader((directory / "run_stats.csv").read_text().splitlines())}


def printed(said: str) -> int:
    """Return how many requests Locust printed at its end: it forgets those of users whom it stops as they begin one."""
    return int(re.findall(r"Aggregated +(\d+) +\d+\(", said)[-1])


def test_csv_files_hold_the_last_requests(server: Counting, tmp_path: Path) -> None:
    said, _ = locust(tmp_path, server, "--users", "100", "--spawn-rate", "100", "--run-time", "2s").communicate()

    assert int(rows(tmp_path)["Aggregated"]["Request Count"]) == printed(said) > 0, said


# As the deployed users, but without a pause, as many load tests are.
RESTLESS = f"""
from importlib.util import module_from_spec, spec_from_file_location
from locust import constant
spec = spec_from_file_location("lab", {str(LOCUSTFILE)!r})
lab = module_from_spec(spec)
spec.loader.exec_module(lab)
ModelServerUser = lab.ModelServerUser
ModelServerUser.wait_time = constant(0)
"""


@pytest.mark.parametrize("options", [("--rate", "50"), ("--users", "2", "--spawn-rate", "2")], ids=["open", "closed"])
def test_only_a_constant_rate_shows_that_a_server_stalled(
    server: Counting, tmp_path: Path, options: Sequence[str]
) -> None:
    (tmp_path / "restless.py").write_text(RESTLESS)
    images = ("--images", str(LOCUSTFILE.parent / "images"))

    with locust(tmp_path, server, *options, *images, "--run-time", "8s", locustfile=tmp_path / "restless.py") as run:
        wait_for(lambda: len(server.paths) > 20, seconds=30)
        server.running.clear()
        time.sleep(2)
        server.running.set()
        said, _ = run.communicate()

    total = rows(tmp_path)["Aggregated"]
    if "--rate" in options:
        assert int(total["Request Count"]) == len(server.paths), said
        assert 300 < int(total["Request Count"]) < 450, said
        assert float(total["99%"]) > 1000, said  # on a busy machine, much more
    else:  # two of many requests were late: the others were never sent
        assert float(total["99%"]) < 1000 < float(total["100%"]), said


def test_requests_that_cannot_be_sent_are_counted(server: Counting, tmp_path: Path) -> None:
    (tmp_path / "patient.py").write_text(RESTLESS + "lab.WAITING = lab.Pool(5)\n")
    server.running.clear()

    with locust(tmp_path, server, "--rate", "20", "--run-time", "4s", locustfile=tmp_path / "patient.py") as run:
        wait_for(lambda: len(server.paths) == 5)
        time.sleep(4)
        server.running.set()
        said, _ = run.communicate()

    assert int(rows(tmp_path)["(not sent)"]["Failure Count"]) > 30, said
    assert rows(tmp_path)["Aggregated"]["Request Count"] == "5"
    assert len(server.paths) == 5


def test_processes_share_a_rate(server: Counting, tmp_path: Path) -> None:
    said, _ = locust(tmp_path, server, "--rate", "50", "--run-time", "6s", "--processes", "2").communicate()

    assert "2 workers connected" in said
    assert int(rows(tmp_path)["Aggregated"]["Request Count"]) == printed(said), said
    assert 200 < len(server.paths) < 350, said


def test_what_a_lost_worker_sent_the_others_send(server: Counting, tmp_path: Path) -> None:
    port = free_port()
    master = ("--master", "--expect-workers", "2", "--enable-rebalancing", "--master-bind-port", port)

    with locust(tmp_path, server, *master, "--rate", "20", "--run-time", "14s") as run:
        workers = [locust(tmp_path, server, "--worker", "--master-port", port) for _ in range(2)]
        wait_for(lambda: len(server.paths) > 40)
        workers[0].kill()
        said, _ = run.communicate()
    for worker in workers:
        worker.communicate()

    assert "failed to send heartbeat" in said
    history = csv.DictReader((tmp_path / "run_stats_history.csv").read_text().splitlines())
    users = [int(row["User Count"]) for row in history if row["User Count"] != "0"]
    assert 50 in users, said
    assert users[-1] == 100, said


@pytest.fixture
def page(server: Counting, tmp_path: Path) -> Iterator[str]:
    """Start the page by the deployed command, and yield its port."""
    command = COMMAND.read_text().replace("{{ ansible_managed | comment }}", "# Ansible managed")
    command = command.replace("{{ __locust_home }}", str(tmp_path)).replace("/etc/locust", str(tmp_path))
    (tmp_path / "locust").write_text(command)
    host = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "locust.conf").write_text(
        f"locustfile = {LOCUSTFILE}\nhost = {host}\nheadless = true\nusers = 2\nspawn-rate = 2\nrun-time = 5m\n"
    )
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "locust").write_text(f'#!/bin/sh\nexec {sys.executable} -m locust "$@"\n')
    (tmp_path / "venv" / "bin" / "locust").chmod(0o755)
    port = free_port()

    with subprocess.Popen(["sh", str(tmp_path / "locust"), "--web-port", port], stdin=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: asked(port, "/stats/requests"))
            yield port
        finally:
            process.terminate()


def test_page_of_the_deployed_command_is_on_loopback(page: str) -> None:
    assert f"0100007F:{int(page):04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()


def test_run_is_started_and_watched_in_a_browser(server: Counting, page: str) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver") or pytest.skip("chromedriver is not installed")
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--window-size=1280,900", "--no-sandbox", "--disable-dev-shm-usage"):  # as root
        options.add_argument(option)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        browser.implicitly_wait(20)
        browser.get(f"http://127.0.0.1:{page}/")
        browser.find_element("xpath", "//button[starts-with(translate(., 'STAR', 'star'), 'start')]").click()
        browser.find_element("xpath", "//*[@role='tab' and translate(., 'CHARTS', 'charts')='charts']").click()
        chart = browser.find_element("tag name", "canvas")
        drawn = chart.screenshot_as_png
        wait_for(lambda: len(server.paths) > 2 and chart.screenshot_as_png != drawn)

        assert "RUNNING" in browser.find_element("tag name", "body").text.upper()
    # The count, not the rate: Locust leaves the last two seconds out of that, and answers from a cache.
    wait_for(lambda: json.loads(asked(page, "/stats/requests"))["stats"][-1]["num_requests"] > 2, seconds=10)


def test_users_follow_a_shape(server: Counting, tmp_path: Path) -> None:
    options = ("--users", "10", "--spawn-rate", "10", "--run-time", "5s", "--shape", "step")
    said, _ = locust(tmp_path, server, *options).communicate()

    assert re.findall(r"Shape test updating to (\d+) users", said) == ["2", "4", "6", "8", "10"]


@pytest.mark.parametrize("options", [("--rate", "8"), ("--users", "16")], ids=["open", "closed"])
def test_limit_is_found(server: Counting, tmp_path: Path, options: Sequence[str]) -> None:
    server.seconds = 0.05  # for each answer, one after the other: 20 a second at the most
    (tmp_path / "impatient.py").write_text(RESTLESS + "ModelServerUser.wait_time = lambda _: 1\nlab.STEP_SECONDS = 2\n")
    bounds = ("--find-limit", "--max-p99-ms", "1000", "--max-failure-ratio", "1")
    said, _ = locust(tmp_path, server, *options, *bounds, locustfile=tmp_path / "impatient.py").communicate()

    steps = list(csv.DictReader((tmp_path / "run_limit.csv").read_text().splitlines()))
    assert [step["Verdict"] for step in steps[-2:]] == ["broken", "broken"], said
    held = max(float(step["Load"]) for step in steps if step["Verdict"] == "held")
    assert f"The highest load that held: {held:g}" in said
    assert 12 <= held < 50


def test_a_negative_rate_is_explained(server: Counting, tmp_path: Path) -> None:
    said, _ = locust(tmp_path, server, "--rate", "-1").communicate()

    assert "locust: --rate is -1; set it to requests a second, or to 0 for users who wait." in said
