"""What the metrics cost: CPU time of a request with and without them, and how long a scrape takes under load.

`python -m benchmarks.metrics` prints both and exits with 1 where a bar is missed. README.md has the method.
"""

import argparse
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any, List, Optional, Sequence
from urllib.parse import urlsplit

from benchmarks.load import BOUNDARY, multipart
from benchmarks.servers import BUNDLE, REPOSITORY, Server, ours, running
from model_server import app
from model_server.bundle import REFERENCE

IMAGES = REPOSITORY / "load_test" / "images"
LARGEST_RATIO = 1.03
LONGEST_SCRAPE = 0.010  # seconds, at p99
TURNS = 20  # of all images, in a round
WORKERS = 4
SENDERS = 5
RATE = 50  # requests per second
WARM_UP = 5  # seconds of load before the first scrape counts: a new worker's first predictions are slow
SCRAPE_INTERVAL = 0.1  # seconds; Prometheus' second would take ten times as long for the same figure


class NoMetrics:
    """Takes the place of the model's metrics, and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def nothing(self, *_: object) -> None:
        pass

    record = reject = predict = nothing


def app_without_metrics() -> Any:
    """Build the app for gunicorn, as it would be without metrics; the product has no such switch."""
    vars(app).update(ModelMetrics=NoMetrics, instrument=NoMetrics)
    return app.app_from_environment()


class Connection:
    """A kept connection to a server."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def predict(self, body: bytes) -> None:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        self._request("POST", "/predict", body, headers)

    def scrape(self) -> bytes:
        return self._request("GET", "/metrics")

    def _request(self, method: str, path: str, body: Optional[bytes] = None, headers: Any = None) -> bytes:
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{method} {path} was answered with {answer.status}: {content[:200]!r}")
        return content


def compare(bundle: Path, bodies: Sequence[bytes]) -> List[float]:
    """Return a request's CPU time in seconds with and without metrics: the kernel's account of the process tree.

    The servers take turns at every request, so that what else the machine does is the same for both. They are
    new ones each time, because where a process happens to lie in memory makes a difference of its own.
    """
    image = (IMAGES / "apple_640x480.jpg").read_bytes()
    without = ours("without metrics", app="benchmarks.metrics:app_without_metrics()", bundle=str(bundle))
    with running(ours("with metrics", bundle=str(bundle)), image, workers=1) as on, running(without, image, 1) as off:
        pair = [(server, Connection(server.url)) for server in (on, off)]
        for body in bodies:
            for _, connection in pair:
                connection.predict(body)
        before = [server.cpu_seconds() for server, _ in pair]
        for turn in range(TURNS):
            for number, body in enumerate(bodies):
                for _, connection in pair if (turn + number) % 2 else pair[::-1]:
                    connection.predict(body)
        used = [server.cpu_seconds() - early for server, early in zip((on, off), before)]
    return [seconds / (TURNS * len(bodies)) for seconds in used]


class Load(threading.Thread):
    """Sends the images, `RATE` / `SENDERS` in a second, until it is stopped."""

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
    """Return the seconds that scrapes of a loaded server took; the connection is kept if the server keeps it."""
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
        raise RuntimeError(f"The server was to be loaded with {RATE} requests/s, but only {rate:.0f} came about.")
    return seconds


def replace_workers(server: Server, count: int) -> None:
    """End workers one after the other, always the oldest: one that has just been born may not hear the signal."""
    for _ in range(count):
        oldest = server.processes()[1]
        os.kill(oldest, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while oldest in server.processes() or len(server.processes()) <= WORKERS:
            if time.monotonic() > deadline:
                raise RuntimeError("A worker that was ended is not replaced.")
            time.sleep(0.02)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metrics",
        description="Measure what the metrics cost: a request's CPU time with and without them, and scrapes "
        f"of {WORKERS} workers under {RATE} requests/s. Takes about four minutes.",
    )
    parser.add_argument(
        "--bundle", type=Path, default=BUNDLE, help="trained first, if it is not there (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison, three or more (default: 7)")
    parser.add_argument("--scrapes", type=int, default=400, help="in each of the two measurements (default: 400)")
    parser.add_argument("--replacements", type=int, default=100, help="of workers, before the second (default: 100)")
    options = parser.parse_args(arguments)
    if not options.bundle.exists():
        subprocess.run([sys.executable, "-m", "model_server.training", "--out", str(options.bundle)], check=True)
    if not (options.bundle / REFERENCE).exists():
        parser.error(f"{options.bundle} has no {REFERENCE}, and without it features are not counted.")
    bodies = [multipart(path.read_bytes()) for path in sorted(IMAGES.glob("*.jpg"))]

    print("CPU time of a request, ms   with   without   ratio")
    ratios = []
    for number in range(1, max(3, options.rounds) + 1):
        on, off = compare(options.bundle, bodies)
        ratios.append(on / off)
        print(f"round {number:<21} {on * 1e3:5.2f}  {off * 1e3:8.2f}  {on / off:6.3f}", flush=True)
    met = [verdict("ratio", median(ratios), LARGEST_RATIO, f"{min(ratios):.3f} to {max(ratios):.3f}")]

    image = (IMAGES / "apple_640x480.jpg").read_bytes()
    with running(ours("with metrics", bundle=str(options.bundle)), image, WORKERS) as server:
        for replaced in (0, options.replacements):
            replace_workers(server, replaced)
            seconds = scrape(server, bodies, options.scrapes)
            middle = f"p50 {median(seconds) * 1e3:.1f} ms, longest {max(seconds) * 1e3:.1f} ms"
            p99 = quantiles(seconds, n=100)[98]
            met.append(verdict(f"scrape p99 after {replaced} replacements, s", p99, LONGEST_SCRAPE, middle))
    sys.exit(0 if all(met) else 1)


def verdict(name: str, value: float, bar: float, spread: str) -> bool:
    print(f"{name}: {value:.4g} ({spread}); at most {bar} {'holds' if value <= bar else 'MISSED'}", flush=True)
    return value <= bar


if __name__ == "__main__":
    main()
