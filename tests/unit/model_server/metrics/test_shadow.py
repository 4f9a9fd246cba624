import math
from pathlib import Path

import pytest

from model_server.metrics import values
from model_server.metrics.classes import ClassSeries
from model_server.metrics.shadow import ShadowMetrics, counted
from tests.unit.model_server.server.lemon import Lemon


def sample(metrics: ShadowMetrics, name: str, **labels: str) -> float:
    value = metrics.registry.get_sample_value(name, labels)
    assert value is not None
    return value


def test_ratio_is_that_of_all_that_was_compared() -> None:
    metrics = ShadowMetrics(Lemon.manifest, ClassSeries(Lemon.manifest.classes, None, 50))
    assert math.isnan(sample(metrics, "shadow_agreement_ratio"))
    metrics.predict("lemon", 0.9, "lemon", {"forward": 0.004})
    metrics.predict("apple", 0.9, "apple", {})
    metrics.predict("apple", math.nan, "lemon", {})
    metrics.fail()
    assert sample(metrics, "shadow_agreement_ratio") == 0.5
    assert sample(metrics, "shadow_predictions_total", **{"class": "apple", "agrees": "false"}) == 1
    assert sample(metrics, "shadow_prediction_confidence_sum", **{"class": "apple"}) == 0.9
    assert sample(metrics, "shadow_stage_cpu_seconds_sum", stage="forward") == 0.004


def test_files_of_an_earlier_shadow_are_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_files", {})
    monkeypatch.setattr(values, "_values", [])
    monkeypatch.setattr(values, "_process", "master")
    for name in ("counter_shadow.db", "counter_0.db"):
        (tmp_path / name).touch()
    with counted(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["counter_0.db"]
        (tmp_path / "counter_shadow.db").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["counter_0.db"]
