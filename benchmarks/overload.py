"""What happens at three times the capacity: `script/bench overload`.

Arrivals come at a fixed rate, whatever the answers are (an open model): clients do not wait for each other. The server
has one worker and a processor of its own; the clients run on another one. The speed of a shared machine changes
within minutes: each round measures the capacity before and after the overload; the figures are medians of the rounds.
"""

import asyncio
import gc
import itertools
import os
import threading
import time
from statistics import median, quantiles
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from benchmarks.load import BOUNDARY, Connection
from benchmarks.servers import Server, ours, running

SECONDS = 60
OVERLOAD = 3
CAPACITY_CONNECTIONS = 16
CAPACITY_SECONDS = 10
RECOVERY_SECONDS = 2
MEGABYTE = 1e6

Limit = Tuple[str, float, str, float]  # name, value, "<=" or ">=", bar


class Answer(NamedTuple):
    """When a request was due, in seconds from the start, its status, and the seconds until its answer."""

    due: float
    status: int
    seconds: float


class Client(asyncio.Protocol):
    """A kept connection with one request at a time."""

    def __init__(self, idle: List["Client"]) -> None:
        self._idle = idle
        self._answer: Optional[asyncio.Future[int]] = None
        self._data = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> "asyncio.Future[int]":
        self._data = b""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        fields = head.lower()
        length = int(fields.split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) >= length:
            if b"\r\nconnection: close" not in fields:
                self._idle.append(self)
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Optional[Exception]) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)


async def offer(url: str, bodies: Sequence[bytes], rate: float, seconds: float) -> List[Answer]:
    """Send requests at a fixed rate, and return their answers; status 0: there was none."""
    requests, address = _requests(url, bodies), urlsplit(url)
    loop, idle, answers = asyncio.get_running_loop(), [], []  # type: Any, List[Client], List[Answer]

    async def ask(number: int, due: float) -> None:
        try:
            client = idle.pop() if idle else None
            if client is None:
                _, client = await loop.create_connection(lambda: Client(idle), address.hostname, address.port)
            status = await asyncio.wait_for(client.ask(requests[number % len(requests)]), 30)
        except (OSError, asyncio.TimeoutError):
            status = 0
        answers.append(Answer(due - begun, status, loop.time() - due))

    begun = loop.time()
    tasks = []
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.ensure_future(ask(number, due)))
    await asyncio.gather(*tasks)
    for client in idle:
        client.transport.close()
    return answers


async def saturate(url: str, bodies: Sequence[bytes], seconds: float) -> float:
    """Return the predictions per second that a server makes for clients that wait for their answers."""
    requests, address = _requests(url, bodies), urlsplit(url)
    loop: Any = asyncio.get_running_loop()
    turn = itertools.cycle(requests)
    ends, answered = loop.time() + seconds, 0

    async def ask() -> None:
        nonlocal answered
        idle: List[Client] = []
        _, client = await loop.create_connection(lambda: Client(idle), address.hostname, address.port)
        while loop.time() < ends:
            if await client.ask(next(turn)) != 200:
                raise RuntimeError("A request failed, though the server is not overloaded.")
            answered += 1
            if client not in idle:
                _, client = await loop.create_connection(lambda: Client(idle), address.hostname, address.port)
        client.transport.close()

    await asyncio.gather(*(ask() for _ in range(CAPACITY_CONNECTIONS)))
    return answered / seconds


def _requests(url: str, bodies: Sequence[bytes]) -> List[bytes]:
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
    head = f"POST /predict HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n{kind}\r\nContent-Length: "
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


def measure(image: bytes, bodies: Sequence[bytes], rounds: int) -> bool:
    """Print the figures with their bars, and return whether all are met."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:1])
    measured = [_round(image, bodies, cpus[-1]) for _ in range(rounds)]
    met = True
    for name, _, relation, bar in measured[0]:
        values = [value for figures in measured for other, value, _, _ in figures if other == name]
        value = median(values)
        is_met = value <= bar if relation == "<=" else value >= bar
        met = met and is_met
        verdict = "met" if is_met else "MISSED"
        single = ", ".join(f"{value:.3f}" for value in values)
        print(f"{name:<53} {value:8.3f} {relation} {bar:<6g} {verdict:<6} ({single})", flush=True)
    return met


def _round(image: bytes, bodies: Sequence[bytes], cpu: int) -> List[Limit]:
    with running(ours("model server"), image, 1, [cpu]) as server:
        asyncio.run(saturate(server.url, bodies, 5))
        before = asyncio.run(saturate(server.url, bodies, CAPACITY_SECONDS))
        print(f"capacity {before:.0f}/s; {OVERLOAD * before:.0f} requests/s for {SECONDS} s", flush=True)
        memory: List[float] = []
        over = threading.Event()
        sampler = threading.Thread(target=_sample, args=(server, memory, over))
        sampler.start()
        gc.disable()  # a collection would let requests come in bursts
        answers = asyncio.run(offer(server.url, bodies, OVERLOAD * before, SECONDS))
        gc.enable()
        over.set()
        sampler.join()
        third = len(memory) // 3
        grown = median(memory[-third:]) - median(memory[:third])
        time.sleep(RECOVERY_SECONDS)
        recovered = _one_by_one(server, bodies[0])
        after = asyncio.run(saturate(server.url, bodies, CAPACITY_SECONDS))
        print(f"capacity after it {after:.0f}/s", flush=True)
        return _figures(answers, (before + after) / 2, grown, recovered)


def _sample(server: Server, memory: List[float], over: threading.Event) -> None:
    while not over.wait(1):
        memory.append(server.pss_bytes() / MEGABYTE)


def _one_by_one(server: Server, body: bytes) -> float:
    connection, seconds = Connection(server.url), []
    for _ in range(100):
        began = time.perf_counter()
        connection.predict(body)
        seconds.append(time.perf_counter() - began)
    return quantiles(seconds, n=100)[98]


def _figures(answers: List[Answer], capacity: float, grown: float, recovered: float) -> List[Limit]:
    counts: Dict[int, int] = {}
    for answer in answers:
        counts[answer.status] = counts.get(answer.status, 0) + 1
    print("answers by status:", ", ".join(f"{status}: {count}" for status, count in sorted(counts.items())))
    accepted = quantiles((answer.seconds for answer in answers if answer.status == 200), n=100)
    refused = quantiles((answer.seconds for answer in answers if answer.status == 503), n=100)
    return [
        ("p50 of the accepted, s", accepted[49], "<=", 1.0),
        ("p99 of the accepted, s", accepted[98], "<=", 1.2),
        ("p99 of the refusals, s", refused[98], "<=", 0.02),
        ("predictions per second, to the capacity", counts.get(200, 0) / SECONDS / capacity, ">=", 0.9),
        ("answers that are neither 200 nor 503", len(answers) - counts.get(200, 0) - counts.get(503, 0), "<=", 0),
        ("memory, from the first third to the last, MB", grown, "<=", 5),
        (f"p99 one by one, {RECOVERY_SECONDS} s after it, s", recovered, "<=", 0.05),
    ]
