"""Copies of some requests for the next model, which is loaded in a process of its own and answers nobody.

That process (`model-server shadow`) listens on a Unix socket. Each worker connects to it. The process tells each worker
when it waits for an image, and the share of the requests that it wants; the worker sends one image, and no other until
it is told again. So no request waits for the process, whatever happens to it, and a worker's copies take no more memory
than one image. While the process is busy, images are left out.

An image may be larger than a socket's buffer: it travels as a file in memory, whose descriptor is sent.
"""

import array
import asyncio
import contextlib
import os
import random
import selectors
import socket
import struct
from pathlib import Path
from typing import Callable, Optional

SOCKET = "shadow"  # in the directory of the service
WANTED = struct.Struct("=d")  # "send one", with the share of the requests that is wanted, 0 to 1
MAX_CLASS_BYTES = 1 << 16
TICK = 1.0  # seconds


class Copies:
    """A worker's connection to the shadow: whatever happens to that, no request notices."""

    def __init__(self, runtime_dir: Optional[Path]) -> None:
        """Name the directory that belongs to the service while it runs; None: there is never a shadow."""
        self._path = None if runtime_dir is None else str(runtime_dir / SOCKET)
        self._shadow: Optional[socket.socket] = None
        self._share = 0.0

    def refresh(self) -> None:
        """Look for a shadow that has come, or gone; to be called every second."""
        if self._path is None:
            return
        try:
            if self._shadow is None:
                self._shadow = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                self._shadow.connect(self._path)
            wanted = self._shadow.recv(WANTED.size, socket.MSG_PEEK)
            (self._share,) = WANTED.unpack(wanted)
        except BlockingIOError:  # it is busy, or has not accepted the connection yet
            pass
        except (OSError, struct.error):
            self._forget()

    def offer(self, image: bytes, likely_class: str) -> None:
        """Let chance decide whether the shadow gets an image, after its answer has been sent.

        Args:
            image: the file.
            likely_class: what the model that serves has said of it.
        """
        if random.random() < self._share:
            asyncio.get_running_loop().call_soon(self._copy, image, likely_class)

    def _copy(self, image: bytes, likely_class: str) -> None:
        try:
            if self._shadow is None or not self._shadow.recv(WANTED.size):
                self._forget()
                return
            with os.fdopen(os.memfd_create("image"), "wb", buffering=0) as file:
                file.write(image)
                descriptor = array.array("i", [file.fileno()])
                self._shadow.sendmsg([likely_class.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        except BlockingIOError:  # it does not wait for one
            pass
        except OSError:
            self._forget()

    def _forget(self) -> None:
        self._share = 0.0
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None


class Copied:
    """The shadow's end: takes images of all workers, one after the other."""

    def __init__(self, runtime_dir: Path, share: float) -> None:
        """Listen in the directory of the service.

        Args:
            runtime_dir: of the service; an earlier shadow's socket is replaced.
            share: of the requests that is wanted, 0 to 1.

        Raises:
            OSError: nobody can listen there.
        """
        self._path = runtime_dir / SOCKET
        self._wanted = WANTED.pack(share)
        self._selector = selectors.DefaultSelector()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(socket.SOMAXCONN)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def take(self, judge: Callable[[bytes, str], None]) -> None:
        """Let `judge` see each image that has come, with the class that the model that serves has named.

        Returns after a second without any.
        """
        for key, _ in self._selector.select(TICK):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket):
                self._take_from(key.fileobj, judge)

    def close(self) -> None:
        """Let the workers go; they notice at once."""
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.detach()
        self._selector.close()
        with contextlib.suppress(FileNotFoundError):  # the service was stopped, too
            self._path.unlink()

    def _accept(self) -> None:
        worker, _ = self._listener.accept()
        self._selector.register(worker, selectors.EVENT_READ)
        self._ask(worker)

    def _take_from(self, worker: socket.socket, judge: Callable[[bytes, str], None]) -> None:
        try:
            likely_class, control, _, _ = worker.recvmsg(MAX_CLASS_BYTES, socket.CMSG_SPACE(struct.calcsize("i")))
        except OSError:
            control = []
        if not control:  # the worker has gone
            self._let_go(worker)
            return
        (descriptor,) = array.array("i", control[0][2])
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            image = file.read()
        judge(image, likely_class.decode())
        self._ask(worker)

    def _ask(self, worker: socket.socket) -> None:
        try:
            worker.send(self._wanted)
        except OSError:
            self._let_go(worker)

    def _let_go(self, worker: socket.socket) -> None:
        self._selector.unregister(worker)
        worker.close()
