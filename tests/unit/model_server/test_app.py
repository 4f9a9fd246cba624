import asyncio
import random
import re
import threading
import time
from array import array
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from model_server.app import create_app
from model_server.metrics.classes import ClassSeries
from model_server.metrics.predictions import ModelMetrics, Reason, RequestTimings
from model_server.metrics.shadow import ShadowMetrics
from model_server.middleware import WithoutRanges
from model_server.model.accuracy import Accuracy, measure
from model_server.model.reference import Reference
from model_server.server.self_check import check
from model_server.settings import Settings
from tests.unit.model_server.server.lemon import Lemon

ROOT = Path(__file__).resolve().parents[3]
Encode = Callable[..., bytes]


class Client:
    """Sends requests to the app itself, without a server in between."""

    def __init__(self, app: FastAPI, address: str = "127.0.0.1") -> None:
        self._transport = httpx.ASGITransport(app, client=(address, 123))

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://server") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)


MANIFEST = Lemon.manifest


PROBABILITIES = (0.02, 0.08, 0.9)  # of the classes in the manifest's order
NAN = float("nan")


class Logits:
    """What the app asks of a tensor."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        self._probabilities = array("d", probabilities)

    def softmax(self, _: int) -> Any:
        return self._probabilities

    def tolist(self) -> List[float]:
        return [4.0, 1.0, 0.0]

    def topk(self, count: int) -> Any:
        return SimpleNamespace(values=array("d", self.tolist()[:count]))


class FakeClassifier:
    manifest = MANIFEST
    reference: Optional[Reference] = None
    accuracy: Optional[Accuracy] = None
    ready = True

    def __init__(self) -> None:
        self.seen: List[Image.Image] = []
        self.pixels: Any = None

    def preprocess(self, image: Image.Image) -> Any:
        self.seen.append(image)
        return self.pixels

    batch_size = 4

    def classify_batch(self, images: Sequence[Any]) -> List[Tuple[str, float, Any, Any]]:
        return [("lemon", 0.9, Logits(PROBABILITIES), array("d", (0.25, -3.0, 0.0)))] * len(images)


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


def make_client(classifier: FakeClassifier, **settings: Any) -> Client:
    return Client(create_app(Settings(bundle=Path("none"), **settings), classifier))


@pytest.fixture
def client(classifier: FakeClassifier) -> Client:
    return make_client(classifier)


def post(client: Client, data: bytes, kind: str = "image/jpeg", name: str = "a.jpg") -> Any:
    return client.post("/predict", files={"file": (name, data, kind)})


def samples(client: Client) -> Dict[str, float]:
    page = client.get("/metrics")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain; version=")
    found: Dict[str, float] = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            key = sample.name + str(sorted(sample.labels.items()))
            assert key not in found, f"duplicate series {key}"
            found[key] = sample.value
    return found


def requests_total(client: Client, method: str, path: str, status: int) -> float:
    labels = {"method": method, "path": path, "status_code": str(status), "app_name": "fastapi"}
    return samples(client).get("fastapi_requests_total" + str(sorted(labels.items())), 0.0)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/docs", "/redoc", "/metrics"])
def test_pages(client: Client, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"])
def test_internal_pages_are_for_those_who_are_named(classifier: FakeClassifier, path: str) -> None:
    app = create_app(Settings(bundle=Path("none"), internal_pages_from="10.0.0.0/8"), classifier)
    statuses = {
        address: Client(app, address).request(method, path).status_code
        for address in ("10.1.2.3", "127.0.0.1", "192.0.2.1")
        for method in ("GET", "HEAD")
    }

    assert statuses == {"10.1.2.3": 200, "127.0.0.1": 200, "192.0.2.1": 403}
    assert Client(app, "192.0.2.1").get("/").status_code == 200


def test_documentation_can_be_switched_off(classifier: FakeClassifier) -> None:
    closed = make_client(classifier, docs=False)
    assert [closed.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3
    assert closed.get("/").json() == {"status": "ok"}


def test_files_are_not_asked_for_ranges(classifier: FakeClassifier) -> None:
    """Each of many ranges would cost a merge with all before it."""
    app = create_app(Settings(bundle=Path("none")), classifier)
    (assets,) = (route.app for route in app.routes if isinstance(route, Mount))
    assert isinstance(assets, WithoutRanges)
    asked: List[str] = []

    async def files(scope: Scope, receive: Receive, send: Send) -> None:
        asked.extend(Headers(scope=scope))
        await PlainTextResponse("whole")(scope, receive, send)

    assets.app = files  # not the files themselves: their thread would not end where Locust has imported gevent
    answer = Client(app).request("GET", "/static-offline-docs/a.css", headers={"Range": "bytes=0-0,2-2"})

    assert (answer.status_code, "host" in asked, "range" in asked) == (200, True, False)


def test_an_image_is_classified(client: Client, classifier: FakeClassifier, encode: Encode) -> None:
    answer = post(client, encode((200, 160)), name="fruit.jpg")
    assert answer.status_code == 200
    assert answer.json() == {"filename": "fruit.jpg", "content_type": "image/jpeg", "likely_class": "lemon"}
    assert (classifier.seen[0].mode, classifier.seen[0].size) == ("RGB", (200, 160))


def test_an_answer_names_its_model(client: Client, encode: Encode) -> None:
    answer = post(client, encode())
    assert [answer.headers[f"x-model-{field}"] for field in ("name", "version", "digest")] == ["lemon", "1.0", "0" * 64]


@pytest.mark.parametrize("query", ["?details", "?details=", "?details=true"])
def test_details_are_given_on_request(classifier: FakeClassifier, encode: Encode, query: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k" * 32)
    client = make_client(classifier, feedback_keys_file=tmp_path / "keys")
    answer = client.post(f"/predict{query}", content=encode(), headers={"content-type": "image/jpeg"})
    details = answer.json()
    assert details["id"] == answer.headers["x-prediction-id"]
    assert details["confidence"] == 0.9
    assert details["model"] == {"name": "lemon", "version": "1.0", "digest": "0" * 64}
    assert set(details["timings_ms"]) == {"read", "queue", "decode", "preprocess", "forward"}


@pytest.mark.parametrize("query", ["?details=false", "?other"])
def test_without_details_the_answer_is_the_original_labs(client: Client, encode: Encode, query: str) -> None:
    answer = client.post(f"/predict{query}", content=encode(), headers={"content-type": "image/jpeg"})
    assert answer.content == b'{"filename":null,"content_type":"image/jpeg","likely_class":"lemon"}'


def test_details_of_a_broken_model_are_json(
    classifier: FakeClassifier, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "classify_batch", lambda images: [("lemon", NAN, Logits([NAN] * 3), None)])
    answer = make_client(classifier).post(
        "/predict?details&top=1", content=encode(), headers={"content-type": "image/jpeg"}
    )
    assert answer.json()["confidence"] is None
    assert [each["confidence"] for each in answer.json()["predictions"]] == [None]


def test_a_probe_is_answered_and_counted_as_none_of_the_inputs(
    classifier: FakeClassifier, encode: Encode, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("k" * 32)
    client = make_client(classifier, feedback_keys_file=tmp_path / "keys")
    before = samples(client)
    answer = client.post("/probe", content=encode(), headers={"content-type": "image/jpeg"})
    refused = client.post("/probe", content=b"?", headers={"content-type": "image/jpeg"})
    after = samples(client)

    assert (answer.json()["likely_class"], refused.status_code) == ("lemon", 400)
    assert "x-prediction-id" not in answer.headers
    grown = {key for key, value in after.items() if value != before.get(key, 0.0)}
    of_requests = {key for key in grown if key.startswith("fastapi_")}
    assert grown - of_requests == set(), "neither inputs nor predictions"
    assert any(key.startswith("fastapi_requests_total") and "('path', '/probe')" in key for key in of_requests)


@pytest.mark.parametrize("top", [1, 2, 1000])
def test_the_likeliest_classes_are_given_on_request(client: Client, encode: Encode, top: int) -> None:
    answer = client.post(f"/predict?top={top}", content=encode(), headers={"content-type": "image/jpeg"}).json()
    by_confidence = sorted(zip(PROBABILITIES, MANIFEST.classes), reverse=True)
    assert answer["predictions"] == [{"class": name, "confidence": each} for each, name in by_confidence][:top]
    assert answer["predictions"][0]["class"] == answer["likely_class"]


def test_the_queue_on_the_page_is_the_one_of_the_last_turn() -> None:
    metrics = ModelMetrics(MANIFEST, None, None)
    for depth, wait in ((3, 0.5), (3, 0.5), (2, 0.5), (0, 0.0)):
        metrics.queue(depth, wait)
        page = generate_latest(metrics.registry).decode().splitlines()
        assert {f"queue_depth {depth:.1f}", f"queue_wait_estimate_seconds {wait}"} <= set(page)


@pytest.mark.parametrize("top", ["0", "-1", "two", "", "1.5", "\u0663", "9" * 5000])
def test_a_top_that_is_no_number_is_refused_in_a_sentence(client: Client, encode: Encode, top: str) -> None:
    answer = client.post("/predict", params={"top": top}, content=encode(), headers={"content-type": "image/jpeg"})
    assert answer.status_code == 400
    assert "set it to a number of classes from 1 on, or leave it out." in answer.json()["detail"]
    assert len(answer.content) < 200


def test_the_bare_body_is_classified(client: Client, encode: Encode) -> None:
    answer = client.post("/predict", content=encode(kind="PNG"), headers={"content-type": "image/png"})
    assert answer.status_code == 200
    assert answer.json() == {"filename": None, "content_type": "image/png", "likely_class": "lemon"}


@pytest.mark.parametrize("kind", ["text/plain", "fake_client_error/jpeg", "fake_server_error/jpeg", "application/pdf"])
def test_another_type_is_not_an_image(client: Client, encode: Encode, kind: str) -> None:
    answer = post(client, encode(), kind, "a.jpg")
    assert (answer.status_code, answer.json()) == (400, {"detail": "File 'a.jpg' is not an image."})


def test_a_server_error_is_simulated_only_on_request(classifier: FakeClassifier, encode: Encode) -> None:
    client = make_client(classifier, fault_injection=True)
    assert post(client, encode(), "fake_server_error/jpeg").status_code == 500
    assert post(client, encode(), "fake_client_error/jpeg").status_code == 400
    assert post(client, encode()).status_code == 200


@pytest.mark.parametrize("kind", ["", "application/octet-stream", "IMAGE/JPEG", "image/jpg; charset=utf-8"])
def test_a_type_that_says_nothing_leaves_it_to_the_bytes(client: Client, encode: Encode, kind: str) -> None:
    head = '--XX\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
    part = head + (f"Content-Type: {kind}\r\n\r\n" if kind else "\r\n")
    body = part.encode() + encode(kind="PNG") + b"\r\n--XX--\r\n"
    answer = client.post("/predict", content=body, headers={"content-type": "multipart/form-data; boundary=XX"})
    assert answer.status_code == 200
    assert answer.json() == {"filename": "a.png", "content_type": kind or "image/png", "likely_class": "lemon"}
    assert post(client, b"text", kind or "application/octet-stream").status_code == 400


def test_a_format_that_is_not_accepted_is_named(client: Client) -> None:
    answer = post(client, b"\0\0\0\x1cftypheic" + bytes(40))
    assert answer.status_code == 415
    accepted = "JPEG, PNG, WEBP, GIF, BMP, TIFF"
    assert answer.json()["detail"] == f"File 'a.jpg' is of the format HEIC, but {accepted} are accepted."


def test_a_large_image_is_decoded_beside_the_event_loop(
    client: Client, classifier: FakeClassifier, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: List[str] = []
    monkeypatch.setattr(
        classifier, "preprocess", lambda image: threads.append(threading.current_thread().name), raising=True
    )
    assert post(client, encode((2100, 2100), quality=5)).status_code == 200
    assert post(client, encode((100, 100))).status_code == 200
    assert threads[0] != threads[1] == threading.main_thread().name
    assert post(client, encode((2100, 2100), quality=5)[:-3000]).status_code == 400


def test_pages_of_other_origins_may_ask_when_they_are_named(classifier: FakeClassifier) -> None:
    headers = {"Origin": "https://one.example", "Access-Control-Request-Method": "POST"}
    closed, opened = make_client(classifier), make_client(classifier, allowed_origins="https://one.example, https://b")
    assert "access-control-allow-origin" not in closed.request("OPTIONS", "/predict", headers=headers).headers
    answer = opened.request("OPTIONS", "/predict", headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://one.example"


def test_errors_stand_in_the_documentation(client: Client) -> None:
    responses = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "408", "413", "415", "422", "503"}
    for status in set(responses) - {"200"}:
        assert responses[status]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem"), status


@pytest.mark.parametrize("data", [b"", b"text in disguise", b"\xff\xd8\xff\xe0", b"GIF89a" + bytes(20)])
def test_what_cannot_be_decoded_is_the_fault_of_the_client(
    client: Client, classifier: FakeClassifier, data: bytes
) -> None:
    answer = post(client, data)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("File 'a.jpg' ")
    bare = client.post("/predict", content=data, headers={"content-type": "image/jpeg"})
    assert bare.status_code == 400
    assert bare.json()["detail"].startswith("The body ")
    assert not classifier.seen


def test_a_truncated_image_is_the_fault_of_the_client(client: Client, encode: Encode) -> None:
    assert post(client, encode((800, 600))[:-500]).status_code == 400


def test_too_much_is_refused(classifier: FakeClassifier, encode: Encode) -> None:
    client = make_client(classifier, max_body_bytes=50_000, max_image_pixels=100_000)
    large = post(client, bytes(50_001))
    assert (large.status_code, large.json()["detail"]) == (413, "The request body is larger than 50000 bytes.")
    bomb = post(client, encode((400, 400), mode="1", kind="PNG"), "image/png", "a.png")
    assert bomb.status_code == 413
    assert bomb.json()["detail"] == "File 'a.png' is too large: 400×400 pixels, at most 100000 are accepted."


@pytest.mark.parametrize(("decoding", "seen"), [("exact", (400, 300)), ("fast", (50, 38))])
def test_fast_decoding_reduces_what_the_model_is_given(
    classifier: FakeClassifier, encode: Encode, decoding: str, seen: Tuple[int, int]
) -> None:
    client = make_client(classifier, decoding=decoding, max_image_pixels=400 * 300)
    assert post(client, encode((400, 300))).json()["likely_class"] == "lemon"
    assert [image.size for image in classifier.seen] == [seen]
    # Limit and metrics are about the image that was sent.
    assert samples(client)["input_pixels_sum[]"] == 400 * 300
    assert post(client, encode((401, 300))).status_code == 413


def test_a_form_without_file_is_refused(client: Client, encode: Encode) -> None:
    assert client.post("/predict", files={"image": ("a.jpg", encode(), "image/jpeg")}).status_code == 422
    assert client.post("/predict", data={"file": "text"}).status_code == 415
    assert client.post("/predict").status_code == 415


def test_not_ready_until_the_model_is(client: Client, classifier: FakeClassifier) -> None:
    classifier.ready = False
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_a_drained_server_is_not_ready_and_goes_on_answering(
    classifier: FakeClassifier, encode: Encode, tmp_path: Path
) -> None:
    app = create_app(Settings(bundle=Path("none"), runtime_dir=tmp_path), classifier)
    client = Client(app)
    assert client.get("/readyz").status_code == 200

    (tmp_path / "drained").touch()

    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"][:22]) == (503, "The server is drained:")
    assert client.get("/healthz").status_code == 200
    assert post(client, encode()).status_code == 200
    check(app)  # a successor may take over

    (tmp_path / "drained").unlink()

    assert client.get("/readyz").status_code == 200


def test_metrics_are_compressed_for_other_hosts_that_ask_for_it(classifier: FakeClassifier) -> None:
    app = create_app(Settings(bundle=Path("none")), classifier)
    here, elsewhere = Client(app), Client(app, "10.0.0.9")

    plain = here.get("/metrics")
    compressed = elsewhere.get("/metrics")
    unasked = elsewhere.request("GET", "/metrics", headers={"Accept-Encoding": "identity"})

    assert compressed.headers["content-encoding"] == "gzip"
    assert int(compressed.headers["content-length"]) < 0.4 * int(plain.headers["content-length"])
    assert "content-encoding" not in {**plain.headers, **unasked.headers}
    assert unasked.text.splitlines()[:3] == compressed.text.splitlines()[:3]


def test_the_documentation_shows_the_file_field(client: Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["format"] == "binary"
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["$ref"].endswith("/Prediction")


def test_requests_are_counted_by_path_and_status(client: Client, encode: Encode) -> None:
    before = [requests_total(client, "POST", "/predict", status) for status in (200, 400)]
    post(client, encode())
    post(client, b"")
    post(client, b"")
    after = [requests_total(client, "POST", "/predict", status) for status in (200, 400)]
    assert [late - early for late, early in zip(after, before)] == [1, 2]


def test_unknown_paths_make_no_series(client: Client) -> None:
    assert client.get("/no/such/page").status_code == 404
    assert not [key for key in samples(client) if "/no/such/page" in key]


def test_predictions_are_counted_by_class(client: Client, encode: Encode) -> None:
    before = samples(client)
    assert {f"predictions_total[('class', '{name}')]" for name in MANIFEST.classes} <= before.keys()
    post(client, encode())
    post(client, b"")
    after = samples(client)
    grown = {key for key in after if key.startswith("predictions_total") and after[key] != before[key]}
    assert grown == {"predictions_total[('class', 'lemon')]"}
    assert after["predictions_total[('class', 'lemon')]"] == before["predictions_total[('class', 'lemon')]"] + 1


def count_of(found: Dict[str, float], metric: str, **labels: str) -> float:
    return found[metric + str(sorted(labels.items()))]


def test_the_metrics_of_the_contract_are_there(client: Client) -> None:
    client.get("/")
    names = {key.split("[")[0] for key in samples(client)}
    assert {
        "fastapi_requests_total",
        "fastapi_request_duration_seconds_bucket",
        "fastapi_request_duration_seconds_count",
        "fastapi_requests_in_progress",
        "predictions_total",
    } <= names


def test_every_series_of_the_model_is_there_from_the_start(client: Client) -> None:
    found = samples(client)
    for stage in ("read", "queue", "decode", "preprocess", "forward"):
        assert count_of(found, "inference_stage_duration_seconds_count", stage=stage) == 0
    for name in MANIFEST.classes:
        assert count_of(found, "prediction_confidence_count", **{"class": name}) == 0
    for reason in Reason:
        assert count_of(found, "rejected_inputs_total", reason=reason.value) == 0
    assert found["input_bytes_count[]"] == found["input_pixels_count[]"] == 0
    labels = {"name": "lemon", "version": "1.0", "architecture": "none", "sha256": "0" * 64, "release": ""}
    assert count_of(found, "model_info", **labels) == 1
    assert time.time() - 60 < found["model_loaded_timestamp_seconds[]"] <= time.time()
    assert not [key for key in found if key.startswith("feature_")], "there is no reference"


def test_a_prediction_is_measured(client: Client, encode: Encode) -> None:
    image = encode((200, 160))
    assert post(client, image).status_code == 200
    found = samples(client)
    for stage in ("read", "queue", "decode", "preprocess", "forward"):
        assert count_of(found, "inference_stage_duration_seconds_count", stage=stage) == 1
        assert 0 < count_of(found, "inference_stage_duration_seconds_sum", stage=stage) < 1
    assert count_of(found, "prediction_confidence_sum", **{"class": "lemon"}) == 0.9
    assert count_of(found, "prediction_confidence_bucket", le="0.9", **{"class": "lemon"}) == 1
    assert count_of(found, "prediction_confidence_bucket", le="0.8", **{"class": "lemon"}) == 0
    assert found["input_bytes_sum[]"] == len(image)
    assert found["input_pixels_sum[]"] == 200 * 160
    assert not sum(value for key, value in found.items() if key.startswith("rejected_inputs_total"))


REJECTED: Dict[str, Callable[[Client, bytes], httpx.Response]] = {
    "not_an_image": lambda client, image: post(client, image, "text/plain"),
    "empty": lambda client, image: post(client, b""),
    "undecodable": lambda client, image: post(client, image[:-300]),
    "image_too_large": lambda client, image: post(client, image * 2),
    "body_too_large": lambda client, image: post(client, bytes(60_001)),
    "malformed_form": lambda client, image: client.post(
        "/predict", content=b"--", headers={"content-type": "multipart/form-data; boundary=XX"}
    ),
    "missing_file": lambda client, image: client.post("/predict", files={"image": ("a.jpg", image, "image/jpeg")}),
    "unsupported_media_type": lambda client, image: client.post("/predict"),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_a_rejected_input_is_counted_by_its_reason(classifier: FakeClassifier, encode: Encode, reason: str) -> None:
    pixels = 1024 if reason == "image_too_large" else 50_000_000
    client = make_client(classifier, max_body_bytes=60_000, max_image_pixels=pixels)
    assert 400 <= REJECTED[reason](client, encode()).status_code < 500
    found = samples(client)
    rejected = {key: value for key, value in found.items() if key.startswith("rejected_inputs_total") and value}
    assert rejected == {f"rejected_inputs_total[('reason', '{reason}')]": 1}
    assert count_of(found, "inference_stage_duration_seconds_count", stage="forward") == 0
    assert found["input_bytes_count[]"] == (reason in {"undecodable", "image_too_large"})
    assert found["input_pixels_count[]"] == 0


def test_a_simulated_error_is_no_rejected_input(classifier: FakeClassifier, encode: Encode) -> None:
    client = make_client(classifier, fault_injection=True)
    assert post(client, encode(), "fake_server_error/jpeg").status_code == 500
    assert not sum(value for key, value in samples(client).items() if key.startswith("rejected_inputs_total"))


REFERENCE = Reference(
    images=8,
    edges={
        "brightness": (0.2, 0.6),
        "contrast": (0.1,),
        "saturation": (),
        "sharpness": (0.01,),
        "confidence": (0.9,),
        "projection_1": (0.2, 0.3),
        "projection_2": (-1.0, 1.0),
    },
    ratios={
        "brightness": {"00": 0.25, "01": 0.5, "02": 0.25},
        "contrast": {"00": 0.5, "01": 0.5},
        "saturation": {"00": 1},
        "sharpness": {"00": 0.5, "01": 0.5},
        "confidence": {"00": 0.5, "01": 0.5},
        "predicted_class": {"apple": 0, "grapes": 0.125, "lemon": 0.875},
        "projection_1": {"00": 0.25, "01": 0.5, "02": 0.25},
        "projection_2": {"00": 0.25, "01": 0.5, "02": 0.25},
    },
)


def test_features_are_counted_in_the_bins_of_the_reference(classifier: FakeClassifier, encode: Encode) -> None:
    torch = pytest.importorskip("torch")
    classifier.reference = REFERENCE
    classifier.pixels = torch.full((1, 3, 16, 16), 127.5)
    client = make_client(classifier)
    before = samples(client)
    for feature, shares in REFERENCE.ratios.items():
        for bin_, share in shares.items():
            assert count_of(before, "feature_observations_total", feature=feature, bin=bin_) == 0
            assert count_of(before, "feature_reference_ratio", feature=feature, bin=bin_) == share
    post(client, encode())
    post(client, b"")
    after = samples(client)
    counted = {key for key, value in after.items() if key.startswith("feature_observations_total") and value == 1}
    expected = {("brightness", "01"), ("contrast", "00"), ("saturation", "00"), ("sharpness", "00")}
    expected |= {("confidence", "01"), ("predicted_class", "lemon"), ("projection_1", "01"), ("projection_2", "00")}
    assert counted == {
        "feature_observations_total" + str([("bin", bin_), ("feature", feature)]) for feature, bin_ in expected
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock: Any = SimpleNamespace(now=1.0, time=time.time)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr("model_server.metrics.predictions.time", clock)
    random.seed(0)
    return clock


def sampled(metrics: ModelMetrics) -> Dict[str, float]:
    """Return how many predictions of each class were observed for drift."""
    name, labels = "feature_observations_total", {"feature": "predicted_class"}
    return {each: metrics.registry.get_sample_value(name, {**labels, "bin": each}) or 0 for each in MANIFEST.classes}


def predicted(likely_class: str) -> Any:
    """Return pixels, and what a model says of them."""
    import torch

    return torch.zeros(1, 3, 16, 16), (likely_class, 0.9, torch.zeros(3), torch.zeros(3))


def test_of_predictions_in_close_order_some_are_sampled(clock: Any) -> None:
    pytest.importorskip("torch")
    metrics = ModelMetrics(MANIFEST, REFERENCE, None)
    for _ in range(500):
        timings = RequestTimings()
        timings.lap("read")
        clock.now += 0.005
        metrics.predict(timings, *predicted("lemon"))
    assert metrics.registry.get_sample_value("predictions_total", {"class": "lemon"}) == 500
    assert 8 <= sampled(metrics)["lemon"] <= 28, "seven a second, of 2.5 seconds"


def test_slow_predictions_are_not_sampled_more_often_than_others(clock: Any) -> None:
    pytest.importorskip("torch")
    metrics = ModelMetrics(MANIFEST, REFERENCE, None)
    for seconds in random.choices([0.02, 0.002], k=10_000):
        timings = RequestTimings()
        timings.lap("read")
        clock.now += seconds
        metrics.predict(timings, *predicted("apple" if seconds == 0.02 else "lemon"))
    slow, fast = sampled(metrics)["apple"], sampled(metrics)["lemon"]
    assert slow + fast > 500
    assert slow / (slow + fast) == pytest.approx(0.5, abs=0.1)


def test_slow_uploads_are_sampled_as_often_as_others(clock: Any) -> None:
    pytest.importorskip("torch")
    metrics = ModelMetrics(MANIFEST, REFERENCE, None)
    arriving: List[RequestTimings] = []
    for slow in random.choices([True, False], k=20_000):
        timings = RequestTimings()
        if slow:
            arriving.append(timings)
            if len(arriving) < 40:
                continue
            timings = arriving.pop(0)
        timings.lap("read")
        clock.now += 0.005
        metrics.predict(timings, *predicted("apple" if slow else "lemon"))
    slow_ones, fast_ones = sampled(metrics)["apple"], sampled(metrics)["lemon"]
    assert slow_ones + fast_ones > 500
    assert slow_ones / (slow_ones + fast_ones) == pytest.approx(0.5, abs=0.1)


def test_confidence_of_a_broken_model_leaves_the_histogram_whole() -> None:
    metrics = ModelMetrics(MANIFEST, None, None)
    timings = RequestTimings()
    timings.lap("read")
    metrics.predict(timings, None, ("lemon", NAN, None, None))
    assert metrics.registry.get_sample_value("prediction_confidence_sum", {"class": "lemon"}) == 0
    assert metrics.registry.get_sample_value("prediction_confidence_count", {"class": "lemon"}) == 1


def test_the_reference_page_has_every_metric_with_its_labels_and_a_query(
    classifier: FakeClassifier, encode: Encode, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    classifier.reference, classifier.accuracy = REFERENCE, measure([(0.9, True)], "0" * 64)
    (tmp_path / "keys").write_text("k" * 32)
    options = {"feedback_keys_file": tmp_path / "keys", "samples_directory": tmp_path / "samples"}
    client = make_client(classifier, api_keys=f"shop:{'0' * 64}", **options)
    client.get("/")
    served: Dict[str, Tuple[str, Set[str]]] = {}
    pages = (
        client.get("/metrics").text,
        generate_latest(
            ShadowMetrics(classifier.manifest, ClassSeries(classifier.manifest.classes, None, 50)).registry
        ).decode(),
    )
    for family in chain(*map(text_string_to_metric_families, pages)):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        if not name.endswith("_created"):  # only one process without files of metrics has those
            served[name] = family.type, labels

    documented: Dict[str, Tuple[str, Set[str]]] = {}
    for section in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("\n### ")[1:]:
        name = section.split("`")[1]
        head = section.splitlines()[1].split(". ")[0]
        documented[name] = head.split()[0].lower().rstrip(","), set(re.findall(r"`([a-z_0-9]+)`", head))
        query = section.split("```promql\n")[1].split("\n```")[0]
        assert name in query or "feature_reference:ratio" in query, f"{name} has no example"
    assert documented == served
