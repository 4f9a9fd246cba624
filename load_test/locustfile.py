"""The original lab's user: requests the front page, sends images, and sometimes something that is not an image.

An answer that a task expects is a success, whatever its status, so Locust's failures are failures of the server.
Runs on Python 3.8 with Locust 2.25, and on the newest releases of both.
"""

import random
import sys
from pathlib import Path
from time import sleep
from typing import Any, List, Tuple

import urllib3
from locust import HttpUser, between, events, task
from locust.stats import CSV_STATS_INTERVAL_SEC

Image = Tuple[str, bytes]
IMAGES: List[Image] = []


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


def _wait_for_the_csv_files(environment: Any, **_: Any) -> None:
    """Locust writes them at intervals, but not at its end: without this the last requests are missing."""
    if environment.parsed_options.csv_prefix:
        sleep(2 * CSV_STATS_INTERVAL_SEC)


hooks: Any = events  # events have no types
hooks.init_command_line_parser.add_listener(_add_option)
hooks.init.add_listener(_load_images)
hooks.test_stop.add_listener(_wait_for_the_csv_files)


class ModelServerUser(HttpUser):
    """Waits 0.5 to 3 seconds, then does a task, chosen by weight."""

    wait_time = between(0.5, 3)

    def on_start(self) -> None:
        """Ask for HTTPS as the options say."""
        if self.environment.parsed_options.insecure:
            self.client.verify = False
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    @task(1)
    def index(self) -> None:
        """Request the front page."""
        self._ask("GET", "/", "/", (200,))

    @task(10)
    def predict(self) -> None:
        """Send an image, and expect a class."""
        self._send("image/jpeg", "/predict", (200,))

    @task(1)
    def client_error(self) -> None:
        """Send an image with another content type: a client error, 400."""
        self._send("fake_client_error/jpeg", "/predict (client error)", (400,))

    @task(1)
    def server_error(self) -> None:
        """Ask for the simulated server error: 500, or 400 if the server's fault injection is off."""
        self._send("fake_server_error/jpeg", "/predict (server error)", (500, 400))

    def _send(self, content_type: str, name: str, expected: Tuple[int, ...]) -> None:
        filename, content = random.choice(IMAGES)
        self._ask("POST", "/predict", name, expected, files={"file": (filename, content, content_type)})

    def _ask(self, method: str, path: str, name: str, expected: Tuple[int, ...], **options: Any) -> None:
        with self.client.request(method, path, name=name, catch_response=True, **options) as response:
            if response.status_code in expected:
                response.success()
            elif response.status_code:  # 0: the connection failed, which Locust reports itself
                wanted = " or ".join(map(str, expected))
                response.failure(f"answered {response.status_code} instead of {wanted}: {response.text[:200]}")
