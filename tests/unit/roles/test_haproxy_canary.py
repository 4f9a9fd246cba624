"""The share of a canary, by a real haproxy in front of two small servers."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

from tests.unit.model_server.server.gunicorn_process import wait_for
from tests.unit.plays import ROLES, run_play

pytest.importorskip("ansible")
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy")


class Backend:
    """A server that answers its name until it is stopped."""

    def __init__(self, name: str) -> None:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.at = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Door:
    """The role's haproxy without certificate and user, in a directory."""

    def __init__(self, directory: Path, servers: List[str]) -> None:
        self.directory, self.servers = directory, servers
        with socket.socket() as http_, socket.socket() as metrics:
            for free in (http_, metrics):
                free.bind(("127.0.0.1", 0))
            self.port, self.metrics_port = http_.getsockname()[1], metrics.getsockname()[1]
        shutil.copytree(str(ROLES / "haproxy"), str(directory / "roles" / "haproxy"))
        tasks = directory / "roles" / "haproxy" / "tasks"
        text = (tasks / "canary.yml").read_text()
        (tasks / "canary.yml").write_text(text.replace("/etc/haproxy/haproxy.cfg", str(self.configuration)))
        template = {"src": "etc/haproxy/haproxy.cfg.j2", "dest": str(self.configuration), "mode": "0644"}
        (tasks / "render.yml").write_text(json.dumps([{"ansible.builtin.template": template}]))
        self._run("render")
        for own, others in {
            r"(?m)^    (log|user|group|chroot|ssl-|errorfile|option (httplog|dontlog|log-sep)).*\n": "",
            r"(?m) ssl crt .*$": "",
            r"(?m)^frontend http\n(    .*\n)*": "",
        }.items():
            self.configuration.write_text(re.sub(own, others, self.configuration.read_text()))

    @property
    def configuration(self) -> Path:
        return self.directory / "haproxy.cfg"

    def canary(self, share: float) -> str:
        """Give the second server a share; return what the play says."""
        return self._run("canary", __haproxy_canary=self.servers[1], __haproxy_canary_share=str(share))

    def _run(self, tasks: str, **variables: str) -> str:
        given = {
            "haproxy_model_servers": self.servers,
            "haproxy_listen_address": "127.0.0.1",
            "haproxy_https_port": self.port,
            "haproxy_metrics_port": self.metrics_port,
            "__haproxy_metrics_url": f"http://127.0.0.1:{self.metrics_port}/metrics",
            "ansible_managed": "Managed",
            **variables,
        }
        role = {"ansible.builtin.include_role": {"name": "haproxy", "tasks_from": tasks}}
        play = {"hosts": "localhost", "gather_facts": False, "tasks": [role]}
        (self.directory / "play.yml").write_text(json.dumps([play]))
        programs = {"systemctl": f"echo reload >>{self.directory}/log; kill -USR2 $(cat {self.directory}/pid)"}
        options = ("-e", json.dumps(given), "play.yml")
        run = run_play(self.directory, *options, programs=programs, ROLES_PATH=str(self.directory / "roles"))
        assert run.returncode == 0, run.stdout
        return run.stdout

    def ask(self, number: int) -> Dict[str, int]:
        """Return who has answered how many of some requests."""
        answered: Dict[str, int] = Counter()
        for _ in range(number):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            connection.request("GET", "/predict")
            answer = connection.getresponse()
            answered[f"{answer.status} {answer.read().decode()}"] += 1
            connection.close()
        return dict(answered)


@pytest.fixture
def backends() -> Iterator[List[Backend]]:
    servers = [Backend("stable"), Backend("canary")]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def door(tmp_path: Path, backends: List[Backend]) -> Iterator[Door]:
    door = Door(tmp_path, [server.at for server in backends])
    command = [str(HAPROXY), "-W", "-f", str(door.configuration)]
    with (tmp_path / "haproxy.log").open("wb") as log, subprocess.Popen(command, stderr=log, stdout=log) as process:
        (tmp_path / "pid").write_text(str(process.pid))

        def both_serve() -> bool:
            try:
                return len(door.ask(8)) == 2
            except OSError:
                return False

        wait_for(both_serve, 30, (tmp_path / "haproxy.log").read_text())
        yield door
        process.terminate()


@needs_haproxy
def test_canary_gets_its_share_and_the_others_answer_for_it(door: Door, backends: List[Backend]) -> None:
    before = door.configuration.read_text()
    assert "changed=0" not in door.canary(25)
    answered = door.ask(400)
    assert sum(answered.values()) == answered["200 stable"] + answered["200 canary"] == 400
    assert 55 <= answered["200 canary"] <= 145

    assert "changed=0" in door.canary(25), "a second run changes nothing"
    assert (door.directory / "log").read_text().count("reload") == 1

    door.canary(0)
    assert door.configuration.read_text() == before
    answered = door.ask(40)
    assert set(answered) == {"200 stable", "200 canary"}


@needs_haproxy
def test_canary_that_dies_is_answered_by_the_others_and_the_last_one_gets_all(
    door: Door, backends: List[Backend]
) -> None:
    door.canary(50)
    backends[1].stop()
    assert door.ask(20) == {"200 stable": 20}
    backends[1] = Backend("unused")


@needs_haproxy
def test_canary_that_is_the_last_one_gets_everything(door: Door, backends: List[Backend]) -> None:
    door.canary(0.01)
    backends[0].stop()
    wait_for(lambda: door.ask(5) == {"200 canary": 5}, 30)
    backends[0] = Backend("unused")
