"""How a worker takes connections, and how it gives them up.

uvicorn accepts every waiting connection at once: when many clients connect at the same moment, a single worker gets
nearly all of them and keeps them, and a worker that starts later gets none. It also closes idle connections when it
shuts down, while a request may be on its way.
"""

import asyncio
import itertools
import logging
import mmap
import os
import re
import select
import socket
import sys
import time
from functools import lru_cache
from typing import Any, Callable, Optional, Set

from model_server.server import http1
from model_server.server._uvicorn_http import HttpProtocol
from model_server.server.http1 import BODY, HEAD

DEFER_SECONDS = 0.02  # seconds for which a connection is left to workers that have fewer
GREEDY_SECONDS = 1.0  # after that, accept everything for this many seconds
POLL_SECONDS = 0.002  # seconds between two looks at a connection that is left to others
BALANCE_SECONDS = 1.0  # seconds between two times that surplus connections are closed; by then their clients are back
RETRY_SECONDS = 1.0  # seconds until the next attempt when there are no file descriptors left
HEAD_SECONDS = 10.0  # for a whole head, from its first byte; for the first head, from the connection
BODY_SECONDS = 60.0  # for a whole body
SLOW_BODY_SECONDS, SLOW_BODY_RATE = 10.0, 1000  # after these seconds a body must arrive at this rate, in bytes/s
FULL_SECONDS = 0.1  # until the next attempt when the worker has as many connections as it may have
REQUEST_ID = re.compile(rb"[\w.:+/=@-]{1,128}")  # of a client, which comes back and stands in the journal
ABSENT = -1
BACKLOG = 24  # offset of tcpi_unacked in the kernel's struct tcp_info: the backlog of a listening socket

log = logging.getLogger("gunicorn.error")


_numbers = itertools.count(1)


@lru_cache(maxsize=1)
def _process_id() -> int:
    """Return a number of this process, for the ids of its requests: chosen after the fork, on first use."""
    return int.from_bytes(os.urandom(6), "big")


class ConnectionCounts:
    """The number of connections of each worker, in memory shared by a master and its workers."""

    def __init__(self, slots: int) -> None:
        """Count the workers in the slots 0 to `slots` - 1, and no others."""
        self._counts = memoryview(mmap.mmap(-1, 4 * slots)).cast("i")
        for slot in range(slots):
            self._counts[slot] = ABSENT

    def set(self, slot: int, connections: int) -> None:
        if slot < len(self._counts):
            self._counts[slot] = connections

    def remove(self, slot: int) -> None:
        """Stop counting the worker of this slot: no connection is left to it any more."""
        self.set(slot, ABSENT)

    def workers(self) -> int:
        """Return how many workers are counted: those that accept connections."""
        return sum(count != ABSENT for count in self._counts)

    def fair(self, waiting: int = 0) -> int:
        """Return the even share: all connections and `waiting` more, divided by the number of workers, rounded up."""
        counts = [count for count in self._counts if count != ABSENT]
        return -(-(sum(counts) + waiting) // max(1, len(counts)))


class Connection(HttpProtocol):
    """A connection that is counted by its listener, and closed after an answer when the listener wants that."""

    def __init__(
        self,
        listener: "Listener",
        refused: Callable[[int, str], None],
        overload: http1.Overload,
        *arguments: Any,
        **options: Any,
    ) -> None:
        """Serve a connection.

        Args:
            listener: that accepted it.
            refused: gets the status and the sentence that answer input that is no request.
            overload: what is refused while the server is overloaded.
            *arguments: of `HttpProtocol`.
            **options: of `HttpProtocol`.
        """
        super().__init__(*arguments, **options)
        self._overload = overload
        self._listener: Optional[Listener] = listener  # None once it does not count any more
        self._refused = refused

    def on_head(self) -> None:
        count = self._overload.on_refused.get(self.url.partition(b"?")[0].rstrip(b"/"))
        if count is not None and self._overload.is_overloaded():
            count()
            retry = [(name.encode(), value.encode()) for name, value in http1.RETRY.items()]
            self.refuse_request(*http1.OVERLOADED, *retry, (b"x-request-id", self._request_id()))

    def on_request(self) -> None:
        request_id = self._request_id()
        self.scope["request_id"] = request_id.decode()  # type: ignore[typeddict-unknown-key]
        self.add_header(b"x-request-id", request_id)
        if self._listener is not None and self._listener.take_surplus():
            self._leave()
        if self._listener is None:
            self.add_header(b"connection", b"close")
        else:
            self.add_header(b"keep-alive", b"timeout=%d" % self.keep_alive_seconds)

    def _request_id(self) -> bytes:
        given = self.header(b"x-request-id")
        return given if REQUEST_ID.fullmatch(given) else b"%x-%x" % (_process_id(), next(_numbers))

    def on_refused(self, status: int, sentence: str) -> None:
        self._refused(status, sentence)

    def expire(self) -> None:
        """Cut the request whose client is too slow, and close a connection that has not been used for long."""
        waited = self.loop.time() - self.since
        if self.lingers:
            return
        if self.receiving == HEAD:
            if waited > HEAD_SECONDS and self.is_used:
                self.refuse(408, f"The head of the request did not arrive within {HEAD_SECONDS:.0f} seconds.")
            elif waited > HEAD_SECONDS:
                self.close()
        elif self.receiving == BODY:
            slow = self.body_bytes < SLOW_BODY_RATE * (waited - SLOW_BODY_SECONDS)
            if (slow or waited > BODY_SECONDS) and not self.reading_is_paused:
                if self.is_answering:
                    self.end_body()
                else:
                    self.close()
        elif waited > self.keep_alive_seconds and self.is_idle:
            self.close()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        super().connection_lost(exc)
        self._leave()

    def _leave(self) -> None:
        if self._listener is not None:
            self._listener.count(-1)
            self._listener = None


class Listener:
    """Accepts an even share of the connections of a socket on which several workers listen.

    A worker that has its share leaves further connections to the others. After `DEFER_SECONDS` it accepts them all the
    same: the others may be busy, or hang. A worker with more than its share, because another one started later or was
    slow, closes the surplus: clients whose answer says `Connection: close` connect again.

    Attributes:
        draining: whether every connection is closed after its next answer.
        is_full: whether the worker has as many connections as it may have.
    """

    def __init__(
        self,
        sock: socket.socket,
        connect: Callable[["Listener"], asyncio.Protocol],
        counts: ConnectionCounts,
        slot: int,
        most: int,
    ) -> None:
        """Begin to accept; to be called in the event loop.

        Args:
            sock: a listening socket, non-blocking.
            connect: makes the protocol of a connection, which must call `count(-1)` when it ends.
            counts: the connections of all workers.
            slot: the slot of this worker.
            most: the number of connections that it may have; further ones wait in the backlog.
        """
        self._sock, self._connect, self._counts, self._slot = sock, connect, counts, slot
        self._loop = asyncio.get_running_loop()
        self._waiting = select.poll()
        self._waiting.register(sock.fileno(), select.POLLIN)
        self.draining = False
        self._closed = False
        self._connections = 0
        self._most, self.is_full = most, False
        self._surplus = 0
        self._balanced = time.monotonic()
        self._deferring_since: Optional[float] = None
        self._greedy_until = 0.0
        self._arriving: Set[asyncio.Task[Any]] = set()
        self._resumed: Optional[asyncio.TimerHandle] = None
        self.count(0)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._resumed is not None:
            self._resumed.cancel()
        self._counts.remove(self._slot)

    async def wait_closed(self) -> None:
        """Return at once; uvicorn waits for its own servers with this."""

    def count(self, change: int) -> None:
        """Add `change` to the number of connections."""
        self._connections += change
        self.is_full = self.is_full and self._connections > 0.9 * self._most
        if not self._closed:
            self._counts.set(self._slot, self._connections)

    def take_surplus(self) -> bool:
        """Return whether the connection that asks should be closed, because this worker has more than its share."""
        if self.draining:
            return True
        now = time.monotonic()
        if now > self._balanced + BALANCE_SECONDS:
            self._balanced = now
            self._surplus = 0 if self._closed or now < self._greedy_until else self._connections - self._counts.fair()
        self._surplus -= 1
        return self._surplus >= 0

    def _accept(self) -> None:
        while self._waiting.poll(0):
            if self._should_defer():
                self._pause(POLL_SECONDS)
                return
            self._deferring_since = None
            if self._connections >= self._most:
                self._report_full()
                self._pause(FULL_SECONDS)
                return
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                log.error("No connection can be accepted: %s.", error.strerror)
                self._pause(RETRY_SECONDS)
                return
            self._adopt(connection)
        self._deferring_since = None

    def _report_full(self) -> None:
        if not self.is_full:
            self.is_full = True
            log.error(
                "This worker has its %d connections: new ones wait until some are closed; idle ones are.", self._most
            )

    def _should_defer(self) -> bool:
        if self._connections < self._counts.fair(self._backlog()):
            return False
        now = time.monotonic()
        if now < self._greedy_until:
            return False
        if self._deferring_since is None:
            self._deferring_since = now
        if now > self._deferring_since + DEFER_SECONDS:
            self._greedy_until = now + GREEDY_SECONDS
            return False
        return True

    def _backlog(self) -> int:
        try:
            information = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BACKLOG + 4)
        except OSError:  # a Unix socket
            return 1
        return max(1, int.from_bytes(information[BACKLOG:], sys.byteorder))

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._resumed = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._resumed = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _adopt(self, connection: socket.socket) -> None:
        self.count(1)
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._serve(connection))
        self._arriving.add(task)  # the loop keeps only weak references to its tasks
        task.add_done_callback(self._arriving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._connect(self), connection)
        except OSError:  # the client has disconnected already
            connection.close()
            self.count(-1)
