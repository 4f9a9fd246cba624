"""The machines of a converged Molecule scenario, and what runs on them, as a user reaches it.

Addresses are looked up at every use: a machine may get another one when it is started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import testinfra  # type: ignore[import-untyped]

Way = Callable[..., httpx.Client]  # options of httpx → a client

SCENARIO = os.environ.get("MOLECULE_SCENARIO_NAME", "default")
MODEL_SERVER_PORT = 8000
PROMETHEUS_PORT = 9090
ALERTMANAGER_PORT = 9093


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> float:
    """Return the seconds it took until `condition` was true; a refused connection is a no."""
    started = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - started
            reason = ""
        except (httpx.HTTPError, subprocess.CalledProcessError) as error:
            reason = f": {error}"
        if time.monotonic() - started > timeout:
            raise AssertionError(f"{what}: not within {timeout:g} s{reason}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Machine:
    container: str

    @property
    def address(self) -> str:
        return docker(
            "inspect",
            "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            self.container,
        )

    def shell(self, user: str = "root") -> Any:
        """Return testinfra's host for this machine, acting as `user`."""
        return testinfra.get_host(f"docker://{user}@{self.container}")

    def run(self, command: str, *arguments: str, user: str = "root") -> str:
        """Return what `command` prints; an exit status other than 0 fails the test."""
        return str(self.shell(user).check_output(command, *arguments))

    def status(self, command: str, *arguments: str, user: str = "root") -> int:
        return int(self.shell(user).run(command, *arguments).rc)

    def main_pid(self, unit: str) -> int:
        """Return the process id of a service's main process: 0 while there is none."""
        return int(self.run("systemctl show --property MainPID --value %s", unit))

    @contextmanager
    def stopped(self, unit: str) -> Iterator[None]:
        """Stop a service, and start it in the end."""
        self.run("systemctl stop %s", unit)
        try:
            yield
        finally:
            self.run("systemctl start %s", unit)

    def journal(self, unit: str, since: str = "-1h", lines: int = 40) -> str:
        return self.run(f"journalctl --unit %s --since %s --lines {lines} --no-pager --output cat", unit, since)

    def http(self, port: int, **options: Any) -> httpx.Client:
        """Return a client for a service of this machine that no proxy of the controller disturbs."""
        options.setdefault("timeout", 10)
        return httpx.Client(base_url=f"http://{self.address}:{port}", trust_env=False, **options)

    def door(self, path: str = "", **options: Any) -> httpx.Client:
        """Return a client for what is below a path of this machine's front door, whose certificate nobody trusts."""
        options.setdefault("timeout", 10)
        return httpx.Client(base_url=f"https://{self.address}{path}", trust_env=False, verify=False, **options)  # noqa: S501

    def get(self, port: int, path: str, **parameters: str | float) -> httpx.Response:
        with self.http(port) as client:
            return client.get(path, params=parameters)

    def restart(self) -> None:
        """Shut the machine down in order and start it again; returns before its services are up."""
        docker("restart", "-t", "60", self.container)


@dataclass(frozen=True)
class Prometheus:
    machine: Machine

    @property
    def url(self) -> str:
        return f"http://{self.machine.address}:{PROMETHEUS_PORT}"

    def query(self, promql: str, at: float | None = None) -> list[dict[str, Any]]:
        time_of = {} if at is None else {"time": at}
        answer = self.machine.get(PROMETHEUS_PORT, "/api/v1/query", query=promql, **time_of)
        assert answer.status_code == 200, f"{promql}: {answer.text}"
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    def total(self, promql: str, at: float | None = None) -> float:
        """Return the sum over the series of an instant vector: 0 when there is none yet."""
        return sum(float(series["value"][1]) for series in self.query(promql, at))


@dataclass(frozen=True)
class ModelServer:
    machine: Machine

    def http(self, **options: Any) -> httpx.Client:
        return self.machine.http(MODEL_SERVER_PORT, **options)

    @property
    def ways(self) -> list[Way]:
        """Return the ways to it: by itself, and by the front door."""
        return [self.http, self.machine.door]

    def processes(self) -> dict[int, Mapping[str, str]]:
        """Return the fields of /proc/PID/status for gunicorn's master (first) and its workers."""
        statuses = {
            pid: self.machine.shell().run("cat /proc/%s/status", str(pid)) for pid in [self.master(), *self.workers()]
        }
        return {
            pid: dict(line.split(":\t", 1) for line in answer.stdout.splitlines())
            for pid, answer in statuses.items()
            if answer.rc == 0
        }

    def master(self) -> int:
        """Return the process id of gunicorn's master: 0 while there is none."""
        return self.machine.main_pid("model-server")

    def workers(self) -> list[int]:
        """Return the process ids of the workers that the master has."""
        command = "pgrep --parent $(systemctl show --property MainPID --value model-server)"
        return [int(pid) for pid in self.machine.shell().run(command).stdout.split()]

    def ready(self) -> bool:
        return self.machine.get(MODEL_SERVER_PORT, "/readyz").status_code == 200

    def counters(self) -> dict[str, float]:
        """Return every counter sample (histogram buckets too) of one scrape of /metrics."""
        answer = self.machine.get(MODEL_SERVER_PORT, "/metrics")
        assert answer.status_code == 200, answer.text
        return {
            series: value
            for series, value in samples(answer.text)
            if series.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))
        }


def fallen(scrapes: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float | None]]:
    """Return the counters that fell or vanished from one scrape to the next, with both values."""
    return {
        series: (value, later.get(series))
        for earlier, later in pairwise(scrapes)
        for series, value in earlier.items()
        if later.get(series, -1) < value
    }


@dataclass(frozen=True)
class Alertmanager:
    machine: Machine

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts it knows of, those too that it does not tell, with their labels and their status."""
        answer = self._ask("GET").json()
        alerts: list[dict[str, Any]] = answer if isinstance(answer, list) else answer["data"]
        return alerts

    def post(self, alerts: list[dict[str, Any]]) -> None:
        """Hand it alerts, as a Prometheus does."""
        self._ask("POST", json=alerts)

    def _ask(self, method: str, **options: Any) -> httpx.Response:
        with self.machine.http(ALERTMANAGER_PORT) as client:
            answer = client.request(method, "/api/v2/alerts", **options)
            if answer.status_code == 404:  # 0.15 has only version 1, 0.27 has it no longer
                answer = client.request(method, "/api/v1/alerts", **options)
        assert answer.status_code == 200, answer.text
        return answer


@dataclass(frozen=True)
class Told:
    """One alert of a notification."""

    received: float
    status: str  # firing or resolved
    labels: Mapping[str, str]


@dataclass(frozen=True)
class WebhookReceiver:
    """Receives the notifications: molecule/shared/webhook_receiver.py."""

    machine: Machine

    def told(self, since: float, status: str, **labels: str) -> list[Told]:
        """Return the alerts of this status and with these labels of which notifications arrived from `since` on."""
        lines = self.machine.run("cat /var/lib/webhook-receiver/notifications.jsonl 2>/dev/null || true").splitlines()
        told = [
            Told(notification["received"], alert["status"], alert["labels"])
            for notification in map(json.loads, lines)
            for alert in notification["alerts"]
        ]
        return [
            alert
            for alert in told
            if alert.received >= since and alert.status == status and labels.items() <= alert.labels.items()
        ]


def samples(exposition: str) -> Iterator[tuple[str, float]]:
    """Yield the samples of a page in Prometheus' text format."""
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            yield series, float(value)
