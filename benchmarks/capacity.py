"""What one Prometheus takes to watch many servers: `script/bench capacity`.

One model server under load and one node exporter, both real, are recorded: a page of each every second. Small HTTP
servers, two for each server of the fleet and each fleet member on a loopback address of its own, then answer with these
pages in turn, each member from another second on; after the last page comes the first, as after a restart. A real
Prometheus with the rules of roles/prometheus scrapes them and itself every second.
"""

import asyncio
import contextlib
import gzip
import json
import re
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from benchmarks.metrics import RATE, SENDERS, Load
from benchmarks.servers import REPOSITORY, free_port, ours, running

COUNTS = (1, 2, 4, 50, 200)
FIRST = 3  # of the counts, from which the others are projected
PROJECTED = 1000
RECORDED = 120  # seconds
SETTLE = 60  # seconds before a measurement
SECONDS = 90  # of a measurement
COMPLETE = 0.99  # share of the scrapes below which Prometheus takes less than it would need
RULES = REPOSITORY / "roles" / "prometheus" / "files" / "rules"
MEGABYTE, KILOBYTE = 1e6, 1e3
DAY, BLOCK = 86400, 7200  # seconds
JOBS = ("model_server", "node")
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Pages = Dict[str, List[bytes]]  # job → its pages, one for each second


class Usage(NamedTuple):
    """What Prometheus took for a number of servers."""

    servers: int
    series: float
    samples: float  # per second
    cpu: float  # seconds per second
    memory: float  # bytes
    wire: float  # bytes per second, of both directions, of the targets without Prometheus itself
    sample_bytes: float  # in a block
    series_bytes: float  # in the index of a block
    log_bytes: float  # of a sample, in the write-ahead log
    answered: float  # share of the scrapes that were due
    rules: float  # share of its interval that the slowest group of rules needs


def get(url: str, data: Any = None) -> str:
    with LOCAL.open(urllib.request.Request(url, data), timeout=60) as answer:  # noqa: S310 - http alone
        text: str = answer.read().decode()
    return text


# Recording


@contextmanager
def node_exporter() -> Iterator[str]:
    """Run a node exporter; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        ["prometheus-node-exporter", f"--web.listen-address={address}", "--no-collector.systemd"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def record(image: bytes, bodies: Sequence[bytes]) -> Pages:
    """Return the pages of a model server that answers `RATE` requests a second, and of a node exporter, as gzip."""
    pages: Pages = {job: [] for job in JOBS}
    with running(ours("model server"), image) as server, node_exporter() as node:
        load = [Load(server.url, bodies, offset) for offset in range(SENDERS)]
        for sender in load:
            sender.start()
        time.sleep(SETTLE / 4)
        due = time.monotonic()
        for _ in range(RECORDED):
            for job, url in zip(JOBS, (server.url, node)):
                # As the model server itself compresses it for other hosts.
                pages[job].append(gzip.compress(get(f"{url}/metrics").encode(), compresslevel=1))
            due += 1
            time.sleep(max(0.0, due - time.monotonic()))
        for sender in load:
            sender.stop()
    return pages


# Playing


class Player(asyncio.Protocol):
    """A connection to a small HTTP server, which answers every request with its next page."""

    def __init__(self, pages: Iterator[bytes], wire: List[int]) -> None:
        self._pages, self._wire = pages, wire
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n"):
            self._transport.abort()
            return
        page = next(self._pages)
        head = f"Content-Type: text/plain; version=0.0.4\r\nContent-Encoding: gzip\r\nContent-Length: {len(page)}"
        answer = f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + page
        self._wire[0] += len(data) + len(answer)
        self._transport.write(answer)


def in_turn(pages: Sequence[bytes], first: int) -> Iterator[bytes]:
    while True:
        yield pages[first % len(pages)]
        first += 1


def address_of(server: int) -> str:
    return f"127.1.{server // 250}.{server % 250 + 1}"


async def play(pages: Pages, servers: int, wire: List[int]) -> Tuple[List[asyncio.AbstractServer], Dict[str, Any]]:
    """Start the small HTTP servers; return them, and job → list of host:port. What they send and get adds to `wire`."""
    listeners, targets = [], {}  # type: List[asyncio.AbstractServer], Dict[str, Any]
    loop = asyncio.get_running_loop()
    for job in pages:
        targets[job] = []
        for server in range(servers):
            turn = in_turn(pages[job], 7 * server)

            def connected(turn: Iterator[bytes] = turn) -> Player:
                return Player(turn, wire)

            listener = await loop.create_server(connected, address_of(server), 0)
            listeners.append(listener)
            targets[job].append("{}:{}".format(*listener.sockets[0].getsockname()))
    return listeners, targets


# Measuring


def configuration(targets: Dict[str, List[str]]) -> str:
    """Return a configuration like that of roles/prometheus; JSON is YAML."""
    jobs = [{"job_name": job, "static_configs": [{"targets": targets[job]}]} for job in targets]
    every_second = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    return json.dumps({"global": every_second, "rule_files": [f"{RULES}/*.yml"], "scrape_configs": jobs})


@contextmanager
def prometheus(directory: Path, targets: Dict[str, List[str]]) -> Iterator[str]:
    """Run a Prometheus that scrapes the targets and itself; yield its URL."""
    address = f"127.0.0.1:{free_port()}"
    (directory / "prometheus.yml").write_text(configuration({"prometheus": [address], **targets}))
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    command += [f"--web.listen-address={address}", "--web.enable-admin-api"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                get(f"http://{address}/-/ready")
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus does not answer: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def total(page: str, name: str) -> float:
    """Return the sum of the samples of a metric on a page."""
    return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, flags=re.MULTILINE)))


def query(url: str, promql: str) -> float:
    """Return the only value that Prometheus answers."""
    asked = urllib.parse.urlencode({"query": promql})
    (series,) = json.loads(get(f"{url}/api/v1/query?{asked}"))["data"]["result"]
    return float(series["value"][1])


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def block(url: str, data: Path) -> Tuple[float, float]:
    """Return what a sample's chunks and a series' index take in bytes, in the block that is made of all samples."""
    name = json.loads(get(f"{url}/api/v1/admin/tsdb/snapshot", b""))["data"]["name"]
    (meta,) = (data / "snapshots" / name).glob("*/meta.json")
    stats = json.loads(meta.read_text())["stats"]
    index = (meta.parent / "index").stat().st_size
    return size(meta.parent / "chunks") / stats["numSamples"], index / stats["numSeries"]


def measure_at(url: str, data: Path, servers: int, wire: List[int]) -> Usage:
    """Measure a Prometheus that has been running for a while."""
    began, page, sent = time.monotonic(), get(f"{url}/metrics"), wire[0]
    time.sleep(SECONDS)
    took, later, received = time.monotonic() - began, get(f"{url}/metrics"), wire[0]

    def rate(name: str) -> float:
        return (total(later, name) - total(page, name)) / took

    due = servers * len(JOBS) * SECONDS
    answered = query(url, f'sum(sum_over_time(up{{job!="prometheus"}}[{SECONDS}s])) / {due}')
    rules = query(
        url,
        "max(max_over_time(prometheus_rule_group_last_duration_seconds[1m]) / prometheus_rule_group_interval_seconds)",
    )
    log = size(data / "wal") / total(get(f"{url}/metrics"), "prometheus_tsdb_head_samples_appended_total")
    chunks, index = block(url, data)
    return Usage(
        servers,
        total(later, "prometheus_tsdb_head_series"),
        rate("prometheus_tsdb_head_samples_appended_total"),
        rate("process_cpu_seconds_total"),
        total(later, "process_resident_memory_bytes"),
        (received - sent) / took,
        chunks,
        index,
        log,
        min(answered, 1.0),  # the window may have one scrape more
        rules,
    )


async def usage(pages: Pages, servers: int) -> Usage:
    wire = [0]
    listeners, targets = await play(pages, servers, wire)
    loop = asyncio.get_running_loop()

    def watched() -> Usage:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, prometheus(Path(folder), targets) as url:
            time.sleep(SETTLE)
            return measure_at(url, Path(folder) / "data", servers, wire)

    try:
        return await loop.run_in_executor(None, watched)
    finally:
        for listener in listeners:
            listener.close()


def line(points: Sequence[Tuple[float, float]]) -> Tuple[float, float]:
    """Return base and slope of the line with the least squares through points."""
    x, y = (fmean(values) for values in zip(*points))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return y - slope * x, slope


def projected(usages: Sequence[Usage], servers: int) -> Dict[str, float]:
    """Return what `servers` would take, by straight lines through what was measured."""
    names = ("series", "samples", "cpu", "memory", "wire")
    lines = {name: line([(each.servers, getattr(each, name)) for each in usages]) for name in names}
    return {name: base + slope * servers for name, (base, slope) in lines.items()}


def measure(image: bytes, bodies: Sequence[bytes]) -> None:
    """Print what 1, 2, 4 and more servers take, and what more would take."""
    print(f"a model server under {RATE} requests/s and a node exporter are recorded for {RECORDED} s", flush=True)
    pages = record(image, bodies)
    print("a page, plain and compressed:", ", ".join(_pages(job, pages[job]) for job in JOBS), flush=True)
    print("| servers | series | samples/s | CPU | memory | wire | chunks | index | log | scrapes | rules |")
    found: List[Usage] = []
    for servers in COUNTS:
        found.append(asyncio.run(usage(pages, servers)))
        print(_row(found[-1]), flush=True)
    complete = [each for each in found if each.answered > COMPLETE]
    for servers in COUNTS[FIRST:]:
        print(f"{servers} servers, projected from {COUNTS[:FIRST]}: {_line(projected(found[:FIRST], servers))}")
    counts = tuple(each.servers for each in complete)
    print(f"{PROJECTED} servers, projected from {counts}: {_line(projected(complete, PROJECTED))}")
    last = complete[-1]
    of_day = last.samples * DAY * last.sample_bytes + DAY / BLOCK * last.series_bytes * last.series
    print(f"a day on disk, for each server: {of_day / last.servers / MEGABYTE:.0f} MB")


def _pages(job: str, pages: Sequence[bytes]) -> str:
    plain = fmean(len(gzip.decompress(page)) for page in pages)
    return f"{job} {plain / KILOBYTE:.1f} kB and {fmean(map(len, pages)) / KILOBYTE:.1f} kB"


def _row(used: Usage) -> str:
    return (
        f"| {used.servers} | {used.series:.0f} | {used.samples:.0f} | {used.cpu:.3f} | "
        f"{used.memory / MEGABYTE:.0f} MB | {used.wire / KILOBYTE:.1f} kB/s | {used.sample_bytes:.2f} B | "
        f"{used.series_bytes:.0f} B | {used.log_bytes:.2f} B | {100 * used.answered:.1f} % | {100 * used.rules:.0f} % |"
    )


def _line(values: Dict[str, float]) -> str:
    return (
        f"{values['series']:.0f} series, {values['samples']:.0f} samples/s, {values['cpu']:.2f} CPUs, "
        f"{values['memory'] / MEGABYTE:.0f} MB, {values['wire'] / KILOBYTE:.0f} kB/s"
    )
