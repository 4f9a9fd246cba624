"""How gunicorn runs the server: `gunicorn --config python:model_server.gunicorn_conf`.

Sockets that systemd hands over (LISTEN_FDS) take precedence over `bind`. SIGUSR2 has `model_server.handover` behind it.
"""

import gc
import logging
import signal
import sys
from typing import Any, Dict

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from uvicorn_worker import UvicornWorker

from model_server.settings import SettingsError, read_settings

try:
    _settings = read_settings()
except SettingsError as _error:
    sys.exit(f"model server: {_error}")

from model_server.handover import Place
from model_server.serving import DRAIN, Server, Shares

_place = Place(_settings.runtime_dir)
# During a handover, or while the workers of a lost master finish, there are twice as many slots in use.
_shares = Shares(slots=4 * _settings.workers)


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

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = Server(self.config, _shares, self.slot.number, _place, self.ppid)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def callback_notify(self) -> None:
        # The kernel ends a worker that hangs when no master is left to do it; gunicorn would after `timeout`.
        signal.alarm(2 * _settings.timeout)
        await super().callback_notify()


wsgi_app = "model_server.app:app_from_environment()"
bind = _settings.bind
workers = _settings.workers
worker_class = Worker
timeout = _settings.timeout
graceful_timeout = _settings.graceful_timeout + int(DRAIN) + 1  # after idle connections have been let go
# Signs of life are written to a file: where it is on a disk, a worker stands still while others write much to it.
worker_tmp_dir = None if _settings.runtime_dir is None else str(_settings.runtime_dir)
keepalive = 75  # longer than any client or proxy keeps an idle connection, so that it is never us who cut it first
# The model is loaded before the fork: READY means that it works, and the workers share its memory.
preload_app = True
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Let the server check itself before it takes any connection."""
    from model_server.monitoring import uncounted  # noqa: PLC0415
    from model_server.self_check import SelfCheckError, check  # noqa: PLC0415

    try:
        with uncounted(_settings.metrics_dir):
            check(server.app.wsgi())
    except SelfCheckError as error:
        sys.exit(f"model server: {error}")


def when_ready(server: Any) -> None:
    """Forget what workers that are gone had in progress, and share what is loaded by now with those to come."""
    from model_server.monitoring import release_free_slots  # noqa: PLC0415

    release_free_slots(_settings.metrics_dir)
    # A worker that looked through it for garbage would stand still for 0.1 s, and get a copy of what it looks at.
    gc.freeze()


def pre_fork(server: Any, worker: Any) -> None:
    """Give a new worker the lowest slot that no living one has."""
    from model_server.monitoring import Slot  # noqa: PLC0415

    worker.slot = Slot.claim(_settings.metrics_dir, [other.slot.number for other in server.WORKERS.values()])


def post_fork(server: Any, worker: Any) -> None:
    """Let the new worker count in its slot, and be the first to go when memory runs out."""
    from model_server.monitoring import take_slot  # noqa: PLC0415

    for other in server.WORKERS.values():
        other.slot.close()
    take_slot(worker.slot)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjustment:
            adjustment.write("500")
    except OSError as error:
        logging.getLogger("gunicorn.error").warning("The worker's OOM score cannot be raised: %s.", error.strerror)


def child_exit(server: Any, worker: Any) -> None:
    """Forget what the lost worker had in progress."""
    _shares.remove(worker.slot.number)
    worker.slot.release()  # before another master can take it
    worker.slot.close()


def pre_exec(server: Any) -> None:
    """Become what a handover has written down, in a child of the master."""
    from model_server.handover import prepare_successor  # noqa: PLC0415

    prepare_successor(server, _settings.runtime_dir)
