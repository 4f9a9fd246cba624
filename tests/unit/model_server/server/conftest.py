import os
import signal
from pathlib import Path
from typing import Iterator

import pytest

from tests.unit.model_server.server.gunicorn_process import Server, is_alive, wait_for


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Yield a gunicorn with two workers around the app of `lemon`; a test's parameter adds to its environment."""
    (tmp_path / "metrics").mkdir()
    server = Server(tmp_path / "metrics", tmp_path / "log", **getattr(request, "param", {}))
    yield server
    try:
        if is_alive(server.master):
            os.kill(server.master, signal.SIGTERM)
            wait_for(lambda: not is_alive(server.master), 20)
        assert server.process.wait(20) in {0, -signal.SIGKILL}
    finally:
        server.process.kill()
        server.client.close()
