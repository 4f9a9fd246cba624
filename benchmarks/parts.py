"""What parts of our own save, each beside the library that would do its work: `script/bench parts`.

Measured like the cost of the metrics: two servers with one worker each take turns at every request, on the same
processor; one has the library in place of the part.
"""

from statistics import median, quantiles
from typing import Any, Sequence

import prometheus_client.values
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette_exporter import PrometheusMiddleware

from benchmarks.metrics import compare
from benchmarks.servers import ours
from model_server import app, predict
from model_server.metrics import values
from model_server.metrics.requests import APP_NAME
from model_server.upload import FIELD, Upload

PARTS = {
    "values that know their place in the file (metrics/values.py)": "library_values",
    "request metrics with their labels looked up once (metrics/requests.py)": "library_middleware",
    "parts of a form found by their boundaries (upload.py)": "library_form",
    "a route that hands the request over as it is (app.py)": "library_route",
}


def library_values() -> Any:
    """Build the app on prometheus_client's values, with its hook for process names.

    On a full disk these kill the process (SIGBUS); `values.ValueFile` is what prevents that.
    """
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(lambda: values._process)  # type: ignore[no-untyped-call]
    return app.app_from_environment()


class LibraryMiddleware(PrometheusMiddleware):
    """starlette_exporter's middleware as it is, with the arguments of ours."""

    def __init__(self, paths: object, registry: CollectorRegistry, journal: object) -> None:
        super().__init__(_nothing, app_name=APP_NAME, prefix=APP_NAME)
        metrics = (self.request_count, self.request_time, self.requests_in_progress)
        for metric in metrics:
            registry.register(metric)
        self.families = frozenset(family.name for metric in metrics for family in metric.describe())

    def wrap(self, app: ASGIApp) -> "LibraryMiddleware":
        self.app = app
        return self

    def count(self, *_: object) -> None:
        pass


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


def library_middleware() -> Any:
    vars(app).update(RequestMetrics=LibraryMiddleware)
    return app.app_from_environment()


async def read_form(request: Request, max_body_bytes: int) -> Upload:
    content_type = request.headers["content-type"]
    if not content_type.startswith("multipart/"):  # the server's check of itself
        return Upload(None, content_type, await request.body())
    async with request.form() as form:
        file: Any = form[FIELD]
        return Upload(file.filename, file.content_type, await file.read())


def library_form() -> Any:
    vars(predict).update(read_upload=read_form)
    return app.app_from_environment()


def library_route() -> Any:
    vars(app).update(DirectRoute=APIRoute)
    return app.app_from_environment()


def measure(image: bytes, bodies: Sequence[bytes], rounds: int) -> None:
    """Print what each part saves, in percent of a request's CPU time: the median, and the middle half of the rounds."""
    for part, builder in PARTS.items():
        library = ours(f"library instead of {part}", app=f"benchmarks.parts:{builder}()")
        pairs = [compare(image, bodies, library) for _ in range(rounds)]
        low, middle, high = quantiles([100 * (other / own - 1) for own, other in pairs], n=4)
        milliseconds = median(own for own, _ in pairs) * 1e3
        print(f"{part}: {middle:.1f} % of {milliseconds:.2f} ms ({low:.1f} to {high:.1f})", flush=True)
