"""Hands the socket over to a new gunicorn without losing a request: `systemctl reload model-server`.

systemd runs this with the environment and the release that a start would have now. gunicorn's master, told by
SIGUSR2, starts the new one (`prepare_successor`), which inherits the socket, loads the model and checks itself.
Once its workers serve it is the service's main process, and the old one is told to stop.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from model_server.server._gunicorn import log_error, prepare_execution, set_main_process
from model_server.settings import read_settings

ORDER = "handover.json"  # what the successor is to be
SUCCESSOR = "successor"  # its process id, as the target of a symbolic link
FORK_SECONDS = 10
POLL = 0.02  # seconds


class HandoverError(RuntimeError):
    """A handover that did not come about; the old server goes on. The message is one sentence."""


class ServingMaster:
    """Records which master is serving, as a symlink to its pid: a symlink needs no disk block.

    A worker that finds another master's pid there has a successor.
    """

    def __init__(self, directory: Optional[Path]) -> None:
        """Name the directory that belongs to the service while it runs; None: there is never a successor."""
        self._link = None if directory is None else directory / "serving"
        self._successor = None if directory is None else directory / SUCCESSOR

    def set(self, master: int) -> None:
        """Record that the workers of this master serve."""
        if self._link is None:
            return
        new = self._link.with_name(f"serving.{os.getpid()}")
        _remove(new)
        os.symlink(str(master), str(new))
        os.replace(str(new), str(self._link))

    def get(self) -> Optional[int]:
        """Return the pid of the master whose workers serve, None if there has been none."""
        return None if self._link is None else _process_in(self._link)

    def has_successor(self, master: int) -> bool:
        """Return whether another master is starting, but does not serve yet."""
        successor = None if self._successor is None else _process_in(self._successor)
        return successor is not None and successor != master and _is_alive(successor)


def prepare_successor(arbiter: Any, runtime_dir: Optional[Path]) -> None:
    """Make the child of a master, which is about to execute gunicorn again, execute what `ORDER` says.

    Args:
        arbiter: gunicorn's master in that child. The child must not return to the master's main loop, where it would
            stop the workers of its parent: on any error it exits.
        runtime_dir: has the order.
    """
    try:
        if runtime_dir is None:
            raise HandoverError("MODEL_SERVER_RUNTIME_DIR is not set.")
        order = runtime_dir / ORDER
        python, environment = json.loads(order.read_text(encoding="utf-8"))
        order.unlink()
        # A child of systemd's own: it would not notice the end of a main process that is a grandchild.
        if os.fork():
            os._exit(0)
        prepare_execution(arbiter, [python, "-m", "gunicorn", *sys.argv[1:]], environment)
        os.symlink(str(os.getpid()), str(runtime_dir / SUCCESSOR))
    except Exception as error:
        log_error(arbiter, f"The handover failed: {error}")
        os._exit(1)


def hand_over(master: int, runtime_dir: Path, on_taken_over: Callable[[int], None]) -> None:
    """Let a new gunicorn take the place of a running one; return when the old one's workers are gone.

    Args:
        master: process id of the running one.
        runtime_dir: of both.
        on_taken_over: called with the process id of the new one once its workers serve, before the old one stops.

    Raises:
        HandoverError: the new one did not start; nothing has changed.
    """
    serving_master, link = ServingMaster(runtime_dir), runtime_dir / SUCCESSOR
    forgotten = _process_in(link)
    _remove(link)
    if forgotten is not None:  # of a handover that was interrupted
        serving_master.set(master)  # so that its workers let their connections go one by one
        _end(forgotten)
    python = Path(sys.prefix).resolve() / "bin" / Path(sys.executable).name  # not through a link that moves
    order = runtime_dir / ORDER
    _remove(order)
    with os.fdopen(os.open(str(order), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump([str(python), {key: value for key, value in os.environ.items() if key != "MAINPID"}], file)
    try:
        successor = _call_successor(master, link)
        while serving_master.get() != successor:
            if not _is_alive(successor):
                raise HandoverError("the new server did not start, and the old one goes on; the lines above say why.")
            time.sleep(POLL)
    except BaseException:  # also the SIGTERM that systemd sends after TimeoutStartSec
        _end(_process_in(link))
        raise
    finally:
        _remove(order)
        _remove(link)
    on_taken_over(successor)
    with contextlib.suppress(ProcessLookupError):  # it has just died by itself
        os.kill(master, signal.SIGTERM)
    while _has_workers(master):  # without them it serves no one, however long it takes to tidy up
        time.sleep(POLL)


def _call_successor(master: int, link: Path) -> int:
    try:
        os.kill(master, signal.SIGUSR2)
    except ProcessLookupError:
        raise HandoverError(f"there is no process {master} to take over from.") from None
    deadline = time.monotonic() + FORK_SECONDS
    while _is_alive(master) and time.monotonic() < deadline:
        successor = _process_in(link)
        if successor is not None:
            return successor
        time.sleep(POLL)
    raise HandoverError("gunicorn did not start a successor; run systemctl restart model-server.")


def _process_in(link: Path) -> Optional[int]:
    try:
        return int(os.readlink(str(link)))
    except (OSError, ValueError):
        return None


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _is_alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _has_workers(master: int) -> bool:
    try:
        return bool(Path(f"/proc/{master}/task/{master}/children").read_bytes())
    except OSError:
        return False


def _end(process: Optional[int]) -> None:
    if process is None or not _is_gunicorn(process):  # its number may have passed to another
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGTERM)
        while _is_alive(process):
            time.sleep(POLL)


def _is_gunicorn(process: int) -> bool:
    try:
        return b"gunicorn" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def reload_service() -> None:
    """Hand over from the service's main process to a new one; the unit's ExecReload.

    Raises:
        HandoverError, SettingsError: the old one continues.
    """

    def stop(signum: int, frame: Any) -> NoReturn:
        raise HandoverError("it took longer than the unit's TimeoutStartSec; the old server goes on.")

    def tell_systemd(successor: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on there is no way back
        set_main_process(successor)

    signal.signal(signal.SIGTERM, stop)
    settings = read_settings()
    if settings.runtime_dir is None or not os.environ.get("MAINPID", "").isdigit():
        raise HandoverError("this is for systemd alone; run systemctl reload model-server.")
    hand_over(int(os.environ["MAINPID"]), settings.runtime_dir, tell_systemd)
