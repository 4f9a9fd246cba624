"""Our preprocessing and logits, held to what torchvision itself made of the same files.

torchvision_reference/make.py made the files, once, where there is a torchvision.
"""

import io
import json
from pathlib import Path
from random import Random
from typing import Any, Iterator, Tuple

import pytest
from PIL import Image, ImageChops

from model_server.commands.drawings import FRUITS, draw_fruit
from model_server.model.preprocessing import Decoding, Scaling, decode, load, open_image, resize_and_crop

REFERENCE = Path(__file__).parent / "torchvision_reference"
PICTURES = sorted(REFERENCE.glob("*.jpg"))
LOAD = sorted((Path(__file__).parents[4] / "load_test" / "images").glob("*.jpg"))
SIZE = 150
LIMIT = 20_000_000


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_every_pixel_is_torchvisions_within_one_level(picture: Path) -> None:
    expected = Image.open(picture.with_suffix(".png")).convert("RGB")

    got = resize_and_crop(decode(picture.read_bytes(), LIMIT), Scaling(SIZE))

    assert max(high for _, high in ImageChops.difference(got, expected).getextrema()) <= 1  # type: ignore[misc]


@pytest.mark.parametrize("scales_bytes", [True, False], ids=["torch", "pillow"])
@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_what_the_model_sees_is_torchvisions_within_one_level(
    picture: Path, scales_bytes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from model_server.model import classifier
    from tests.unit.model_server.model.test_classifier import load, make_bundle
    from tests.unit.model_server.model.torchvision_reference.make import published_weights

    if scales_bytes and not classifier.RESIZES_BYTES:
        pytest.skip("this torch does not scale bytes")
    monkeypatch.setattr(classifier, "RESIZES_BYTES", scales_bytes)
    served = load(make_bundle(tmp_path / "bundle", published_weights()))
    expected = classifier.to_tensor(Image.open(picture.with_suffix(".png")).convert("RGB"))

    pixels = served.preprocess(decode(picture.read_bytes(), LIMIT))

    assert pixels.shape == (1, 3, SIZE, SIZE)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert float((pixels - expected).abs().max()) <= 1


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_logits_are_torchvisions(picture: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.unit.model_server.model.test_classifier import load, make_bundle
    from tests.unit.model_server.model.torchvision_reference.make import published_weights

    classifier = load(make_bundle(tmp_path / "bundle", published_weights()))
    expected = torch.tensor(json.loads((REFERENCE / "logits.json").read_text())["logits"][picture.stem])

    logits = classifier.logits(classifier.preprocess(decode(picture.read_bytes(), LIMIT)))

    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-3)
    assert logits.argmax() == expected.argmax()


def varied(count: int, chance: Random) -> Iterator[bytes]:
    """Draw JPEGs of 100 to 4000 pixels a side, of all shapes, modes, qualities and kinds."""
    for _ in range(count):
        # Large ones are fewer, for they take their time.
        short = round(100 * 2 ** chance.uniform(0, 4.3 if chance.random() < 0.2 else 2.8))
        ratio = chance.choice([1.0, 4 / 3, 3 / 2, 16 / 9, chance.uniform(2, 10)])
        size = [short, min(4000, round(short * ratio))]
        chance.shuffle(size)
        width, height = size
        shrink = max(1.0, max(size) / 500)
        drawn = draw_fruit(
            chance.choice(list(FRUITS)), chance, max(32, round(width / shrink)), max(32, round(height / shrink))
        )
        picture = drawn.resize((width, height), Image.Resampling.BICUBIC)
        options = {"quality": chance.randrange(30, 96), "progressive": chance.random() < 0.3}
        file = io.BytesIO()
        mode = chance.choice(["RGB", "RGB", "RGB", "L", "CMYK"])
        picture.convert(mode).save(file, "JPEG", subsampling=chance.choice([0, 1, 2]), **options)
        yield file.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the classifier of the demo bundle, which takes 20 seconds to train."""
    pytest.importorskip("torch")
    from model_server.commands import train_demo as training
    from tests.unit.model_server.model import test_classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "HELD_OUT_IMAGES", 30)  # which the weights do not depend on
        model, accuracy, *_ = training.train(seed=0)
    assert accuracy > 0.9
    return test_classifier.load(
        test_classifier.make_bundle(tmp_path_factory.mktemp("trained") / "bundle", model.state_dict())
    )


def answer(classifier: Any, data: bytes, fast: bool) -> Tuple[str, float]:
    image = load(open_image(data, LIMIT), Decoding(SIZE if fast else None))
    likely_class, confidence, *_ = classifier.classify(classifier.preprocess(image))
    return likely_class, confidence


def test_fast_decoding_gives_the_classes_of_exact_decoding(trained: Any) -> None:
    images = [*varied(300, Random("varied")), *(path.read_bytes() for path in LOAD)]
    scaled = sum(load(open_image(data, LIMIT), Decoding(SIZE)).size != open_image(data, LIMIT).size for data in images)
    assert scaled > len(images) / 4, "enough of them are decoded at a reduced scale"

    answers = [(answer(trained, data, fast=False), answer(trained, data, fast=True)) for data in images]

    same = sum(exact[0] == fast[0] for exact, fast in answers)
    assert same >= 0.995 * len(images)
    assert {exact[0] for exact, _ in answers} == set(FRUITS)
    moved = sorted(abs(exact[1] - fast[1]) for exact, fast in answers if exact[0] == fast[0])
    assert moved[int(0.99 * len(moved))] < 0.02, "confidences hardly move"


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
def test_the_demo_bundle_gives_the_classes_of_torchvisions_pixels(trained: Any, fast: bool) -> None:
    from model_server.model.classifier import to_tensor

    for picture in PICTURES:
        torchvisions = to_tensor(Image.open(picture.with_suffix(".png")).convert("RGB")).float()
        assert answer(trained, picture.read_bytes(), fast)[0] == trained.classify(torchvisions)[0], picture.stem
