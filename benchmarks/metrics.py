"""What the metrics cost: a request's CPU time with and without them, and how long a scrape takes under load."""

import os
import signal
import threading
import time
from itertools import cycle
from typing import Any, List, Sequence

from benchmarks.load import Connection
from benchmarks.servers import Server, System, ours, running
from model_server import app

TURNS = 24  # passes over all images in a round
WORKERS = 4
SENDERS = 5
RATE = 50  # requests per second
WARM_UP = 5  # seconds of load before the first scrape counts: a new worker's first predictions are slow
SCRAPE_INTERVAL = 0.1  # seconds; with Prometheus' 1 s the same figure would take ten times as long


class NoMetrics:
    """Replaces the model's metrics and records nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def nothing(self, *_: object) -> None:
        pass

    __call__ = nothing  # of what `instrument` returns

    record = reject = predict = queue = authorize = nothing
    samples = None


def app_without_metrics() -> Any:
    """Build the app without metrics; the product has no such switch."""
    vars(app).update(ModelMetrics=NoMetrics, instrument=NoMetrics)
    return app.app_from_environment()


WITHOUT_METRICS = ours("without metrics", app="benchmarks.metrics:app_without_metrics()")


def compare(image: bytes, bodies: Sequence[bytes], other: System = WITHOUT_METRICS) -> List[float]:
    """Return a request's CPU time in seconds on the model server and on another system, as the kernel counts it.

    The servers take turns at every request on one processor, so other work on the machine affects both alike: on two
    processors, rounds differed by a tenth. Each round starts new servers, because the placement of a process in memory
    makes a difference, too.
    """
    cpu = sorted(os.sched_getaffinity(0))[-1:]
    with running(ours("model server"), image, 1, cpu) as own, running(other, image, 1, cpu) as compared:
        pair = [(server, Connection(server.url)) for server in (own, compared)]
        for body in bodies:
            for _, connection in pair:
                connection.predict(body)
        before = [server.cpu_seconds() for server, _ in pair]
        for turn in range(TURNS):
            for number, body in enumerate(bodies):
                for _, connection in pair if (turn + number) % 2 else pair[::-1]:
                    connection.predict(body)
        used = [server.cpu_seconds() - early for server, early in zip((own, compared), before)]
    return [seconds / (TURNS * len(bodies)) for seconds in used]


class Load(threading.Thread):
    """Sends `RATE` / `SENDERS` images per second until it is stopped."""

    def __init__(self, url: str, bodies: Sequence[bytes], offset: int) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._connection = Connection(url)
        self._bodies = cycle([*bodies[offset:], *bodies[:offset]])
        self._offset = offset
        self._stopped = threading.Event()

    def run(self) -> None:
        due = time.monotonic() + self._offset / RATE
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            self._connection.predict(next(self._bodies))
            self.sent += 1
            due += SENDERS / RATE

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def scrape(server: Server, bodies: Sequence[bytes], count: int) -> List[float]:
    """Return the seconds that scrapes of a loaded server took; the connection stays open if the server keeps it."""
    load = [Load(server.url, bodies, offset) for offset in range(SENDERS)]
    begun = time.monotonic()
    for sender in load:
        sender.start()
    connection = Connection(server.url)
    while time.monotonic() < begun + WARM_UP:
        connection.scrape()
        time.sleep(SCRAPE_INTERVAL)
    seconds = []
    for _ in range(count):
        time.sleep(SCRAPE_INTERVAL)
        asked = time.perf_counter()
        connection.scrape()
        seconds.append(time.perf_counter() - asked)
    for sender in load:
        sender.stop()
    rate = sum(sender.sent for sender in load) / (time.monotonic() - begun)
    if rate < RATE * 0.9:
        raise RuntimeError(f"The load must be {RATE} requests/s, but only {rate:.0f} were reached.")
    return seconds


def replace_workers(server: Server, count: int) -> None:
    """Terminate workers one after the other, always the oldest: a new one may not handle the signal yet."""
    for _ in range(count):
        oldest = server.processes()[1]
        os.kill(oldest, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while oldest in server.processes() or len(server.processes()) <= WORKERS:
            if time.monotonic() > deadline:
                raise RuntimeError("A terminated worker was not replaced.")
            time.sleep(0.02)
