"""What HTTP/1.1 asks of a connection, and uvicorn leaves out: bounds of the head, refusals, and a close that waits."""

import asyncio
import json
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Tuple

HEAD, BODY = "head", "body"  # what a connection receives
MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 100
LINGER_SECONDS = 2.0
PROBES, PROBE_SECONDS = 3, 0.05

# Statuses and sentences of answers that the app does not give.
INVALID = (400, "This is not a valid HTTP request.")
OVERLOADED = (503, "The server is overloaded; try again in a second.")
RETRY = {"Retry-After": "1"}  # seconds; a header of that answer
NO_HOST = (400, "The request must have exactly one field Host.")
NO_PROXY = (501, "The method CONNECT is not supported: this server is no proxy.")
HEAD_TOO_LARGE = (431, f"The head of the request has more than {MAX_HEAD_BYTES // 1024} kB or {MAX_FIELDS} fields.")

Field = Tuple[bytes, bytes]


class Overload(NamedTuple):
    """What is refused before anything else is done with it, while the server is overloaded: that costs little.

    Attributes:
        on_refused: path of the requests → what counts one.
        is_overloaded: says whether they are refused now.
    """

    on_refused: Mapping[bytes, Callable[[], None]]
    is_overloaded: Callable[[], bool]


class Transport:
    """A transport that lets the peer read the last answer before it closes.

    When a socket is closed while unread bytes are in its buffer, the kernel sends a reset, and the peer loses the
    answer that it has not read yet. So `close` only ends the sending side while the peer still sends: what arrives is
    discarded, until the peer ends as well, `LINGER_SECONDS` at most.
    """

    def __init__(self, transport: Any, still_receives: Callable[[], bool]) -> None:
        self._transport, self._still_receives = transport, still_receives
        self.write = transport.write
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.lingers:
            return
        if self._transport.is_closing() or not self._still_receives():
            self._transport.close()
            return
        self.lingers = True
        self._transport.resume_reading()
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)


def refusal(status: int, sentence: str, headers: Iterable[Field]) -> bytes:
    """Return a whole answer with a sentence; `headers` are added."""
    first, last = _fixed_parts(status, sentence)
    return b"".join((first, *(b"%s: %s\r\n" % field for field in headers), last))


@lru_cache(maxsize=64)
def _fixed_parts(status: int, sentence: str) -> Tuple[bytes, bytes]:
    body = json.dumps({"detail": sentence}).encode()
    fields = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode(), fields + body


def head_without_upgrade(method: bytes, target: bytes, version: bytes, fields: Iterable[Field]) -> bytes:
    """Return the head of a request as it would be without its field `Upgrade`; names are in lower case."""
    lines = [b"%s %s HTTP/%s" % (method, target, version)]
    for name, value in fields:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            kept = [token for token in tokens if token.lower() not in {b"upgrade", b"http2-settings"}]
            lines.append(b"connection: " + b", ".join(kept))
        elif name != b"upgrade":
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])
