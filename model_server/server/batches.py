"""The queue of predictions in a worker: one is prepared per turn of the event loop, a few are made together."""

import asyncio
import time
from collections import deque
from typing import Any, Callable, Deque, Generic, List, NamedTuple, Optional, Sequence, Tuple, TypeVar, Union

Input = TypeVar("Input")
Output = TypeVar("Output")

PRIOR = 10  # predictions that the first one counts for: a new worker's first ones are slow
SMOOTHING = 0.02  # weight of the newest prediction in the mean
FAILURES = (Exception, asyncio.CancelledError)  # of a prediction; what else is raised ends the process


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

    def __init__(
        self,
        predict: Callable[[List[Input]], Sequence[Output]],
        size: int,
        on_turn: Callable[[int, float], None] = lambda depth, seconds: None,
    ) -> None:
        """Make batches.

        Args:
            predict: makes predictions of 1 to `size` inputs.
            size: of the largest batch.
            on_turn: told after each turn how many predictions wait, and the seconds that a new one would wait.
        """
        self._predict, self._size, self._on_turn = predict, size, on_turn
        self._waiting: Deque[_Prediction] = deque()
        self._prepared: List[Tuple[_Prediction, Input]] = []
        self._elsewhere = 0  # predictions whose input another thread prepares
        self._seconds = 0.0  # of a prediction, from one turn to the next
        self._turns = 0
        self._turned: Optional[float] = None  # when the last turn began, None if nothing has waited since

    @property
    def depth(self) -> int:
        """The number of predictions that wait."""
        return len(self._waiting) + len(self._prepared) + self._elsewhere

    @property
    def wait_estimate(self) -> float:
        """The seconds until a new prediction and the rest of its batch would be made; 0 while at most one waits."""
        waiting = len(self._waiting)
        return self._seconds * (waiting + len(self._prepared) + self._size) if waiting > 1 else 0.0

    async def predict(
        self, prepare: "Callable[[], Union[Input, asyncio.Future[Input]]]", lap: Callable[[str], None]
    ) -> Tuple[Input, Output]:
        """Wait for a prediction.

        Args:
            prepare: makes its input, or a future of it when another thread does; the queue goes on meanwhile.
            lap: is told when a stage ends: `queue` before the batch, `forward` after it.

        Raises:
            Exception: what `prepare` or `lap` raised, or the model for this input.
        """
        loop = asyncio.get_running_loop()
        prediction = _Prediction(prepare, lap, loop.create_future())
        self._waiting.append(prediction)
        if len(self._waiting) == 1:
            loop.call_soon(self._take_turn)
        result: Tuple[Input, Output] = await prediction.future
        return result

    def _take_turn(self) -> None:
        try:
            if len(self._prepared) >= self._size:  # a turn of its own: others wait for the event loop meanwhile
                self._run_prepared()
            else:
                self._prepare_next()
            self._on_turn(self.depth, self.wait_estimate)
        finally:  # only turns call for turns: without the next one, nobody would be answered any more
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._take_turn)

    def _prepare_next(self) -> None:
        now = time.perf_counter()
        if self._turned is not None:
            self._turns += 1
            self._seconds += max(SMOOTHING, 1 / self._turns) * (now - self._turned - self._seconds)
        prediction = self._waiting.popleft()
        self._turned = now if self._waiting else None
        if not prediction.future.done():  # else it was cancelled
            self._prepare(prediction)
        if not self._waiting:
            self._run_prepared()
        if not self._turns:  # the first of all, in the self-check: the turn itself is the best guess
            self._seconds, self._turns = time.perf_counter() - now, PRIOR

    def _prepare(self, prediction: _Prediction) -> None:
        try:
            prepared = prediction.prepare()
        except FAILURES as error:
            _fail(prediction, error)
            return
        if not isinstance(prepared, asyncio.Future):
            self._prepared.append((prediction, prepared))
            return
        self._elsewhere += 1
        prepared.add_done_callback(lambda future: self._return(prediction, future))

    def _return(self, prediction: _Prediction, prepared: "asyncio.Future[Input]") -> None:
        self._elsewhere -= 1
        self._take_back(prediction, prepared)
        self._on_turn(self.depth, self.wait_estimate)  # there may be no turn for hours

    def _take_back(self, prediction: _Prediction, prepared: "asyncio.Future[Input]") -> None:
        if prepared.cancelled():
            prediction.future.cancel()
            return
        error = prepared.exception()
        if error is not None:
            _fail(prediction, error)
            return
        self._prepared.append((prediction, prepared.result()))
        if not self._waiting:
            self._run_prepared()

    def _run_prepared(self) -> None:
        while self._prepared:
            batch, self._prepared = self._prepared[: self._size], self._prepared[self._size :]
            self._run(batch)

    def _run(self, batch: List[Tuple[_Prediction, Input]]) -> None:
        batch = [each for each in batch if _lap(each[0], "queue")]
        if not batch:
            return
        try:
            outputs = list(self._predict([prepared for _, prepared in batch]))
            if len(outputs) != len(batch):
                raise RuntimeError(f"The model gave {len(outputs)} answers to {len(batch)} inputs.")
        except FAILURES as error:
            if len(batch) == 1:
                _fail(batch[0][0], error)
                return
            for one in batch:  # one by one, so that only the faulty input fails
                self._run([one])
            return
        for (prediction, prepared), output in zip(batch, outputs):
            if _lap(prediction, "forward"):
                prediction.future.set_result((prepared, output))


def _fail(prediction: _Prediction, error: BaseException) -> None:
    if not prediction.future.done():
        prediction.future.set_exception(error)


def _lap(prediction: _Prediction, stage: str) -> bool:
    """Tell that a stage has ended, and return whether the prediction is still wanted."""
    if prediction.future.done():
        return False
    try:
        prediction.lap(stage)
    except FAILURES as error:
        _fail(prediction, error)
        return False
    return True
