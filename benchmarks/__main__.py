"""The model server beside the seed's app, under the same load: `script/bench`. README.md has the method.

Prints a table, writes results.json and exits with 1 where a bar is missed.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median
from typing import Dict, List

from benchmarks.load import predict
from benchmarks.servers import REPOSITORY, TORCHVISION, System, ours, running, seed

RESULTS = Path(__file__).parent / "results.json"
IMAGE = REPOSITORY / "load_test" / "images" / "apple_640x480.jpg"
WARM_UP = 3  # seconds
MEGABYTE = 1e6


@dataclass(frozen=True)
class Figure:
    """A measured figure and the bar that it has to meet; `better` is "lower" or "higher"."""

    name: str
    value: float
    bar: float
    better: str
    unit: str

    @property
    def met(self) -> bool:
        return self.value <= self.bar if self.better == "lower" else self.value >= self.bar


def measure(system: System, image: bytes, seconds: int) -> Dict[str, float]:
    """Start a system with two workers, load it, and measure it; all in seconds, bytes and requests a second."""
    with running(system, image) as server:
        predict(server.url, image, connections=16, seconds=WARM_UP)
        before = server.cpu_seconds()
        steady = predict(server.url, image, connections=16, seconds=seconds)
        cpu = (server.cpu_seconds() - before) / steady.requests
        crowd = predict(server.url, image, connections=64, seconds=seconds)
        return {
            "cpu": cpu,
            "rate": steady.rate,
            "p99": crowd.p99,
            "spread": crowd.max / crowd.p50,
            "memory": server.pss_bytes(),
            "start": server.cold_start,
        }


def further_worker(image: bytes) -> float:
    """Return the bytes of memory that a fourth, third worker has for itself, on average."""
    sizes = []
    for workers in (2, 4):
        with running(ours(), image, workers) as server:
            predict(server.url, image, connections=16, seconds=WARM_UP)
            sizes.append(server.pss_bytes())
    return (sizes[1] - sizes[0]) / 2


def figures(rounds: int, seconds: int) -> List[Figure]:
    """Measure both systems in turns, and compare their medians."""
    image = IMAGE.read_bytes()
    measured: Dict[str, List[Dict[str, float]]] = {"seed": [], "ours": []}
    for number in range(1, rounds + 1):
        for name, system in (("seed", seed()), ("ours", ours())):
            found = measure(system, image, seconds)
            measured[name].append(found)
            print(
                f"round {number}  {name:<5} {found['cpu'] * 1e3:6.2f} ms CPU a request  {found['rate']:6.0f} requests/s"
                f"  p99 of 64 {found['p99'] * 1e3:6.0f} ms  {found['memory'] / MEGABYTE:5.0f} MB"
                f"  start {found['start']:5.2f} s",
                flush=True,
            )

    def of(name: str, key: str) -> float:
        return median(found[key] for found in measured[name])

    def ratio(key: str) -> float:
        return of("ours", key) / of("seed", key)

    return [
        Figure("CPU time of a request, to the seed's", ratio("cpu"), 0.62, "lower", "ratio"),
        Figure("throughput at 16 connections, to the seed's", ratio("rate"), 1.6, "higher", "ratio"),
        Figure("p99 at 64 connections", of("ours", "p99"), 0.3, "lower", "s"),
        Figure("longest to median at 64 connections", of("ours", "spread"), 4, "lower", "ratio"),
        Figure("memory of two workers, to the seed's", ratio("memory"), 0.6, "lower", "ratio"),
        Figure("memory of a further worker", further_worker(image) / MEGABYTE, 60, "lower", "MB"),
        Figure("cold start, to the seed's", ratio("start"), 1, "lower", "ratio"),
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="each with both systems, in turns (default: 3)")
    parser.add_argument("--seconds", type=int, default=10, help="of each load (default: 10)")
    options = parser.parse_args()
    found = figures(options.rounds, options.seconds)
    print()
    for figure in found:
        at = "at most" if figure.better == "lower" else "at least"
        verdict = "met" if figure.met else "MISSED"
        print(f"{figure.name:<45} {figure.value:7.3g} {figure.unit:<6} {at} {figure.bar:<5g} {verdict}")
    versions = {name: version(name) for name in ("torch", "fastapi", "uvicorn", "gunicorn", "pillow")}
    versions |= {"torchvision": next(iter(distributions(name="torchvision", path=[str(TORCHVISION)]))).version}
    report = {
        "machine": {"cpus": os.cpu_count(), "processor": processor(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **versions},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "figures": [asdict(figure) for figure in found],
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(figure.met for figure in found) else 1)


def processor() -> str:
    """Return the processor's name, as the kernel has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
