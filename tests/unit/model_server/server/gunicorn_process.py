"""A real gunicorn around the app of `lemon`, for the tests: nothing else shows what happens to workers."""

import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[4]
GUNICORN = [sys.executable, "-m", "gunicorn", "--config", "python:model_server.server.gunicorn_conf"]


def environment(metrics: Path, **settings: str) -> Dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "MODEL_SERVER_BUNDLE": "none",
        **{f"MODEL_SERVER_{name.upper()}": value for name, value in settings.items()},
    }


def wait_for(condition: Callable[[], Any], seconds: float = 60, what: str = "") -> Any:
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Say whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def children(process: int) -> List[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def connection_header(kept: http.client.HTTPConnection) -> Optional[str]:
    """Send a request over a kept connection, and return what the answer says of it."""
    kept.request("GET", "/healthz")
    answer = kept.getresponse()
    assert answer.read()
    return answer.getheader("connection")


class Server:
    """A gunicorn with two workers; `master` is the process that has them, until a handover the one that was started."""

    def __init__(self, metrics: Path, log: Path, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        address = f"127.0.0.1:{self.address[1]}"
        self.url = f"http://{address}"
        self.metrics_dir = metrics
        self.runtime_dir = metrics.parent
        self.log = log
        # A new connection for each request: a kept one would stay with one worker.
        self.client = httpx.Client(base_url=self.url, timeout=20, limits=httpx.Limits(max_keepalive_connections=0))
        self.environment = environment(
            metrics, bind=address, workers="2", graceful_timeout="5", runtime_dir=str(self.runtime_dir)
        )
        self.environment.update(variables)
        with log.open("wb") as output:
            self.process = subprocess.Popen([*GUNICORN, "lemon:app()"], env=self.environment, stderr=output)
        self.master = self.process.pid
        wait_for(lambda: self.get("/readyz") and log.read_text().count("Started server process") == 2)

    def get(self, path: str) -> "httpx.Response | None":
        try:
            return self.client.get(path)
        except httpx.TransportError:  # the worker was killed, or none is there yet
            return None

    def predict(self, image: bytes) -> "httpx.Response | None":
        try:
            return self.client.post("/predict", files={"file": ("a.jpg", image, "image/jpeg")})
        except httpx.TransportError:
            return None

    def workers(self) -> List[int]:
        return children(self.master)

    def wait_for_replacement(self, before: List[int]) -> None:
        wait_for(lambda: len(self.workers()) == 2 and self.workers() != before)

    def samples(self) -> Dict[str, float]:
        page = wait_for(lambda: self.get("/metrics"))
        found: Dict[str, float] = {}
        for family in text_string_to_metric_families(page.text):
            for sample in family.samples:
                assert "pid" not in sample.labels
                key = sample.name + str(sorted(sample.labels.items()))
                assert key not in found, f"duplicate series {key}"
                found[key] = sample.value
        return found

    def lemons(self) -> float:
        return self.samples()["predictions_total[('class', 'lemon')]"]

    def wait_until_idle(self) -> None:
        """Wait until the scrape itself is the only request in progress.

        One is in progress until its answer has been sent, a moment longer than its client waits.
        """

        def is_idle() -> bool:
            samples = self.samples().items()
            return sum(value for key, value in samples if key.startswith("fastapi_requests_in_progress")) == 1

        wait_for(is_idle, 5)

    def files(self) -> List[str]:
        return sorted(path.name for path in self.metrics_dir.glob("*.db"))
