"""Whether requests notice a shadow: `script/bench shadow`.

A server with one worker is asked at a fixed rate (an open model) beside a shadow of the same bundle, which runs and is
stopped (SIGSTOP) in turns of some seconds: other work on the machine affects both alike. The shadow has the server's
own processor, and gets of it what the server leaves, as its unit has it; the clients run on another one.
"""

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import quantiles
from typing import Dict, Iterator, List, Optional, Sequence

from benchmarks.load import Connection
from benchmarks.overload import offer, saturate
from benchmarks.servers import BUNDLE, REPOSITORY, Server, System, ours, running

SHARE = 10  # percent
LOADS = (0.3, 0.6)  # of the capacity
SECONDS = 3  # of a turn
TURNS = 10  # in a round
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
        with running(system, image, 1, cpus[-1:]) as server, shadow(system, server, cpus[-1]) as process:
            asyncio.run(saturate(server.url, bodies, 5))
            capacity = asyncio.run(saturate(server.url, bodies, 10))
            for load in LOADS:
                rate = load * capacity
                print(f"{rate:.0f} requests/s, {load * 100:.0f} % of the capacity", flush=True)
                turns = [Turn(), Turn()]
                for number in range(2 * TURNS * rounds):
                    turns[number % 2].take(server, bodies, rate, process if number % 2 else None)
                without, beside = (turn.figures() for turn in turns)
                print(f"  the shadow saw {turns[1].seen:.0f} of {len(turns[1].seconds)} requests", flush=True)
                for key, value in beside.items():
                    print(
                        f"  {key}: {value * 1e3:.2f} ms with a shadow, {without[key] * 1e3:.2f} without: "
                        f"{value / without[key]:.3f}",
                        flush=True,
                    )
                met = met and beside["p99"] / without["p99"] <= BAR
    return met


class Turn:
    """The answers of all turns with a shadow, or without one.

    Attributes:
        seconds: until each answer.
        seen: requests that the shadow saw.
    """

    def __init__(self) -> None:
        self.seconds: List[float] = []
        self.seen = 0.0
        self._cpu = 0.0

    def take(
        self, server: Server, bodies: Sequence[bytes], rate: float, process: "Optional[subprocess.Popen[bytes]]"
    ) -> None:
        """Ask for some seconds; a process that is given runs meanwhile."""
        seen, cpu = compared(server), server.cpu_seconds()
        if process is not None:
            process.send_signal(signal.SIGCONT)
        gc.disable()  # a collection would let requests come in bursts
        answers = asyncio.run(offer(server.url, bodies, rate, SECONDS))
        gc.enable()
        if process is not None:
            process.send_signal(signal.SIGSTOP)
        self._cpu += server.cpu_seconds() - cpu
        self.seen += compared(server) - seen
        if any(answer.status != 200 for answer in answers):
            raise RuntimeError("A request failed, though the server is not overloaded.")
        self.seconds += [answer.seconds for answer in answers]

    def figures(self) -> Dict[str, float]:
        percentiles = quantiles(self.seconds, n=100)
        cpu = self._cpu / len(self.seconds)
        return {"p50": percentiles[49], "p99": percentiles[98], "CPU time of a request": cpu}


def compared(server: Server) -> float:
    page = Connection(server.url).scrape().decode()
    return sum(float(value) for value in re.findall(r"(?m)^shadow_predictions_total\{.*\} (.+)$", page))


@contextmanager
def shadow(system: System, server: Server, cpu: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a shadow that the worker has found by now, and stop it; it ends with the block."""
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
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()
