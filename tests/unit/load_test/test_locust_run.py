"""The load test as Locust runs it, against a small server that counts."""

import csv
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Iterator, List

import pytest

pytest.importorskip("locust.stats", reason="needs Locust", exc_type=ImportError)

LOCUSTFILE = Path(__file__).parents[3] / "load_test" / "locustfile.py"


class Counting(ThreadingHTTPServer):
    """Answers every request with 400 and records its path."""

    daemon_threads = True
    request_queue_size = 128  # all users connect at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.paths: List[str] = []


class Answering(BaseHTTPRequestHandler):
    server: Counting

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.paths.append(self.path)
        self.send_response(400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Counting]:
    with Counting() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_csv_files_hold_the_last_requests(server: Counting, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless", "--csv", "run"]
    command += ["--users", "100", "--spawn-rate", "100", "--run-time", "2s", "--stop-timeout", "10"]
    command += ["--host", f"http://127.0.0.1:{server.server_port}"]

    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    total = list(csv.DictReader((tmp_path / "run_stats.csv").read_text().splitlines()))[-1]
    assert int(total["Request Count"]) == len(server.paths) > 0, run.stderr
