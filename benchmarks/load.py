"""Load: wrk for requests as fast as they are answered, from the loopback; it takes little of the machine itself."""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

BOUNDARY = "benchmark"
# Prints what wrk measured as one line of JSON; times in wrk are in microseconds.
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
    """What a load came to; latencies in seconds."""

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
    """Return the body of a form that holds the image as a browser would send it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def predict(url: str, image: bytes, connections: int, seconds: int) -> Outcome:
    """Send the image to /predict over some connections, each with one request at a time.

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
