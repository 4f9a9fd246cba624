"""The metrics of HTTP requests."""

import time
from typing import Collection, Dict, Tuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_exporter import PrometheusMiddleware

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
    """

    def __init__(self, app: ASGIApp, paths: Collection[str], registry: CollectorRegistry) -> None:
        """Wrap an app.

        Args:
            app: what answers the requests.
            paths: the paths of the app's routes, which have no parameters; other paths are not counted.
            registry: gets the metrics.
        """
        super().__init__(app, app_name=APP_NAME, prefix=APP_NAME)
        self._paths = paths
        for metric in (self.request_count, self.request_time, self.requests_in_progress):
            registry.register(metric)
        # Looking up a metric by its labels costs more than counting.
        self._answered: Dict[Tuple[str, str, int], Tuple[Counter, Histogram]] = {}
        self._in_progress: Dict[str, Gauge] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path, status = scope["method"], scope["path"], 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        in_progress = self._in_progress.get(method)
        if in_progress is None:
            in_progress = self._in_progress[method] = self.requests_in_progress.labels(method, APP_NAME)
        in_progress.inc()
        begun = time.perf_counter()
        try:
            await self.app(scope, receive, watched_send)
        except BaseException:
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - begun
            in_progress.dec()
            if path in self._paths:
                self._count(method, path, status, seconds)

    def _count(self, method: str, path: str, status: int, seconds: float) -> None:
        children = self._answered.get((method, path, status))
        if children is None:
            labels = (method, path, str(status), APP_NAME)
            children = self.request_count.labels(*labels), self.request_time.labels(*labels)
            self._answered[method, path, status] = children
        count, duration = children
        count.inc()
        duration.observe(seconds)
