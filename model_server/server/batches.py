"""The queue of predictions in a worker: one is prepared per turn of the event loop, a few are made together."""

import asyncio
from collections import deque
from typing import Any, Callable, Deque, Generic, List, NamedTuple, Sequence, Tuple, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class _Prediction(NamedTuple):
    prepare: Callable[[], Any]
    lap: Callable[[str], None]
    future: "asyncio.Future[Any]"


class Batches(Generic[Input, Output]):
    """Makes predictions, first come, first served.

    An event loop runs everything that is due before it looks at the network again: with many clients, a new connection,
    a scrape or a heartbeat would wait for as many predictions. So each turn prepares one. Predictions that wait at the
    same time go through the model as one batch, which reads its weights only once; no prediction waits for a batch.
    """

    def __init__(self, predict: Callable[[List[Input]], Sequence[Output]], size: int) -> None:
        """Make batches.

        Args:
            predict: makes predictions of 1 to `size` inputs.
            size: of the largest batch.
        """
        self._predict, self._size = predict, size
        self._waiting: Deque[_Prediction] = deque()
        self._prepared: List[Tuple[_Prediction, Input]] = []

    async def predict(self, prepare: Callable[[], Input], lap: Callable[[str], None]) -> Tuple[Input, Output]:
        """Wait for a prediction.

        Args:
            prepare: makes its input.
            lap: is told when a stage ends: `queue` before the batch, `forward` after it.

        Raises:
            Exception: what `prepare` raised, or the model for this input.
        """
        loop = asyncio.get_running_loop()
        prediction = _Prediction(prepare, lap, loop.create_future())
        self._waiting.append(prediction)
        if len(self._waiting) == 1:
            loop.call_soon(self._take_turn)
        result: Tuple[Input, Output] = await prediction.future
        return result

    def _take_turn(self) -> None:
        prediction = self._waiting.popleft()
        if not prediction.future.done():  # else it was cancelled
            try:
                self._prepared.append((prediction, prediction.prepare()))
            except Exception as error:
                prediction.future.set_exception(error)
        if len(self._prepared) == self._size or not self._waiting:
            batch, self._prepared = self._prepared, []
            self._run(batch)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _run(self, batch: List[Tuple[_Prediction, Input]]) -> None:
        batch = [each for each in batch if not each[0].future.done()]
        if not batch:
            return
        for prediction, _ in batch:
            prediction.lap("queue")
        try:
            outputs = self._predict([prepared for _, prepared in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][0].future.set_exception(error)
                return
            for one in batch:  # one by one, so that only the faulty input fails
                self._run([one])
            return
        for (prediction, prepared), output in zip(batch, outputs):
            prediction.lap("forward")
            prediction.future.set_result((prepared, output))
