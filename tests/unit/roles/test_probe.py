"""The probe, against a server that answers what a test wants, and with the key and over the connection that it says."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import yaml

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.plays import ROLES, run_play
from tests.unit.roles.daemons import LOCAL, free_ports

PROGRAM = ROLES / "probe" / "files" / "model_server_probe.py"
IMAGE = next((ROLES.parent / "load_test" / "images").glob("*.jpg"))
EXPIRY = "probe_ssl_earliest_cert_expiry"
RIGHT = (200, json.dumps({"filename": None, "content_type": "image/jpeg", "likely_class": "apple"}))


class Server:
    """Gives `answer` to each POST, and keeps what came."""

    def __init__(self) -> None:
        self.answer: Tuple[int, str] = RIGHT
        self.asked: List[Tuple[str, Dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.path, dict(self.headers), body))
                status, text = outer.answer
                self.send_response(status)
                self.end_headers()
                while text == "slow":
                    self.wfile.write(b" ")
                    time.sleep(0.05)
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with server.http as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        http.shutdown()


class Probe:
    def __init__(self, port: int, log: Path) -> None:
        self._page, self._log = f"http://127.0.0.1:{port}/metrics", log

    @property
    def said(self) -> List[str]:
        return self._log.read_text().splitlines()

    def figures(self) -> Dict[str, float]:
        """Return name → value of the only target; nothing before the first answer."""
        try:
            with LOCAL.open(self._page, timeout=5) as page:
                text = page.read().decode()
        except OSError:
            return {}
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        return {name.split("{")[0]: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@contextmanager
def probing(directory: Path, *arguments: str, **environment: str) -> Iterator[Probe]:
    (port,) = free_ports(1)
    command = [sys.executable, str(PROGRAM), "--listen", f"127.0.0.1:{port}", "--interval", "0.1", "--timeout", "2"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--class", "apple", str(IMAGE), *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
    try:
        yield Probe(port, directory / "log")
    finally:
        process.kill()
        process.wait()


def test_right_answers_are_a_success(server: Server, tmp_path: Path) -> None:
    with probing(tmp_path, f"{server.url}/", MODEL_SERVER_PROBE_KEY="monitor.s3cret") as probe:
        wait_for(lambda: probe.figures().get("probe_success") == 1, 10, "the first answer")
        assert probe.figures()["probe_answer_right"] == 1
        assert 0 < probe.figures()["probe_duration_seconds"] < 2
        assert probe.said == []
    path, headers, body = server.asked[0]
    assert (path, headers["Content-Type"], headers["X-API-Key"]) == ("/probe", "image/jpeg", "monitor.s3cret")
    assert body == IMAGE.read_bytes()


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        ((200, RIGHT[1].replace("apple", "lemon")), 0, "the class 'lemon' in place of 'apple'"),
        ((503, '{"detail": "Too many predictions wait."}'), None, '503 Service Unavailable: {"detail": "Too many'),
        ((200, "<html>"), None, "an answer that is none of a model server: <html>"),
        ((200, "[]"), None, "an answer that is none of a model server: []"),
    ],
)
def test_other_answers_fail_are_told_once_and_so_is_the_end(
    server: Server, tmp_path: Path, answer: Tuple[int, str], right: Any, said: str
) -> None:
    server.answer = answer
    with probing(tmp_path, server.url) as probe:
        wait_for(lambda: len(server.asked) > 2, 10, "the third question")
        figures = probe.figures()
        assert (figures["probe_success"], figures.get("probe_answer_right")) == (0, right)
        assert [line[: len(server.url) + 2 + len(said)] for line in probe.said] == [f"{server.url}: {said}"]

        server.answer = RIGHT
        wait_for(lambda: probe.figures()["probe_success"] == 1, 10, "the right answer")
        assert probe.said[1:] == [f"{server.url}: right again"]


def test_a_server_that_never_comes_to_an_end_fails(server: Server, tmp_path: Path) -> None:
    """Each byte is in time; a quarter of a second without a new answer is none."""
    with probing(tmp_path, server.url, "--timeout", "0.3") as probe:
        wait_for(lambda: probe.figures().get("probe_success") == 1, 10, "the first answer")
        server.answer = (200, "slow")
        wait_for(lambda: probe.figures()["probe_success"] == 0, 10, "the failure")
        assert "probe_answer_right" not in probe.figures()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", *subject]
    subprocess.run([*command, "-keyout", path, "-out", tmp_path / "public.pem"], capture_output=True, check=True)
    path.write_text(path.read_text() + (tmp_path / "public.pem").read_text())
    return path


def test_a_certificate_is_judged_and_its_end_is_known_while_nobody_answers(
    server: Server, certificate: Path, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    url = f"https://localhost:{server.http.server_address[1]}"

    with probing(tmp_path, url) as probe:
        wait_for(lambda: probe.figures().get("probe_success") == 0, 10, "the refusal")
        assert "certificate verify failed" in probe.said[0]
    with probing(tmp_path, "--any-certificate", url) as probe:
        wait_for(lambda: probe.figures().get("probe_success") == 1, 10, "the answer")
        assert EXPIRY not in probe.figures()
    with probing(tmp_path, url, SSL_CERT_FILE=str(tmp_path / "public.pem")) as probe:
        wait_for(lambda: probe.figures().get("probe_success") == 1, 10, "the answer")
        assert 29 < (probe.figures()[EXPIRY] - time.time()) / 86400 <= 30
        server.http.socket.close()
        wait_for(lambda: probe.figures()["probe_success"] == 0, 10, "the failure")
        assert 29 < (probe.figures()[EXPIRY] - time.time()) / 86400 <= 30


def test_a_host_that_is_no_name_fails_alone(server: Server, tmp_path: Path) -> None:
    with probing(tmp_path, "http://a..b") as probe:
        wait_for(probe.figures, 10, "the first figures")
        assert probe.figures() == {"probe_success": 0}


def test_a_server_that_is_down_fails(server: Server, tmp_path: Path) -> None:
    server.http.server_close()
    with probing(tmp_path, server.url) as probe:
        wait_for(probe.figures, 10, "the first figures")
        assert probe.figures() == {"probe_success": 0}
        assert probe.said == [f"{server.url}: no answer: [Errno 111] Connection refused"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["models.example.org"], "models.example.org is no URL; write it as https://HOST or http://HOST:PORT"),
        (["--help"], "usage:"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(tmp_path: Path, arguments: List[str], sentence: str) -> None:
    command = [sys.executable, str(PROGRAM), "--class", "apple", str(IMAGE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert sentence in done.stdout + done.stderr


def test_unit_passes_on_what_the_user_set(tmp_path: Path) -> None:
    pytest.importorskip("ansible")
    task = {
        "ansible.builtin.template": {
            "src": str(ROLES / "probe/templates/etc/systemd/system/model-server-probe.service.j2"),
            "dest": str(tmp_path / "unit"),
            "mode": "0600",
        }
    }
    files = [str(ROLES / "probe" / name / "main.yml") for name in ("defaults", "vars")]
    play = {"hosts": "all", "gather_facts": False, "vars_files": files, "tasks": [task]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    mine = {
        "ansible_python_interpreter": sys.executable,
        "probe_class": 'half "ripe" 50 % $5',
        "probe_inventory_targets": ["https://models.example.org/"],
        "probe_targets": ["http://[::1]:8000"],
        "probe_verify_certificate": False,
    }
    run = run_play(tmp_path, "-i", "host,", "-c", "local", "-e", json.dumps(mine), "play.yml")
    assert run.returncode == 0, run.stdout

    (start,) = (line for line in (tmp_path / "unit").read_text().splitlines() if line.startswith("ExecStart="))
    assert (
        ' --any-certificate --listen 127.0.0.1:9116 --interval 10 --timeout 5 "--class=half \\"ripe\\" 50 %% $$5" '
        in start
    )
    assert start.endswith(" https://models.example.org http://[::1]:8000")


def test_the_figures_of_the_page_are_those_of_the_readme() -> None:
    readme = (ROLES / "probe" / "README.md").read_text()
    rules = yaml.safe_load((ROLES / "prometheus/files/rules/probe.yml").read_text())["groups"]
    asked = " ".join(rule["expr"] for group in rules for rule in group["rules"])

    for name in ("probe_success", "probe_answer_right", "probe_ssl_earliest_cert_expiry"):
        assert f"| `{name}` |" in readme
        assert name in asked
