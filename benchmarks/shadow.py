"""Whether requests notice a shadow: `script/bench shadow`.

A server with one worker is asked at a fixed rate (an open model), with a shadow of the same bundle and without one, in
turns. The shadow has the server's own processor, and gets of it what the server leaves, as its unit has it; the clients
run on another one. Ratios are medians of the rounds.
"""

import asyncio
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Dict, Iterator, Sequence, Tuple

from benchmarks.load import Connection
from benchmarks.overload import offer, saturate
from benchmarks.servers import BUNDLE, REPOSITORY, Server, System, ours, running

SHARE = 10  # percent
LOADS = (0.3, 0.6)  # of the capacity
SECONDS = 20
READY_SECONDS = 60
BAR = 1.2  # p99 of the answers, with a shadow to without


def measure(image: bytes, bodies: Sequence[bytes], rounds: int) -> bool:
    """Print the ratios, and return whether requests do not notice."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:1])
    met = True
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        (Path(folder) / "metrics").mkdir()
        system = ours("model server", runtime_dir=folder)
        system = replace(
            system, environment={**system.environment, "PROMETHEUS_MULTIPROC_DIR": str(Path(folder) / "metrics")}
        )
        with running(system, image, 1, cpus[-1:]) as server:
            trial = Trial(system, server, bodies, cpus[-1])
            asyncio.run(saturate(server.url, bodies, 5))
            capacity = asyncio.run(saturate(server.url, bodies, 10))
            for load in LOADS:
                rate = load * capacity
                print(f"{rate:.0f} requests/s, {load * 100:.0f} % of the capacity", flush=True)
                pairs = [trial.compare(rate, first=bool(number % 2)) for number in range(rounds)]
                ratios = {key: [on[key] / off[key] for on, off in pairs] for key in pairs[0][0]}
                for key, values in ratios.items():
                    single = ", ".join(f"{value:.2f}" for value in values)
                    print(f"  {key}, with a shadow to without: {median(values):.3f} ({single})", flush=True)
                met = met and median(ratios["p99"]) <= BAR
    return met


@dataclass(frozen=True)
class Trial:
    """A running server, what it is asked, and its processor."""

    system: System
    server: Server
    bodies: Sequence[bytes]
    cpu: int

    def compare(self, rate: float, first: bool) -> Tuple[Dict[str, float], Dict[str, float]]:
        """Return the figures with a shadow and without one; `first` says whether it comes first."""
        taken = {with_shadow: self._take(rate, with_shadow) for with_shadow in (first, not first)}
        return taken[True], taken[False]

    def _take(self, rate: float, with_shadow: bool) -> Dict[str, float]:
        with shadow(self.system, self.server, self.cpu) if with_shadow else nullcontext():
            begun = self.server.cpu_seconds()
            gc.disable()  # a collection would let requests come in bursts
            answers = asyncio.run(offer(self.server.url, self.bodies, rate, SECONDS))
            gc.enable()
            used = self.server.cpu_seconds() - begun
            seen = compared(self.server)
        failed = sum(1 for answer in answers if answer.status != 200)
        if failed:
            raise RuntimeError(f"{failed} of {len(answers)} requests failed.")
        seconds = quantiles((answer.seconds for answer in answers), n=100)
        found = {"p50": seconds[49], "p99": seconds[98], "CPU time of a request": used / len(answers)}
        figures = ", ".join(f"{key} {value * 1e3:.2f} ms" for key, value in found.items())
        whose = f"with a shadow, which saw {seen:.0f}" if with_shadow else "without one"
        print(f"  {len(answers)} requests {whose}: {figures}", flush=True)
        return found


def compared(server: Server) -> float:
    page = Connection(server.url).scrape().decode()
    return sum(float(value) for value in re.findall(r"(?m)^shadow_predictions_total\{.*\} (.+)$", page))


@contextmanager
def shadow(system: System, server: Server, cpu: int) -> Iterator[None]:
    """Run a shadow until the end of the block; the worker has found it by then."""
    command = ["taskset", "--cpu-list", str(cpu), sys.executable, "-m", "model_server", "shadow"]
    command += ["--bundle", str(BUNDLE), "--share", str(SHARE)]
    process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **system.environment})
    try:
        deadline = time.monotonic() + READY_SECONDS
        while "shadow_info" not in Connection(server.url).scrape().decode():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("The shadow does not start.")
            time.sleep(0.1)
        subprocess.run(["chrt", "--idle", "--all-tasks", "--pid", "0", str(process.pid)], check=True)
        time.sleep(2.5)  # workers look for it once a second
        yield
    finally:
        process.terminate()
        process.wait()
