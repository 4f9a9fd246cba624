"""A few clients that send images while something happens to the server, and what became of each request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Protocol

import httpx

from tests.integration.machines import Way

# All of them in turn: one image again and again would be drift.
IMAGES = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "load_test" / "images").glob("*.jp*g"))]
INTERVAL = 0.1  # seconds from one request of a client to its next: four clients are about the lab's 50 users


@dataclass(frozen=True)
class Request:
    began: float  # seconds since the epoch, as is the next
    ended: float
    error: str  # "" where it was answered with 200
    refused: bool  # no connection could be had


class Served(Protocol):
    """What clients are served by."""

    @property
    def ways(self) -> Sequence[Way]:
        """Return the ways to it, which the clients share."""


class Traffic:
    """Some clients keep their connection, the others open one for each request; of both, some come by each way.

    The requests are there to be looked at when the traffic has ended.
    """

    def __init__(self, served: Served, kept: int = 2, fresh: int = 2, images: Sequence[bytes] = IMAGES) -> None:
        self.clients = kept + fresh
        self._served = served
        self._images = images
        self._headers: list[dict[str, str]] = [{}] * kept + [{"Connection": "close"}] * fresh
        self._stop = Event()
        self._executor = ThreadPoolExecutor(self.clients)
        self._futures: list[Future[list[Request]]] = []

    def __enter__(self) -> Traffic:
        each_way = zip(cycle(self._served.ways), self._headers)
        self._futures = [self._executor.submit(self._client, *each) for each in each_way]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._executor.shutdown()

    def _client(self, way: Way, headers: dict[str, str]) -> list[Request]:
        requests = []
        images = cycle(self._images)
        with way(headers=headers, timeout=60) as http:
            while not self._stop.is_set():
                requests.append(send(http, next(images)))
                time.sleep(max(0, requests[-1].began + INTERVAL - time.time()))
        return requests

    @property
    def requests(self) -> list[Request]:
        return [request for future in self._futures for request in future.result()]

    @property
    def answered(self) -> list[Request]:
        return [request for request in self.requests if not request.error]

    @property
    def failed(self) -> list[Request]:
        return [request for request in self.requests if request.error]

    @property
    def refused(self) -> list[Request]:
        return [request for request in self.requests if request.refused]

    def longest_gap(self, since: float = 0) -> float:
        """Return the longest time between two answers of the server, in seconds."""
        ends = sorted(request.ended for request in self.answered if request.ended >= since)
        return max(later - earlier for earlier, later in pairwise([since or ends[0], *ends]))


def send(http: httpx.Client, image: bytes) -> Request:
    began, error, refused = time.time(), "", False
    try:
        answer = http.post("/predict", files={"file": ("sample.jpg", image, "image/jpeg")})
        if answer.status_code != 200:
            error = f"{answer.status_code}: {answer.text}"
    except httpx.TransportError as problem:
        error, refused = f"{type(problem).__name__}: {problem}", isinstance(problem, httpx.ConnectError)
    return Request(began, time.time(), error, refused)
