import http.client
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Callable, Optional

import pytest

from model_server.server.handover import ServingMaster
from tests.unit.model_server.server.gunicorn_process import Server, connection_header, is_alive, wait_for

Encode = Callable[..., bytes]


def test_workers_survive_a_lost_master_until_the_next_ones_serve(server: Server, encode: Encode) -> None:
    workers, image = server.workers(), encode((40, 30))
    os.kill(server.master, signal.SIGKILL)
    server.process.wait()
    for _ in range(10):
        assert server.predict(image), "answered by an orphan"
    assert server.lemons() == 10

    kept = http.client.HTTPConnection(server.url[7:], timeout=10)
    assert connection_header(kept) is None
    ServingMaster(server.runtime_dir).set(os.getpid())
    wait_for(lambda: connection_header(kept) == "close")
    kept.close()
    wait_for(lambda: not any(map(is_alive, workers)), 20)


def test_a_kept_connection_gets_one_more_request_when_the_service_is_restarted(server: Server) -> None:
    kept = http.client.HTTPConnection(server.url[7:], timeout=10)
    assert connection_header(kept) is None
    os.kill(server.master, signal.SIGTERM)
    time.sleep(0.5)
    assert connection_header(kept) == "close"
    kept.close()


@pytest.mark.parametrize(
    ("server", "how"),
    [
        ({}, signal.SIGHUP),
        ({"MODEL_SERVER_TIMEOUT": "3"}, signal.SIGTTOU),
        ({"GUNICORN_CMD_ARGS": "--max-requests 60"}, None),
    ],
    ids=["SIGHUP", "SIGTTOU", "max-requests"],
    indirect=["server"],
)
def test_connections_of_a_worker_that_stops_get_one_more_request_while_others_serve(
    server: Server, how: Optional[signal.Signals]
) -> None:
    kept = [http.client.HTTPConnection(server.url[7:], timeout=10) for _ in range(6)]
    for connection in kept:
        assert connection_header(connection) is None
    if how is None:
        wait_for(lambda: connection_header(kept[0]) == "close", what="the last request of a worker")
        kept.pop(0).close()
    else:
        server.process.send_signal(how)
    time.sleep(4)  # longer than a restart drains, and than a heartbeat may take
    assert "close" in [connection_header(connection) for connection in kept]
    assert "WORKER TIMEOUT" not in server.log.read_text()
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("server", [{"LEMON_SLEEPS": "0.3", "MODEL_SERVER_TIMEOUT": "4"}], indirect=True)
def test_a_busy_worker_is_not_taken_for_one_that_hangs(server: Server, encode: Encode) -> None:
    workers, image, stop = server.workers(), encode((40, 30)), Event()

    def client() -> bool:
        answered = True
        while not stop.is_set():
            answered = answered and server.predict(image) is not None
        return answered

    with ThreadPoolExecutor(8) as executor:
        clients = [executor.submit(client) for _ in range(8)]
        stop.wait(9)
        stop.set()
    assert all(future.result() for future in clients)
    assert server.workers() == workers


@pytest.mark.parametrize("server", [{"LEMON_SLEEPS": "0.2", "MODEL_SERVER_MAX_QUEUE_SECONDS": "100"}], indirect=True)
def test_cheap_requests_do_not_wait_for_all_predictions(server: Server, encode: Encode) -> None:
    image = encode((40, 30))
    with ThreadPoolExecutor(20) as executor:
        predictions = [executor.submit(server.predict, image) for _ in range(20)]
        wait_for(lambda: any(prediction.done() for prediction in predictions))
        assert server.get("/healthz")
        assert sum(prediction.done() for prediction in predictions) < 12, "ten seconds of work, two workers"
        assert all(prediction.result() for prediction in predictions)
