import math
from collections import Counter
from random import Random
from typing import Any, Dict, List

import pytest
from PIL import Image, ImageEnhance, ImageFilter

from model_server.commands.drawings import FRUITS, draw_fruit
from model_server.model.preprocessing import Scaling, resize_and_crop
from model_server.model.reference import FEATURES, NUMBERS, PROJECTIONS, Reference, build
from tests.unit.model_server.metrics.test_classes import psi
from tests.unit.model_server.model.test_torchvision import trained

__all__ = ["trained"]

torch = pytest.importorskip("torch")


def pixels(image: Image.Image, size: int = 150) -> Any:
    from model_server.model.classifier import to_tensor

    return to_tensor(resize_and_crop(image, Scaling(size))).float()


def measured(image: Image.Image, size: int = 150) -> Dict[str, float]:
    from model_server.metrics.features import measure

    return dict(zip(FEATURES, measure(pixels(image, size))))


@pytest.fixture(params=list(FRUITS))
def picture(request: pytest.FixtureRequest) -> Image.Image:
    return draw_fruit(request.param, Random(1), 300, 240)


def test_a_darker_image_has_less_brightness_and_contrast_and_the_same_saturation(picture: Image.Image) -> None:
    before, after = measured(picture), measured(ImageEnhance.Brightness(picture).enhance(0.5))
    assert after["brightness"] == pytest.approx(before["brightness"] / 2, abs=0.01)
    assert after["contrast"] == pytest.approx(before["contrast"] / 2, abs=0.01)
    assert after["saturation"] == pytest.approx(before["saturation"], abs=0.02)


def test_a_flatter_image_has_less_contrast(picture: Image.Image) -> None:
    before, after = measured(picture), measured(ImageEnhance.Contrast(picture).enhance(0.4))
    assert after["contrast"] == pytest.approx(0.4 * before["contrast"], rel=0.1)
    assert after["brightness"] == pytest.approx(before["brightness"], abs=0.03)


def test_a_paler_image_has_less_saturation_and_grey_none(picture: Image.Image) -> None:
    colour = ImageEnhance.Color(picture)
    full, pale, grey = (measured(colour.enhance(factor))["saturation"] for factor in (1.0, 0.5, 0.0))
    assert full > 1.5 * pale > 0
    assert grey == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("angle", [0, 90])
def test_blur_in_any_direction_takes_sharpness_and_leaves_brightness(picture: Image.Image, angle: int) -> None:
    # A camera that moved: what lies in a row runs together.
    row = [0] * 10 + [1] * 5 + [0] * 10
    upright = picture.rotate(angle, expand=True)
    blurred = upright.filter(ImageFilter.Kernel((5, 5), row)).rotate(-angle, expand=True)
    before, after = measured(picture), measured(blurred)
    assert after["sharpness"] < 0.9 * before["sharpness"]
    assert after["brightness"] == pytest.approx(before["brightness"], abs=0.01)
    assert measured(picture.filter(ImageFilter.GaussianBlur(4)))["sharpness"] < 0.6 * before["sharpness"]


@pytest.mark.parametrize(
    ("colour", "brightness", "saturation"),
    [
        ((0, 0, 0), 0, 0),
        ((255, 255, 255), 1, 0),
        ((90, 90, 90), 90 / 255, 0),
        ((255, 0, 0), 0.299, 1),
        ((0, 200, 0), 0.587 * 200 / 255, 1),
        ((0, 0, 1), 0.114 / 255, 1),
    ],
)
@pytest.mark.parametrize("size", [16, 17, 150, 333])
def test_an_image_of_one_colour(colour: Any, brightness: float, saturation: float, size: int) -> None:
    got = measured(Image.new("RGB", (400, 350), colour), size)
    assert got["brightness"] == pytest.approx(brightness, abs=1e-5)
    assert got["saturation"] == pytest.approx(saturation, abs=1e-5)
    assert got["contrast"] == pytest.approx(0, abs=1e-3)
    assert got["sharpness"] == pytest.approx(0, abs=1e-6)


def test_black_and_white_squares_have_the_most_contrast() -> None:
    board = Image.frombytes("L", (150, 150), bytes(255 * ((i // 150 // 25 + i % 150 // 25) % 2) for i in range(22500)))
    got = measured(board.convert("RGB"))
    assert got["brightness"] == pytest.approx(0.5, abs=0.02)
    assert got["contrast"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_sampled_pixels_represent_the_whole_image(picture: Image.Image, layout: Any) -> None:
    """Compare with the textbook's formulas over all pixels."""
    from model_server.metrics.features import LUMA, measure

    whole = pixels(picture)
    brightness, contrast, saturation, sharpness = measure(whole.contiguous(memory_format=layout))
    luma = torch.einsum("chw,c->hw", whole[0], torch.tensor(LUMA))
    right, below = luma[:-1, 1:] - luma[:-1, :-1], luma[1:, :-1] - luma[:-1, :-1]
    cosine = whole[0].sum(0).square().sum() / (3 * whole.square().sum())
    assert brightness == pytest.approx(luma.mean().item(), abs=0.01)
    assert contrast == pytest.approx(luma.std().item(), abs=0.01)
    assert saturation == pytest.approx(math.sqrt(1.5 * (1 - cosine.item())), abs=0.02)
    assert sharpness == pytest.approx((right.square() + below.square()).mean().sqrt().item(), rel=0.2)


def test_a_very_wide_image_and_the_smallest_are_measured() -> None:
    from model_server.metrics.features import measure

    for height, width in ((16, 4096), (4096, 16), (16, 16), (2, 2)):
        noise = torch.rand(1, 3, height, width) * 255
        assert all(math.isfinite(value) and value >= 0 for value in measure(noise))


def test_an_observation_has_a_value_for_each_feature(picture: Image.Image) -> None:
    from model_server.metrics.features import measure, observe

    seen = pixels(picture)
    logits = torch.tensor([1.0, 4.0, 2.5])
    projections = torch.tensor([0.5, -1.0, 0.25])
    assert dict(zip(FEATURES, observe(seen, "apple", 0.9, logits, projections))) == {
        **dict(zip(("brightness", "contrast", "saturation", "sharpness"), measure(seen))),
        "confidence": 0.9,
        "energy": pytest.approx(math.log(sum(map(math.exp, (1.0, 4.0, 2.5))))),
        "margin": 1.5,
        "predicted_class": "apple",
        "projection_1": 0.5,
        "projection_2": -1.0,
        "projection_3": 0.25,
    }
    without = observe(seen, "apple", 0.9, logits, torch.tensor([]))
    assert dict(zip(FEATURES, without)).keys() == {*NUMBERS, "predicted_class"}


def test_what_the_model_does_not_know_moves_what_it_makes_of_the_pixels_and_hardly_these(trained: Any) -> None:
    """Pears in the colours and before the grounds of apples: narrow at one end, and hung the other way round."""
    from model_server.commands import drawings
    from model_server.metrics.features import observe

    def observed(fruit: str, seed: str) -> List[Any]:
        chance = Random(seed)
        images = (drawings.draw_fruit(fruit, chance, 200, 200) for _ in range(400))
        return [observe(pixels(image, 150), *trained.classify(pixels(image, 150))) for image in images]

    def pear(draw: Any, chance: Random) -> None:
        drawings.FRUITS["apple"](draw, chance)
        sheet = draw._image
        narrow = sheet.transform(sheet.size, Image.Transform.QUAD, (-100, 0, 45, 256, 211, 256, 356, 0))
        sheet.paste(narrow.rotate(180))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(drawings.FRUITS, "pear", pear)
        expected = build(observed("apple", "reference"), trained.manifest.classes)
        apples, pears = observed("apple", "again"), observed("pear", "reference")

    for feature in ("confidence", "energy", "margin", *PROJECTIONS):
        assert drift(expected, apples, feature) < 0.1, feature
    for feature in ("brightness", "contrast", "saturation", "sharpness"):
        assert drift(expected, pears, feature) < 0.1, feature
    for feature in ("energy", "margin"):
        assert drift(expected, pears, feature) > 0.25, feature
    moved = [feature for feature in PROJECTIONS if drift(expected, pears, feature) > 0.25]
    assert len(moved) >= 2, "a random direction may be the one in which the two look alike"


def drift(expected: Reference, observations: List[Any], feature: str) -> float:
    bins = Counter(expected.bin(feature, values[FEATURES.index(feature)]) for values in observations)
    return psi(bins, expected.ratios[feature])
