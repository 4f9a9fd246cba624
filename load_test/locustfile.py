"""The original lab's user: requests the front page, sends images, and sometimes something that is not an image.

With `--rate`, the same requests at a constant rate, for clients that do not wait for each other. `--shape` lets users
or rate come and go, and `--find-limit` raises them until a bound is broken. All of it runs in one process, in several
of a host (`--processes`), or on several hosts (`--master`, `--worker`). Its clock is one that nobody sets.

An answer that a task expects is a success, whatever its status, so Locust's failures are failures of the server.
Runs on Python 3.8 with Locust 2.25, and on the newest releases of both.
"""

import csv
import logging
import random
import sys
from collections import Counter
from itertools import accumulate, dropwhile
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Iterator, List, Optional, Tuple

import gevent  # type: ignore[import-untyped]
import urllib3
from gevent.pool import Pool  # type: ignore[import-untyped]
from locust import HttpUser, LoadTestShape, between, events, task
from locust.runners import WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC, calculate_response_time_percentile
from requests.adapters import HTTPAdapter

Image = Tuple[str, bytes]
IMAGES: List[Image] = []
LOG = logging.getLogger(__name__)
IN_FLIGHT = 1000  # requests at a constant rate, of one process, that wait for their answers; further ones are not sent
SENDERS = 100  # among whom a constant rate is divided, so that any number of processes can share it
SHAPES = {  # share of the run time → share of the load; the last one lasts
    "steady": [(1.0, 1.0)],
    "step": [(0.2, 0.2), (0.2, 0.4), (0.2, 0.6), (0.2, 0.8), (0.2, 1.0)],
    "spike": [(0.4, 0.2), (0.2, 1.0), (0.4, 0.2)],
}
STEP_SECONDS, STEP_FACTOR = 10, 1.25  # of the search for the limit
LIMIT_COLUMNS = ("Load", "Requests", "Failures", "50%", "99%", "Verdict")
LIMIT_STEPS: List[Tuple[Any, ...]] = []  # of these columns
Steps = List[Tuple[float, float]]  # seconds → share of the load


def read_images(directory: Path) -> List[Image]:
    """Read name and bytes of every JPEG in a directory.

    Raises:
        FileNotFoundError: there is no JPEG.
    """
    files = [path for path in sorted(directory.glob("*")) if path.suffix.lower() in {".jpg", ".jpeg"}]
    images = [(path.name, path.read_bytes()) for path in files]
    if not images:
        raise FileNotFoundError(f"There is no JPEG in {directory}; name a directory that has some with --images.")
    return images


def _add_option(parser: Any) -> None:
    parser.add_argument(
        "--images",
        metavar="DIRECTORY",
        env_var="LOCUST_IMAGES",
        default=str(Path(__file__).parent / "images"),
        help="directory of the JPEGs; each request sends a random one",
    )
    parser.add_argument(
        "--rate",
        metavar="REQUESTS",
        type=float,
        env_var="LOCUST_RATE",
        default=0.0,
        include_in_web_ui=False,  # the page comes after the choice, here and below
        help="requests a second, whether answers come or not; latency counts from when each was due; 0: users who wait",
    )
    parser.add_argument(
        "--shape",
        choices=sorted(SHAPES),
        env_var="LOCUST_SHAPE",
        default="steady",
        include_in_web_ui=False,
        help="how users or rate come and go in the run time: steady; in five steps; a fifth, and a spike in the middle",
    )
    parser.add_argument(
        "--find-limit",
        action="store_true",
        include_in_web_ui=False,
        help=f"begin with users or rate as given, and raise them by a quarter every {STEP_SECONDS} s "
        "until two steps in a row break a bound, or the run time is over",
    )
    for bound, default, what in (
        ("p50-ms", float("inf"), "the median, in ms"),
        ("p99-ms", 1000.0, "the 99th percentile, in ms"),
        ("failure-ratio", 0.0, "the share that fails or is not sent, 0 to 1"),
    ):
        parser.add_argument(
            f"--max-{bound}",
            metavar="BOUND",
            type=float,
            default=default,
            include_in_web_ui=False,
            help=f"bound for --find-limit: {what}",
        )
    parser.add_argument(
        "--insecure",
        action="store_true",
        env_var="LOCUST_INSECURE",
        help="accept a certificate of the host that nobody trusts",
    )


def _load_images(environment: Any, **_: Any) -> None:
    try:
        IMAGES[:] = read_images(Path(environment.parsed_options.images))
    except FileNotFoundError as error:
        sys.exit(f"locust: {error}")  # Locust 2.25 logs other errors, and goes on without images


def steps_of(shape: str, run_time: Optional[int], find_limit: bool) -> Steps:
    """Return seconds and share of the load of each step.

    Raises:
        ValueError: the shape needs a run time.
    """
    if find_limit:
        return [(STEP_SECONDS, STEP_FACTOR**step) for step in range(60)]
    if run_time is None and shape != "steady":
        raise ValueError(f"--shape {shape} needs a --run-time, which it divides.")
    return [(share * (run_time or 1), factor) for share, factor in SHAPES[shape]]


def share_at(steps: Steps, elapsed: float) -> float:
    """Return the share of the load that a moment has, in seconds since the start."""
    ends = accumulate(seconds for seconds, _ in steps)
    return next((share for end, (_, share) in zip(ends, steps) if elapsed < end), steps[-1][1])


def arrivals(rate: float, steps: Steps, left: float) -> Iterator[float]:
    """Yield the moments of requests, in seconds since the start, without an end.

    Args:
        rate: requests a second at the whole load.
        steps: seconds and share of the load of each; the last one lasts.
        left: of the interval before the first request, 0 to 1.
    """
    begin = 0.0
    for index, (seconds, share) in enumerate(steps, 1):
        moment, per_second = begin, rate * share
        end = begin + seconds if index < len(steps) else float("inf")
        while left <= per_second * (end - moment):
            moment += left / per_second
            left = 1.0
            yield moment
        left -= per_second * (end - moment)
        begin = end


def _choose_users(environment: Any, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return  # the master says how many of which
    options = environment.parsed_options
    if options.rate < 0:
        sys.exit(f"locust: --rate is {options.rate:g}; set it to requests a second, or to 0 for users who wait.")
    try:
        options.steps = steps_of(options.shape, options.run_time, options.find_limit)  # for the workers, too
    except ValueError as error:
        sys.exit(f"locust: {error}")
    environment.user_classes[:] = [OpenModelUser if options.rate else ModelServerUser]
    if options.rate:
        options.num_users = options.spawn_rate = SENDERS
    elif len(options.steps) > 1:
        environment.shape_class = UsersInSteps(options)


def _begin_now(**_: Any) -> None:
    """Without this Locust counts the run time from when Python began to import it, seconds ago on a busy host."""
    gevent.get_hub().loop.update_now()


def _count_the_time(environment: Any, **_: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        options = environment.parsed_options
        options.began, options.elapsed = monotonic(), 0.0  # the workers get them whenever their users change
        environment.runner.greenlet.spawn(_keep_elapsed, options, options.began)


def _keep_elapsed(options: Any, began: float) -> None:
    while options.began == began:
        options.elapsed = monotonic() - began
        sleep(0.5)


def _find_limit(environment: Any, **_: Any) -> None:
    if environment.parsed_options.find_limit and not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_raise_until_a_bound_is_broken, environment)


def _raise_until_a_bound_is_broken(environment: Any) -> None:
    options, total = environment.parsed_options, environment.stats.total
    for seconds, factor in options.steps:
        times_before, failures_before = Counter(total.response_times), total.num_failures
        sleep(seconds)
        times = Counter(total.response_times) - times_before
        answered, failures = sum(times.values()), total.num_failures - failures_before
        p50, p99 = (calculate_response_time_percentile(times, answered, share) for share in (0.5, 0.99))
        holds = (
            answered > 0
            and failures <= options.max_failure_ratio * answered
            and p50 <= options.max_p50_ms
            and p99 <= options.max_p99_ms
        )
        load = round((options.rate or options.num_users) * factor, 1)
        LIMIT_STEPS.append((load, answered, failures, p50, p99, "held" if holds else "broken"))
        LOG.info("%g %s: %d of %d failed, p50 %d ms, p99 %d ms", load, _unit(options), failures, answered, p50, p99)
        if options.csv_prefix:
            with Path(f"{options.csv_prefix}_limit.csv").open("w", newline="") as file:
                csv.writer(file).writerows([LIMIT_COLUMNS, *LIMIT_STEPS])
        if [step[-1] for step in LIMIT_STEPS[-2:]] == ["broken"] * 2:  # one alone may be chance
            break
    environment.runner.quit()


def _unit(options: Any) -> str:
    return "requests a second" if options.rate else "users"


def _tell_the_limit(environment: Any, **_: Any) -> None:
    if LIMIT_STEPS:
        held = max((step[0] for step in LIMIT_STEPS if step[-1] == "held"), default=0)
        LOG.info("The highest load that held: %g %s.", held, _unit(environment.parsed_options))


def _wait_for_the_csv_files(environment: Any, **_: Any) -> None:
    """Locust writes them at intervals, but not at its end: without this the last requests are missing."""
    if environment.parsed_options.csv_prefix and not isinstance(environment.runner, WorkerRunner):
        sleep(2 * CSV_STATS_INTERVAL_SEC)


hooks: Any = events  # events have no types
hooks.init_command_line_parser.add_listener(_add_option)
hooks.init.add_listener(_load_images)
hooks.init.add_listener(_choose_users)
hooks.init.add_listener(_begin_now)
hooks.test_start.add_listener(_count_the_time)
hooks.test_start.add_listener(_find_limit)
hooks.quitting.add_listener(_tell_the_limit)
hooks.quitting.add_listener(_wait_for_the_csv_files)


class UsersInSteps(LoadTestShape):
    """Lets users come and go as the steps say."""

    abstract = True  # Locust would take it for every run

    def __init__(self, options: Any) -> None:
        """Take the options of the run."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._options = options

    def tick(self) -> Optional[Tuple[int, float]]:
        """Return how many users there should be, and how many come or go in a second; None: the run is over."""
        elapsed, options = self.get_run_time(), self._options  # type: ignore[no-untyped-call]
        if options.run_time and elapsed >= options.run_time:
            return None
        users = max(1, round(options.num_users * share_at(options.steps, elapsed)))
        return users, users  # all at once: a step is a step


class Asking:
    """Sends a request and judges its answer.

    Attributes:
        client: session of Locust.
        due: when the request should have been sent, on the monotonic clock; None: when its user is free.
    """

    client: Any
    due: Optional[float] = None

    def send(self, content_type: str, name: str, expected: Tuple[int, ...]) -> None:
        """Send a random image."""
        filename, content = random.choice(IMAGES)
        self.ask("POST", "/predict", name, expected, files={"file": (filename, content, content_type)})

    def ask(self, method: str, path: str, name: str, expected: Tuple[int, ...], **options: Any) -> None:
        """Send a request; an answer with an expected status is a success."""
        with self.client.request(method, path, name=name, catch_response=True, **options) as response:
            if self.due is not None:
                response.request_meta["response_time"] = (monotonic() - self.due) * 1000
            if response.status_code in expected:
                response.success()
            elif response.status_code:  # 0: the connection failed, which Locust reports itself
                wanted = " or ".join(map(str, expected))
                response.failure(f"answered {response.status_code} instead of {wanted}: {response.text[:200]}")


class Arrival(Asking):
    """A request at a constant rate; its latency counts from when it was due."""

    def __init__(self, client: Any, due: float) -> None:
        """Take a session and the moment, in seconds of the monotonic clock."""
        self.client, self.due = client, due


class ServerUser(HttpUser):
    """A user who accepts the server's certificate as the options say."""

    abstract = True

    def on_start(self) -> None:
        """Ask for HTTPS as the options say."""
        if self.environment.parsed_options.insecure:
            self.client.verify = False
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


class ModelServerUser(Asking, ServerUser):
    """Waits 0.5 to 3 seconds, then does a task, chosen by weight."""

    wait_time = between(0.5, 3)

    @task(1)
    def index(self) -> None:
        """Request the front page."""
        self.ask("GET", "/", "/", (200,))

    @task(10)
    def predict(self) -> None:
        """Send an image, and expect a class."""
        self.send("image/jpeg", "/predict", (200,))

    @task(1)
    def client_error(self) -> None:
        """Send an image with another content type: a client error, 400."""
        self.send("fake_client_error/jpeg", "/predict (client error)", (400,))

    @task(1)
    def server_error(self) -> None:
        """Ask for the simulated server error: 500, or 400 if the server's fault injection is off."""
        self.send("fake_server_error/jpeg", "/predict (server error)", (500, 400))


class NotSentError(Exception):
    """A request that was due while too many others were waiting for their answers."""


WAITING = Pool(IN_FLIGHT)


class OpenModelUser(ServerUser):
    """Sends its part of a constant rate of `ModelServerUser`'s requests, for clients that do not wait for each other.

    Users who wait send less while a server stalls, and so hide from the figures what others would have met.
    """

    def on_start(self) -> None:
        """Begin at a random moment of the interval, with a connection for each request that may wait."""
        super().on_start()
        for scheme in ("http://", "https://"):
            self.client.mount(scheme, HTTPAdapter(pool_maxsize=IN_FLIGHT))
        options = self.environment.parsed_options
        elapsed = options.elapsed  # more than none for whoever takes the place of a lost worker's sender
        self._began = monotonic() - elapsed
        moments = arrivals(options.rate / SENDERS, options.steps, random.random())
        self._moments = dropwhile(lambda moment: moment < elapsed, moments)
        self._due: Optional[float] = None

    def on_stop(self) -> None:
        """Wait for the last answers."""
        WAITING.join(timeout=self.environment.stop_timeout or 10)

    def wait_time(self) -> float:
        """Return the seconds until the next request is due."""
        self._due = self._began + next(self._moments)
        return max(0.0, self._due - monotonic())

    @task
    def arrival(self) -> None:
        """Send the request that is due."""
        if self._due is None:
            return  # Locust asks for the first wait after the first task
        if WAITING.full():
            error = NotSentError(f"{IN_FLIGHT} requests waited for their answers")
            self.environment.stats.log_error("", "(not sent)", error)  # it is a failure without a latency
        else:
            WAITING.spawn(random.choice(ModelServerUser.tasks), Arrival(self.client, self._due))
