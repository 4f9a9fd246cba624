import asyncio
import contextlib
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
from prometheus_client import CollectorRegistry

from model_server.monitoring import RequestMetrics, Slot, check_metrics_dir, release_free_slots
from model_server.settings import SettingsError


def test_a_directory_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_metrics_dir(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_directory_is_explained() -> None:
    with pytest.raises(SettingsError, match=r"^PROMETHEUS_MULTIPROC_DIR is not set; "):
        check_metrics_dir(None)


def test_a_directory_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"^PROMETHEUS_MULTIPROC_DIR is '.*/none', where .*: No such file or directory\.$"
    ):
        check_metrics_dir(tmp_path / "none")


Series = Dict[Tuple[str, str, str], float]


def serve(answer: Any, *requests: Tuple[str, str]) -> Series:
    """Send requests (method and path) through the middleware; return those counted, by method, path and status."""
    registry = CollectorRegistry()
    middleware = RequestMetrics(answer, {"/known"}, registry)
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
def test_no_answer_or_half_of_one_is_a_server_error(answer: Any) -> None:
    assert serve(answer, ("GET", "/known")) == {("GET", "/known", "500"): 1}


def test_what_is_no_request_passes() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(RequestMetrics(app, {"/known"}, CollectorRegistry())({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_a_slot_is_one_worker_s_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    first, second = Slot.claim(tmp_path, []), Slot.claim(tmp_path, [])
    assert (first.number, second.number) == (0, 1)
    assert Slot.claim(tmp_path, [2]).number == 3
    (tmp_path / "gauge_livesum_0.db").touch()
    (tmp_path / "gauge_livesum_1.db").touch()
    (tmp_path / "counter_0.db").touch()
    first.close()
    release_free_slots(tmp_path)
    assert not (tmp_path / "gauge_livesum_0.db").exists(), "what a lost worker had in progress"
    assert (tmp_path / "gauge_livesum_1.db").exists(), "what a living one has"
    assert (tmp_path / "counter_0.db").exists()
    assert Slot.claim(tmp_path, []).number == 0
    second.close()
