import json
from pathlib import Path
from random import Random
from typing import Any, Callable, List, Sequence

import pytest

from model_server.model.bundle import BundleError, read_reference
from model_server.model.reference import BINS, FEATURES, NUMBERS, PROJECTIONS, STEPS, Reference, build

CLASSES = ("apple", "grapes", "lemon")


def observations(confidence: Callable[[float], float] = lambda part: part, count: int = 1000) -> List[Any]:
    """Return what `count` images of evenly spread brightness would give, all the same in the rest."""
    parts = [(index + 0.5) / count for index in range(count)]
    return [
        (
            part,
            0.2,
            0.0,
            0.0305,
            confidence(part),
            20 * part - 4,
            3.0,
            CLASSES[index % 2],
            part / 100,
            -70 * part,
            0.0234,
        )
        for index, part in enumerate(parts)
    ]


def test_features_of_the_logits_have_no_bounds() -> None:
    reference = build(observations(), CLASSES)
    assert reference.edges["energy"] == pytest.approx([2 * n - 4 for n in range(1, 10)], abs=0.11)
    assert reference.edges["margin"] == (3.0, 3.1)


def test_projections_have_bins_of_any_scale() -> None:
    reference = build(observations(), CLASSES)
    assert reference.edges["projection_1"] == pytest.approx([n / 1000 for n in range(1, 10)], abs=0.00011)
    assert reference.edges["projection_2"] == pytest.approx([7.0 * n for n in range(-9, 0)], abs=1.1)
    assert reference.ratios["projection_2"] == pytest.approx(dict.fromkeys(BINS, 0.1), abs=0.015)
    assert reference.ratios["projection_3"] == {"00": 0.0, "01": 1.0, "02": 0.0}  # all images have it


def test_a_model_without_projections_has_a_reference_without_them(tmp_path: Path) -> None:
    reference = build([row[:8] for row in observations()], CLASSES)
    assert set(reference.ratios) == {*NUMBERS, "predicted_class"}
    (tmp_path / "reference.json").write_text(reference.model_dump_json())
    assert read_reference(tmp_path / "reference.json", CLASSES) == reference


def test_a_reference_of_an_earlier_release_lacks_features_of_the_network(tmp_path: Path) -> None:
    content = json.loads(build(observations(), CLASSES).model_dump_json())
    for feature in ("energy", "margin", *PROJECTIONS):
        del content["edges"][feature], content["ratios"][feature]
    (tmp_path / "reference.json").write_text(json.dumps(content))
    assert set(read_reference(tmp_path / "reference.json", CLASSES).edges) == set(STEPS)


def test_bins_are_the_deciles() -> None:
    reference = build(observations(), CLASSES)
    assert reference.edges["brightness"] == pytest.approx([n / 10 for n in range(1, 10)], abs=0.011)
    assert reference.ratios["brightness"] == pytest.approx(dict.fromkeys(BINS, 0.1), abs=0.011)
    assert reference.images == 1000


def test_a_value_falls_into_the_bin_that_its_edges_make() -> None:
    reference = build(observations(), CLASSES)
    values = (-1.0, 0.0, 0.0999, 0.1, 0.15, 0.9, 1.0, 7.0)
    assert [reference.bin("brightness", value) for value in values] == ["00", "00", "00", "01", "01", "09", "09", "09"]
    assert reference.bin("predicted_class", "lemon") == "lemon"


def test_every_class_has_a_share() -> None:
    assert build(observations(), CLASSES).ratios["predicted_class"] == {"apple": 0.5, "grapes": 0.5, "lemon": 0.0}


def test_deciles_that_differ_by_nothing_make_no_bins() -> None:
    """A good model is sure of nearly all: its confidences differ in the seventh digit."""
    reference = build(observations(lambda part: 0.5 if part < 0.04 else 1 - 1e-7 * part), CLASSES)
    assert reference.edges["confidence"] == (0.99,)
    assert reference.ratios["confidence"] == pytest.approx({"00": 0.04, "01": 0.96})


def test_a_value_that_all_images_have_gets_a_bin_between_two_edges() -> None:
    reference = build(observations(), CLASSES)
    assert reference.edges["contrast"] == (0.2, 0.21)
    assert reference.edges["saturation"] == (0.01,)  # a value below 0 there is not
    assert reference.edges["sharpness"] == (0.03, 0.031)
    assert reference.ratios["contrast"] == {"00": 0.0, "01": 1.0, "02": 0.0}


@pytest.mark.parametrize("count", [2, 3, 10, 11, 19, 240])
def test_a_reference_of_any_size_is_valid(count: int) -> None:
    rng = Random(count)

    def some(features: Sequence[str]) -> List[float]:
        return [rng.choice([0.0, rng.random(), 1.0]) for _ in features]

    seen: List[Any] = [(*some(NUMBERS), "lemon", *some(PROJECTIONS)) for _ in range(count)]
    reference = build(seen, CLASSES)
    assert Reference.model_validate(reference.model_dump()) == reference
    for index, feature in enumerate(FEATURES):
        for name, share in reference.ratios[feature].items():
            inside = [row for row in seen if reference.bin(feature, row[index]) == name]
            assert share == pytest.approx(len(inside) / count), feature


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "reference.json"
    path.write_text(build(observations(), CLASSES).model_dump_json())
    return path


def test_what_is_written_is_read(written: Path) -> None:
    assert read_reference(written, CLASSES) == build(observations(), CLASSES)


def edit(written: Path, *place: Any, value: object) -> None:
    fields = json.loads(written.read_text())
    inner = fields
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    written.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("images",), "many", "images is 'many': "),
        (("colour",), 1, "has the unknown field colour; known are images, edges, ratios"),
        (("edges", "hue"), [0.5], "edges is .* 'hue' is no feature, known are brightness, contrast"),
        (("edges", "predicted_class"), [0.5], "edges is .* 'predicted_class' is no feature"),
        (("ratios", "hue"), {"00": 1.0}, "ratios is .* 'hue' is no feature, known are .*, predicted_class"),
        (("edges",), {}, "edges is {}: brightness is missing"),
        (("ratios",), {"brightness": {}}, "ratios is .* contrast is missing"),
        (("edges", "contrast"), [0.2, 0.2], "the edges of contrast must ascend"),
        (("edges", "contrast"), [0.3, 0.2], "the edges of contrast must ascend"),
        (("edges", "contrast"), [n / 10 for n in range(10)], "contrast has 10 edges, at most 9 are allowed"),
        (("edges", "contrast"), [float("nan"), 0.2], "edges.contrast.0 is nan: input should be a finite number"),
        (("edges", "contrast"), [0.2, float("inf")], "edges.contrast.1 is inf: input should be a finite number"),
        (("edges", "contrast"), [0.2], "the bins of contrast must be 00, 01, as its edges divide them"),
        (("ratios", "contrast"), {"00": 0.5, "01": 0.5}, "the bins of contrast must be 00, 01, 02"),
        (("ratios", "contrast", "01"), float("nan"), "ratios.contrast.01 is nan: input should be a finite number"),
        (("ratios", "contrast", "01"), 0.99, "the shares of contrast make 0.99, they must make 1"),
        (("ratios", "contrast"), {"00": -0.5, "01": 1.5, "02": 0}, "shares of contrast must be between 0 and 1"),
        (
            ("ratios", "predicted_class"),
            {"apple": 1},
            "predicted_class has apple, but model.yaml has the",
        ),
        (("ratios", "predicted_class", "kiwi"), 0, "has apple, grapes, kiwi, lemon, but model.yaml has the classes"),
    ],
)
def test_a_bad_field_is_named(written: Path, place: Any, value: object, message: str) -> None:
    edit(written, *place, value=value)
    with pytest.raises(BundleError, match=message) as caught:
        read_reference(written, CLASSES)
    assert str(caught.value).startswith(str(written))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON at line 1"),
        (b'{\n"images": 1,\n', "is not valid JSON at line 3"),
        (b"\xff\xfe\xfd", "is not valid JSON"),
        (b"[]", "holds a list, but a mapping of fields is expected"),
        (b'{"images": 5, "ratios": {}}', "lacks the field edges"),
    ],
)
def test_a_malformed_file_is_explained(written: Path, text: bytes, message: str) -> None:
    written.write_bytes(text)
    with pytest.raises(BundleError, match=f"reference.json {message}"):
        read_reference(written, CLASSES)


def test_what_lies_beyond_three_of_the_outer_bins_is_outlying() -> None:
    edges = {"brightness": (0.3, 0.4, 0.6, 0.8), "contrast": (0.1,), "saturation": (), "energy": (1.0, 2.0)}
    edges.update({"sharpness": (0.01, 0.02), "confidence": (0.8, 0.9), "projection_2": (-1.0, 0.0)})
    reference = Reference.model_construct(images=10, edges=edges, ratios={})  # of an earlier release, without margin
    usual = (0.5, 0.2, 0.3, 0.015, 0.85, 1.5, 3.0, "apple")
    others = {
        (0.01, *usual[1:]): [],
        (-0.01, *usual[1:]): ["brightness"],
        (1.39, *usual[1:]): [],
        (1.41, *usual[1:]): ["brightness"],
        (0.5, 0.9, 0.9, 0.2, 0.0, 99.0, 99.0, "lemon"): ["sharpness", "energy"],
        (float("nan"), *usual[1:]): ["brightness"],
        (*usual, 0.0, -7.0, 9.0): ["projection_2"],
    }

    assert reference.outlying(usual) == []
    assert {observation: reference.outlying(observation) for observation in others} == others


def test_of_images_like_those_of_the_reference_few_are_outlying() -> None:
    random = Random(0)

    def normal() -> Any:
        numbers = (*(random.gauss(0.5, 0.1) for _ in range(4)), 0.9, random.gauss(5, 1), random.gauss(5, 1))
        return (*numbers, "apple", *(random.gauss(0, 0.01) for _ in PROJECTIONS))

    reference = build([normal() for _ in range(1000)], CLASSES)
    outlying = [reference.outlying(normal()) for _ in range(1000)]
    assert 10 < sum(map(bool, outlying)) < 160  # nine features, 0.9 % of each
