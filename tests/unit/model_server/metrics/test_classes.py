import math
from collections import Counter
from random import Random
from typing import Dict, List

import pytest
from prometheus_client import generate_latest

from model_server.metrics.classes import GROUPS, OTHER, ClassSeries
from model_server.metrics.predictions import ModelMetrics
from model_server.model.reference import PREDICTED_CLASS, Reference
from tests.unit.model_server.server.lemon import Lemon

MANY = [f"class {number}" for number in range(1000)]


def reference(shares: Dict[str, float]) -> Reference:
    numbers = ("brightness", "contrast", "saturation", "sharpness", "confidence")
    tenths = {f"{number:02}": 0.1 for number in range(10)}
    edges = {name: tuple(number / 10 for number in range(1, 10)) for name in numbers}
    return Reference(images=1000, edges=edges, ratios={**dict.fromkeys(numbers, tenths), PREDICTED_CLASS: shares})


def psi(observed: Counter, expected: Dict[str, float]) -> float:  # type: ignore[type-arg] # of Python 3.8
    """The population stability index of counts and shares by bin, as the rules have it."""
    total = sum(observed.values())
    shares = [(max(observed[name] / total, 0.0001), max(share, 0.0001)) for name, share in expected.items()]
    return sum((new - old) * math.log(new / old) for new, old in shares)


def test_few_classes_have_their_own_series() -> None:
    series = ClassSeries(("apple", "grapes", "lemon"), None, 3)
    assert series.labels == series.bins == {"apple": "apple", "grapes": "grapes", "lemon": "lemon"}


def test_of_many_classes_those_that_are_frequent_in_the_reference_have_their_own_series() -> None:
    shares = {"apple": 0.1, "grapes": 0.5, "kiwi": 0.0, "lemon": 0.4}
    series = ClassSeries(tuple(shares), reference(shares), 3)
    assert series.labels == {"apple": OTHER, "grapes": "grapes", "kiwi": OTHER, "lemon": "lemon"}


def test_without_a_reference_the_first_ones_have() -> None:
    labels = ClassSeries(MANY, None, 50).labels
    assert [name for name, label in labels.items() if label != OTHER] == MANY[:49]


def test_groups_have_about_equal_shares_of_the_reference() -> None:
    chance = Random(0)
    weights = [chance.paretovariate(1.5) for _ in MANY]
    shares = {name: weight / sum(weights) for name, weight in zip(MANY, weights)}
    grouped = ClassSeries(MANY, reference(shares), 50).ratios(reference(shares))[PREDICTED_CLASS]
    groups = {name: share for name, share in grouped.items() if name.startswith("group ")}
    assert sorted(groups) == [f"group {number:02}" for number in range(GROUPS)]
    assert abs(sum(grouped.values()) - 1) < 1e-9
    assert 0.5 / GROUPS < min(groups.values()) < max(groups.values()) < 2 / GROUPS


def test_a_class_that_has_much_of_the_reference_is_a_bin_of_its_own() -> None:
    shares = {**dict.fromkeys(MANY, 0.05 / 999), MANY[500]: 0.95}
    grouped = ClassSeries(MANY, reference(shares), 50).ratios(reference(shares))[PREDICTED_CLASS]
    assert grouped[MANY[500]] == 0.95
    assert len(grouped) == GROUPS + 1
    assert max(share for name, share in grouped.items() if name != MANY[500]) < 0.003


def test_other_classes_than_those_of_the_reference_are_drift_and_the_same_are_none() -> None:
    shares = dict.fromkeys(MANY, 1 / len(MANY))
    series, chance = ClassSeries(MANY, reference(shares), 50), Random(0)
    expected = series.ratios(reference(shares))[PREDICTED_CLASS]

    def drift(predicted: List[str]) -> float:
        return psi(Counter(series.bins[name] for name in predicted), expected)

    assert drift(chance.choices(MANY, k=2000)) < 0.1
    assert drift(chance.choices(MANY[700:850], k=1000) + chance.choices(MANY, k=1000)) > 0.25, "all are OTHER"


def test_a_page_of_a_thousand_classes_is_no_longer_than_2000_samples() -> None:
    pytest.importorskip("torch")
    shares = dict.fromkeys(MANY, 1 / len(MANY))
    manifest = Lemon.manifest.model_copy(update={"classes": tuple(MANY)})
    metrics = ModelMetrics(manifest, reference(shares), None)
    page = (generate_latest(metrics.registry) + metrics.constants).decode()
    assert len([line for line in page.splitlines() if line and not line.startswith("#")]) <= 2000
    assert 'predictions_total{class="(other)"} 0.0' in page
    assert 'feature_reference_ratio{bin="group 00",feature="predicted_class"}' in page
