"""How many of the load test's Locust users a server can handle."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Dict, Optional

from benchmarks.servers import REPOSITORY

LONGEST_P50, LONGEST_P99 = 50, 300  # milliseconds
# The lab's app closes connections after two idle seconds, sometimes during a request. Latencies decide, not this.
MOST_FAILURES = 0.05
ARRIVAL = 5  # seconds in which all users start
SETTLE = 4  # seconds before they count: Locust starts them in batches, one per second, whose requests come in waves
PRECISION = 1.06  # of the search: the fewest users missed to the most met


@dataclass(frozen=True)
class Service:
    """What the users got; latencies in milliseconds, rounded to two digits as Locust does."""

    requests: int
    failures: int
    p50: int
    p99: int

    @property
    def meets_objectives(self) -> bool:
        answered = self.requests > 0 and self.failures <= MOST_FAILURES * self.requests
        return answered and self.p50 < LONGEST_P50 and self.p99 < LONGEST_P99


def serve(url: str, users: int, seconds: int, cpu: int) -> Service:
    """Run users of load_test/locustfile.py on one processor against a server for some seconds.

    Raises:
        RuntimeError: Locust could not run.
    """
    command = ["taskset", "--cpu-list", str(cpu), sys.executable, "-m", "locust"]
    command += ["--locustfile", "load_test/locustfile.py,benchmarks/settled.py"]
    command += ["--headless", "--only-summary", "--skip-log", "--json"]
    command += ["--host", url, "--users", str(users), "--spawn-rate", str(users / ARRIVAL)]
    command += ["--run-time", f"{ARRIVAL + SETTLE + seconds}s", "--exit-code-on-error", "0"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"Locust failed: {run.stderr[-2000:]}")
    entries = json.loads(run.stdout)
    times: Counter[int] = Counter()
    for entry in entries:
        times.update({int(milliseconds): count for milliseconds, count in entry["response_times"].items()})
    failures = sum(entry["num_failures"] for entry in entries)
    return Service(sum(times.values()), failures, percentile(times, 0.5), percentile(times, 0.99))


def percentile(times: Dict[int, int], share: float) -> int:
    """Return the time that a share (0..1) of the requests did not exceed; 0 without requests."""
    due = share * sum(times.values())
    passed = 0
    for milliseconds in sorted(times):
        passed += times[milliseconds]
        if passed >= due:
            return milliseconds
    return 0


class Search:
    """Finds the most users that a server can handle: growing steps until the limit is passed, then bisection.

    A miss is tried again: among 1500 requests, one pause of the machine decides the p99.

    Attributes:
        met: the most users for whom the server met the objectives, 0 for none.
        missed: the fewest that were not, None if there were none.
    """

    def __init__(self, first: int, step: float) -> None:
        """Begin at `first` users and continue by the factor `step`, above 1, which grows by a tenth with each step."""
        self.met = 0
        self.missed: Optional[int] = None
        self._next, self._step = first, step
        self._retried: Optional[int] = None

    @property
    def next(self) -> Optional[int]:
        """Users to try next; None when the answer is known."""
        return self._next if self._next >= 1 and not self._is_known() else None

    def learn(self, users: int, met: bool) -> None:
        if not met and users != self._retried:
            self._retried = users
            return
        if met:
            self.met = max(self.met, users)
        else:
            self.missed = users if self.missed is None else min(self.missed, users)
        if self.missed is None:
            self._next = max(self.met + 1, round(self.met * self._step))
        elif not self.met:
            self._next = min(self.missed - 1, int(self.missed / self._step))
        else:
            self._next = round((self.met * self.missed) ** 0.5)
        self._step *= 1.1

    def _is_known(self) -> bool:
        return self.missed is not None and self.met > 0 and self.missed <= max(self.met + 1, self.met * PRECISION)
