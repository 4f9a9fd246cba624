from typing import Any, Dict, List

import pytest

from benchmarks import models
from benchmarks.__main__ import IMAGE
from benchmarks.servers import System


@pytest.mark.parametrize(
    ("to_the_lab", "difference", "answer", "is_met"),
    [
        ([0.2, 0.4, 0.6, 0.9], 1e-6, "apple", True),  # a mean of 0.456
        ([0.5, 0.5, 0.5, 0.6], 1e-6, "apple", False),  # 0.523
        ([0.2, 0.2, 0.2, 0.2], 1e-3, "apple", False),
        ([0.2, 0.2, 0.2, 0.2], 1e-6, "lemon", False),
    ],
    ids=["met", "slow", "other logits", "another class"],
)
def test_the_bar_is_of_the_mean_and_of_equal_answers(
    monkeypatch: pytest.MonkeyPatch, to_the_lab: List[float], difference: float, answer: str, is_met: bool
) -> None:
    ratios = dict(zip(models.NETWORKS, to_the_lab))

    def load(system: System, image: bytes, seconds: int, cpu: List[float], memory: List[float]) -> str:
        cpu.append(ratios.get(system.name, 1.0))
        memory.append(1e8)
        return answer if system.name in ratios else "apple"

    made: Dict[str, Any] = {"difference": difference, "engine": "torch", "batch_size": 1}
    monkeypatch.setattr(models, "_make", lambda *_: made)
    monkeypatch.setattr(models, "_load", load)
    assert models.measure(IMAGE, rounds=2, seconds=1) is is_met
