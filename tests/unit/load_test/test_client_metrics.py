"""What Locust leaves for the node exporter: while it runs, and of which processes."""

import fcntl
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Dict, Mapping

import pytest
from prometheus_client import Histogram
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.load_test.test_locust_run import LOCUSTFILE, Counting, Run, asked, free_port, server
from tests.unit.model_server.server.gunicorn_process import wait_for

pytest.importorskip("locust.stats", reason="needs Locust", exc_type=ImportError)

__all__ = ["server"]

CLIENT_METRICS = LOCUSTFILE.with_name("client_metrics.py")
RAN = {"--users": "4", "--spawn-rate": "4", "--stop-timeout": "10"}
# Users who send all the time, until there are enough requests: Locust's own run time begins before it has started.
USERS = """
import os
import gevent
from locust import HttpUser, constant, events, task

class User(HttpUser):
    wait_time = constant(0.01)

    @task
    def predict(self):
        self.client.post("/predict", name="/predict", data=b"image")

def end(environment):
    while environment.stats.total.num_requests < float(os.environ["ENOUGH"]):
        gevent.sleep(0.1)
    environment.runner.quit()

@events.test_start.add_listener
def begin(environment, **_):
    gevent.spawn(end, environment)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make the directory that the node exporter reads."""
    (tmp_path / "users.py").write_text(USERS)
    (tmp_path / "metrics").mkdir()
    return tmp_path / "metrics"


def locust(directory: Path, server: Counting, *roles: str, **options: str) -> "subprocess.Popen[str]":
    enough = options.pop("enough", "200")  # requests, after which it ends by itself
    given = {"--host": f"http://127.0.0.1:{server.server_port}", "--metrics-directory": str(directory), **options}
    command = [sys.executable, "-m", "locust", "--headless", "--locustfile", f"users.py,{CLIENT_METRICS}", *roles]
    command += [word for option in given.items() for word in option]
    before = os.umask(0o077)
    try:
        return Run(
            command,
            cwd=directory.parent,
            env={**os.environ, "ENOUGH": enough},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        os.umask(before)


def samples(text: str) -> Dict[str, float]:
    """Return the value of each series by its name and the values of its labels."""
    found: Dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = " ".join([sample.name, *(sample.labels[label] for label in sorted(sample.labels))])
            assert key not in found
            found[key] = sample.value
    return found


def last(directory: Path, run: "subprocess.Popen[str]") -> Dict[str, float]:
    """Return what the file had when Locust ended."""
    text = ""

    def gone() -> bool:
        nonlocal text
        try:
            assert (directory / "locust.prom").stat().st_mode & 0o777 == 0o644
            text = (directory / "locust.prom").read_text()
        except FileNotFoundError:
            return bool(text) or run.poll() is not None
        return False

    wait_for(gone, 60, "the end of the run")
    assert text, run.communicate()[0]
    return samples(text)


def test_figures_are_there_while_it_runs_are_the_servers_at_the_end_and_then_gone(
    server: Counting, directory: Path
) -> None:
    with locust(directory, server, **RAN) as run:
        found = last(directory, run)
        said, _ = run.communicate()

    sent = len(server.paths)
    assert sent >= 200, said
    assert found["locust_requests_total POST /predict"] == sent
    assert found["locust_failures_total POST /predict"] == sent  # it answers 400
    assert found["locust_request_duration_seconds_count POST /predict"] == sent
    assert found["locust_request_duration_seconds_bucket +Inf POST /predict"] == sent
    assert 0 < found["locust_request_duration_seconds_sum POST /predict"] < 4 * 60
    assert found["locust_users"] == 0
    assert list(directory.iterdir()) == []


def test_master_reports_what_its_workers_sent(server: Counting, directory: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    at_work = {"--master-host": "127.0.0.1", "--master-port": port}
    where = {"--master-bind-host": "127.0.0.1", "--master-bind-port": port, "--expect-workers": "1"}
    elsewhere = directory.with_name("elsewhere")
    elsewhere.mkdir()

    def counted() -> float:
        (file,) = directory.glob("*.prom")
        return samples(file.read_text()).get("locust_requests_total POST /predict", 0)

    with locust(directory, server, "--master", enough="inf", **where, **RAN) as master, locust(
        elsewhere, server, "--worker", enough="inf", **at_work
    ) as worker:
        wait_for(lambda: len(server.paths) > 100, 60, "requests")
        received = len(server.paths)
        wait_for(lambda: counted() >= received - 4, 30, "the figures of the worker")  # each user waits for an answer
        assert "locust_users 4.0" in (directory / "locust.prom").read_text()
        assert list(elsewhere.iterdir()) == []
        assert counted() <= len(server.paths)
        for run in (master, worker):
            run.terminate()
            run.communicate()

    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("other", ["another run", "no directory"])
def test_without_a_way_to_prometheus_it_says_so_and_runs_all_the_same(
    server: Counting, directory: Path, other: str
) -> None:
    lock = os.open(directory, os.O_RDONLY)
    if other == "another run":
        fcntl.flock(lock, fcntl.LOCK_EX)
    else:
        directory.rmdir()
    try:
        said, _ = locust(directory, server, **RAN).communicate()
    finally:
        os.close(lock)

    sentence = {
        "another run": "Prometheus gets no figures of this run: it gets those of another Locust on this host.",
        "no directory": f"No such file or directory: '{directory}'. Run Locust as the host's locust_metrics_user.",
    }[other]
    assert sentence in said
    assert len(server.paths) > 100
    assert not directory.exists() or list(directory.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_run_that_is_ended_early_leaves_its_last_figures_for_a_moment(
    server: Counting, directory: Path, sent: signal.Signals
) -> None:
    with locust(directory, server, enough="inf", **RAN) as run:
        wait_for(lambda: len(server.paths) > 100, 30, "requests")
        run.send_signal(sent)
        found = last(directory, run)
        run.communicate()

    # Whom SIGINT meets between a request and its answer does not count it.
    assert len(server.paths) - 4 <= found["locust_requests_total POST /predict"] <= len(server.paths)
    assert list(directory.iterdir()) == []


def test_file_of_a_run_that_was_killed_is_replaced(server: Counting, directory: Path) -> None:
    with locust(directory, server, **RAN) as run:
        wait_for(lambda: list(directory.glob("*.prom")), 30, "the figures")
        run.kill()
    assert (directory / "locust.prom").exists()
    server.paths.clear()

    with locust(directory, server, **RAN) as run:
        wait_for(lambda: server.paths, 30, "requests")
        found = last(directory, run)
        run.communicate()

    assert found["locust_requests_total POST /predict"] == len(server.paths)
    assert list(directory.iterdir()) == []


def is_free(directory: Path) -> bool:
    """Return whether another Locust may report there."""
    place = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(place)
    return True


def test_page_leaves_no_figures_between_its_runs_and_reports_the_next(server: Counting, directory: Path) -> None:
    port = free_port()
    file = directory / "locust.prom"

    with locust(directory, server, "--headful", "--web-host=127.0.0.1", enough="inf", **{"--web-port": port}) as page:
        for _ in range(2):
            wait_for(lambda: asked(port, "/swarm", "user_count=2&spawn_rate=2"), 30, "the page")
            wait_for(lambda: file.exists() and samples(file.read_text())["locust_users"] == 2, 30, "the figures")
            assert asked(port, "/stop") or asked(port, "/stop", "by=post")  # Locust 2.25, and the newest
            wait_for(lambda: not file.exists(), 30, "the end of the figures")
            wait_for(lambda: is_free(directory), 5, "the place for another Locust")
        page.terminate()


@pytest.fixture
def client_metrics(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import it with a stand-in for Locust, which would patch this whole process."""

    class Locust(ModuleType):
        def __getattr__(self, _: str) -> "Locust":
            return self

        def add_listener(self, _: object) -> None: ...

    for name in ("locust", "locust.runners", "gevent"):
        monkeypatch.setitem(sys.modules, name, Locust(name))
    spec = importlib.util.spec_from_file_location("client_metrics_under_test", CLIENT_METRICS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cpu_is_that_of_the_busiest_process(client_metrics: Any) -> None:
    workers = [SimpleNamespace(cpu_usage=usage) for usage in (20, 95, 60)]
    runner = SimpleNamespace(user_count=7, current_cpu_usage=3.5, clients=dict(enumerate(workers)))
    environment = SimpleNamespace(stats=SimpleNamespace(entries={}), runner=runner)
    found = {metric.name: metric for metric in client_metrics.LocustCollector(environment).collect()}

    assert found["locust_cpu_ratio"].samples[0].value == 0.95
    assert found["locust_users"].samples[0].value == 7
    del runner.clients
    (alone,) = (
        metric for metric in client_metrics.LocustCollector(environment).collect() if metric.name == "locust_cpu_ratio"
    )
    assert alone.samples[0].value == 0.035


def test_workers_report_as_often_as_prometheus_asks(client_metrics: Any) -> None:
    assert vars(sys.modules["locust"])["WORKER_REPORT_INTERVAL"] == client_metrics.INTERVAL == 1


def test_buckets_are_the_servers(client_metrics: Any) -> None:
    names = [bound for bound, _ in client_metrics.cumulative({})]

    assert (*client_metrics.BUCKETS, float("inf")) == Histogram.DEFAULT_BUCKETS  # of starlette_exporter
    assert [float(name) for name in names] == list(Histogram.DEFAULT_BUCKETS)


@pytest.mark.parametrize(
    ("response_times", "expected"),
    [
        pytest.param({}, {"0.005": 0, "+Inf": 0}, id="none"),
        pytest.param({5: 2, 6: 3}, {"0.005": 2, "0.01": 5, "10.0": 5, "+Inf": 5}, id="a bound is in its bucket"),
        pytest.param({10000: 1, 11000: 4}, {"7.5": 0, "10.0": 1, "+Inf": 5}, id="longer than all"),
    ],
)
def test_buckets_add_up(client_metrics: Any, response_times: Mapping[int, int], expected: Dict[str, float]) -> None:
    found = dict(client_metrics.cumulative(response_times))

    assert {bound: found[bound] for bound in expected} == expected
