"""A worker: serves its share of the connections, and drains them before it stops."""

import asyncio
import logging
import os
import signal
import socket
import time
from typing import Any, Dict, List, Optional

import uvicorn

from model_server.metrics.slots import Slot
from model_server.metrics.values import restore_lost_files
from model_server.server._uvicorn import BaseServer, BaseWorker
from model_server.server.connections import Connection, ConnectionCounts, Listener
from model_server.server.handover import ServingMaster
from model_server.settings import Settings

DRAIN = 5.0  # seconds that idle connections get for one more request, while a successor takes the new ones
ORPHANED = 60.0  # seconds that a worker continues after its master died, if no other takes over
HEARTBEAT = 1.0  # seconds between two heartbeats for gunicorn

log = logging.getLogger("gunicorn.error")


class Server(BaseServer):
    """Serves as one of several workers.

    When gunicorn's master dies, it continues until the workers of the next master serve, `ORPHANED` seconds at the
    most. While a successor loads, every answer says `Connection: close`, so that few connections are left when the
    successor serves; those get `DRAIN` seconds for one more request.
    """

    def __init__(
        self, config: uvicorn.Config, counts: ConnectionCounts, slot: int, serving_master: ServingMaster, master: int
    ) -> None:
        """Serve as the worker of a slot; `master` is the process id of its master, which may have died already."""
        super().__init__(config)
        self._counts, self._slot, self._serving_master = counts, slot, serving_master
        self._master = master
        self._listeners: List[Listener] = []
        self._orphaned: Optional[float] = None
        self._heartbeat = 0.0

    def listen(self, sock: socket.socket) -> Listener:
        listener = Listener(sock, self._connect, self._counts, self._slot)
        self._listeners.append(listener)
        self._serving_master.set(self._master)
        return listener

    def _connect(self, listener: Listener) -> Connection:
        return Connection(listener, *self.protocol_arguments())

    async def tick(self) -> None:
        # uvicorn's own heartbeat counts ticks; a busy worker has so few that gunicorn would think it hangs.
        now = time.monotonic()
        if now > self._heartbeat + HEARTBEAT:
            self._heartbeat = now
            await self.send_heartbeat()
            restore_lost_files()
        if os.getppid() != self._master:
            self._outlive_master()
        self._set_draining(self._serving_master.has_successor(self._master))

    def _set_draining(self, draining: bool) -> None:
        for listener in self._listeners:
            listener.draining = draining

    def _outlive_master(self) -> None:
        now = time.monotonic()
        if self._orphaned is None:
            log.warning("The master of this worker is gone; it serves until another one's do.")
            self._orphaned = now
        if self._serving_master.get() != self._master or now > self._orphaned + ORPHANED:
            self.should_exit = True

    async def drain(self) -> None:
        # No heartbeat renews this alarm any more.
        signal.alarm(int(DRAIN) + (self.config.timeout_graceful_shutdown or 0) + 10)
        for listener in self._listeners:
            listener.close()
        if self._serving_master.get() in {None, self._master}:
            return
        self._set_draining(True)
        deadline = time.monotonic() + DRAIN
        while self.has_connections() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)


class Worker(BaseWorker):
    """Serves with uvloop and httptools and without an access log, because the metrics count the requests.

    Attributes:
        slot: where it counts; set by `assign`, like the others.
    """

    CONFIG_KWARGS: Dict[str, Any] = {  # noqa: RUF012 - its type is set by the base class
        "loop": "uvloop",
        "http": "httptools",
        "ws": "none",
        "lifespan": "off",
        "access_log": False,
    }

    def assign(self, slot: Slot, counts: ConnectionCounts, serving_master: ServingMaster, settings: Settings) -> None:
        """Give the worker, before it is forked, its slot and what it shares with the others."""
        self.slot, self._counts, self._serving_master = slot, counts, serving_master
        self._timeout, self._graceful_timeout = settings.timeout, settings.graceful_timeout

    def create_server(self, config: uvicorn.Config) -> Server:
        config.timeout_graceful_shutdown = self._graceful_timeout
        return Server(config, self._counts, self.slot.number, self._serving_master, self.ppid)

    async def callback_notify(self) -> None:
        # gunicorn kills a worker that hangs after `timeout`; when there is no master left, the kernel does it.
        signal.alarm(2 * self._timeout)
        await super().callback_notify()
