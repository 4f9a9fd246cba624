"""How a worker takes connections, and how it lets go of them.

uvicorn would accept every connection that waits at once, so that of many clients which connect in one moment a
single worker gets nearly all, and keeps them: a worker that starts later would never get any. And it would cut idle
connections when it ends, on which a request may be on its way.
"""

import asyncio
import logging
import mmap
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Callable, List, Optional, Set

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from model_server.handover import Place

PATIENCE = 0.02  # seconds that a connection is left to workers that have fewer
IMPATIENCE = 1.0  # seconds that nothing is left to them after that
PAUSE = 0.002  # seconds between two looks at a connection that is left to others
BALANCE = 1.0  # seconds between two times that surplus connections are let go; clients are back by then
EXHAUSTED = 1.0  # seconds before the next try, when there are no file descriptors left
DRAIN = 5.0  # seconds that idle connections have for one more request, while a successor takes the new ones
ORPHANED = 60.0  # seconds that a worker goes on after its master was lost, if no other takes over
HEARTBEAT = 1.0  # seconds between two signs of life for gunicorn
ABSENT = -1
BACKLOG = 24  # offset of tcpi_unacked in the kernel's struct tcp_info: of a listening socket, what waits
CLOSE = (b"connection", b"close")

log = logging.getLogger("gunicorn.error")


class Shares:
    """How many connections each worker has, in memory that a master shares with its workers."""

    def __init__(self, slots: int) -> None:
        """Make room for workers in the slots 0 to `slots` - 1; others are not counted."""
        self._counts = memoryview(mmap.mmap(-1, 4 * slots)).cast("i")
        for slot in range(slots):
            self._counts[slot] = ABSENT

    def set(self, slot: int, connections: int) -> None:
        if slot < len(self._counts):
            self._counts[slot] = connections

    def remove(self, slot: int) -> None:
        """Let nothing more be left to the worker of this slot."""
        self.set(slot, ABSENT)

    def fair(self, waiting: int = 0) -> int:
        """Return how many connections each worker would have if all, and `waiting` more, were shared out evenly."""
        counts = [count for count in self._counts if count != ABSENT]
        return -(-(sum(counts) + waiting) // max(1, len(counts)))


class Connection(HttpToolsProtocol):
    """uvicorn's, with word of its end, and an end that its listener wants after an answer that says so."""

    def __init__(self, listener: "Listener", *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._listener: Optional[Listener] = listener  # None once it does not count any more

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._listener is not None and self._listener.take_surplus():
            self._leave()
        if self._listener is None and self.cycle is not None:
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE]

    def connection_lost(self, exc: Optional[Exception]) -> None:
        super().connection_lost(exc)
        self._leave()

    def _leave(self) -> None:
        if self._listener is not None:
            self._listener.count(-1)
            self._listener = None


class Listener:
    """Accepts the connections of a socket that several workers listen on, as many as the others do.

    A worker that has its share leaves further ones to the others. After `PATIENCE` it takes them all the same: the
    others may be busy, or hang. One that got more than its share, because another worker started later or was slow,
    lets the surplus go: clients whose answer says `Connection: close` connect anew.

    Attributes:
        lets_go: whether all connections are to go that way.
    """

    def __init__(
        self, sock: socket.socket, connect: Callable[["Listener"], asyncio.Protocol], shares: Shares, slot: int
    ) -> None:
        """Begin to accept; to be called in the event loop.

        Args:
            sock: listens, and does not block.
            connect: makes the protocol of a connection, which is to call `count(-1)` in the end.
            shares: of all workers.
            slot: this worker's.
        """
        self._sock, self._connect, self._shares, self._slot = sock, connect, shares, slot
        self._loop = asyncio.get_running_loop()
        self._waiting = select.poll()
        self._waiting.register(sock.fileno(), select.POLLIN)
        self.lets_go = False
        self._closed = False
        self._connections = 0
        self._surplus = 0
        self._balanced = time.monotonic()
        self._left_since: Optional[float] = None
        self._impatient_until = 0.0
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
        self._shares.remove(self._slot)

    async def wait_closed(self) -> None:
        """Return at once: a closed listener has nothing left to do."""

    def count(self, change: int) -> None:
        """Have so many more connections."""
        self._connections += change
        if not self._closed:
            self._shares.set(self._slot, self._connections)

    def take_surplus(self) -> bool:
        """Return whether the connection that asks is to be let go, because it is more than this worker's share."""
        if self.lets_go:
            return True
        now = time.monotonic()
        if now > self._balanced + BALANCE:
            self._balanced = now
            self._surplus = (
                0 if self._closed or now < self._impatient_until else self._connections - self._shares.fair()
            )
        self._surplus -= 1
        return self._surplus >= 0

    def _accept(self) -> None:
        while self._waiting.poll(0):
            if self._is_for_others():
                self._pause(PAUSE)
                return
            self._left_since = None
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                log.error("No connection can be accepted: %s.", error.strerror)
                self._pause(EXHAUSTED)
                return
            self._adopt(connection)
        self._left_since = None

    def _is_for_others(self) -> bool:
        if self._connections < self._shares.fair(self._backlog()):
            return False
        now = time.monotonic()
        if now < self._impatient_until:
            return False
        if self._left_since is None:
            self._left_since = now
        if now > self._left_since + PATIENCE:
            self._impatient_until = now + IMPATIENCE
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
        self._arriving.add(task)  # the loop itself holds its tasks weakly
        task.add_done_callback(self._arriving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._connect(self), connection)
        except OSError:  # the client is gone already
            connection.close()
            self.count(-1)


class Server(uvicorn.Server):
    """uvicorn's, with a fair share of the connections and a gentle end.

    Its worker goes on when gunicorn's master is lost, until the next master's workers serve, `ORPHANED` seconds at
    the most. While a successor loads, every answer says `Connection: close`, so that few connections are left when
    it serves; those get `DRAIN` seconds for one more request.
    """

    def __init__(self, config: uvicorn.Config, shares: Shares, slot: int, place: Place, master: int) -> None:
        """Serve as the worker of a slot; `master` is the process id of its master, which may be gone by now."""
        super().__init__(config)
        self._shares, self._slot, self._place = shares, slot, place
        self._master = master
        self._orphaned: Optional[float] = None
        self._notified = 0.0

    async def startup(self, sockets: Optional[List[socket.socket]] = None) -> None:
        await super().startup(sockets=[])
        self.servers: List[Any] = [Listener(sock, self._connect, self._shares, self._slot) for sock in sockets or []]
        self._place.take(self._master)

    def _connect(self, listener: Listener) -> Connection:
        return Connection(listener, self.config, self.server_state, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        # uvicorn's own counts ticks, of which a busy worker has so few that gunicorn takes it for one that hangs.
        now = time.monotonic()
        if now > self._notified + HEARTBEAT and self.config.callback_notify is not None:
            self._notified = now
            await self.config.callback_notify()
        if os.getppid() != self._master:
            self._outlive_master()
        self._let_connections_go(self._place.is_awaited(self._master))
        return await super().on_tick(counter)

    def _let_connections_go(self, lets_go: bool) -> None:
        for server in self.servers:
            server.lets_go = lets_go

    def _outlive_master(self) -> None:
        now = time.monotonic()
        if self._orphaned is None:
            log.warning("The master of this worker is gone; it serves until another one's do.")
            self._orphaned = now
        if self._place.holder() != self._master or now > self._orphaned + ORPHANED:
            self.should_exit = True

    def _is_succeeded(self) -> bool:
        return self._place.holder() not in {None, self._master}

    async def shutdown(self, sockets: Optional[List[socket.socket]] = None) -> None:
        signal.alarm(int(DRAIN) + (self.config.timeout_graceful_shutdown or 0) + 10)  # no heartbeat renews it any more
        for server in self.servers:
            server.close()
        if self._is_succeeded():
            self._let_connections_go(True)
            deadline = time.monotonic() + DRAIN
            while self.server_state.connections and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
        await super().shutdown(sockets)
