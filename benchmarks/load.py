"""Load over the loopback: wrk, which needs little CPU itself, and single requests one after the other."""

import http.client
import io
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, List, Optional
from urllib.parse import urlsplit

from PIL import Image

from model_server.commands.drawings import draw_fruit

BOUNDARY = "benchmark"
# Prints wrk's measurements as one line of JSON; wrk's times are in microseconds.
REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests":%d,"seconds":%f,"failures":%d,"p50":%f,"p99":%f,"max":%f}\\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, latency.max / 1e6))
end
"""


@dataclass(frozen=True)
class Outcome:
    """The result of a load; latencies in seconds."""

    requests: int
    seconds: float
    failures: int
    p50: float
    p99: float
    max: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def multipart(image: bytes) -> bytes:
    """Return the body of a form with the image, as a browser sends it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def predict(url: str, image: bytes, connections: int, seconds: int) -> Outcome:
    """Send the image to /predict over several connections, one request at a time on each.

    Raises:
        RuntimeError: wrk could not run, or a request failed.
    """
    with tempfile.TemporaryDirectory(prefix="wrk-") as folder:
        body, script = Path(folder) / "body", Path(folder) / "predict.lua"
        body.write_bytes(multipart(image))
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = io.open("{body}", "rb"):read("*a")\n'
            f'wrk.headers["Content-Type"] = "multipart/form-data; boundary={BOUNDARY}"\n{REPORT}'
        )
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
        command += ["--timeout", "30s", "--script", str(script), f"{url}/predict"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode or '"requests"' not in run.stdout:
        raise RuntimeError(f"wrk failed: {run.stdout}{run.stderr}")
    outcome = Outcome(**json.loads(run.stdout.splitlines()[-1]))
    if outcome.failures:
        raise RuntimeError(f"{outcome.failures} of {outcome.requests} requests to {url} failed.")
    return outcome


class Connection:
    """A keep-alive connection to a server. Any status other than 200 raises RuntimeError."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def predict(self, body: bytes) -> bytes:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self._request("POST", "/predict", body, headers)

    def scrape(self) -> bytes:
        return self._request("GET", "/metrics")

    def _request(self, method: str, path: str, body: Optional[bytes] = None, headers: Any = None) -> bytes:
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{method} {path} was answered with {answer.status}: {content[:200]!r}")
        return content


def one_by_one(url: str, image: bytes, count: int) -> List[float]:
    """Send an image `count` times after one warm-up request, and return the seconds until each answer."""
    connection, body = Connection(url), multipart(image)
    connection.predict(body)
    seconds = []
    for _ in range(count):
        sent = time.perf_counter()
        connection.predict(body)
        seconds.append(time.perf_counter() - sent)
    return seconds


def photo() -> bytes:
    """Return a JPEG of 4000×3000 pixels and 3.4 MB, like a camera's. It is the same each time."""
    chance, width, height = Random("photo"), 4000, 3000
    drawing = draw_fruit("apple", chance, width // 4, height // 4).resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.frombytes(
        "L", (width, height), chance.getrandbits(8 * width * height).to_bytes(width * height, "big")
    )
    file = io.BytesIO()
    Image.blend(drawing, grain.convert("RGB"), 0.08).save(file, "JPEG", quality=90)
    return file.getvalue()
