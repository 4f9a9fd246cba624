import asyncio
import http.client
import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from model_server.server.connections import (
    BALANCE_SECONDS,
    DEFER_SECONDS,
    FULL_SECONDS,
    GREEDY_SECONDS,
    ConnectionCounts,
    Listener,
)
from tests.unit.model_server.server.gunicorn_process import Server, connection_header, wait_for

Encode = Callable[..., bytes]


def test_counts_are_of_living_workers() -> None:
    counts = ConnectionCounts(4)
    assert counts.fair() == 0
    assert counts.fair(waiting=2) == 2
    counts.set(0, 4)
    counts.set(2, 1)
    assert (counts.fair(), counts.workers()) == (3, 2)
    assert counts.fair(waiting=1) == 3
    assert counts.fair(waiting=2) == 4
    counts.remove(2)
    assert (counts.fair(), counts.workers()) == (4, 1)
    counts.set(4, 0)
    assert counts.fair() == 4, "a worker beyond the slots is not waited for"


def test_connections_are_shared_out_evenly(server: Server) -> None:
    def one_by_one(connections: Iterator[socket.socket]) -> None:
        for connection in connections:
            ask(connection)
            assert is_answered(connection)

    assert_shared_out_evenly(server, one_by_one)


def test_connections_that_arrive_at_once_are_shared_out_evenly(server: Server) -> None:
    def together(connections: Iterator[socket.socket]) -> None:
        waiting = list(connections)
        for connection in waiting:
            ask(connection)
        assert all(map(is_answered, waiting))

    assert_shared_out_evenly(server, together)


def test_a_new_worker_gets_its_share_of_kept_connections(server: Server) -> None:
    before = server.workers()
    with ExitStack() as stack:
        clients = [http.client.HTTPConnection(server.url[7:], timeout=10) for _ in range(12)]
        for client in clients:
            stack.callback(client.close)
        os.kill(before[0], signal.SIGSTOP)  # all clients are the other one's
        try:
            for client in clients:
                connection_header(client)
            assert established(before[1]) >= 12
        finally:
            os.kill(before[0], signal.SIGKILL)
        server.wait_for_replacement(before)

        let_go = 0

        def stays_even() -> bool:
            nonlocal let_go
            time.sleep(1.5 * BALANCE_SECONDS)
            closed = sum(connection_header(client) == "close" for client in clients)
            let_go += closed
            return not closed and list(map(established, server.workers())) == [6, 6]

        wait_for(stays_even, 30)
    # A worker that is slow to begin may leave some of them to the old one, which lets them go again.
    assert 6 <= let_go < 12, "no more are let go than others could have"


def test_a_worker_that_hangs_is_not_waited_for(server: Server) -> None:
    hung = server.workers()[0]
    os.kill(hung, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            for _ in range(20):
                connection = stack.enter_context(socket.create_connection(server.address, timeout=10))
                ask(connection)
                assert is_answered(connection)
    finally:
        os.kill(hung, signal.SIGCONT)


def test_a_connection_is_left_to_the_others_and_then_taken() -> None:
    counts, accepted = ConnectionCounts(2), []
    counts.set(1, 0)  # the other one never comes

    async def listen() -> float:
        with socket.create_server(("127.0.0.1", 0)) as sock, ExitStack() as clients:
            sock.setblocking(False)

            def connect(listener: Listener) -> asyncio.Protocol:
                accepted.append(time.monotonic())
                return asyncio.Protocol()

            listener = Listener(sock, connect, counts, slot=0, most=10)
            clients.enter_context(socket.create_connection(sock.getsockname()))
            while len(accepted) < 1:
                await asyncio.sleep(0.001)
            begun = time.monotonic()
            clients.enter_context(socket.create_connection(sock.getsockname()))
            while len(accepted) < 2:
                await asyncio.sleep(0.001)
            listener.close()
            listener.close()
            return accepted[1] - begun

    assert asyncio.run(listen()) >= DEFER_SECONDS
    assert counts.fair() == 0, "a listener that is closed gets nothing"


def test_a_worker_that_is_full_lets_others_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def listen() -> List[int]:
        accepted: List[Listener] = []
        with socket.create_server(("127.0.0.1", 0)) as sock, ExitStack() as clients:
            sock.setblocking(False)

            def connect(listener: Listener) -> asyncio.Protocol:
                accepted.append(listener)
                return asyncio.Protocol()

            listener = Listener(sock, connect, ConnectionCounts(1), slot=0, most=3)
            for _ in range(5):
                clients.enter_context(socket.create_connection(sock.getsockname()))
            await asyncio.sleep(3 * FULL_SECONDS)
            seen = [len(accepted)]
            listener.count(-1)
            await asyncio.sleep(3 * FULL_SECONDS)
            listener.close()
            return [*seen, len(accepted)]

    assert asyncio.run(listen()) == [3, 4]
    assert caplog.text.count("This worker has its 3 connections") == 2, "once each time"


def ask(connection: socket.socket) -> None:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")


def is_answered(connection: socket.socket) -> bool:
    return connection.recv(4096).startswith(b"HTTP/1.1 200")


def assert_shared_out_evenly(server: Server, connect: Callable[[Iterator[socket.socket]], None]) -> None:
    """Let 40 clients connect, up to three times: a busy machine may keep a worker from its share for once."""
    for _ in range(3):
        with ExitStack() as stack:
            connect(stack.enter_context(socket.create_connection(server.address)) for _ in range(40))
            wait_for(lambda: sum(map(established, server.workers())) >= 40, 10, "all are accepted")
            counts = [established(worker) for worker in server.workers()]
        if max(counts) <= 22:
            break
        time.sleep(GREEDY_SECONDS)  # until then a worker takes whatever comes
    assert max(counts) <= 22, counts


def established(process: int) -> int:
    """Return the number of connections that a process has accepted."""
    inodes = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            target = os.readlink(str(descriptor))
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    rows: List[List[str]] = [line.split() for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "01" and row[9] in inodes for row in rows)
