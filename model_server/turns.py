"""Predictions, one in each turn of the event loop."""

import asyncio
from collections import deque
from typing import Deque


class Turns:
    """Lets one coroutine go on in each turn of the event loop; first come, first served.

    An event loop would run all that is due before it looks at the network again: with many clients, a new connection,
    a scrape or a sign of life would wait for as many predictions.
    """

    def __init__(self) -> None:
        self._waiting: Deque[asyncio.Future[None]] = deque()

    async def next(self) -> None:
        """Wait until it is the caller's turn, which lasts until it waits for something else."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_soon(self._give)
        await turn

    def _give(self) -> None:
        turn = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._give)
        if not turn.done():  # else its coroutine was cancelled
            turn.set_result(None)
