"""Plays on the machine of the tests, kept apart from its own configuration of Ansible and from what runs on it."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional, Tuple

ROLES = Path(__file__).parents[2] / "roles"


def run_play(
    directory: Path, *arguments: str, programs: Optional[Mapping[str, str]] = None, **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Run `ansible-playbook` in a directory with this repository's roles.

    Args:
        directory: where it runs, and keeps what it writes for itself.
        *arguments: of `ansible-playbook`.
        programs: name → shell script; modules find these before the machine's own.
        **settings: of Ansible: `GATHERING="explicit"` is its ANSIBLE_GATHERING.
    """
    (directory / "bin").mkdir(exist_ok=True)
    for name, script in (programs or {}).items():
        (directory / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / "bin" / name).chmod(0o755)
    own = {
        "HOME": str(directory),
        "ROLES_PATH": str(ROLES),
        "STRATEGY_PLUGINS": str(ROLES.parent / "playbooks" / "strategy_plugins"),
        "STRATEGY": "mitogen_or_linear",
        "CALLBACK_RESULT_FORMAT": "json",
        "NOCOLOR": "1",
    }
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), *arguments],
        cwd=directory,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            **{f"ANSIBLE_{name}": value for name, value in {**own, **settings}.items()},
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def pages(page: Callable[[str], Tuple[str, str]]) -> Iterator[int]:
    """Serve what plays ask for by GET, and yield the port: `page` has content type and text of a path."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, text = page(self.path)
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
