"""Leaves Locust's figures in a file each second, from which the node exporter of the host shows them to Prometheus.

A locustfile without users, to be named beside `locustfile.py`; without `--metrics-directory` it does nothing.
It reads the statistics that Locust keeps anyway: no request waits for it, and a master has those of its workers.
Runs on Python 3.8 with Locust 2.25, and on the newest releases of both.
"""

import fcntl
import logging
import os
from bisect import bisect_left
from itertools import accumulate
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional, Tuple

import gevent  # type: ignore[import-untyped]
import locust.runners
from locust import events
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Those of the server's fastapi_request_duration_seconds, so that both sides can be compared.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
INTERVAL = 1.0  # seconds, as Prometheus asks
SETTLE = 5.0  # seconds after a run in the page, in which a master gets the last figures of its workers
FILE = "locust.prom"

locust.runners.WORKER_REPORT_INTERVAL = INTERVAL


def cumulative(response_times: Mapping[int, int]) -> List[Tuple[str, float]]:
    """Return each bucket's upper bound in seconds, and how many responses took no longer.

    Args:
        response_times: ms → responses. From 100 ms on, Locust keeps two digits: 104 ms count as 100.
    """
    counts = [0] * (len(BUCKETS) + 1)
    for milliseconds, number in response_times.items():
        counts[bisect_left(BUCKETS, milliseconds / 1000)] += number
    return list(zip([*map(str, BUCKETS), "+Inf"], accumulate(counts)))


class LocustCollector(Collector):
    """What Locust's statistics are at a moment."""

    def __init__(self, environment: Any) -> None:
        """Take the environment of a run, which is no worker's."""
        self._environment = environment

    def collect(self) -> Iterator[Metric]:
        """Yield requests, failures and latency by what was asked for, then users and processor."""
        labels = ["method", "name"]
        requests = CounterMetricFamily("locust_requests", "Requests that were sent and have ended.", labels=labels)
        failures = CounterMetricFamily("locust_failures", "Requests that failed or could not be sent.", labels=labels)
        durations = HistogramMetricFamily(
            "locust_request_duration_seconds", "Time from a request to the end of its answer.", labels=labels
        )
        for entry in list(self._environment.stats.entries.values()):
            named = [str(entry.method or ""), entry.name]
            requests.add_metric(named, entry.num_requests)
            failures.add_metric(named, entry.num_failures)
            durations.add_metric(named, cumulative(entry.response_times), entry.total_response_time / 1000)
        yield from (requests, failures, durations)
        runner = self._environment.runner
        yield GaugeMetricFamily("locust_users", "Simulated users that run.", runner.user_count)
        # In percent of a processor, of which a process of Locust cannot have more than one.
        workers = getattr(runner, "clients", {}).values()
        busiest = max([runner.current_cpu_usage, *(worker.cpu_usage for worker in workers)])
        yield GaugeMetricFamily(
            "locust_cpu_ratio", "Share of a processor that the busiest process uses.", busiest / 100
        )


class Reporter:
    """Writes the figures of a run each second, from its start to its end.

    Raises:
        OSError: the directory cannot be written, or another process reports there.
    """

    def __init__(self, environment: Any, directory: Path) -> None:
        """Take a run, and the directory that the node exporter reads."""
        self._path = directory / FILE
        self._registry = CollectorRegistry()
        self._registry.register(LocustCollector(environment))
        self._lock = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write()
        except OSError:
            os.close(self._lock)
            raise
        self._reporting = gevent.spawn(self._report)
        self._ending: Any = None

    def _write(self) -> None:
        aside = self._path.with_suffix(".new")  # a name that the exporter does not read
        aside.unlink(missing_ok=True)  # of a run that was killed, maybe another user's
        with aside.open("xb") as file:  # through no link: root may run it, and the directory is another user's
            file.write(generate_latest(self._registry))
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: the exporter is another user
        aside.replace(self._path)

    def _report(self) -> None:
        while True:
            gevent.sleep(INTERVAL)
            try:
                self._write()
            except OSError as error:  # a full disk may have room again
                logging.warning("Prometheus did not get the figures of this second: %s", error)

    def end(self) -> None:
        """Leave the last figures for two scrapes, then none, so that no series stays.

        After SIGTERM Locust shuts down in two greenlets, and the first that is done ends the process: both wait.
        """
        self._ending = self._ending or gevent.spawn(self._leave_last)
        try:
            self._ending.join()
        finally:
            self._path.unlink(missing_ok=True)

    @property
    def is_ending(self) -> bool:
        """Whether these are the last figures."""
        return self._ending is not None

    def _leave_last(self) -> None:
        self._reporting.kill()
        try:
            self._write()
            gevent.sleep(2 * INTERVAL)
        finally:
            os.close(self._lock)  # another Locust may report


_reporters: List[Reporter] = []  # one, if any


def _add_option(parser: Any) -> None:
    parser.add_argument(
        "--metrics-directory",
        metavar="DIRECTORY",
        env_var="LOCUST_METRICS_DIRECTORY",
        default="",
        help="directory from which the node exporter of this host reads metrics; empty: Prometheus gets no figures",
    )


def _begin(environment: Any, **_: Any) -> None:
    directory: Optional[str] = environment.parsed_options.metrics_directory
    if any(reporter.is_ending for reporter in _reporters):  # that of the page's last run
        _end()
    if not directory or _reporters or isinstance(environment.runner, locust.runners.WorkerRunner):
        return
    try:
        _reporters.append(Reporter(environment, Path(directory)))
    except BlockingIOError:
        logging.warning("Prometheus gets no figures of this run: it gets those of another Locust on this host.")
    except OSError as error:
        logging.warning(
            "Prometheus gets no figures of this run: %s. Run Locust as the host's locust_metrics_user.", error
        )


def _end(**_: Any) -> None:
    for reporter in list(_reporters):
        reporter.end()
        if reporter in _reporters:
            _reporters.remove(reporter)


def _end_if_page(environment: Any, **_: Any) -> None:
    if environment.web_ui is not None:  # with its page, Locust does not end with the run
        gevent.spawn(_end_after, environment.runner)


def _end_after(runner: Any) -> None:
    gevent.sleep(SETTLE)
    if runner.state not in (locust.runners.STATE_SPAWNING, locust.runners.STATE_RUNNING):
        _end()


hooks: Any = events  # events have no types
hooks.init_command_line_parser.add_listener(_add_option)
hooks.test_start.add_listener(_begin)
hooks.test_stop.add_listener(_end_if_page)
hooks.quit.add_listener(_end)  # not test_stop: a master gets the last figures of its workers after that
