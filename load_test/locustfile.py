"""The original lab's user: requests the front page, sends images, and sometimes something that is not an image.

With `--rate`, the same requests at a constant rate, for clients that do not wait for each other.

An answer that a task expects is a success, whatever its status, so Locust's failures are failures of the server.
Runs on Python 3.8 with Locust 2.25, and on the newest releases of both.
"""

import random
import sys
from pathlib import Path
from time import sleep, time
from typing import Any, List, Optional, Tuple

import urllib3
from gevent.pool import Pool  # type: ignore[import-untyped]
from locust import HttpUser, between, constant, events, task
from locust.stats import CSV_STATS_INTERVAL_SEC
from requests.adapters import HTTPAdapter

Image = Tuple[str, bytes]
IMAGES: List[Image] = []
IN_FLIGHT = 1000  # requests at a constant rate that wait for their answers; further ones are not sent


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
        help="requests a second, whether answers come or not; latency counts from when each was due; 0: users who wait",
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


def _choose_users(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    if options.rate < 0:
        sys.exit(f"locust: --rate is {options.rate:g}; set it to requests a second, or to 0 for users who wait.")
    environment.user_classes[:] = [OpenModelUser if options.rate else ModelServerUser]
    if options.rate:
        options.num_users, options.spawn_rate = 1, 1  # it sends for all


def _wait_for_the_csv_files(environment: Any, **_: Any) -> None:
    """Locust writes them at intervals, but not at its end: without this the last requests are missing."""
    if environment.parsed_options.csv_prefix:
        sleep(2 * CSV_STATS_INTERVAL_SEC)


hooks: Any = events  # events have no types
hooks.init_command_line_parser.add_listener(_add_option)
hooks.init.add_listener(_load_images)
hooks.init.add_listener(_choose_users)
hooks.test_stop.add_listener(_wait_for_the_csv_files)


class Asking:
    """Sends a request and judges its answer.

    Attributes:
        client: session of Locust.
        due: when the request should have been sent, in seconds since the epoch; None: it is sent when its user is free.
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
                response.request_meta["response_time"] = (time() - self.due) * 1000
            if response.status_code in expected:
                response.success()
            elif response.status_code:  # 0: the connection failed, which Locust reports itself
                wanted = " or ".join(map(str, expected))
                response.failure(f"answered {response.status_code} instead of {wanted}: {response.text[:200]}")


class Arrival(Asking):
    """A request at a constant rate; its latency counts from when it was due."""

    def __init__(self, client: Any, due: float) -> None:
        """Take a session and the moment, in seconds since the epoch."""
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


class OpenModelUser(ServerUser):
    """Sends the requests of `ModelServerUser` at a constant rate, for clients that do not wait for each other.

    Users who wait send less while a server stalls, and so hide from the figures what others would have met.
    """

    wait_time = constant(0)

    def on_start(self) -> None:
        """Begin at a random moment of the interval, with a connection for each request that may wait."""
        super().on_start()
        for scheme in ("http://", "https://"):
            self.client.mount(scheme, HTTPAdapter(pool_maxsize=IN_FLIGHT))
        self._interval = 1 / self.environment.parsed_options.rate
        self._due = time() + random.uniform(0, self._interval)
        self._waiting = Pool(IN_FLIGHT)

    def on_stop(self) -> None:
        """Wait for the last answers."""
        self._waiting.join(timeout=self.environment.stop_timeout or 10)

    @task
    def arrival(self) -> None:
        """Send the next request when it is due."""
        sleep(max(0.0, self._due - time()))
        if self._waiting.full():
            error = NotSentError(f"{IN_FLIGHT} requests waited for their answers")
            self.environment.stats.log_error("", "(not sent)", error)  # it is a failure without a latency
        else:
            self._waiting.spawn(random.choice(ModelServerUser.tasks), Arrival(self.client, self._due))
        self._due += self._interval
