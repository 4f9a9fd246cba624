"""Slots: the metrics of a worker belong to its slot (0, 1, …), not to its process id.

prometheus_client keeps the metrics of each process in files of its own, named by default after the process id: every
replaced worker leaves files behind for good. Here a replacement takes the free slot, opens the files of its predecessor
and continues its counts. So nothing is counted twice, nothing is lost, and the number of files does not grow, also
while two masters hand over to each other.
"""

import contextlib
import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import Collection, Iterator, Optional

from prometheus_client import multiprocess

from model_server.metrics.values import FULL, count_as
from model_server.settings import METRICS_DIR, SettingsError

CHECK = "check"  # prefix of the process name under which a server's self-check counts

log = logging.getLogger("gunicorn.error")


class Slot:
    """A worker's slot in the metrics, its own as long as it lives.

    A file lock marks it as taken. The kernel releases the lock when the last process with the open file exits, so the
    successor of a dead master sees which slots living workers have.
    """

    def __init__(self, number: int, lock: Optional[int]) -> None:
        self.number = number
        self._lock = lock

    @classmethod
    def claim(cls, metrics_dir: Optional[Path], taken: Collection[int]) -> "Slot":
        """Take the lowest slot that is not in `taken` and that no other process has."""
        number = -1
        while True:
            number += 1
            if number in taken:
                continue
            try:
                lock = None if metrics_dir is None else _lock(metrics_dir, number)
            except BlockingIOError:
                continue
            except OSError as error:
                log.error("Slot %d of the metrics cannot be locked: %s.", number, error.strerror)
                lock = None
            slot = cls(number, lock)
            slot.release()
            return slot

    def use(self) -> None:
        """Count in this slot from now on; to be called in a worker, right after the fork."""
        count_as(str(self.number))

    def release(self) -> None:
        """Delete what was in progress; counters stay."""
        multiprocess.mark_process_dead(self.number)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close this process's lock file; other processes may keep the slot."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(metrics_dir: Path, number: int) -> int:
    lock = os.open(str(metrics_dir / f"{number}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def release_free_slots(metrics_dir: Optional[Path]) -> None:
    """Delete what was in progress in the slots of dead workers, and the files of an interrupted self-check."""
    for path in [] if metrics_dir is None else sorted(metrics_dir.glob(f"*_{CHECK}*.db")):
        path.unlink()
    for path in [] if metrics_dir is None else sorted(metrics_dir.glob("[0-9]*.lock")):
        with contextlib.suppress(BlockingIOError):
            slot = Slot(int(path.stem), _lock(path.parent, int(path.stem)))
            slot.release()
            slot.close()


@contextlib.contextmanager
def uncounted(metrics_dir: Optional[Path]) -> Iterator[None]:
    """Count the requests of the self-check in files that /metrics does not read, and delete these."""
    check = f"{CHECK}{os.getpid()}"
    previous = count_as(check)
    try:
        yield
    finally:
        count_as(previous)
        for path in [] if metrics_dir is None else metrics_dir.glob(f"*_{check}.db"):
            path.unlink()


def check_metrics_dir(metrics_dir: Optional[Path]) -> Path:
    """Make sure that the workers can share their metrics, and return the directory.

    Raises:
        SettingsError: the directory is not given, or no file can be written there.
    """
    if metrics_dir is None:
        raise SettingsError(f"{METRICS_DIR} is not set; it names the directory of the workers' shared metrics.")
    try:
        with tempfile.TemporaryFile(dir=str(metrics_dir)):
            pass
    except OSError as error:
        if error.errno in FULL:  # no reason not to serve: values.ValueFile counts in memory and logs it
            return metrics_dir
        problem = f"where no file can be written: {error.strerror}"
        raise SettingsError(f"{METRICS_DIR} is {str(metrics_dir)!r}, {problem}.") from None
    return metrics_dir
