import asyncio
import contextlib
from typing import Any, Dict, Tuple

import pytest
from prometheus_client import CollectorRegistry

from model_server.metrics.journal import LimitedLog
from model_server.metrics.requests import RequestMetrics

Series = Dict[Tuple[str, str, str], float]


def serve(answer: Any, *requests: Tuple[str, str]) -> Series:
    """Send requests (method and path) through the middleware; return those counted, by method, path and status."""
    registry = CollectorRegistry()
    middleware = RequestMetrics({"/known"}, registry, LimitedLog("requests")).wrap(answer)
    for metric in (middleware.request_count, middleware.request_time, middleware.requests_in_progress):
        metric.clear()  # starlette_exporter keeps them for the whole process

    async def receive() -> Dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    async def run() -> None:
        for method, path in requests:
            await middleware({"type": "http", "method": method, "path": path}, receive, send)

    with contextlib.suppress(ArithmeticError):
        asyncio.run(run())
    counted: Series = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name in {"fastapi_requests_total", "fastapi_request_duration_seconds_count"}:
                assert sample.labels["app_name"] == "fastapi"
                key = sample.labels["method"], sample.labels["path"], sample.labels["status_code"]
                assert counted.setdefault(key, sample.value) == sample.value, "as many are timed as are counted"
            if sample.name == "fastapi_requests_in_progress":
                assert sample.labels.keys() == {"method", "app_name"}
                assert sample.value == 0
    return counted


async def not_found(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def failing(scope: Any, receive: Any, send: Any) -> None:
    await not_found(scope, receive, send)
    raise ArithmeticError


async def silent(scope: Any, receive: Any, send: Any) -> None:
    pass


def test_requests_to_known_paths_are_counted() -> None:
    counted = serve(not_found, ("GET", "/known"), ("PUT", "/known"), ("GET", "/known"), ("GET", "/other"))
    assert counted == {("GET", "/known", "404"): 2, ("PUT", "/known", "404"): 1}


@pytest.mark.parametrize("answer", [failing, silent])
def test_no_answer_or_a_truncated_one_is_a_server_error(answer: Any) -> None:
    assert serve(answer, ("GET", "/known")) == {("GET", "/known", "500"): 1}


def test_scopes_other_than_http_pass() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    middleware: Any = RequestMetrics({"/known"}, CollectorRegistry(), LimitedLog("")).wrap(app)
    asyncio.run(middleware({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
