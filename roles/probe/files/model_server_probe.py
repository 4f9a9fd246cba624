#!/usr/bin/env python3
"""Ask model servers for the class of a known image, again and again, and tell Prometheus what came.

usage: model_server_probe.py [options] IMAGE URL...

Serves /metrics, with the names of the blackbox exporter where it has one: `probe_success`, `probe_answer_right`,
`probe_duration_seconds` and `probe_ssl_earliest_cert_expiry`, each by `target`. A key stands in the environment, as
MODEL_SERVER_PROBE_KEY. Python's own library is enough: the host needs no package.
"""

import argparse
import http.client
import json
import logging
import os
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Dict, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

EXPIRY = "probe_ssl_earliest_cert_expiry"
HELP = {
    "probe_success": "Whether the known image was answered in time, with the right class.",
    "probe_answer_right": "Whether the class of the answer was the right one.",
    "probe_duration_seconds": "Seconds until the answer, with a new connection.",
    EXPIRY: "When the certificate ends, in seconds since the epoch.",
}
logger = logging.getLogger("model_server_probe")
LARGEST_ANSWER = 1_000_000  # bytes
Figures = Dict[str, float]


class Question(NamedTuple):
    """What is asked, and what is to be answered.

    Attributes:
        image: the bytes of an image file.
        right: the class of it.
        key: of the server, empty if it asks for none.
        timeout: seconds.
        context: how certificates are judged.
    """

    image: bytes
    right: str
    key: str
    timeout: float
    context: ssl.SSLContext


class Answer(NamedTuple):
    """The figures of one question, and what was wrong with its answer; empty if nothing was."""

    figures: Figures
    problem: str


def ask(target: str, question: Question) -> Answer:
    """Ask a server once, over a connection of its own."""
    headers = {"Content-Type": media_type(question.image), "User-Agent": "model-server-probe", "Connection": "close"}
    if question.key:
        headers["X-API-Key"] = question.key
    figures: Figures = {"probe_success": 0}
    began = time.monotonic()
    try:
        connection, path = connect(target, question)
        try:
            connection.connect()
            if isinstance(connection, http.client.HTTPSConnection):
                ends = (connection.sock.getpeercert() or {}).get("notAfter")
                if ends is not None:
                    figures[EXPIRY] = ssl.cert_time_to_seconds(str(ends))
            connection.request("POST", f"{path}/probe", question.image, headers)
            answer = connection.getresponse()
            said = answer.read(LARGEST_ANSWER)
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: of a host that is no name
        return Answer(figures, f"no answer: {error or type(error).__name__}")
    figures["probe_duration_seconds"] = time.monotonic() - began
    if answer.status != 200:
        return Answer(figures, f"{answer.status} {answer.reason}: {said[:200].decode(errors='replace')}")
    try:
        likely_class = json.loads(said)["likely_class"]
    except (ValueError, TypeError, KeyError):
        return Answer(figures, f"an answer that is none of a model server: {said[:200].decode(errors='replace')}")
    figures["probe_answer_right"] = int(likely_class == question.right)
    if likely_class != question.right:
        return Answer(figures, f"the class {likely_class!r} in place of {question.right!r}")
    if figures["probe_duration_seconds"] > question.timeout:  # each read alone was in time
        return Answer(figures, f"the right answer after {figures['probe_duration_seconds']:.1f} s")
    figures["probe_success"] = 1
    return Answer(figures, "")


def connect(target: str, question: Question) -> Tuple[http.client.HTTPConnection, str]:
    """Return a connection that is not made yet, and the path of the target."""
    url = urlsplit(target)
    if url.scheme == "https":
        return http.client.HTTPSConnection(url.netloc, timeout=question.timeout, context=question.context), url.path
    return http.client.HTTPConnection(url.netloc, timeout=question.timeout), url.path


def media_type(image: bytes) -> str:
    """Return the type of an image file by its first bytes, as far as a model server takes it."""
    kinds = {
        b"\xff\xd8\xff": "jpeg",
        b"\x89PNG": "png",
        b"GIF8": "gif",
        b"BM": "bmp",
        b"II*\x00": "tiff",
        b"MM\x00*": "tiff",
        b"RIFF": "webp",
    }
    (kind,) = [kind for magic, kind in kinds.items() if image.startswith(magic)] or ["octet-stream"]
    return f"image/{kind}"


class Probe:
    """Asks targets by turns, each in a thread of its own, and keeps the last figures."""

    def __init__(self, question: Question, interval: float) -> None:
        self._question, self._interval = question, interval
        self._last: Dict[
            str, Tuple[float, Figures]
        ] = {}  # target → when it was asked for the last time, and its figures

    def watch(self, target: str) -> None:
        """Ask a target for ever, and log a line when it fails, and one when it is right again."""
        due = time.monotonic()
        certificate: Figures = {}
        told = ""
        while True:
            figures, problem = ask(target, self._question)
            if EXPIRY in figures:  # known until there is another one, also while nobody answers
                certificate = {EXPIRY: figures[EXPIRY]}
            self._last[target] = time.monotonic(), {**certificate, **figures}
            if problem != told:
                logger.info("%s: %s", target, problem or "right again")
            told = problem
            due = max(due + self._interval, time.monotonic())
            time.sleep(max(0, due - time.monotonic()))

    def page(self) -> str:
        """Return the figures in Prometheus' text format."""
        # A server that sends its answer byte by byte can hold a question for long: nothing new is a failure, too.
        fresh = time.monotonic() - self._interval - 2 * self._question.timeout
        figures = [
            (target, of if asked >= fresh else {"probe_success": 0.0})
            for target, (asked, of) in sorted(self._last.items())
        ]
        lines = []
        for name, text in HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [f'{name}{{target="{escaped(target)}"}} {of[name]!r}' for target, of in figures if name in of]
        return "\n".join(lines) + "\n"


def escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def serve(address: str, probe: Probe) -> None:
    class Page(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            body = probe.page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        address_family = AF_INET6 if address.startswith("[") else AF_INET

    host, _, port = address.rpartition(":")
    Server((host.strip("[]"), int(port)), Page).serve_forever()


def watch_or_end(probe: Probe, target: str) -> None:
    try:
        probe.watch(target)
    except BaseException as error:  # figures that stand still would look right: systemd starts it again
        logger.critical("%s: %r", target, error)
        os._exit(1)


def main() -> Optional[str]:
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=summary, allow_abbrev=False)
    parser.add_argument("image", type=Path, help="file whose class is known")
    parser.add_argument("targets", nargs="+", metavar="URL", help="such as https://models.example.org")
    parser.add_argument("--class", dest="right", required=True, help="the right answer")
    parser.add_argument("--listen", default="127.0.0.1:9116", help="address and port of /metrics")
    parser.add_argument("--interval", type=float, default=10, help="seconds from one question to the next")
    parser.add_argument("--timeout", type=float, default=5, help="seconds within which the answer must be there")
    parser.add_argument("--any-certificate", action="store_true", help="take a certificate that nobody vouches for")
    options = parser.parse_args()
    for target in options.targets:
        if not target.startswith(("http://", "https://")):
            return f"model_server_probe: {target} is no URL; write it as https://HOST or http://HOST:PORT"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    context = ssl.create_default_context()
    if options.any_certificate:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        image = options.image.read_bytes()
    except OSError as error:
        return f"model_server_probe: {options.image} cannot be read: {error.strerror}"
    key = os.environ.get("MODEL_SERVER_PROBE_KEY", "")
    probe = Probe(Question(image, options.right, key, options.timeout, context), options.interval)
    for target in options.targets:
        threading.Thread(target=watch_or_end, args=(probe, target.rstrip("/")), daemon=True).start()
    serve(options.listen, probe)
    return None


if __name__ == "__main__":
    sys.exit(main())
