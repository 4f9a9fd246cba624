import json
from pathlib import Path
from typing import Any, Dict

import pytest

from model_server.metrics.predictions import ModelMetrics, RequestTimings
from model_server.model.accuracy import CONFIDENCE_BINS, confidence_bin, measure
from model_server.model.bundle import BundleError, read_bundle, write_bundle
from model_server.model.reference import write_json
from tests.unit.model_server.bundle_fields import SMALL
from tests.unit.model_server.test_app import MANIFEST

ANSWERS = [(0.45, False), (0.5, True), (0.55, True), (0.97, True), (1.0, True), (1.0, False)]


@pytest.mark.parametrize(
    ("confidence", "name"),
    [
        (0.0, "0.2"),
        (0.2, "0.2"),
        (0.21, "0.3"),
        (0.95, "0.95"),
        (1.0, "1.0"),
        (1.0000001, "1.0"),
        (float("nan"), "0.2"),
    ],
)
def test_a_confidence_has_the_bin_that_the_histogram_counts_it_in(confidence: float, name: str) -> None:
    assert CONFIDENCE_BINS[confidence_bin(confidence)] == name


def test_images_are_counted_by_confidence() -> None:
    accuracy = measure(ANSWERS, "0" * 64)
    counts = {name: (judged.images, judged.right) for name, judged in accuracy.bins.items()}
    assert counts == {"0.5": (2, 1), "0.6": (1, 1), "0.99": (1, 1), "1.0": (2, 1)}
    assert accuracy.images == 6
    assert accuracy.ratio == pytest.approx(4 / 6)


def test_without_images_the_confidence_is_what_to_expect() -> None:
    expected = dict(zip(CONFIDENCE_BINS, measure(ANSWERS, "0" * 64).expected()))
    assert expected["0.7"] == pytest.approx(0.65)
    assert expected["0.5"] == pytest.approx((1 + 2 * 0.45) / 4)
    many = measure([(0.45, False)] * 998, "0" * 64).expected()
    assert many[CONFIDENCE_BINS.index("0.5")] == pytest.approx(0.0009)


def test_a_bundle_keeps_it(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(bundle, b"{}", SMALL)
    accuracy = measure(ANSWERS, read_bundle(bundle).manifest.weights_sha256)
    assert read_bundle(bundle).accuracy is None

    write_json(bundle / "accuracy.json", accuracy)
    assert read_bundle(bundle).accuracy == accuracy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights_sha256": "1" * 64}, "is about other weights, of SHA-256 1111.*; remove it, or measure it again"),
        ({"bins": {"0.51": {"images": 1, "right": 1}}}, "'0.51' is no bin, known are 0.2, 0.3"),
        ({"bins": {"0.5": {"images": 1, "right": 2}}}, "2 of 1 images cannot be right"),
        ({"bins": {}}, "bins is {}"),
        ({"ratio": 1}, "has the unknown field ratio"),
    ],
)
def test_what_is_wrong_with_it_is_explained(tmp_path: Path, change: Dict[str, Any], words: str) -> None:
    bundle = tmp_path / "bundle"
    write_bundle(bundle, b"{}", SMALL)
    fields = measure(ANSWERS, read_bundle(bundle).manifest.weights_sha256).model_dump()
    (bundle / "accuracy.json").write_text(json.dumps({**fields, **change}))
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


def test_the_estimate_follows_the_confidence_of_predictions() -> None:
    accuracy = measure([(0.45, False)] * 98 + [(0.999, True)] * 98, "0" * 64)
    metrics = ModelMetrics(MANIFEST, None, accuracy)
    timings = RequestTimings()
    for confidence in (0.45, 0.999, 0.999, 0.999):
        metrics.predict(timings, None, ("lemon", confidence, None, None))

    expected = metrics.registry.get_sample_value("expected_right_predictions_total")
    assert expected == pytest.approx(3 * 0.9999 + 0.009, abs=1e-3)
    assert b'model_accuracy_ratio{version="1.0"} 0.5\n' in metrics.constants
    assert b'model_accuracy_images{version="1.0"} 196.0\n' in metrics.constants
