"""A worker: serves its share of the connections, and drains them before it stops."""

import asyncio
import logging
import os
import signal
import socket
import time
from http import HTTPStatus
from typing import Any, Dict, List, Optional

import uvicorn

from model_server.metrics.journal import LimitedLog
from model_server.metrics.slots import Slot
from model_server.metrics.values import restore_lost_files
from model_server.server._uvicorn import BaseServer, BaseWorker
from model_server.server.connections import Connection, ConnectionCounts, Listener
from model_server.server.handover import ServingMaster
from model_server.settings import Settings

DRAIN = 5.0  # seconds that idle connections get for one more request, while other workers take the new ones
RESTART_DRAIN = 1.0  # the same where there are none: the new ones wait in the socket's backlog, so this is shorter
ORPHANED = 60.0  # seconds that a worker continues after its master died, if no other takes over
HEARTBEAT = 1.0  # seconds between two heartbeats for gunicorn

log = logging.getLogger("gunicorn.error")


class Server(BaseServer):
    """Serves as one of several workers.

    When gunicorn's master dies, it continues until the workers of the next master serve, `ORPHANED` seconds at the
    most. While a successor loads, every answer says `Connection: close`, so that few connections are left when the
    successor serves. Whenever it stops, those that are left get `DRAIN` seconds for one more request, or
    `RESTART_DRAIN` where all workers stop: the service is restarted.
    """

    def __init__(self, config: uvicorn.Config, worker: "Worker") -> None:
        super().__init__(config)
        self._worker = worker
        self._refusals = LimitedLog("times", lines=1)
        self._listeners: List[Listener] = []
        self._orphaned: Optional[float] = None
        self._heartbeat = 0.0
        self._last_heartbeats: Optional[asyncio.Task[None]] = None

    def listen(self, sock: socket.socket) -> Listener:
        worker = self._worker
        listener = Listener(sock, self._connect, worker.counts, worker.slot.number, worker.settings.max_connections)
        self._listeners.append(listener)
        self._worker.serving_master.set(self._worker.ppid)
        return listener

    def _connect(self, listener: Listener) -> Connection:
        return Connection(listener, self._refuse, self._worker.wsgi.state.overload, *self.protocol_arguments())

    def _refuse(self, status: int, sentence: str) -> None:
        if status == HTTPStatus.REQUEST_TIMEOUT:
            self._worker.wsgi.state.count_timeout()
        else:
            self._refusals.add(f"Input that is no request was answered with {status}: {sentence}")

    async def tick(self) -> None:
        # uvicorn's own heartbeat counts ticks; a busy worker has so few that gunicorn would think it hangs.
        now = time.monotonic()
        if now > self._heartbeat + HEARTBEAT:
            self._heartbeat = now
            await self.send_heartbeat()
            restore_lost_files()
            self._refusals.flush()
            self._worker.wsgi.state.journal.flush()
            self._worker.wsgi.state.copies.refresh()
            self._expire_connections()
        if os.getppid() != self._worker.ppid:
            self._outlive_master()
        self._set_draining(self._worker.serving_master.has_successor(self._worker.ppid))

    def _expire_connections(self) -> None:
        connections = self.connections()
        for connection in connections:
            connection.expire()
        if any(listener.is_full for listener in self._listeners):  # nobody shall lock others out by being idle
            idle = sorted((each for each in connections if each.is_idle), key=lambda each: each.since)
            for connection in idle[: max(1, len(idle) // 4)]:
                connection.close()

    def _set_draining(self, draining: bool) -> None:
        for listener in self._listeners:
            listener.draining = draining

    def _outlive_master(self) -> None:
        now = time.monotonic()
        if self._orphaned is None:
            log.warning("The master of this worker is gone; it serves until another one's do.")
            self._orphaned = now
        if self._worker.serving_master.get() != self._worker.ppid or now > self._orphaned + ORPHANED:
            self.should_exit = True

    async def drain(self) -> None:
        # No heartbeat renews this alarm any more.
        signal.alarm(int(DRAIN) + (self.config.timeout_graceful_shutdown or 0) + 10)
        self._last_heartbeats = asyncio.get_running_loop().create_task(self._send_last_heartbeats())
        for listener in self._listeners:
            listener.close()
        self._set_draining(True)
        begun = time.monotonic()
        # Looked at again and again: others that are told to stop, or have just been started, take a moment.
        while self.connections() and time.monotonic() < begun + (DRAIN if self._others_accept() else RESTART_DRAIN):
            await asyncio.sleep(0.05)

    def _others_accept(self) -> bool:
        has_successor = self._worker.serving_master.get() not in {None, self._worker.ppid}
        return has_successor or self._worker.counts.workers() > 0

    async def _send_last_heartbeats(self) -> None:
        """Keep a master that goes on from taking this worker, which finishes its requests, for one that hangs."""
        while True:
            self._worker.notify()
            await asyncio.sleep(HEARTBEAT)


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
        self.slot, self.counts, self.serving_master = slot, counts, serving_master
        self.settings = settings

    def create_server(self, config: uvicorn.Config) -> Server:
        config.timeout_graceful_shutdown = self.settings.graceful_timeout
        config.forwarded_allow_ips = self.settings.trusted_proxies
        return Server(config, self)

    async def callback_notify(self) -> None:
        # gunicorn kills a worker that hangs after `timeout`; when there is no master left, the kernel does it.
        signal.alarm(2 * self.settings.timeout)
        await super().callback_notify()
