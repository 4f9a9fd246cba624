import asyncio
import time
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


def short(batch: List[str]) -> List[str]:
    return [each.upper() for each in batch if each != "b"]


def test_a_model_that_gives_too_few_answers_fails_them_all_but_keeps_going() -> None:
    async def run() -> List[Any]:
        batches = Batches(short, 4)
        predictions = [batches.predict(prepare(name), no_lap) for name in "abc"]
        return list(await asyncio.wait_for(asyncio.gather(*predictions, return_exceptions=True), 5))

    first, error, last = asyncio.run(run())
    assert (first, last) == (("a", "A"), ("c", "C"))
    assert str(error) == "The model gave 0 answers to 1 inputs."


@pytest.mark.parametrize("stage", ["queue", "forward"])
def test_an_error_at_the_end_of_a_stage_fails_its_own_prediction_alone(stage: str) -> None:
    def fail(ended: str) -> None:
        if ended == stage:
            raise KeyError(ended)

    async def run() -> List[Any]:
        batches = Batches(Model(), 4)
        laps = [no_lap, fail, no_lap]
        predictions = [batches.predict(prepare(name), lap) for name, lap in zip("abc", laps)]
        found = list(await asyncio.wait_for(asyncio.gather(*predictions, return_exceptions=True), 5))
        return [*found, await asyncio.wait_for(batches.predict(prepare("d"), no_lap), 5)]

    first, error, third, later = asyncio.run(run())
    assert (first, third, later) == (("a", "A"), ("c", "C"), ("d", "D"))
    assert isinstance(error, KeyError)


def test_what_another_thread_prepares_keeps_nobody_waiting() -> None:
    async def run() -> List[str]:
        batches, order, loop = Batches(Model(), 4), [], asyncio.get_running_loop()
        ready = loop.create_future()

        async def predict(name: str, prepared: Callable[[], Any]) -> None:
            order.append((await batches.predict(prepared, no_lap))[1])

        slow = asyncio.ensure_future(predict("slow", lambda: ready))
        for name in "ab":
            await asyncio.wait_for(predict(name, prepare(name)), 5)
        assert batches.depth == 1
        ready.set_result("slow")
        await asyncio.wait_for(slow, 5)
        failing = loop.create_future()
        failing.set_exception(ValueError("no image"))
        with pytest.raises(ValueError, match="no image"):
            await asyncio.wait_for(batches.predict(lambda: failing, no_lap), 5)
        assert batches.depth == 0
        return order

    assert asyncio.run(run()) == ["A", "B", "SLOW"]


def test_who_watches_the_queue_sees_that_what_another_thread_prepared_has_left_it() -> None:
    depths: List[int] = []

    async def run() -> None:
        batches = Batches(Model(), 4, lambda depth, seconds: depths.append(depth))
        ready = asyncio.get_running_loop().create_future()
        slow = asyncio.ensure_future(batches.predict(lambda: ready, no_lap))
        await asyncio.sleep(0.01)
        assert depths[-1] == 1
        ready.set_result("slow")
        await asyncio.wait_for(slow, 5)

    asyncio.run(run())
    assert depths[-1] == 0


def test_the_wait_is_estimated_from_what_predictions_take() -> None:
    turns: List[Any] = []

    def slow(batch: List[str]) -> List[str]:
        time.sleep(0.01 * len(batch))
        return batch

    async def run() -> float:
        batches = Batches(slow, 4, lambda depth, seconds: turns.append((depth, seconds)))
        predictions = [asyncio.ensure_future(batches.predict(prepare("a"), no_lap)) for _ in range(40)]
        await asyncio.sleep(0.2)
        estimate, waiting = batches.wait_estimate, batches.depth
        begun = time.monotonic()
        await asyncio.gather(*predictions)
        assert waiting > 5
        return estimate / (time.monotonic() - begun)

    assert 0.4 < asyncio.run(run()) < 2.5
    assert turns[-1] == (0, 0)
    assert max(depth for depth, _ in turns) > 20


def test_an_error_of_who_watches_the_queue_does_not_stop_it() -> None:
    watched: List[int] = []
    reported: List[BaseException] = []

    def watch(depth: int, seconds: float) -> None:
        watched.append(depth)
        raise OSError("no disk")

    async def run() -> List[Any]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
        batches = Batches(Model(), 4, watch)
        predictions = [batches.predict(prepare(name), no_lap) for name in "abc"]
        return list(await asyncio.wait_for(asyncio.gather(*predictions), 5))

    assert asyncio.run(run()) == [("a", "A"), ("b", "B"), ("c", "C")]
    assert watched == [3, 3, 0], "the last turn has been seen, too"
    assert [str(error) for error in reported] == ["no disk"] * 3


@pytest.mark.parametrize("stage", ["prepare", "queue", "predict", "forward"])
def test_what_is_cancelled_within_a_prediction_ends_that_one_alone(stage: str) -> None:
    def cancel(where: str) -> None:
        if where == stage:
            raise asyncio.CancelledError

    def prepare_b() -> str:
        cancel("prepare")
        return "b"

    def predict(batch: List[str]) -> List[str]:
        if "b" in batch:
            cancel("predict")
        return [each.upper() for each in batch]

    async def run() -> List[Any]:
        batches = Batches(predict, 4)
        predictions = [
            batches.predict(prepare("a"), no_lap),
            batches.predict(prepare_b, cancel),
            batches.predict(prepare("c"), no_lap),
        ]
        return list(await asyncio.wait_for(asyncio.gather(*predictions, return_exceptions=True), 5))

    first, cancelled, last = asyncio.run(run())
    assert (first, last) == (("a", "A"), ("c", "C"))
    assert isinstance(cancelled, asyncio.CancelledError)


def test_what_ends_the_process_is_not_taken_for_an_error_of_a_prediction() -> None:
    """gunicorn's SIGABRT raises SystemExit wherever the worker hangs."""

    def leave(batch: List[str]) -> List[str]:
        raise SystemExit(1)

    async def run() -> None:
        await Batches(leave, 4).predict(prepare("a"), no_lap)

    with pytest.raises(SystemExit):
        asyncio.run(run())
