"""HTTP as clients really speak it, byte by byte, to a real gunicorn."""

import contextlib
import socket
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest

from tests.unit.model_server.server.gunicorn_process import Server, wait_for

Encode = Callable[..., bytes]
CLOSE = "Connection: close\r\n"
H2C = "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings\r\n"


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]
    body: bytes


def head(method: str, path: str, fields: str = "", version: str = "1.1", host: str = "Host: test\r\n") -> bytes:
    return f"{method} {path} HTTP/{version}\r\n{host}{fields}\r\n".encode()


def post(
    body: bytes, fields: str = "", kind: str = "image/jpeg", path: str = "/predict", version: str = "1.1"
) -> bytes:
    return head("POST", path, f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{fields}", version) + body


def form(image: bytes, disposition: str = 'name="file"; filename="a.jpg"', kind: str = "image/jpeg") -> bytes:
    part = f"--XX\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: {kind}\r\n\r\n".encode()
    return part + image + b"\r\n--XX--\r\n"


@contextlib.contextmanager
def connected(server: Server, timeout: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, timeout=timeout) as connection:
        yield connection


def received(connection: socket.socket, until: float = 10) -> Tuple[bytes, bool]:
    """Return all bytes that come, and whether the server closed the connection within these seconds."""
    found, deadline = b"", time.monotonic() + until
    while True:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            data = connection.recv(65536)
        except socket.timeout:
            return found, False
        if not data:
            return found, True
        found += data


def parse(data: bytes) -> List[Answer]:
    """Split what a server sent into answers; all of them have a length."""
    answers = []
    while data:
        top, _, data = data.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        answers.append(Answer(int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return answers


def exchange(server: Server, *pieces: bytes, until: float = 10) -> Tuple[List[Answer], bool]:
    """Send pieces of a request with pauses; return the answers, and whether the connection was closed after them."""
    with connected(server) as connection:
        for number, piece in enumerate(pieces):
            time.sleep(0.2 if number else 0)
            connection.sendall(piece)
        data, closed = received(connection, until)
        return parse(data), closed


@pytest.mark.parametrize(
    "fields", [H2C, "Upgrade: foo\r\nConnection: keep-alive, Upgrade\r\n", H2C.replace("h2c", "websocket")]
)
def test_an_upgrade_is_ignored_and_the_body_is_the_body(server: Server, encode: Encode, fields: str) -> None:
    image = encode((40, 30))
    whole = post(form(image), fields, "multipart/form-data; boundary=XX")
    cut = whole.index(b"\r\n\r\n") + 4
    smuggled = head("GET", "/openapi.json")
    for pieces in ([whole], [whole[:cut], whole[cut:]], [whole[:cut], whole[cut : cut + 100], whole[cut + 100 :]]):
        answers, closed = exchange(server, *pieces, until=1)
        assert [answer.status for answer in answers] == [200]
        assert not closed
    (answer,), _ = exchange(server, *[post(smuggled, fields)[: -len(smuggled)], smuggled], until=1)
    assert (answer.status, answer.body) == (
        400,
        b'{"detail":"The body cannot be decoded as an image: damaged, or of an unknown format."}',
    )
    chunked = head("POST", "/predict", f"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n{fields}")
    answers, _ = exchange(server, chunked, b"%x\r\n%s\r\n0\r\n\r\n" % (len(image), image), until=1)
    assert [answer.status for answer in answers] == [200]
    answers, _ = exchange(server, head("GET", "/healthz", fields), head("GET", "/readyz", CLOSE))
    assert [answer.status for answer in answers] == [200, 200]
    assert "uvicorn[standard]" not in server.log.read_text()


def test_a_refusal_reaches_a_client_that_still_sends(server: Server) -> None:
    for version in ("1.0", "1.1"):
        body = bytes(22_000_000)
        with connected(server) as connection:
            connection.sendall(post(body, version=version)[: -len(body)])
            with contextlib.suppress(ConnectionError):  # the server may end before all has been sent
                connection.sendall(body[:3_000_000])
                time.sleep(0.3)
                connection.sendall(body[3_000_000:10_000_000])
            data, closed = received(connection)
        (answer,) = parse(data)
        assert (answer.status, answer.headers["connection"], closed) == (413, "close", True)


def test_a_refusal_closes_a_connection_on_which_the_body_does_not_come(server: Server) -> None:
    fields = "Content-Type: image/jpeg\r\nContent-Length: 22000000\r\nExpect: 100-continue\r\n"
    answers, closed = exchange(server, head("POST", "/predict", fields), head("GET", "/healthz"))
    assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(413, "close")]
    assert closed


def test_an_answer_before_the_end_of_the_body_closes_the_connection(server: Server) -> None:
    """A proxy may keep the rest to itself and reuse the connection: the next request would be read as the body."""
    request = post(b"x", path="/healthz")
    answers, closed = exchange(server, request[:-1], head("GET", "/readyz"))
    assert [(answer.status, answer.headers.get("connection")) for answer in answers] == [(405, "close")]
    assert closed
    answers, closed = exchange(server, request, head("GET", "/readyz"), until=1)
    assert [answer.status for answer in answers] == [405, 200]
    assert not closed


def test_expect_gets_its_continue(server: Server, encode: Encode) -> None:
    image = encode((40, 30))
    request = post(image, "Expect: 100-continue\r\n")
    answers, closed = exchange(server, request[: -len(image)], image, until=1)
    assert [answer.status for answer in answers] == [100, 200]
    assert not closed


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics"])
def test_head_is_answered_without_a_body(server: Server, path: str) -> None:
    with connected(server) as connection:
        connection.sendall(head("HEAD", path, CLOSE))
        data, closed = received(connection)
    assert data.startswith(b"HTTP/1.1 200 ")
    assert data.endswith(b"\r\n\r\n")
    assert closed


def test_options_name_the_methods(server: Server) -> None:
    for path, allowed in {
        "/predict": "OPTIONS, POST",
        "/predict/": "OPTIONS, POST",
        "/readyz": "GET, HEAD, OPTIONS",
    }.items():
        (answer,), _ = exchange(server, head("OPTIONS", path, CLOSE))
        assert (answer.status, answer.headers["allow"], answer.body) == (204, allowed, b"")
    (answer,), _ = exchange(server, head("OPTIONS", "/nothing", CLOSE))
    assert answer.status == 404


def test_a_slash_at_the_end_makes_no_difference(server: Server, encode: Encode) -> None:
    (answer,), _ = exchange(server, post(encode((40, 30)), CLOSE, path="/predict/"))
    assert answer.status == 200
    (answer,), _ = exchange(server, head("GET", "/healthz/", CLOSE))
    assert answer.status == 200
    labels = sorted({"method": "POST", "path": "/predict", "status_code": "200", "app_name": "fastapi"}.items())
    assert server.samples()["fastapi_requests_total" + str(labels)] == 1


def test_the_end_of_the_clients_side_is_not_the_end_of_the_request(server: Server, encode: Encode) -> None:
    with connected(server) as connection:
        connection.sendall(post(form(encode((40, 30))), "", "multipart/form-data; boundary=XX"))
        connection.shutdown(socket.SHUT_WR)
        data, closed = received(connection)
    assert parse(data)[-1].status == 200
    assert closed


BAD_HEADS = {
    "no host": (head("GET", "/healthz", host=""), 400, "The request must have exactly one field Host."),
    "two hosts": (head("GET", "/healthz", "Host: b\r\n"), 400, "The request must have exactly one field Host."),
    "many fields": (head("GET", "/healthz", "".join(f"X-{i}: 1\r\n" for i in range(5000))), 431, "fields."),
    "a long field": (head("GET", "/healthz", f"X: {'a' * 1_000_000}\r\n"), 431, "64 kB"),
    "a long target": (head("GET", "/" + "a" * 1_000_000), 431, "64 kB"),
    "no http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400, "This is not a valid HTTP request."),
    "a proxy's": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "this server is no proxy"),
    "smuggling": (
        head("GET", "/", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
        400,
        "not a valid HTTP request",
    ),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_a_bad_head_is_refused(server: Server, case: str) -> None:
    data, status, sentence = BAD_HEADS[case]
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        found, closed = received(connection)
    (answer,) = parse(found)
    assert answer.status == status
    assert sentence in answer.body.decode()
    assert (answer.headers["connection"], closed) == ("close", True)


def test_heads_within_the_bounds_are_accepted(server: Server) -> None:
    fields = "".join(f"X-{i}: {'a' * 600}\r\n" for i in range(98))
    answers, closed = exchange(server, head("GET", "/healthz", fields), head("GET", "/healthz", fields), until=1)
    assert [answer.status for answer in answers] == [200, 200]
    assert not closed
    assert answers[0].headers["keep-alive"] == "timeout=620"
    (answer,), _ = exchange(server, head("GET", "/healthz", "", "1.0", host=""))
    assert answer.status == 200


@pytest.mark.parametrize("fields", ["".join(f"X-{i}: {'a' * 600}\r\n" for i in range(98)), f"X: {'a' * 60_000}\r\n"])
def test_a_head_may_arrive_in_pieces(server: Server, fields: str) -> None:
    data = head("GET", "/healthz", fields + CLOSE)
    with connected(server) as connection:
        for begin in range(0, len(data), 15_000):
            connection.sendall(data[begin : begin + 15_000])
            time.sleep(0.05)
        found, _ = received(connection)
    assert [answer.status for answer in parse(found)] == [200]


def test_input_that_is_no_request_is_logged_once_a_minute(server: Server) -> None:
    for _ in range(60):
        exchange(server, b"nonsense\r\n\r\n")
    lines = [line for line in server.log.read_text().splitlines() if "no request" in line or "Invalid HTTP" in line]
    assert 1 <= len(lines) <= 2, "one of each worker"


@pytest.mark.parametrize("server", [{"LEMON_HURRIES": "1", "MODEL_SERVER_KEEP_ALIVE": "2"}], indirect=True)
def test_deadlines(server: Server, encode: Encode) -> None:
    image = encode((40, 30))
    request = post(image)
    sent = {
        "nothing": [b""],
        "half a head": [head("GET", "/healthz")[:-2]],
        "half a second head": [head("GET", "/healthz"), head("GET", "/healthz")[:-2]],
        "half a body": [request[: -len(image) // 2]],
        "an idle one": [head("GET", "/healthz")],
        "blank lines": [head("GET", "/healthz"), b"\r\n"],
    }
    expected: Dict[str, List[int]] = {
        "nothing": [],
        "half a head": [408],
        "half a second head": [200, 408],
        "half a body": [408],
        "an idle one": [200],
        "blank lines": [200],
    }
    for name, pieces in sent.items():
        began = time.monotonic()
        answers, closed = exchange(server, *pieces)
        assert ([answer.status for answer in answers], closed) == (expected[name], True), name
        assert 0.9 < time.monotonic() - began < 7, name
    samples = server.samples()
    assert samples["rejected_inputs_total[('reason', 'timeout')]"] == 3
    assert server.get("/healthz")


@pytest.mark.parametrize("server", [{"MODEL_SERVER_MAX_CONNECTIONS": "16"}], indirect=True)
def test_idle_connections_lock_nobody_out(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(server)) for _ in range(60)]
        for connection in idle:
            connection.sendall(head("GET", "/healthz"))
        began = time.monotonic()
        answers, _ = exchange(server, head("GET", "/healthz", CLOSE), until=15)
        assert [answer.status for answer in answers] == [200]
        assert time.monotonic() - began < 12
        assert all(parse(connection.recv(65536))[0].status == 200 for connection in idle)
    assert "This worker has its 16 connections" in server.log.read_text()


@pytest.mark.parametrize("server", [{"LEMON_HURRIES": "1"}], indirect=True)
def test_a_slow_body_that_makes_progress_is_waited_for(server: Server) -> None:
    body = bytes(8000)
    with connected(server) as connection:
        connection.sendall(post(body)[: -len(body)])
        for part in range(4):
            time.sleep(0.5)
            connection.sendall(body[2000 * part : 2000 * (part + 1)])
        assert parse(received(connection, 1)[0])[0].status == 400  # zeros are no image


@pytest.mark.parametrize("server", [{"LEMON_SLEEPS": "0.2", "MODEL_SERVER_MAX_QUEUE_SECONDS": "100"}], indirect=True)
def test_a_client_that_has_gone_is_not_predicted_for(server: Server, encode: Encode) -> None:
    request = post(encode((40, 30)))
    connections = [socket.create_connection(server.address) for _ in range(40)]
    for connection in connections:
        connection.sendall(request)
    time.sleep(0.3)
    for connection in connections:
        connection.close()
    began = time.monotonic()
    assert server.predict(encode((40, 30)))
    assert time.monotonic() - began < 2.5, "forty predictions take four seconds, and more"

    def counted(status: str) -> float:
        labels = {"method": "POST", "path": "/predict", "status_code": status, "app_name": "fastapi"}
        return server.samples().get("fastapi_requests_total" + str(sorted(labels.items())), 0)

    wait_for(lambda: counted("200") + counted("499") == 41, 10)
    assert counted("499") >= 24
    assert server.samples()["rejected_inputs_total[('reason', 'abandoned')]"] == counted("499")
    assert server.lemons() <= 17


@pytest.mark.parametrize("server", [{"LEMON_SLEEPS": "0.1"}], indirect=True)
def test_what_would_wait_too_long_is_refused_at_once(server: Server, encode: Encode) -> None:
    request = post(form(encode((40, 30))), "", "multipart/form-data; boundary=XX")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(60)]
        for client in clients:
            client.sendall(request)
        answers = [parse(client.recv(65536)) for client in clients]
        found = [answer.status for (answer,) in answers]
        assert set(found) == {200, 503}
        assert 15 <= found.count(200) <= 35, "two workers, a second each"
        refused = found.index(503)
        assert answers[refused][0].headers["retry-after"] == "1"
        assert server.samples()["rejected_inputs_total[('reason', 'overloaded')]"] == found.count(503)
        clients[refused].sendall(request)
        (again,) = parse(clients[refused].recv(65536))
        assert again.status == 200, "the same connection, a second later"
    samples = server.samples()
    assert samples["queue_depth[]"] == samples["queue_wait_estimate_seconds[]"] == 0


@pytest.mark.parametrize("server", [{"LEMON_OVERLOADED": "yes"}], indirect=True)
def test_an_overloaded_server_refuses_at_the_head(server: Server, encode: Encode) -> None:
    image = encode((40, 30))
    cut, whole = post(image)[: -len(image)], post(image)
    answers, closed = exchange(server, cut)
    assert [(answer.status, answer.headers.get("connection")) for answer in answers] == [(503, "close")]
    assert closed
    answers, closed = exchange(server, whole + whole, head("GET", "/readyz"), until=1)
    assert [answer.status for answer in answers] == [503, 503, 200]
    assert not closed
    answers, closed = exchange(server, post(image, CLOSE))
    assert [(answer.status, answer.headers.get("connection")) for answer in answers] == [(503, "close")]
    assert closed
