import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Callable, Dict, Iterator, List

import pytest

from model_server.commands import feedback
from model_server.commands.cli import main
from model_server.feedback import PredictionIds
from tests.unit.model_server.test_app import Client, FakeClassifier, make_client


class Server(HTTPServer):
    """The app behind a small server; what is in `faults` is answered first."""

    def __init__(self, keys: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.app: Client = make_client(FakeClassifier(), feedback_keys_file=keys)
        self.faults: List[int] = []
        self.headers: List[Dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.headers.append(dict(self.headers))
        if self.server.faults:
            status, content = self.server.faults.pop(0), b"<html>a proxy"
        else:
            answer = self.server.app.post(self.path, content=body)
            status, content = answer.status_code, answer.content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("k" * 32)
    return file


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, keys: Path) -> Iterator[Server]:
    monkeypatch.setattr(feedback, "PAUSE_SECONDS", 0)
    with Server(keys) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, keys: Path) -> Write:
    """Return what writes a file of labels; the model had said lemon each time."""

    def write(*labels: str) -> str:
        ids, path = PredictionIds(keys), tmp_path / "labels.csv"
        lines = [f"{ids.issue('1.0', 'lemon', 3)},{label}" for label in labels]
        path.write_text("\n".join(["id,label", *lines, ""]), encoding="utf-8-sig")
        return str(path)

    return write


def test_a_file_is_counted_once(server: Server, write: Write, capsys: Any) -> None:
    file = write(*["lemon"] * 3, "apple")

    main(["feedback", file, "--url", server.url])
    main(["feedback", file, "--url", f"{server.url}/"])

    first, second = capsys.readouterr().out.splitlines()
    assert first == "feedback: 4 counted, 75.0% of them right; 0 had been counted before; 0 refused"
    assert second == "feedback: 0 counted; 4 had been counted before; 0 refused"


def test_rows_that_are_refused_are_told_and_the_others_counted(server: Server, write: Write, capsys: Any) -> None:
    file = write("lemon", "tomato", "lemon")

    with pytest.raises(SystemExit, match=r"feedback: 1 of the rows of .*labels.csv were refused"):
        main(["feedback", file, "--url", server.url])

    said = capsys.readouterr().out.splitlines()
    assert said[0] == "feedback: row 2 was refused (422): 'tomato' is no class of the model."
    assert said[1].startswith("feedback: 2 counted, 100.0% of them right")


def test_rows_without_a_label_are_left_out(server: Server, write: Write, capsys: Any) -> None:
    main(["feedback", write("lemon", "", " "), "--url", server.url])
    assert capsys.readouterr().out == (
        "feedback: 1 counted, 100.0% of them right; 0 had been counted before; 0 refused; 2 have no label\n"
    )


def test_an_overloaded_server_is_asked_again(server: Server, write: Write, capsys: Any) -> None:
    server.faults = [503, 503]
    main(["feedback", write("lemon"), "--url", server.url])
    assert capsys.readouterr().out.startswith("feedback: 1 counted")


def test_an_answer_of_a_proxy_is_shown(server: Server, write: Write, capsys: Any) -> None:
    server.faults = [502]
    with pytest.raises(SystemExit):
        main(["feedback", write("lemon"), "--url", server.url])
    assert "row 1 was refused (502): <html>a proxy" in capsys.readouterr().out


def test_a_key_is_sent(server: Server, write: Write, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("shop.secret\n")
    arguments = ["--url", server.url, "--api-key-file", str(tmp_path / "key")]
    main(["feedback", write("lemon"), *arguments])
    assert server.headers[0]["X-API-Key"] == "shop.secret"


def test_a_server_that_is_not_there_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "PAUSE_SECONDS", 0)
    with pytest.raises(
        SystemExit, match=r"http://127.0.0.1:9 did not take row 1: .*; run the same command again later"
    ):
        main(["feedback", write("lemon"), "--url", "http://127.0.0.1:9"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column id; its first line must name id and label"),
        (json.dumps([1]).encode(), "has no column id"),
        (b"id,class\n", "has no column label"),
        (b"id,label\n\xff,\n", "is not CSV in UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, content: Any, words: str) -> None:
    file = tmp_path / "labels.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit, match=words):
        main(["feedback", str(file), "--url", "http://127.0.0.1:9"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "server:8000"], "--url is server:8000; it must be like"),
        (["--url", "http://127.0.0.1:9", "--api-key-file", "none"], "none cannot be used: No such file"),
        (["--url", "https://127.0.0.1:9", "--ca-file", "none"], "none cannot be used: No such file"),
        (["--url", "https://127.0.0.1:9", "--api-key-file", "key", "--ca-file", "none"], "key cannot be used: No such"),
    ],
)
def test_options_that_cannot_be_used_are_explained(write: Write, arguments: List[str], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        main(["feedback", write("lemon"), *arguments])
