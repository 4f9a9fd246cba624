import asyncio
import errno
import io
import json
import logging
import time
from array import array
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import httpx
import pytest
from PIL import Image

from model_server import samples
from model_server.app import create_app
from model_server.model.bundle import Manifest
from model_server.model.reference import Reference
from model_server.server.ring import BLOCK, Ring, Sample, read_ring
from model_server.server.self_check import check
from model_server.settings import Settings
from tests.unit.model_server.test_app import MANIFEST, NAN, REFERENCE, FakeClassifier, Logits, make_client

Encode = Callable[..., bytes]
MAX_BYTES = 1_000_000


class Unsure(FakeClassifier):
    """Says lemon with this confidence."""

    def __init__(self, confidence: float = 0.4) -> None:
        super().__init__()
        self.confidence = confidence

    def classify_batch(self, images: Sequence[Any]) -> List[Any]:
        return [("lemon", self.confidence, Logits((0.3, 0.3, 0.4)), array("d"))] * len(images)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure each image, and keep as many as there are."""
    monkeypatch.setattr(samples, "INTERVAL", 0.0)
    monkeypatch.setattr("model_server.metrics.predictions.SAMPLE_INTERVAL", 0.0)


class Server:
    """An app that keeps samples in a directory; `wait` is how many seconds it gets for each."""

    def __init__(self, classifier: Any, directory: Path, wait: float = 2.0, **settings: Any) -> None:
        self.wait = wait
        self.directory = directory
        given = {"samples_directory": directory, "samples_max_bytes": MAX_BYTES, **settings}
        self.app = create_app(Settings(bundle=Path("none"), **given), classifier)

    def send(self, *images: bytes, path: str = "/predict", kind: str = "image/jpeg") -> List[httpx.Response]:
        """Send images one after the other, each when what became of the one before is counted."""

        async def send() -> List[httpx.Response]:
            transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 123))
            answers = []
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                for image in images:
                    before = self.counted((await client.get("/metrics")).text)
                    answers.append(await client.post(path, content=image, headers={"content-type": kind}))
                    deadline = time.monotonic() + self.wait
                    while time.monotonic() < deadline and self.counted((await client.get("/metrics")).text) == before:
                        await asyncio.sleep(0.005)
                self.page = (await client.get("/metrics")).text
            return answers

        return asyncio.run(send())

    @staticmethod
    def counted(page: str) -> float:
        lines = [line.split() for line in page.splitlines() if line.startswith(("samples_kept_t", "samples_failed_t"))]
        return sum(float(value) for _, value in lines)

    def count(self, series: str) -> float:
        return float(dict(line.rsplit(" ", 1) for line in self.page.splitlines())[series])

    def kept(self) -> List[Sample]:
        return read_ring(self.directory)


def test_an_image_of_which_the_model_is_unsure_is_kept_with_its_answer(encode: Encode, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k" * 32)
    server = Server(Unsure(), tmp_path / "samples", feedback_keys_file=tmp_path / "keys")
    (answer,) = server.send(encode())
    (sample,) = server.kept()

    assert sample.reason.value == "uncertain"
    assert sample.image.read_bytes() == encode()
    told = dict(sample.answer)
    assert told.pop("image") == sample.image.name
    assert abs(time.time() - time.mktime(time.strptime(told.pop("time")[:19], "%Y-%m-%dT%H:%M:%S"))) < 24 * 3600
    assert told == {
        "reason": "uncertain",
        "model": {"name": "lemon", "version": "1.0"},
        "prediction_id": answer.headers["x-prediction-id"],
        "request_id": None,  # given by the server in front of the app
        "class": "lemon",
        "confidence": 0.4,
        "outlying": [],
    }
    assert server.count('samples_kept_total{reason="uncertain"}') == 1
    assert server.count("samples_failed_total") == 0


def test_an_image_of_which_the_model_is_sure_is_not_kept(encode: Encode, tmp_path: Path) -> None:
    server = Server(Unsure(0.5), tmp_path / "samples")
    server.wait = 0.2
    server.send(encode())
    assert server.kept() == []
    assert Server(Unsure(0.5), tmp_path / "other", samples_below_confidence=0.6).send(encode())
    assert len(read_ring(tmp_path / "other")) == 1


def test_the_confidence_of_a_broken_model_is_uncertain(encode: Encode, tmp_path: Path) -> None:
    server = Server(Unsure(NAN), tmp_path)
    server.send(encode())
    assert [sample.answer["confidence"] for sample in server.kept()] == [None]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda image: image[:-300], "undecodable"),
        (lambda image: b"no image", "undecodable"),
        (lambda image: b"\0\0\0\x18ftypheic", "unsupported_media_type"),
        (lambda image: image, "image_too_large"),
    ],
    ids=["truncated", "text", "format", "pixels"],
)
def test_an_image_that_is_refused_is_kept_with_the_error(
    encode: Encode, tmp_path: Path, data: Callable[[bytes], bytes], reason: str
) -> None:
    image = data(encode())
    server = Server(FakeClassifier(), tmp_path, max_image_pixels=1024 if reason == "image_too_large" else 50_000_000)
    (answer,) = server.send(image)
    (sample,) = server.kept()

    assert sample.image.read_bytes() == image
    assert sample.image.suffix == (".jpg" if image.startswith(b"\xff\xd8") else ".bin")
    assert (sample.reason.value, sample.answer["rejected"]) == ("rejected", reason)
    assert sample.answer["error"] == answer.json()["detail"].replace("The body", "The image")


def test_the_name_of_the_clients_file_is_not_kept(tmp_path: Path) -> None:
    server = Server(FakeClassifier(), tmp_path)
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="passport.jpg"\r\n\r\nnone\r\n--x--\r\n'
    (answer,) = server.send(form, kind="multipart/form-data; boundary=x")
    (sample,) = server.kept()
    assert answer.json()["detail"].startswith("File 'passport.jpg' cannot be decoded")
    assert "passport" not in json.dumps(dict(sample.answer))
    assert sample.answer["error"] == "The image cannot be decoded as an image: damaged, or of an unknown format."


def test_of_a_refused_image_the_orientation_is_not_looked_for(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "orientation_of", lambda _: pytest.fail("asked"))
    classifier = Unsure()
    classifier.manifest = Manifest(**{**MANIFEST.model_dump(), "exif_orientation": True})
    server = Server(classifier, tmp_path, max_image_pixels=1024)
    server.send(encode((1000, 1000), mode="L", kind="PNG"), encode())
    assert server.count("samples_failed_total") == 0
    assert ["orientation" in sample.answer for sample in server.kept()] == [False, False]


def test_an_image_that_is_too_large_for_the_ring_costs_nothing(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stripped: List[bytes] = []
    monkeypatch.setattr(samples, "strip_metadata", stripped.append)
    server = Server(Unsure(), tmp_path / "samples", wait=0.2)
    server.send(encode() + bytes(MAX_BYTES // 30))
    assert stripped == []
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(("data", "kind"), [(b"text", "text/plain"), (b"", "image/jpeg"), (b"x" * 2000, "image/jpeg")])
def test_what_is_refused_for_another_cause_is_not_kept(data: bytes, kind: str, tmp_path: Path) -> None:
    server = Server(FakeClassifier(), tmp_path / "samples", max_body_bytes=1024)
    server.wait = 0.2
    (answer,) = server.send(data, kind=kind)
    assert answer.status_code >= 400
    assert not (tmp_path / "samples").exists()


def of_brightness(*edges: float) -> Reference:
    changed = {**REFERENCE.edges, "brightness": edges}
    return Reference.model_construct(images=8, edges=changed, ratios=REFERENCE.ratios)


def test_an_image_beyond_the_reference_is_kept_and_its_features_named(encode: Encode, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    classifier = FakeClassifier()
    classifier.reference = of_brightness(0.2, 0.3)
    classifier.pixels = torch.full((1, 3, 16, 16), 255 * 0.61)
    server = Server(classifier, tmp_path)
    server.send(encode())
    classifier.pixels = torch.full((1, 3, 16, 16), 255 * 0.59)
    server.wait = 0.2
    server.send(encode())

    (sample,) = server.kept()
    assert sample.reason.value == "outlying"
    assert (sample.answer["outlying"], sample.answer["confidence"]) == (["brightness"], 0.9)


def test_neither_a_probe_nor_the_self_check_is_kept(encode: Encode, tmp_path: Path) -> None:
    server = Server(Unsure(), tmp_path / "samples")
    server.wait = 0.2
    server.send(encode(), path="/probe")
    check(server.app)
    assert not (tmp_path / "samples").exists()


def test_nothing_is_kept_unless_a_directory_is_named(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Ring, "keep", lambda *_: pytest.fail("kept"))
    monkeypatch.setattr(samples, "Samples", lambda *_: pytest.fail("made"))
    client = make_client(Unsure())
    client.post("/predict", content=encode(), headers={"content-type": "image/jpeg"})
    client.post("/predict", content=b"none", headers={"content-type": "image/jpeg"})
    assert "samples_" not in client.get("/metrics").text
    assert list(tmp_path.iterdir()) == []


def test_one_is_kept_in_an_interval(encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "INTERVAL", 60.0)
    server = Server(Unsure(), tmp_path)
    server.send(encode())
    server.wait = 0.2
    server.send(encode(), encode(), b"none")
    assert [sample.reason.value for sample in server.kept()] == ["rejected", "uncertain"]


def test_an_image_with_two_reasons_is_kept_for_the_one_that_is_due(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(samples, "INTERVAL", 60.0)
    classifier = Unsure()
    classifier.reference, classifier.pixels = of_brightness(0.2, 0.3), torch.full((1, 3, 16, 16), 255.0)
    server = Server(classifier, tmp_path)
    server.send(encode(), encode())
    assert [(sample.reason.value, sample.answer["outlying"]) for sample in server.kept()] == [
        ("uncertain", ["brightness"]),
        ("outlying", ["brightness"]),
    ]


def test_while_one_is_written_others_are_left_out_and_no_request_waits(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Ring.keep

    def slow(*arguments: Any) -> bool:
        time.sleep(0.5)
        return keep(*arguments)

    monkeypatch.setattr(Ring, "keep", slow)
    server = Server(Unsure(), tmp_path)

    async def flood() -> float:
        transport = httpx.ASGITransport(server.app, client=("127.0.0.1", 123))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            began = time.monotonic()
            for _ in range(10):
                await client.post("/predict", content=encode(), headers={"content-type": "image/jpeg"})
            return time.monotonic() - began

    assert asyncio.run(flood()) < 0.5
    deadline = time.monotonic() + 5
    while not server.kept() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.kept()) == 1


def test_a_full_disk_is_counted_said_once_and_harmless(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server = Server(Unsure(), tmp_path)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="gunicorn.error"):
        patch.setattr("model_server.server.ring._write", full)
        answers = server.send(*[encode()] * 4)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert server.count("samples_failed_total") == 4
    assert len(caplog.messages) == 1
    assert "An image could not be kept as a sample: [Errno 28] No space left on device." in caplog.messages[0]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]

    server.send(encode())
    assert len(server.kept()) == 1


def test_a_directory_that_cannot_be_written_is_harmless(encode: Encode, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = Server(Unsure(), tmp_path / "file" / "samples")
    (answer,) = server.send(encode())
    assert answer.status_code == 200
    assert server.count("samples_failed_total") == 1


def test_metadata_are_not_kept_but_for_the_orientation_that_mattered(encode: Encode, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "somewhere"
    classifier = Unsure()
    classifier.manifest = Manifest(**{**MANIFEST.model_dump(), "exif_orientation": True})
    server = Server(classifier, tmp_path)
    server.send(encode(exif=exif.tobytes()))
    (sample,) = server.kept()

    assert sample.answer["orientation"] == 6
    assert dict(Image.open(io.BytesIO(sample.image.read_bytes())).getexif()) == {}
    assert b"somewhere" not in sample.image.read_bytes() + json.dumps(dict(sample.answer)).encode()


def test_the_cap_holds(encode: Encode, tmp_path: Path) -> None:
    image = encode((300, 200), quality=100)
    server = Server(Unsure(), tmp_path)
    server.send(*[image] * 60)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(-(-size // BLOCK) * BLOCK for size in sizes) <= MAX_BYTES / 3
    assert len(server.kept()) > 5


def settings_of(**values: Any) -> Dict[str, Any]:
    return Settings(bundle=Path("none"), **values).model_dump()


@pytest.mark.parametrize("values", [{"samples_max_bytes": 999_999}, {"samples_below_confidence": 1.1}])
def test_settings_are_bounded(values: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="should be"):
        settings_of(**values)
