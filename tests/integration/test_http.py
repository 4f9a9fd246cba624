"""The original lab's HTTP contract, against the deployed server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.integration.machines import MODEL_SERVER_PORT, ModelServer, fallen, samples

IMAGES = sorted((Path(__file__).parents[2] / "load_test" / "images").glob("*.jp*g"))
IMAGE = IMAGES[0].read_bytes()


@pytest.fixture(scope="module")
def client(model_server: ModelServer) -> Iterator[httpx.Client]:
    with model_server.http() as client:
        yield client


def predict(client: httpx.Client, content: bytes, content_type: str = "image/jpeg") -> httpx.Response:
    return client.post("/predict", files={"file": ("sample.jpg", content, content_type)})


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics"])
def test_path_answers(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_images_are_classified(client: httpx.Client) -> None:
    wrong = {}
    for image in IMAGES:
        answer = predict(client, image.read_bytes())
        assert answer.status_code == 200, f"{image.name}: {answer.text}"
        body = answer.json()
        likely_class = body.pop("likely_class")
        assert body == {"filename": "sample.jpg", "content_type": "image/jpeg"}
        if not image.name.startswith(f"{likely_class}_"):
            wrong[image.name] = likely_class

    # The model that the role trains may be wrong about 3 in 100.
    assert len(wrong) <= len(IMAGES) * 0.11, wrong


def test_assets_of_the_documentation_are_sent_whole(client: httpx.Client) -> None:
    """Each of many ranges would cost a merge with all before it."""
    asset = "/static-offline-docs/swagger-ui.css"
    whole = client.get(asset)
    ranges = ",".join(f"{start}-{start}" for start in range(0, 10_000, 2))

    answer = client.get(asset, headers={"Range": f"bytes={ranges}"})

    assert (answer.status_code, answer.content) == (200, whole.content)


@pytest.mark.parametrize("content_type", ["fake_client_error/jpeg", "text/plain"])
def test_other_content_type_is_the_clients_error(client: httpx.Client, content_type: str) -> None:
    answer = predict(client, IMAGE, content_type)

    assert (answer.status_code, answer.json()) == (400, {"detail": "File 'sample.jpg' is not an image."})


def test_simulated_server_error(client: httpx.Client) -> None:
    assert predict(client, IMAGE, "fake_server_error/jpeg").status_code == 500


@pytest.mark.parametrize(
    "content",
    [b"", b"no image at all", IMAGE[: len(IMAGE) // 2], IMAGE[:20], b"\xff\xd8\xff\xe0" + bytes(1000)],
    ids=["empty", "text", "half an image", "a header", "zeros"],
)
def test_body_that_is_no_image_is_the_clients_error(client: httpx.Client, content: bytes) -> None:
    answer = predict(client, content)

    assert 400 <= answer.status_code < 500, answer.text
    assert len(answer.json()["detail"]) > 10, "no clear detail"


def test_request_without_a_file_is_the_clients_error(client: httpx.Client) -> None:
    assert 400 <= client.post("/predict").status_code < 500


def test_promtool_accepts_the_metrics(model_server: ModelServer) -> None:
    url = f"http://127.0.0.1:{MODEL_SERVER_PORT}/metrics"
    check = model_server.machine.shell().run("curl --fail --silent %s | promtool check metrics", url)

    assert check.rc == 0, check.stdout + check.stderr


def test_no_series_is_exposed_twice(client: httpx.Client) -> None:
    series = [series for series, _ in samples(client.get("/metrics").text)]

    assert len(series) > 20
    assert len(series) == len(set(series)), sorted(series)


def test_counters_sum_over_workers_and_never_fall(model_server: ModelServer, client: httpx.Client) -> None:
    requests = 200
    # A new connection for each: the kernel hands them to whichever worker is free.
    fresh = {"headers": {"Connection": "close"}}
    before = model_server.counters()

    with ThreadPoolExecutor(4) as threads, model_server.http(**fresh) as traffic:
        # One image again and again would be drift.
        images = [IMAGES[number % len(IMAGES)].read_bytes() for number in range(requests)]
        answers = [threads.submit(predict, traffic, image) for image in images]
        scrapes = [before]
        while not all(answer.done() for answer in answers):
            scrapes.append(model_server.counters())
    scrapes.append(model_server.counters())

    assert [answer.result().status_code for answer in answers] == [200] * requests
    assert fallen(scrapes) == {}
    for name in ("predictions_total", "fastapi_request_duration_seconds_count"):
        rise = sum(
            value - before.get(series, 0)
            for series, value in scrapes[-1].items()
            if series.startswith(name) and ("class=" in series or 'path="/predict"' in series)
        )
        assert rise == requests, name
