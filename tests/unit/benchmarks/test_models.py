from typing import Any, Dict, List, Mapping

import pytest

from benchmarks import loop, models
from benchmarks.__main__ import IMAGE
from benchmarks.servers import System

# What a run of the bench finds; these meet all bars. Times of a request in seconds of CPU.
FOUND: Dict[str, Any] = {
    "resnet18": 0.2,
    "mobilenet_v3_small": 0.4,
    "efficientnet_b0": 0.44,
    "vit_b_16": 0.9,
    "lab": 1.0,
    "LitServe": 0.8,
    "loop": 0.42,
    "crowd": 1.2,
    "difference": 1e-6,
    "others": 0,
    "photo": {
        "12-megapixel photo, exact, p50, to the lab's": 0.5,
        "memory of a worker for this photo, above idle": 100,
    },
    "page": {"page of 4 workers with 1,000 classes": 2000, "a scrape of it, p99": 0.01},
}


def judged(patch: pytest.MonkeyPatch, found: Mapping[str, Any], answer: str = "apple") -> bool:
    def load(system: System, image: bytes, seconds: int, measured: Dict[str, List[float]]) -> str:
        measured[f"{system.name} cpu"].append(found[system.name])
        measured[f"{system.name} memory"].append(1e8)
        measured["crowd"].append(found["crowd"])
        return "apple"

    made = {"difference": found["difference"], "others": found["others"], "engine": "torch", "batch_size": 1}
    patch.setattr(models, "_make", lambda *_: made)
    patch.setattr(models, "_load", load)
    patch.setattr(loop, "measure", lambda *_: (found["loop"], answer))
    patch.setattr(models, "_photo", lambda _: found["photo"])
    patch.setattr(models, "_page_of_many_classes", lambda _: found["page"])
    return models.measure(IMAGE, rounds=2, seconds=1)


def test_what_meets_the_bars_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(monkeypatch, FOUND)


@pytest.mark.parametrize(
    "worse",
    [
        {"mobilenet_v3_small": 0.41},
        {"resnet18": 0.6, "efficientnet_b0": 0.45, "vit_b_16": 0.95},  # each may be so, but not their mean: 0.57
        {"LitServe": 0.6},
        {"loop": 0.35},
        {"crowd": 1.4},
        {"difference": 1e-3},
        {"others": 1},
        {"photo": {**FOUND["photo"], "12-megapixel photo, exact, p50, to the lab's": 0.61}},
        {"photo": {**FOUND["photo"], "memory of a worker for this photo, above idle": 151}},
        {"page": {**FOUND["page"], "page of 4 workers with 1,000 classes": 2001}},
        {"page": {**FOUND["page"], "a scrape of it, p99": 0.011}},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_each_bar_is_judged(monkeypatch: pytest.MonkeyPatch, worse: Mapping[str, Any]) -> None:
    assert not judged(monkeypatch, {**FOUND, **worse})


def test_servers_that_give_other_answers_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"Not all say the same: .*'loop': 'lemon'"):
        judged(monkeypatch, FOUND, answer="lemon")
