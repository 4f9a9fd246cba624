"""Real daemons of the monitoring on loopback addresses of their own, with the arguments that the roles write."""

import json
import shlex
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence

import pytest

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.roles import monitoring_play

# Faster than the defaults of a cluster: settled after half a second instead of 6, and 2 s for each peer instead of 15.
PEER_TIMEOUT = 2
HURRY = ("--cluster.gossip-interval=20ms", f"--cluster.peer-timeout={PEER_TIMEOUT}s", "--cluster.probe-interval=200ms")
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def needs(name: str, *flags: str) -> pytest.MarkDecorator:
    """Skip a test where a daemon cannot be run, or is too old for its flags."""
    try:
        works = subprocess.run([name, *flags, "--version"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        works = False
    return pytest.mark.skipif(not works, reason=f"needs {' '.join([name, *flags])}: script/bootstrap extracts it")


def free_ports(count: int, addresses: Sequence[str] = ("127.0.0.1",)) -> List[int]:
    """Return ports that nobody has on any of the addresses, by TCP and UDP."""
    found: List[int] = []
    while len(found) < count:
        with socket.socket() as tcp:
            tcp.bind((addresses[0], 0))
            port = tcp.getsockname()[1]
        if port not in found and all(is_free(address, port) for address in addresses):
            found.append(port)
    return found


def is_free(address: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(type=kind) as tried:
            try:
                tried.bind((address, port))
            except OSError:
                return False
    return True


def arguments(text: str) -> List[str]:
    """Return the arguments that systemd reads from a file of /etc/default."""
    (line,) = (line for line in text.splitlines() if line.startswith("ARGS="))
    (value,) = shlex.split(line[len("ARGS=") :])
    return value.split()


def ask(url: str, body: Any = None) -> Any:
    """Return the JSON of an answer; a body is posted as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - http alone
    with LOCAL.open(request, timeout=5) as answer:
        said = answer.read()
    return json.loads(said) if said else None


@contextmanager
def running(name: str, *command: str, ready: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a daemon from when it says that it is ready."""

    def is_ready() -> bool:
        assert process.poll() is None, f"{name} ended: {log.read_text()[-2000:]}"
        try:
            with LOCAL.open(ready, timeout=1):
                return True
        except OSError:
            return False

    with log.open("wb") as output:
        process = subprocess.Popen([name, *command], stdout=output, stderr=output)
    try:
        wait_for(is_ready, 15, f"{name} is ready")
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def prometheus(directory: Path, host: "Host", *further: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a Prometheus with what the role has written, and further arguments; rules and targets are beside it."""
    for kind in ("rules", "targets"):
        (directory / kind).mkdir(parents=True)
    for job, targets in json.loads(host.files["jobs"]).items():
        (directory / "targets" / f"model_monitoring_{job}.json").write_text(json.dumps([{"targets": targets}]))
    (directory / "rules" / "rules.yml").write_text(host.files["rules.yml"])
    (directory / "prometheus.yml").write_text(host.files["prometheus.yml"].replace("/etc/prometheus", str(directory)))
    given = arguments(host.files["prometheus arguments"])
    places = (f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data")
    ready = f"http://{host.prometheus}/-/ready"
    with running("prometheus", *given, *places, *further, ready=ready, log=directory / "log") as process:
        yield process


@contextmanager
def store(directory: Path, address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a Prometheus that scrapes nothing and takes what others write to it."""
    directory.mkdir()
    (directory / "prometheus.yml").write_text("")
    places = (f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data")
    command = ("prometheus", f"--web.listen-address={address}", "--web.enable-remote-write-receiver", *places)
    with running(*command, ready=f"http://{address}/-/ready", log=directory / "log") as process:
        yield process


def query(address: str, promql: str) -> List[Dict[str, Any]]:
    """Return the series that Prometheus answers."""
    asked = urllib.parse.urlencode({"query": promql})
    series: List[Dict[str, Any]] = ask(f"http://{address}/api/v1/query?{asked}")["data"]["result"]
    return series


@contextmanager
def alertmanager(directory: Path, host: "Host") -> Iterator["subprocess.Popen[bytes]"]:
    """Run an Alertmanager with what the role has written, in a hurry."""
    directory.mkdir()
    (directory / "alertmanager.yml").write_text(host.files["alertmanager.yml"])
    given = arguments(host.files["alertmanager arguments"])
    places = (f"--config.file={directory}/alertmanager.yml", f"--storage.path={directory}/data")
    ready = f"http://{host.alertmanager}/-/ready"
    with running("prometheus-alertmanager", *given, *places, *HURRY, ready=ready, log=directory / "log") as process:
        yield process


def post_alerts(address: str, *alerts: Mapping[str, str]) -> None:
    """Hand alerts to an Alertmanager, as a Prometheus does."""
    body = [{"labels": labels, "annotations": {}} for labels in alerts]
    try:
        ask(f"http://{address}/api/v2/alerts", body)
    except urllib.error.HTTPError as error:  # 0.15 has only version 1, 0.27 has it no longer
        if error.code != 404:
            raise
        ask(f"http://{address}/api/v1/alerts", body)


class Webhook:
    """Receives the notifications of Alertmanagers."""

    def __init__(self) -> None:
        self.notifications: List[Dict[str, Any]] = []
        received = self.notifications

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *said: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def told(self, status: str = "firing", **labels: str) -> List[Dict[str, str]]:
        """Return the labels of the alerts of this status and with these labels, once for each notification of them."""
        return [
            alert["labels"]
            for notification in list(self.notifications)
            for alert in notification["alerts"]
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        ]

    def __enter__(self) -> "Webhook":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Host:
    """A monitoring host on a loopback address of its own: where its daemons are, and what the roles wrote for them."""

    def __init__(self, name: str, address: str, ports: Sequence[int], files: Mapping[str, str]) -> None:
        self.name, self.files = name, dict(files)
        self.prometheus, self.alertmanager = (f"{address}:{port}" for port in ports[:2])


def deployed_hosts(directory: Path, webhook: Webhook, **further: Any) -> List[Host]:
    """Return two monitoring hosts that tell a webhook, and wait for nothing that a person would wait for.

    Args:
        directory: an empty one.
        webhook: what they tell.
        **further: variables of both.
    """
    addresses = {"first": "127.0.0.2", "second": "127.0.0.3"}
    ports = free_ports(3, [*addresses.values()])
    of_both = {
        **dict(zip(("prometheus_port", "alertmanager_port", "alertmanager_cluster_port"), ports)),
        "alertmanager_webhook_url": webhook.url,
        "alertmanager_group_wait": "200ms",
        "alertmanager_group_interval": "500ms",
        "prometheus_scrape_interval": "500ms",
        "prometheus_alert_for": {"TargetDown": "1s"},
        **further,
    }
    listening = (
        "host_address",
        *(f"{name}_listen_address" for name in ("prometheus", "alertmanager", "alertmanager_cluster")),
    )
    hosts = {name: {**dict.fromkeys(listening, address), **of_both} for name, address in addresses.items()}
    files = monitoring_play.written(directory, hosts, {"monitoring": [*hosts]})
    return [Host(name, address, ports, files[name]) for name, address in addresses.items()]
