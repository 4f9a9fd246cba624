"""Where prometheus_client keeps its values when there are several processes: in files, one for each kind of metric.

They carry the name that a process is given. A process that gets the name of an earlier one counts on in its files.
"""

import contextlib
import errno
import logging
import mmap
import os
from typing import Any, Dict, Iterator, List, Optional, Tuple

import prometheus_client.values
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from model_server.settings import METRICS_DIR

FULL = (errno.ENOSPC, errno.EDQUOT)
GROWTH = 1 << 16  # bytes; prometheus_client begins with so many, too
CELL = 8  # bytes of a value

log = logging.getLogger("gunicorn.error")


class MetricsFile(MmapedDict):
    """prometheus_client's, on a disk that may fill up.

    That one makes its files of holes, and a hole for which there is no space ends the process that writes to it.
    Here the space is taken first. Where there is none, the process counts in memory what is not in the file yet,
    and the page goes without.
    """

    _told = False

    def __init__(self, filename: str) -> None:
        self._cells: Optional[memoryview[float]] = None
        try:
            with open(filename, "ab") as file:
                _reserve(file.fileno(), max(GROWTH, file.tell()))
            super().__init__(filename)  # type: ignore[no-untyped-call]
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._tell(filename, error)
            with _in_memory() as path:
                super().__init__(path)  # type: ignore[no-untyped-call]

    def cell(self, key: str) -> "Tuple[memoryview[float], int]":
        """Return where the value of a key is: `cells` of all values, as floats, and its index among them.

        It stays there: what is made later may get cells of its own.
        """
        self.read_value(key)  # type: ignore[no-untyped-call] # makes it where there is none
        if self._cells is None or self._cells.obj is not self._m:
            self._cells = memoryview(self._m).cast("d")
        return self._cells, self._positions[key] // CELL

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + 40 > self._capacity:  # with length, padding, value and time
            try:
                _reserve(self._f.fileno(), 2 * self._capacity)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._tell(self._fname, error)
                known = bytes(self._m)
                self._f.close()
                with _in_memory() as path:
                    self._f = open(path, "a+b")  # noqa: SIM115 - stays open
                self._f.write(known)
                self._f.flush()
                self._m = mmap.mmap(self._f.fileno(), self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file, which stays mapped as long as there are cells."""
        self._f.close()

    @classmethod
    def _tell(cls, filename: str, error: OSError) -> None:
        if not cls._told:
            cls._told = True
            log.error("%s cannot grow: %s; metrics of this worker are not shown.", filename, error.strerror)


def _reserve(file: int, size: int) -> None:
    os.posix_fallocate(file, 0, size)


@contextlib.contextmanager
def _in_memory() -> Iterator[str]:
    file = os.memfd_create("metrics")
    yield f"/proc/self/fd/{file}"
    os.close(file)


class Value:
    """A float in a file of the process; what prometheus_client's metrics consist of.

    Its own MmapedValue takes a lock at each change, asks whether the process is another one by now, and looks up
    where the value is: that costs most after a forward pass, when the processor's caches hold nothing of it any more.
    Here one thread counts, a process says when its name changes, and a value knows its place.
    """

    _multiprocess = True  # prometheus_client asks
    __slots__ = ("_cells", "_index", "_key", "_kind")

    def __init__(self, kind: str, *key: Any, multiprocess_mode: str = "") -> None:
        """Open the value; `key` is what `mmap_key` takes: names of metric and value, labels and a help text."""
        self._kind = f"{kind}_{multiprocess_mode}" if kind == "gauge" else kind
        self._key = mmap_key(*key)
        self._open()
        _values.append(self)

    def inc(self, amount: float) -> None:
        self._cells[self._index] += amount

    def set(self, value: float, timestamp: Optional[float] = None) -> None:
        self._cells[self._index] = value

    def get(self) -> float:
        return self._cells[self._index]

    def _open(self) -> None:
        file = _files.get(self._kind)
        if file is None:
            file = MetricsFile(os.path.join(os.environ[METRICS_DIR], f"{self._kind}_{_process}.db"))
            _files[self._kind] = file
        self._cells, self._index = file.cell(self._key)


_process = "master"
_files: Dict[str, MetricsFile] = {}
_values: List[Value] = []


def count_as(process: str) -> str:
    """Go on in the files of this name from now on, and return the former."""
    global _process
    former, _process = _process, process
    for file in _files.values():
        file.close()
    _files.clear()
    for value in _values:
        value._open()
    return former


if METRICS_DIR in os.environ:  # prometheus_client decides by the same test, at its import
    prometheus_client.values.ValueClass = Value
