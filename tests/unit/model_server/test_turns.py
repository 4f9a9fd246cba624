import asyncio
from typing import List

from model_server.turns import Turns


def test_one_goes_on_in_each_turn_of_the_event_loop_and_the_first_comes_first() -> None:
    seen: List[str] = []

    async def run() -> None:
        turns = Turns()

        async def predict(name: str) -> None:
            await turns.next()
            seen.append(name)

        def tick() -> None:
            seen.append("tick")
            asyncio.get_running_loop().call_soon(tick)

        tick()
        await asyncio.gather(predict("a"), predict("b"), predict("c"))
        await predict("d")

    asyncio.run(run())
    order = [name for name in seen if name != "tick"]
    assert order == ["a", "b", "c", "d"]
    for one, other in zip(order, order[1:]):
        assert "tick" in seen[seen.index(one) : seen.index(other)], seen


def test_one_that_is_cancelled_keeps_nobody_waiting() -> None:
    async def run() -> None:
        turns = Turns()
        first, second = asyncio.ensure_future(turns.next()), asyncio.ensure_future(turns.next())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait_for(second, 5)
        assert first.cancelled()

    asyncio.run(run())
