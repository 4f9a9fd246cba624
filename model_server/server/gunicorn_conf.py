"""How gunicorn runs the server: `gunicorn --config python:model_server.server.gunicorn_conf`.

Sockets that systemd passes (LISTEN_FDS) take precedence over `bind`. SIGUSR2 is for `handover` alone.
"""

import gc
import logging
import sys
from typing import Any

from model_server.metrics.slots import Slot, release_free_slots, uncounted
from model_server.networks import Networks
from model_server.server._gunicorn import living_workers, load_app
from model_server.server.connections import ConnectionCounts
from model_server.server.handover import ServingMaster, prepare_successor
from model_server.server.self_check import SelfCheckError, check
from model_server.server.worker import DRAIN, Worker
from model_server.settings import SettingsError, read_settings

try:
    _settings = read_settings()
    # Names are looked up once. Not as gunicorn's own setting: before gunicorn 24 that takes no networks.
    _proxies = str(Networks(_settings.trusted_proxies, "trusted_proxies"))
    _settings = _settings.model_copy(update={"trusted_proxies": _proxies})
except SettingsError as _error:
    sys.exit(f"model server: {_error}")

_serving_master = ServingMaster(_settings.runtime_dir)
# During a handover, or while the workers of a dead master finish, there are twice as many slots in use.
_counts = ConnectionCounts(slots=4 * _settings.workers)

wsgi_app = "model_server.app:app_from_environment()"
bind = _settings.bind
workers = _settings.workers
worker_class = Worker
timeout = _settings.timeout
graceful_timeout = _settings.graceful_timeout + int(DRAIN) + 1  # idle connections are drained first
# Heartbeats are written to a file: on a disk, a worker would block while others write much to it.
worker_tmp_dir = None if _settings.runtime_dir is None else str(_settings.runtime_dir)
keepalive = _settings.keep_alive
# The model is loaded before the fork: READY means that it works, and the workers share its memory.
preload_app = True
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Let the server check itself before it accepts connections."""
    try:
        with uncounted(_settings.metrics_dir):
            check(load_app(server))
    except SelfCheckError as error:
        sys.exit(f"model server: {error}")


def when_ready(server: Any) -> None:
    """Forget what dead workers had in progress, and share what is loaded by now with the workers to come."""
    release_free_slots(_settings.metrics_dir)
    # A garbage collection over it would stop a worker for 0.1 s, and copy the pages that it touches.
    gc.freeze()


def pre_fork(server: Any, worker: Worker) -> None:
    """Give a new worker the lowest slot that no living one has."""
    slot = Slot.claim(_settings.metrics_dir, [other.slot.number for other in living_workers(server)])
    worker.assign(slot, _counts, _serving_master, _settings)


def post_fork(server: Any, worker: Worker) -> None:
    """Let the new worker count in its slot, and be the first to be killed when memory runs out."""
    for other in living_workers(server):
        other.slot.close()
    worker.slot.use()
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjustment:
            adjustment.write("500")
    except OSError as error:
        logging.getLogger("gunicorn.error").warning("The worker's OOM score cannot be raised: %s.", error.strerror)


def child_exit(server: Any, worker: Worker) -> None:
    """Forget what the dead worker had in progress."""
    _counts.remove(worker.slot.number)
    worker.slot.release()  # before another master can claim it
    worker.slot.close()


def pre_exec(server: Any) -> None:
    """Execute what a handover has ordered, in a child of the master."""
    prepare_successor(server, _settings.runtime_dir)
