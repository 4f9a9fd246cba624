"""The load host asks the target that it is to load."""

import contextlib
import http.server
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Dict, Iterator

import pytest
import yaml

from tests.unit.plays import run_play

pytest.importorskip("ansible")

ROLE = Path(__file__).parents[3] / "roles" / "locust"


class Target(http.server.BaseHTTPRequestHandler):
    """Answers /STATUS/readyz with that status."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Target) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def verify(directory: Path, targets: Dict[str, str]) -> str:
    """Ask each target from a load host of its own, and return what Ansible says."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    role = {"locust_insecure": False, "locust_state": "present", "locust_web_port": 0}
    hosts = {name: {"locust_host": target, **role, **local} for name, target in targets.items()}
    tasks = yaml.safe_load((ROLE / "tasks" / "verify.yml").read_text())[1:]  # without the deployed command
    variables = {"vars_files": [str(ROLE / "vars" / "main.yml")], "gather_facts": False}
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (directory / "play.yml").write_text(json.dumps([{"hosts": "all", "tasks": tasks, **variables}]))
    return run_play(directory, "-i", "hosts.json", "play.yml").stdout


def test_a_target_that_does_not_answer_the_load_host_fails_the_play(tmp_path: Path) -> None:
    with serve() as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        targets = {"ready": f"{server}/200", "shut": f"{server}/403/", "other": f"{server}/404", "gone": nowhere}
        said = verify(tmp_path, targets)

    assert "fatal: [ready]" not in said, said
    assert "fatal: [shut]" not in said
    assert f"{server}/404/readyz does not answer other as a model server does (Status code was 404" in said
    assert f"{nowhere}/readyz does not answer gone as a model server does (" in said
    assert "correct locust_host, or the host_address of the server" in said
