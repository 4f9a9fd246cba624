import asyncio
from typing import Any, Callable, List

import pytest

from model_server.server.batches import Batches


class Model:
    """Says what it is given, in capitals, and fails where there is an "x"."""

    def __init__(self) -> None:
        self.batches: List[List[str]] = []

    def __call__(self, batch: List[str]) -> List[str]:
        if "x" in batch:
            raise RuntimeError("an x")
        self.batches.append(batch)
        return [each.upper() for each in batch]


def prepare(name: str) -> Callable[[], str]:
    return lambda: name


def no_lap(stage: str) -> None:
    pass


def test_waiting_inputs_are_predicted_together_in_order() -> None:
    async def run() -> List[Any]:
        batches = Batches(model, 3)
        answers = await asyncio.gather(*(batches.predict(prepare(name), no_lap) for name in "abcde"))
        return [*answers, await batches.predict(prepare("f"), no_lap)]

    model = Model()
    assert asyncio.run(run()) == [(name, name.upper()) for name in "abcdef"]
    assert model.batches == [["a", "b", "c"], ["d", "e"], ["f"]]


def test_the_event_loop_runs_between_two_preparations() -> None:
    seen: List[str] = []

    def note(name: str) -> Callable[[], str]:
        return lambda: seen.append(name) or name  # type: ignore[func-returns-value]

    async def run() -> None:
        batches = Batches(Model(), 4)

        def tick() -> None:
            seen.append("tick")
            asyncio.get_running_loop().call_soon(tick)

        tick()
        await asyncio.gather(*(batches.predict(note(name), no_lap) for name in "abc"))

    asyncio.run(run())
    for one, other in ("ab", "bc"):
        assert "tick" in seen[seen.index(one) : seen.index(other)], seen


def test_an_input_that_cannot_be_prepared_fails_alone() -> None:
    def fail() -> str:
        raise ValueError("no image")

    async def run() -> List[Any]:
        batches = Batches(model, 4)
        predictions = [batches.predict(each, no_lap) for each in (prepare("a"), fail)]
        return list(await asyncio.wait_for(asyncio.gather(*predictions, return_exceptions=True), 5))

    model = Model()
    answer, error = asyncio.run(run())
    assert answer == ("a", "A")
    assert isinstance(error, ValueError)


def test_an_input_that_the_model_fails_with_fails_alone() -> None:
    async def run() -> List[Any]:
        batches = Batches(model, 4)
        predictions = [batches.predict(prepare(name), no_lap) for name in "axb"]
        return list(await asyncio.gather(*predictions, return_exceptions=True))

    model = Model()
    first, error, last = asyncio.run(run())
    assert (first, last) == (("a", "A"), ("b", "B"))
    assert isinstance(error, RuntimeError)


@pytest.mark.parametrize("turns", [1, 2])
def test_a_cancelled_prediction_does_not_stop_the_queue(turns: int) -> None:
    async def run() -> Any:
        batches = Batches(model, 4)
        gone, stays = (asyncio.ensure_future(batches.predict(prepare(name), no_lap)) for name in "ab")
        for _ in range(turns):  # before it is prepared, and after
            await asyncio.sleep(0)
        gone.cancel()
        return await asyncio.wait_for(stays, 5)

    model = Model()
    assert asyncio.run(run()) == ("b", "B")
    assert model.batches == [["b"]]


@pytest.mark.parametrize(("names", "laps"), [("a", 1), ("abc", 3)])
def test_stages_end_when_they_do(names: str, laps: int) -> None:
    ended: List[str] = []

    async def run() -> None:
        batches = Batches(Model(), 4)
        await asyncio.gather(*(batches.predict(prepare(name), ended.append) for name in names))

    asyncio.run(run())
    assert ended == ["queue"] * laps + ["forward"] * laps
