"""The metrics of HTTP requests."""

import time
from typing import Any, Awaitable, Collection, Dict, Tuple

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_exporter import PrometheusMiddleware

from model_server.metrics._prometheus_client import Observer, value_of
from model_server.metrics.journal import LimitedLog

APP_NAME = "fastapi"
# What is used of starlette_exporter beyond its documented interface, and what for.
# tests/unit/model_server/test_holds.py fails with this when a release has changed it.
HOLDS: Dict[str, str] = {
    "starlette_exporter.PrometheusMiddleware.request_count": "the counter `fastapi_requests_total`",
    "starlette_exporter.PrometheusMiddleware.request_time": "the histogram `fastapi_request_duration_seconds`",
    "starlette_exporter.PrometheusMiddleware.requests_in_progress": "the gauge `fastapi_requests_in_progress`",
}


class RequestMetrics(PrometheusMiddleware):
    """starlette_exporter's metrics, recorded at a tenth of the cost of its own middleware.

    That one looks up the labels and matches the path to the routes at each request; this one keeps the results.

    Attributes:
        families: the names of these metrics; their series come into being with the requests.
    """

    def __init__(self, paths: Collection[str], registry: CollectorRegistry, journal: LimitedLog) -> None:
        """Measure requests.

        Args:
            paths: the paths of the app's routes, which have no parameters; other paths are not counted.
            registry: gets the metrics.
            journal: gets a line for each answer of 400 and above.
        """
        super().__init__(_nothing, app_name=APP_NAME, prefix=APP_NAME)
        self._paths, self._journal = paths, journal
        metrics = (self.request_count, self.request_time, self.requests_in_progress)
        for metric in metrics:
            registry.register(metric)
        self.families = frozenset(family.name for metric in metrics for family in metric.describe())
        # Looking up a metric by its labels costs more than counting.
        self._answered: Dict[Tuple[str, str, int], Tuple[Any, Observer]] = {}
        self._in_progress: Dict[str, Any] = {}

    def wrap(self, app: ASGIApp) -> "RequestMetrics":
        """Measure the requests to this app."""
        self.app = app
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, status = scope["method"], 500

        def watched_send(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        in_progress = self._in_progress.get(method)
        if in_progress is None:
            in_progress = self._in_progress[method] = value_of(self.requests_in_progress.labels(method, APP_NAME))
        in_progress.inc(1)
        begun = time.perf_counter()
        try:
            await self.app(scope, receive, watched_send)
        except BaseException:
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - begun
            in_progress.inc(-1)
            path = scope["path"]  # an inner middleware may have changed it
            if path in self._paths:
                self.count(method, path, status, seconds)
            if status >= 400:
                self._report(scope, status)

    def _report(self, scope: Scope, status: int) -> None:
        client = (scope.get("client") or ("nobody",))[0]
        target = scope.get("raw_path", b"")[:100].decode("latin-1")
        request_id = scope.get("request_id", "-")  # set by the server
        problem = scope.get("problem", "")  # set by the route
        self._journal.add(f"{status} {scope['method']} {target} from {client}, id {request_id} {problem}".rstrip())

    def count(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answer to a request that took these seconds."""
        children = self._answered.get((method, path, status))
        if children is None:
            labels = (method, path, str(status), APP_NAME)
            children = value_of(self.request_count.labels(*labels)), Observer(self.request_time.labels(*labels))
            self._answered[method, path, status] = children
        count, duration = children
        count.inc(1)
        duration.observe(seconds)


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("RequestMetrics wraps no app.")
