"""Everything that is used of uvicorn's HTTP beyond its documented interface."""

import weakref
from typing import Any, Dict, Optional, Tuple

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from model_server.server import http1
from model_server.server.http1 import BODY, HEAD

# What is used, and what for. tests/unit/model_server/test_holds.py fails with this when a release has changed it.
_PROTOCOL: Dict[str, str] = {
    "HttpToolsProtocol(config, server_state, app_state, _loop)": "connections.Listener creates one for each connection",
    "HttpToolsProtocol.data_received(self, data)": "replaced: it takes a body after `Upgrade` for a request",
    "HttpToolsProtocol._unset_keepalive_if_required(self)": "called by `data_received`",
    "HttpToolsProtocol.on_message_begin(self)": "a head begins",
    "HttpToolsProtocol.on_header(self, name, value)": "a field of the head; their number and size are bounded",
    "HttpToolsProtocol.on_headers_complete(self)": "the head has arrived; decides on the connection",
    "HttpToolsProtocol.on_body(self, body)": "a part of a body has arrived",
    "HttpToolsProtocol.on_message_complete(self)": "a request has arrived",
    "HttpToolsProtocol.on_response_complete(self)": "an answer has been sent",
    "HttpToolsProtocol:self.parser": "is replaced when an `Upgrade` is ignored",
    "HttpToolsProtocol:self.transport": "is wrapped, so that the peer can read the last answer",
    "HttpToolsProtocol:self.url": "the target of the request",
    "HttpToolsProtocol:self.headers": "the fields of the head, with names in lower case",
    "HttpToolsProtocol:self.expect_100_continue": "whether the client waits before it sends the body",
    "HttpToolsProtocol:self.scope": "tells the app whether its client has gone, or was too slow",
    "HttpToolsProtocol:self.flow": "whether reading is paused",
    "HttpToolsProtocol:self.cycle": "the request that has just begun",
    "HttpToolsProtocol:self.config": "how long a connection is kept",
    "HttpToolsProtocol:self.server_state": "has the headers of all answers",
    "RequestResponseCycle:self.default_headers": "headers of its answer, also `Connection: close`",
    "RequestResponseCycle:self.disconnected": "whether its client has gone",
    "RequestResponseCycle:self.keep_alive": "whether its connection stays open",
    "RequestResponseCycle:self.message_event": "wakes the app, which waits for the body",
    "RequestResponseCycle:self.more_body": "whether more of the body will come",
    "RequestResponseCycle:self.response_complete": "whether it has been answered",
    "RequestResponseCycle:self.response_started": "whether its answer has begun",
}
HOLDS: Dict[str, str] = {f"uvicorn.protocols.http.httptools_impl.{name}": use for name, use in _PROTOCOL.items()}


class HttpProtocol(HttpToolsProtocol):
    """A connection: uvicorn's, with bounds for the head, and answers that arrive.

    `Upgrade` is ignored, as RFC 9110 allows: the request is answered by HTTP/1.1, and its body is its body.

    Attributes:
        receiving: what is arriving now, `HEAD` or `BODY`; None between two requests.
        since: when that began, or when the last request ended, in seconds of the event loop's clock.
        body_bytes: received of the body.
        is_used: whether anything has arrived on this connection.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.receiving: Optional[str] = HEAD
        self.since = self.loop.time()
        self.body_bytes = 0
        self.is_used = False
        self._head_bytes = 0  # of the fields that are complete
        self._pending_bytes = 0  # since the last of them
        self._upgrades = self._ignores_input = False
        self._refusal: Optional[Tuple[int, str, Tuple[http1.Field, ...]]] = None  # that is still to be sent
        self._problem: Tuple[int, str] = http1.INVALID

    def on_head(self) -> None:
        """React to the head of a request, before the app gets it."""

    def on_request(self) -> None:
        """React to a request that is about to be answered."""

    def on_refused(self, status: int, sentence: str) -> None:
        """React to input that is no request."""

    @property
    def is_answering(self) -> bool:
        """Whether a request is in flight."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_idle(self) -> bool:
        """Whether this connection waits for another request."""
        return self.receiving is None and not self.is_answering

    @property
    def reading_is_paused(self) -> bool:
        return bool(self.flow.read_paused)

    @property
    def lingers(self) -> bool:
        return bool(getattr(self.transport, "lingers", False))

    @property
    def keep_alive_seconds(self) -> int:
        return self.config.timeout_keep_alive

    def header(self, name: bytes) -> bytes:
        """Return a field of the request's head, by its name in lower case; empty if there is none."""
        for field, value in self.headers:
            if field == name:
                return value
        return b""

    def add_header(self, name: bytes, value: bytes) -> None:
        """Add a header to the answer of the current request; `Connection: close` closes the connection after it."""
        self.cycle.default_headers = [*self.cycle.default_headers, (name, value)]

    def close(self) -> None:
        """Close the connection; it lingers if the peer still sends."""
        self.transport.close()

    def end_body(self) -> None:
        """Let the app read what has arrived of the body, and see `timed_out` in the scope."""
        self.cycle.scope["timed_out"] = True  # type: ignore[typeddict-unknown-key]
        self.cycle.more_body = False
        self.cycle.message_event.set()

    def refuse(self, status: int, sentence: str) -> None:
        """Answer input that is no request, or not a whole one, and close the connection."""
        if self._ignores_input:
            return
        self._ignores_input = True
        self.receiving = HEAD
        self.on_refused(status, sentence)
        if self.is_answering:  # an earlier request: only its answer can be sent
            self.cycle.keep_alive = False
            return
        self._write_refusal(status, sentence, (b"connection", b"close"))
        self.transport.close()

    def refuse_request(self, status: int, sentence: str, *headers: http1.Field) -> None:
        """Answer the request whose head has arrived without the app, as soon as what came with it has been read."""
        self._refusal = status, sentence, headers

    def _send_refusal(self, keep_alive: bool) -> None:
        if self._refusal is None:
            return
        (status, sentence, headers), self._refusal = self._refusal, None
        if keep_alive:
            self._write_refusal(status, sentence, *headers)
        else:
            self._write_refusal(status, sentence, *headers, (b"connection", b"close"))
            self.transport.close()

    def _write_refusal(self, status: int, sentence: str, *headers: http1.Field) -> None:
        self.transport.write(http1.refusal(status, sentence, [*self.server_state.default_headers, *headers]))

    # Events of asyncio

    def connection_made(self, transport: Any) -> None:
        wrapped: Any = http1.Transport(transport, lambda: self.receiving is not None and self.is_used)
        super().connection_made(wrapped)

    def data_received(self, data: bytes) -> None:
        if self._ignores_input or self.lingers:
            return
        self.is_used = True
        self._unset_keepalive_if_required()
        self._pending_bytes += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                version = self.parser.get_http_version().encode()
                head = http1.head_without_upgrade(self.parser.get_method(), self.url, version, self.headers)
                data = head + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                if hasattr(self.parser, "set_dangerous_leniencies"):  # as uvicorn does
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except httptools.HttpParserError:
                self.refuse(*self._problem)
                return
        self._send_refusal(keep_alive=False)
        if self.receiving == HEAD and self._pending_bytes > http1.MAX_HEAD_BYTES:  # a field that has no end
            self.refuse(*http1.HEAD_TOO_LARGE)

    def eof_received(self) -> Optional[bool]:  # type: ignore[override]
        """Keep the connection for the answer, if the client has ended its side after a whole request."""
        if not self.is_answering or self.receiving is not None or self.lingers:
            return None
        self.cycle.keep_alive = False
        if self.scope["http_version"] == "1.1":
            self.loop.call_later(http1.PROBE_SECONDS, self._probe, http1.PROBES)
        return True

    def _probe(self, left: int) -> None:
        """Find out whether the client has ended only its side: a reset answers what is sent to one that has gone."""
        if left == 0 or self.cycle.disconnected or self.cycle.response_started:
            return
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(http1.PROBE_SECONDS, self._probe, left - 1)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.receiving, self.since = HEAD, self.loop.time()
        self._head_bytes = self._pending_bytes = 0
        self._upgrades = False

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value) + 4  # the colon, a blank and the end of the line
        self._pending_bytes = 0
        if self._head_bytes > http1.MAX_HEAD_BYTES or len(self.headers) > http1.MAX_FIELDS:
            self._fail(http1.HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._fail(http1.NO_PROXY)
            self._upgrades = True
            return
        if self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            self._fail(http1.NO_HOST)
        self.receiving, self.since, self.body_bytes = BODY, self.loop.time(), 0
        if not self.is_answering:
            self.on_head()
        if self._refusal is not None:
            return
        super().on_headers_complete()
        cycle = weakref.ref(self.cycle)  # which has the scope: only the garbage collector would end that circle
        self.scope["is_gone"] = lambda: getattr(cycle(), "disconnected", True)  # type: ignore[typeddict-unknown-key]
        self.on_request()
        # An answer before the end of the body closes the connection: haproxy 2.6 may not send the rest, and yet reuse
        # the connection; then the next request, of someone else, would be read as this body.
        self._kept_headers = self.cycle.default_headers
        self.add_header(b"connection", b"close")

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)
        self.body_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._upgrades:
            return
        self.receiving, self.since = None, self.loop.time()
        if self._refusal is not None:
            self._send_refusal(self.parser.should_keep_alive())
            return
        super().on_message_complete()
        self.cycle.default_headers = self._kept_headers

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.receiving is None:
            self.since = self.loop.time()

    def _fail(self, problem: Tuple[int, str]) -> None:
        self._problem = problem
        raise ValueError(problem[1])
