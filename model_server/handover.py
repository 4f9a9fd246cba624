"""Hands the socket over to a new gunicorn without losing a request: `systemctl reload model-server`.

systemd runs this with the environment and the release that a start would have now. gunicorn's master, told by
SIGUSR2, starts the new one (`prepare_successor`), which inherits the socket, loads the model and checks itself.
Once its workers serve it is the service's main process, and the old one is told to stop.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from model_server.settings import SettingsError, read_settings

ORDER = "handover.json"  # what the successor is to be
SUCCESSOR = "successor"  # its process id, as the target of a symbolic link
LISTEN_FDS_START = 3
FORK_SECONDS = 10
POLL = 0.02  # seconds


class HandoverError(RuntimeError):
    """A handover that did not come about; the old server goes on. The message is one sentence."""


class Place:
    """Where it is said which master's workers serve: a symbolic link to its process id, as it needs no space.

    A worker that sees another's name there has a successor.
    """

    def __init__(self, directory: Optional[Path]) -> None:
        """Name the directory that belongs to the service while it runs; None: there is no successor, ever."""
        self._link = None if directory is None else directory / "serving"
        self._successor = None if directory is None else directory / SUCCESSOR

    def take(self, master: int) -> None:
        """Say that workers of this master serve."""
        if self._link is None:
            return
        new = self._link.with_name(f"serving.{os.getpid()}")
        _remove(new)
        os.symlink(str(master), str(new))
        os.replace(str(new), str(self._link))

    def holder(self) -> Optional[int]:
        """Return the process id of the master whose workers serve, None if there has been none."""
        return None if self._link is None else _process_in(self._link)

    def is_awaited(self, master: int) -> bool:
        """Return whether another master than this one is about to take it, but has yet to load the model."""
        successor = None if self._successor is None else _process_in(self._successor)
        return successor is not None and successor != master and _is_alive(successor)


def prepare_successor(server: Any, runtime_dir: Optional[Path]) -> None:
    """Make the child of a master, which is about to execute gunicorn anew, execute what `ORDER` says.

    Args:
        server: gunicorn's arbiter in that child. It must not return to the arbiter's loop, where it would stop the
            workers of its parent: on any error it ends.
        runtime_dir: has the order.
    """
    try:
        if runtime_dir is None:
            raise HandoverError("MODEL_SERVER_RUNTIME_DIR is not set.")
        order = runtime_dir / ORDER
        python, environment = json.loads(order.read_text(encoding="utf-8"))
        order.unlink()
        # systemd would not notice the end of a main process that is no child of its own.
        if os.fork():
            os._exit(0)
        # gunicorn has moved systemd's sockets to other descriptors, but says that they are where they were.
        spare = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for listener in server.LISTENERS]
        if server.systemd:
            for number, descriptor in enumerate(spare):
                os.dup2(descriptor, LISTEN_FDS_START + number)
        server.cfg.env_orig = environment
        arguments = [python, "-m", "gunicorn", *sys.argv[1:]]
        server.START_CTX = {**server.START_CTX, 0: python, "args": arguments}
        os.symlink(str(os.getpid()), str(runtime_dir / SUCCESSOR))
    except Exception as error:
        server.log.error("The handover failed: %s", error)
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
    place, link = Place(runtime_dir), runtime_dir / SUCCESSOR
    forgotten = _process_in(link)
    _remove(link)
    if forgotten is not None:  # of a handover that was interrupted
        place.take(master)  # so that its workers let their connections go one by one
        _end(forgotten)
    python = Path(sys.prefix).resolve() / "bin" / Path(sys.executable).name  # not through a link that moves
    order = runtime_dir / ORDER
    _remove(order)
    with os.fdopen(os.open(str(order), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump([str(python), {key: value for key, value in os.environ.items() if key != "MAINPID"}], file)
    try:
        successor = _call_successor(master, link)
        while place.holder() != successor:
            if not _is_alive(successor):
                raise HandoverError("the new server did not start, and the old one goes on; the lines above say why.")
            time.sleep(POLL)
    except BaseException:  # also when systemd's patience ends
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
    raise HandoverError("gunicorn did not start a successor; systemctl restart model-server starts anew.")


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


def main() -> None:
    """Run as the unit's ExecReload."""

    def stop(signum: int, frame: Any) -> NoReturn:
        raise HandoverError("it took longer than the unit's TimeoutStartSec; the old server goes on.")

    signal.signal(signal.SIGTERM, stop)
    try:
        settings = read_settings()
        if settings.runtime_dir is None or not os.environ.get("MAINPID", "").isdigit():
            raise HandoverError("this is for systemd alone; run systemctl reload model-server.")
        hand_over(int(os.environ["MAINPID"]), settings.runtime_dir, _tell_systemd)
    except (HandoverError, SettingsError) as error:
        sys.exit(f"model server: handover: {error}")


def _tell_systemd(successor: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on there is nothing to take back
    import logging  # noqa: PLC0415

    from gunicorn.systemd import sd_notify  # type: ignore[import-untyped]  # noqa: PLC0415

    sd_notify(f"MAINPID={successor}", logging.getLogger("gunicorn.error"))


if __name__ == "__main__":
    main()
