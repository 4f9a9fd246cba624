"""The systems under test, as real gunicorn servers on the loopback, and the resources that they use."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Collection, Dict, Iterator, List, Optional, Sequence

import httpx

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / ".cache" / "bench"
BUNDLE = CACHE / "bundle"
TORCHVISION = CACHE / "torchvision"  # and what else is installed beside the virtual environment: script/steps.sh
WITH_TORCHVISION = {"PYTHONPATH": str(TORCHVISION)}  # environment of what uses it
WORKERS = 2
READY_SECONDS = 60
STOP_SECONDS = 20
SETTLE_SECONDS = 60
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class System:
    """A server that can be started: `arguments` are its module's, `environment` is added to the current one."""

    name: str
    arguments: Sequence[str]
    environment: Dict[str, str] = field(default_factory=dict)
    module: str = "gunicorn"


def ours(name: str, bundle: Path = BUNDLE, app: str = "", **settings: str) -> System:
    """The model server with this bundle and these settings; `app` names another application to run instead."""
    environment = {f"MODEL_SERVER_{key.upper()}": value for key, value in settings.items()}
    arguments = ["--config", "python:model_server.server.gunicorn_conf", *([app] if app else [])]
    return System(name, arguments, {"MODEL_SERVER_BUNDLE": str(bundle), **environment})


def lab(bundle: Path = BUNDLE, network: str = "") -> System:
    """The original lab's app under gunicorn: uvicorn's worker, one torch thread in each.

    Args:
        bundle: whose weights it serves.
        network: the one of torchvision that they belong to; empty: the lab's own.
    """
    arguments = ["benchmarks.lab_app:app", "--worker-class", "uvicorn_worker.UvicornWorker"]
    environment = {"LAB_WEIGHTS": str(bundle / "weights.safetensors"), **WITH_TORCHVISION}
    if network:
        environment["LAB_NETWORK"] = network
    return System("lab", arguments, environment)


def litserve(bundle: Path, network: str) -> System:
    """The lab's network under LitServe, with its batches."""
    return replace(lab(bundle, network), name="LitServe", arguments=[], module="benchmarks.litserve_app")


class Server:
    """A running system. `cold_start` is the time in seconds from its start to the first 200 of /predict."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, cold_start: float) -> None:
        self.url = url
        self.cold_start = cold_start
        self._process = process

    def processes(self) -> List[int]:
        """Return the process ids of the master (first), of its workers, and of theirs."""
        found = [self._process.pid]
        for process in found:  # grows meanwhile
            with contextlib.suppress(OSError):  # it has just ended
                for children in Path(f"/proc/{process}/task").glob("*/children"):
                    found += map(int, children.read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU time, user and system, of the process tree; workers that have exited are included."""
        seconds = 0.0
        for pid in self.processes():
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, stat[13:15])) / TICKS  # of workers that have exited: cutime, cstime in proc(5)
            seconds += time.clock_gettime((~pid << 3) | 2)  # in nanoseconds: clock_getcpuclockid(3), which Python lacks
        return seconds

    def busy(self) -> float:
        """Return the CPU seconds that it uses within half a second."""
        before = self.cpu_seconds()
        time.sleep(0.5)
        return self.cpu_seconds() - before

    def settle(self, idle: float) -> None:
        """Wait until it has nothing left to do: the lab's app also answers clients that have gone.

        Args:
            idle: what `busy` returned before its load; LitServe's processes always look for work.

        Raises:
            RuntimeError: it is still busy after `SETTLE_SECONDS`.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            if self.busy() <= idle + 0.05:
                return
        raise RuntimeError(f"The server is still busy {SETTLE_SECONDS} s after its load.")

    def pss_bytes(self) -> int:
        """Return the proportional set size of the process tree: shared pages are divided among their users."""
        kilobytes = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
        return kilobytes * 1024


@contextmanager
def running(
    system: System, image: bytes, workers: int = WORKERS, cpus: Optional[Collection[int]] = None
) -> Iterator[Server]:
    """Start a system, wait for its first prediction, and stop it; `cpus` are the processors it may use.

    Raises:
        RuntimeError: it does not answer; the message ends with its output.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, (Path(folder) / "log").open("w+b") as log:
        port = free_port()
        metrics = Path(folder) / "metrics"
        metrics.mkdir()
        environment = {
            **os.environ,
            "MODEL_SERVER_WORKERS": str(workers),
            "MODEL_SERVER_BIND": f"127.0.0.1:{port}",
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            **system.environment,
        }
        command = [sys.executable, "-m", system.module, *system.arguments]
        command += ["--workers", str(workers), "--bind", f"127.0.0.1:{port}"]
        started = time.monotonic()
        if cpus is not None:
            command = ["taskset", "--cpu-list", ",".join(map(str, cpus)), *command]
        # In its own session, so that Ctrl-C does not stop it before the measurement does.
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if not _answers(process, url, image):
                log.seek(0)
                raise RuntimeError(f"{system.name} does not answer: {log.read()[-2000:].decode(errors='replace')}")
            yield Server(process, url, time.monotonic() - started)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):  # usually it has exited
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _answers(process: "subprocess.Popen[bytes]", url: str, image: bytes) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            answer = httpx.post(f"{url}/predict", files={"file": ("image.jpg", image, "image/jpeg")}, timeout=10)
            return answer.status_code == 200
        except httpx.TransportError:
            time.sleep(0.02)
    return False
