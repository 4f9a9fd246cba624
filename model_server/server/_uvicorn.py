"""Everything that is used of uvicorn's server and of uvicorn-worker beyond their documented interfaces.

Its HTTP is in `_uvicorn_http.py`.
"""

import socket
import sys
from typing import Any, Dict, List, Optional, Tuple

import uvicorn
from uvicorn_worker import UvicornWorker

from model_server.server._gunicorn import WORKER_BOOT_ERROR

# What is used, and what for. tests/unit/model_server/test_holds.py fails with this when a release has changed it.
HOLDS: Dict[str, str] = {
    "uvicorn.server.Server.startup(self, sockets)": "creates the listeners; with no sockets, none",
    "uvicorn.server.Server:self.servers": "its listeners, which it closes when it shuts down",
    "uvicorn.server.Server:self.lifespan": "has the state that each connection gets",
    "uvicorn.server.Server:self.server_state": "has the open connections",
    "uvicorn.server.Server.on_tick(self, counter)": "called ten times a second by the main loop",
    "uvicorn.server.Server.shutdown(self, sockets)": "graceful shutdown; connections are drained before it",
    "uvicorn.server.Server:self.should_exit": "ends the main loop",
    "uvicorn.config.Config:self.callback_notify": "gunicorn's heartbeat",
    "uvicorn.config.Config:self.timeout_graceful_shutdown": "seconds that requests in flight get",
    "uvicorn.config.Config:self.forwarded_allow_ips": "proxies whose X-Forwarded-For is believed",
    "uvicorn_worker.UvicornWorker._serve(self)": "creates and runs the server of a worker",
    "uvicorn_worker.UvicornWorker._install_sigquit_handler(self)": "gunicorn's immediate stop",
    "uvicorn_worker.UvicornWorker.callback_notify(self)": "gunicorn's heartbeat",
    "uvicorn_worker.UvicornWorker:self.config": "the configuration of the server",
}


class BaseServer(uvicorn.Server):
    """A server with listeners of its own, and a step of its own in each turn of the main loop."""

    def listen(self, sock: socket.socket) -> Any:
        """Begin to accept connections; return an object with the methods `close` and `wait_closed`."""
        raise NotImplementedError

    async def tick(self) -> None:
        """Do what is due; called ten times a second, less often under load."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Let the clients end their connections, before those that are left are closed."""
        raise NotImplementedError

    async def send_heartbeat(self) -> None:
        """Tell gunicorn's master that this worker does not hang."""
        if self.config.callback_notify is not None:
            await self.config.callback_notify()

    def connections(self) -> List[Any]:
        """Return the open connections."""
        return list(self.server_state.connections)

    def protocol_arguments(self) -> Tuple[Any, ...]:
        """Return what an `HttpProtocol` takes."""
        return self.config, self.server_state, self.lifespan.state

    async def startup(self, sockets: Optional[List[socket.socket]] = None) -> None:
        await super().startup(sockets=[])
        self.servers: List[Any] = [self.listen(sock) for sock in sockets or []]

    async def on_tick(self, counter: int) -> bool:
        await self.tick()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Optional[List[socket.socket]] = None) -> None:
        await self.drain()
        await super().shutdown(sockets)


class BaseWorker(UvicornWorker):
    """A gunicorn worker that runs a server of its own."""

    def create_server(self, config: uvicorn.Config) -> uvicorn.Server:
        raise NotImplementedError

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = self.create_server(self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(WORKER_BOOT_ERROR)
