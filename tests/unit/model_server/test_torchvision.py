"""Our preprocessing and logits, held to what torchvision itself made of the same files.

torchvision_reference/make.py made the files, once, where there is a torchvision.
"""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from model_server.preprocessing import decode, resize_and_crop

REFERENCE = Path(__file__).parent / "torchvision_reference"
PICTURES = sorted(REFERENCE.glob("*.jpg"))
SIZE = 150


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_every_pixel_is_torchvisions_within_one_level(picture: Path) -> None:
    expected = Image.open(picture.with_suffix(".png")).convert("RGB")

    got = resize_and_crop(decode(picture.read_bytes(), 20_000_000), SIZE)

    assert max(high for _, high in ImageChops.difference(got, expected).getextrema()) <= 1  # type: ignore[misc]


@pytest.mark.parametrize("scales_bytes", [True, False], ids=["torch", "pillow"])
@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_what_the_model_sees_is_torchvisions_within_one_level(
    picture: Path, scales_bytes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from model_server import classifier
    from tests.unit.model_server.test_classifier import load, make_bundle
    from tests.unit.model_server.torchvision_reference.make import published_weights

    if scales_bytes and not classifier.RESIZES_BYTES:
        pytest.skip("this torch does not scale bytes")
    monkeypatch.setattr(classifier, "RESIZES_BYTES", scales_bytes)
    served = load(make_bundle(tmp_path / "bundle", published_weights()))
    expected = classifier.to_tensor(Image.open(picture.with_suffix(".png")).convert("RGB"))

    pixels = served.preprocess(decode(picture.read_bytes(), 20_000_000))

    assert pixels.shape == (1, 3, SIZE, SIZE)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert float((pixels - expected).abs().max()) <= 1


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_logits_are_torchvisions(picture: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.unit.model_server.test_classifier import load, make_bundle
    from tests.unit.model_server.torchvision_reference.make import published_weights

    classifier = load(make_bundle(tmp_path / "bundle", published_weights()))
    expected = torch.tensor(json.loads((REFERENCE / "logits.json").read_text())["logits"][picture.stem])

    logits = classifier.logits(classifier.preprocess(decode(picture.read_bytes(), 20_000_000)))

    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
    assert logits.argmax() == expected.argmax()
