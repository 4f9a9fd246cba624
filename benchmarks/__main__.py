"""Compare the model server with the original lab's app. The machine should be idle otherwise.

Prints the measurements and a table of figures, writes the figures to results.json and README.md, and exits with
status 1 if a bar is missed. README.md has the method.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Dict, List

from benchmarks import capacity, images, loop, metrics, models, overload, parts, preprocessing, shadow, users
from benchmarks.figures import README, RESULTS, judge, put_into_readme, show
from benchmarks.load import Connection, multipart, one_by_one, photo, predict
from benchmarks.servers import REPOSITORY, TORCHVISION, WORKERS, System, lab, ours, running

IMAGES = REPOSITORY / "load_test" / "images"
IMAGE = IMAGES / "apple_640x480.jpg"
SYSTEMS = {"lab": lab(), "exact": ours("exact"), "fast": ours("fast", decoding="fast")}
WARM_UP = 3  # seconds
MEGABYTE = 1e6
FIRST_USERS = 120
REPLACEMENTS = 100
Measured = Dict[str, List[float]]


def bodies() -> List[bytes]:
    """Return the images of the load test, as forms."""
    return [multipart(path.read_bytes()) for path in sorted(IMAGES.glob("*.jpg"))]


class Bench:
    """Takes the figures in rounds; within a round all systems take turns.

    Attributes:
        measured: one value per round, by system and quantity; in seconds, bytes and requests per second.
    """

    def __init__(self, rounds: int, seconds: int) -> None:
        self.rounds, self.seconds = rounds, seconds
        self.measured: Measured = defaultdict(list)
        self._begun = time.monotonic()
        self._image = IMAGE.read_bytes()
        self._photo = photo()
        self._answers: Dict[str, str] = {}
        self._bodies = bodies()

    def say(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._begun), 60)
        print(f"{minutes:3}:{seconds:02}  {line}", flush=True)

    def run(self) -> Dict[str, float]:
        """Measure everything, and return the values by the names of their bars."""
        minutes = self.rounds * (8 * self.seconds + 40) / 60
        self.say(f"servers under load, and the loop without HTTP: {self.rounds} rounds, about {minutes:.0f} minutes")
        for _ in range(self.rounds):
            for name, system in SYSTEMS.items():
                self._load(name, system)
            for decoding in ("exact", "fast"):
                self._loop(decoding)
            self._further_worker()
        self._users()
        self._metrics()
        self._scrapes()
        return self._values()

    def _load(self, name: str, system: System) -> None:
        with running(system, self._image) as server:
            predict(server.url, self._image, connections=16, seconds=WARM_UP)
            answer = json.loads(Connection(server.url).predict(multipart(self._image)))
            self._answers[name] = answer["likely_class"]
            before = server.cpu_seconds()
            steady = predict(server.url, self._image, connections=16, seconds=self.seconds)
            cpu = (server.cpu_seconds() - before) / steady.requests
            found = {"cpu": cpu, "rate": steady.rate, "start": server.cold_start}
            if name != "fast":
                crowd = predict(server.url, self._image, connections=64, seconds=self.seconds)
                found.update(p50=crowd.p50, p99=crowd.p99, spread=crowd.max / crowd.p50)
            found["memory"] = server.pss_bytes()
            if name != "exact":
                found["photo"] = median(one_by_one(server.url, self._photo, count=2 * self.seconds))
        for key, value in found.items():
            self.measured[f"{name} {key}"].append(value)
        crowd_line = (
            f"p50, p99 of 64 {found['p50'] * 1e3:4.0f} {found['p99'] * 1e3:4.0f} ms  " if "p50" in found else ""
        )
        photo_line = f"photo {found['photo'] * 1e3:3.0f} ms  " if "photo" in found else ""
        self.say(
            f"{name:<5}  {cpu * 1e3:5.2f} ms CPU per request  {found['rate']:4.0f} requests/s  {crowd_line}{photo_line}"
            f"{found['memory'] / MEGABYTE:.0f} MB  start {found['start']:.1f} s"
        )

    def _loop(self, decoding: str) -> None:
        cpu, likely_class = loop.measure(decoding, IMAGE, self.seconds / 2)
        if likely_class != self._answers[decoding]:
            raise RuntimeError(f"The loop says {likely_class}, but the server said {self._answers[decoding]}.")
        self.measured[f"{decoding} loop"].append(cpu)
        self.say(f"loop without HTTP, {decoding}: {cpu * 1e3:.2f} ms CPU per image")

    def _further_worker(self) -> None:
        """Measure the memory that a third and a fourth worker add, on average."""
        with running(SYSTEMS["exact"], self._image, workers=WORKERS + 2) as server:
            predict(server.url, self._image, connections=16, seconds=WARM_UP + self.seconds)
            memory = server.pss_bytes()
        self.measured["further worker"].append((memory - self.measured["exact memory"][-1]) / 2)
        self.say(f"an additional worker: {self.measured['further worker'][-1] / MEGABYTE:.1f} MB")

    def _users(self) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        generator, servers = cpus[0], cpus[1:] or cpus
        minutes = (12 + 9 * self.rounds) * (self.seconds + users.ARRIVAL + users.SETTLE + 2) / 60
        self.say(
            f"Locust users within the objectives: the server on processor {servers[0]}, Locust on {generator}; "
            f"{self.rounds} rounds, about {minutes:.0f} minutes"
        )
        found: Dict[str, float] = {"lab": FIRST_USERS / 1.5, "exact": 2 * FIRST_USERS / 1.5}
        step = 1.5
        with ExitStack() as stack:
            urls = {
                name: stack.enter_context(running(system, self._image, cpus=servers[:1])).url
                for name, system in (("lab", lab()), ("exact", ours("exact", fault_injection="true")))
            }
            for _ in range(self.rounds):
                searches = {name: users.Search(round(found[name] * step), step) for name in urls}
                while any(search.next for search in searches.values()):
                    for name, search in searches.items():
                        if search.next:
                            self._try(name, urls[name], search.next, search, generator)
                for name, search in searches.items():
                    self.measured[f"{name} users"].append(search.met)
                    found[name] = max(1, median(self.measured[f"{name} users"]))
                self.say(", ".join(f"{name}: {search.met} users" for name, search in searches.items()))
                step = 1.12  # the next rounds search around this result

    def _try(self, name: str, url: str, count: int, search: users.Search, cpu: int) -> None:
        service = users.serve(url, count, self.seconds, cpu)
        search.learn(count, service.meets_objectives)
        self.say(
            f"{name:<5}  {count:4} users  {service.requests / self.seconds:4.0f} requests/s  "
            f"p50 {service.p50} ms, p99 {service.p99} ms, {service.failures} failed: "
            f"{'met' if service.meets_objectives else 'missed'}"
        )

    def _metrics(self) -> None:
        rounds = 5 * self.rounds  # short ones: processes differ more than requests do
        self.say(f"CPU time of a request with metrics and without: {rounds} rounds, about {rounds * 0.3:.0f} minutes")
        for _ in range(rounds):
            on, off = metrics.compare(self._image, self._bodies)
            self.measured["with metrics"].append(on)
            self.measured["without metrics"].append(off)
            self.say(f"with {on * 1e3:.2f} ms, without {off * 1e3:.2f} ms: {on / off:.3f}")

    def _scrapes(self) -> None:
        count = 40 * self.seconds
        self.say(
            f"scrapes of {metrics.WORKERS} workers under {metrics.RATE} requests/s, before and after {REPLACEMENTS} of "
            f"them were replaced: {self.rounds} rounds, about {3 * self.rounds} minutes"
        )
        for _ in range(self.rounds):
            with running(ours("exact"), self._image, metrics.WORKERS) as server:
                for when, replaced in (("before", 0), ("after", REPLACEMENTS)):
                    metrics.replace_workers(server, replaced)
                    seconds = metrics.scrape(server, self._bodies, count)
                    p50, p99 = median(seconds), quantiles(seconds, n=100)[98]
                    self.measured[f"scrape p50 {when}"].append(p50)
                    self.measured[f"scrape p99 {when}"].append(p99)
                    self.say(f"{when}: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f}, longest {max(seconds) * 1e3:.1f}")

    def _values(self) -> Dict[str, float]:
        def of(key: str) -> float:
            return median(self.measured[key])

        def to_lab(name: str, key: str) -> float:
            return of(f"{name} {key}") / of(f"lab {key}")

        pairs = zip(self.measured["with metrics"], self.measured["without metrics"])
        return {
            "CPU time of a request, exact, to the lab's": to_lab("exact", "cpu"),
            "CPU time of a request, fast, to the lab's": to_lab("fast", "cpu"),
            "CPU time of a request, exact, to a loop without HTTP": of("exact cpu") / of("exact loop"),
            "CPU time of a request, fast, to a loop without HTTP": of("fast cpu") / of("fast loop"),
            "throughput at 16 connections, exact, to the lab's": to_lab("exact", "rate"),
            "throughput at 16 connections, fast, to the lab's": to_lab("fast", "rate"),
            "p99 at 64 connections": of("exact p99"),
            "longest to median at 64 connections": of("exact spread"),
            "12-megapixel photo, fast, p50, to the lab's": to_lab("fast", "photo"),
            "memory of two workers, to the lab's": to_lab("exact", "memory"),
            "memory of a further worker": of("further worker") / MEGABYTE,
            "cold start, to the lab's": to_lab("exact", "start"),
            "Locust users, to the lab's": of("exact users") / max(1, of("lab users")),
            "CPU time of a request, with metrics to without": median(on / off for on, off in pairs),
            "scrape under load, p99": of("scrape p99 before"),
            "scrape after 100 replaced workers, p99": of("scrape p99 after"),
            "scrape after 100 replaced workers, p50, to before": of("scrape p50 after") / of("scrape p50 before"),
        }


def report(figures: List[Dict[str, Any]], measured: Measured) -> Dict[str, Any]:
    """Return the figures with machine, versions and date, and with the medians behind them."""
    names = ("torch", "fastapi", "starlette", "uvicorn", "gunicorn", "pillow", "locust")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    versions["torchvision"] = next(iter(distributions(name="torchvision", path=[str(TORCHVISION)]))).version
    return {
        "machine": {"cpus": os.cpu_count(), "processor": processor(), "system": platform.platform()},
        "versions": versions,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "figures": figures,
        "medians": {key: median(values) for key, values in measured.items()},
    }


def processor() -> str:
    """Return the processor's name as the kernel reports it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["models", "preprocessing", "parts", "overload", "images", "capacity", "shadow"],
        help="only users' own models beside the lab's app and LitServe; preprocessing on CPython 3.8; what parts of "
        "our own save beside libraries; what happens at three times the capacity; what the most expensive images cost; "
        "what Prometheus takes to watch many servers; whether requests notice a shadow",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds; each measures all systems (default: 3)")
    parser.add_argument("--seconds", type=int, default=10, help="duration of each load (default: 10)")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # however it ends, its servers end too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if options.what == "parts":
        parts.measure(IMAGE.read_bytes(), bodies(), 5 * options.rounds)
        return
    if options.what == "overload":
        sys.exit(0 if overload.measure(IMAGE.read_bytes(), bodies(), options.rounds) else 1)
    if options.what == "images":
        sys.exit(0 if images.measure(IMAGE.read_bytes()) else 1)
    if options.what == "capacity":
        capacity.measure(IMAGE.read_bytes(), bodies())
        return
    if options.what == "shadow":
        sys.exit(0 if shadow.measure(IMAGE.read_bytes(), bodies(), options.rounds) else 1)
    if options.what == "preprocessing":
        sys.exit(0 if preprocessing.measure(options.rounds) else 1)
    if options.what == "models":
        sys.exit(0 if models.measure(IMAGE, options.rounds, options.seconds) else 1)
    bench = Bench(options.rounds, options.seconds)
    figures = judge(bench.run())
    print()
    met = show(figures)
    RESULTS.write_text(json.dumps(report(figures, bench.measured), indent=2) + "\n", encoding="utf-8")
    README.write_text(put_into_readme(README.read_text(encoding="utf-8"), figures), encoding="utf-8")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
