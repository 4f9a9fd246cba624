"""Everything that is used of gunicorn beyond its documented interface: its settings and hooks."""

import fcntl
import logging
import os
from typing import Any, Dict, List

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.systemd import SD_LISTEN_FDS_START, sd_notify  # type: ignore[import-untyped]

# What is used, and what for. tests/unit/model_server/test_holds.py fails with this when a release has changed it.
HOLDS: Dict[str, str] = {
    "gunicorn.arbiter.Arbiter.WORKERS": "the living workers: a new one gets a slot that none of them has",
    "gunicorn.arbiter.Arbiter.LISTENERS": "the listening sockets, which the successor inherits",
    "gunicorn.arbiter.Arbiter.START_CTX": "the command that SIGUSR2 executes: the successor's",
    "gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR": "the exit status of a worker that could not start",
    "gunicorn.arbiter.Arbiter:self.systemd": "whether systemd passed the sockets",
    "gunicorn.arbiter.Arbiter:self.app": "loads the app in the master, where the self-check asks it",
    "gunicorn.arbiter.Arbiter:self.log": "the error log",
    "gunicorn.config.Config:self.env_orig": "the environment that SIGUSR2 passes on",
    "gunicorn.workers.base.Worker:self.ppid": "the process id of the worker's master",
    "gunicorn.systemd.sd_notify(state, logger, unset_environment)": "tells systemd the main process",
    "gunicorn.systemd.SD_LISTEN_FDS_START": "the first descriptor of systemd's sockets",
}
WORKER_BOOT_ERROR: int = Arbiter.WORKER_BOOT_ERROR


def living_workers(arbiter: Any) -> List[Any]:
    """Return the workers of a master; in `pre_fork` and `post_fork`, without the new one."""
    return list(arbiter.WORKERS.values())


def load_app(arbiter: Any) -> Any:
    """Return the app, which the master loads before the first fork."""
    return arbiter.app.wsgi()


def log_error(arbiter: Any, sentence: str) -> None:
    arbiter.log.error(sentence)


def prepare_execution(arbiter: Any, arguments: List[str], environment: Dict[str, str]) -> None:
    """Make the child of a master that was told to execute itself (SIGUSR2) execute something else.

    Args:
        arbiter: of that child, in the hook `pre_exec`.
        arguments: the program and its arguments; it inherits the listening sockets.
        environment: of the program; gunicorn adds the variables that announce the sockets.
    """
    if arbiter.systemd:
        # gunicorn has moved systemd's sockets to other descriptors, but announces them where they were.
        spare = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for listener in arbiter.LISTENERS]
        for number, descriptor in enumerate(spare):
            os.dup2(descriptor, SD_LISTEN_FDS_START + number)
    arbiter.cfg.env_orig = environment
    arbiter.START_CTX = {**arbiter.START_CTX, 0: arguments[0], "args": arguments}


def set_main_process(process: int) -> None:
    """Tell systemd which process is the main one of the service."""
    sd_notify(f"MAINPID={process}", logging.getLogger("gunicorn.error"))


def tell_ready() -> None:
    """Tell systemd that this process has started."""
    sd_notify("READY=1", logging.getLogger("gunicorn.error"))
