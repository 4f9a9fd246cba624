from typing import Any, Dict, List, NamedTuple, Tuple

import pytest

from benchmarks import models
from benchmarks.__main__ import IMAGE
from benchmarks.servers import System


class Measured(NamedTuple):
    """What a run of the bench finds; by default, all that it may find."""

    to_the_lab: Tuple[float, ...] = (0.2, 0.4, 0.6, 0.9)  # a mean of 0.456
    difference: float = 1e-6
    answer: str = "apple"
    page: Tuple[int, float] = (2000, 0.01)


@pytest.mark.parametrize(
    ("measured", "is_met"),
    [
        (Measured(), True),
        (Measured(to_the_lab=(0.5, 0.5, 0.5, 0.6)), False),  # 0.523
        (Measured(difference=1e-3), False),
        (Measured(answer="lemon"), False),
        (Measured(page=(2001, 0.01)), False),
        (Measured(page=(2000, 0.011)), False),
    ],
    ids=["met", "slow", "other logits", "another class", "large page", "slow page"],
)
def test_bars_are_of_the_mean_of_equal_answers_and_of_the_page(
    monkeypatch: pytest.MonkeyPatch, measured: Measured, is_met: bool
) -> None:
    ratios = dict(zip(models.NETWORKS, measured.to_the_lab))

    def load(system: System, image: bytes, seconds: int, cpu: List[float], memory: List[float]) -> str:
        cpu.append(ratios.get(system.name, 1.0))
        memory.append(1e8)
        return measured.answer if system.name in ratios else "apple"

    made: Dict[str, Any] = {"difference": measured.difference, "engine": "torch", "batch_size": 1}
    monkeypatch.setattr(models, "_make", lambda *_: made)
    monkeypatch.setattr(models, "_load", load)
    monkeypatch.setattr(models, "_page_of_many_classes", lambda _: measured.page)

    assert models.measure(IMAGE, rounds=2, seconds=1) is is_met
