"""How gunicorn runs the server: `gunicorn --config python:model_server.gunicorn_conf`.

Sockets that systemd hands over (LISTEN_FDS) take precedence over `bind`.
"""

import sys
from typing import Any, Dict

from uvicorn_worker import UvicornWorker

from model_server.settings import SettingsError, read_settings

try:
    _settings = read_settings()
except SettingsError as _error:
    sys.exit(f"model server: {_error}")


class Worker(UvicornWorker):
    """Serves with uvloop and httptools and without an access log: the metrics say what an access log would."""

    CONFIG_KWARGS: Dict[str, Any] = {  # noqa: RUF012 - its type is set by the base class
        "loop": "uvloop",
        "http": "httptools",
        "ws": "none",
        "lifespan": "off",
        "access_log": False,
        "timeout_graceful_shutdown": _settings.graceful_timeout,
    }


wsgi_app = "model_server.app:app_from_environment()"
bind = _settings.bind
workers = _settings.workers
worker_class = Worker
timeout = _settings.timeout
graceful_timeout = _settings.graceful_timeout
keepalive = 75  # longer than any client or proxy keeps an idle connection, so that it is never us who cut it first
# The model is loaded before the fork: READY means that it works, and the workers share its memory.
preload_app = True
control_socket_disable = True


def pre_fork(server: Any, worker: Any) -> None:
    """Give a new worker the lowest slot that no living one has."""
    from model_server.monitoring import release_slot  # noqa: PLC0415

    taken = {other.slot for other in server.WORKERS.values()}
    worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
    release_slot(worker.slot)


def post_fork(server: Any, worker: Any) -> None:
    """Let the new worker count in its slot."""
    from model_server.monitoring import take_slot  # noqa: PLC0415

    take_slot(worker.slot)


def child_exit(server: Any, worker: Any) -> None:
    """Forget what the lost worker had in progress."""
    from model_server.monitoring import release_slot  # noqa: PLC0415

    release_slot(worker.slot)
