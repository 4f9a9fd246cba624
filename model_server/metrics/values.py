"""The values of the metrics: floats in memory-mapped files, one file per kind of metric and process.

The format is prometheus_client's. A file is named after its process, `counter_0.db`; a process that takes over the
name of an earlier one continues its counts.
"""

import errno
import json
import logging
import mmap
import os
import struct
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from model_server.metrics import _prometheus_client
from model_server.settings import METRICS_DIR

FULL = (errno.ENOSPC, errno.EDQUOT)
INITIAL_SIZE = 1 << 16  # bytes

# A file is the number of bytes in use (int) and 4 bytes of padding, then entries: the length of the key (int), the key
# (JSON), padding to a multiple of 8, the value and its time (doubles; the time is not used).
_INT = struct.Struct("=i")
HEADER = 8  # bytes before the first entry
CELL = 8  # bytes of a double
VALUE = 2 * CELL  # bytes of a value and its time

log = logging.getLogger("gunicorn.error")


class MetricsFileError(RuntimeError):
    """A file of metrics that no worker can have written: if it were skipped, counters would seem to fall."""


class Entry(NamedTuple):
    """An entry of a file: its key, and the offsets of its first byte and of its value."""

    key: bytes
    begin: int
    value: int


def used_bytes(data: "bytes | mmap.mmap") -> int:
    """Return how many bytes of a file are in use; a new file is empty."""
    used: int = _INT.unpack_from(data)[0] if len(data) else 0
    return used


def entries(data: "bytes | mmap.mmap", path: str) -> Iterator[Entry]:
    """Find the entries in the content of the file at `path`.

    Raises:
        MetricsFileError: the file is damaged.
    """
    used = used_bytes(data)
    if used > len(data):
        raise MetricsFileError(f"{path} has {len(data)} bytes, but its header says that {used} are in use.")
    position = HEADER
    while position < used:
        (length,) = _INT.unpack_from(data, position)
        begin, value = position, position + 4 + length + 8 - (length + 4) % 8
        position = value + VALUE
        if length < 0 or position > used:
            raise MetricsFileError(f"{path} has an entry of {length} bytes at {begin}, beyond the bytes in use.")
        yield Entry(data[begin + 4 : begin + 4 + length], begin, value)


class ValueFile:
    """A file of values that survives a full disk.

    prometheus_client creates sparse files; on a full disk a write to one kills the process (SIGBUS). This one reserves
    its space first. On a full disk, new values stay in memory and are missing on the page /metrics.
    """

    _reported = False

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Optional[int] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._map = self._mapped(max(INITIAL_SIZE, os.stat(path).st_size))
        self._cells = memoryview(self._map).cast("d")
        self._positions = {entry.key: entry.value for entry in entries(self._map, path)}
        self._used = max(HEADER, used_bytes(self._map))
        self._map[: _INT.size] = _INT.pack(self._used)

    def cell(self, key: bytes) -> "Tuple[memoryview[float], int]":
        """Return where the value of a key is: an array of doubles, and its index there. It stays valid for good."""
        if key not in self._positions:
            self._append(key)
        return self._cells, self._positions[key] // CELL

    def close(self) -> None:
        """Close the file; it stays mapped as long as its cells are in use."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, key: bytes) -> None:
        padded = key + b" " * (8 - (len(key) + 4) % 8)
        entry = _INT.pack(len(key)) + padded + bytes(VALUE)
        end = self._used + len(entry)
        if end > len(self._map):
            size = len(self._map)
            while size < end:
                size *= 2
            self._map = self._mapped(size, self._map[: self._used])
            self._cells = memoryview(self._map).cast("d")
        self._map[self._used : end] = entry
        self._positions[key] = end - VALUE
        self._used = end
        self._map[: _INT.size] = _INT.pack(end)  # last: whoever reads the file meanwhile finds whole entries

    def _mapped(self, size: int, content: bytes = b"") -> mmap.mmap:
        """Map the file, made larger if needed; on a full disk, map memory from then on, which begins with `content`."""
        if self._file is not None:
            try:
                _reserve(self._file, size)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._report(error)
                self.close()
            else:
                return mmap.mmap(self._file, size)
        memory = mmap.mmap(-1, size)
        memory[: len(content)] = content
        return memory

    def _report(self, error: OSError) -> None:
        if not ValueFile._reported:
            ValueFile._reported = True
            log.error("%s cannot grow: %s; metrics of this worker are not shown.", self._path, error.strerror)


def _reserve(file: int, size: int) -> None:
    os.posix_fallocate(file, 0, size)


class Value:
    """A float in a file of the process: what prometheus_client's metrics are made of.

    prometheus_client's own MmapedValue takes a lock at each change, asks for the process id and looks its place up in a
    dictionary; after a forward pass, with cold caches, that doubles the cost of counting. Here one thread counts,
    `count_as` announces a new process name, and each value knows its place.
    """

    _multiprocess = True  # prometheus_client asks for it
    __slots__ = ("_cells", "_index", "_key", "_kind")

    def __init__(self, kind: str, *key: Any, multiprocess_mode: str = "", **_: Any) -> None:
        """Open the value, for prometheus_client: `key` is metric, name, names and values of the labels, help text."""
        metric, name, label_names, label_values, help_text = key
        labels = dict(zip(label_names, label_values))
        self._kind = f"{kind}_{multiprocess_mode}" if kind == "gauge" else kind
        self._key = json.dumps([metric, name, labels, help_text], sort_keys=True).encode()
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
            file = _files[self._kind] = ValueFile(os.path.join(os.environ[METRICS_DIR], f"{self._kind}_{_process}.db"))
        self._cells, self._index = file.cell(self._key)


_process = "master"
_files: Dict[str, ValueFile] = {}
_values: List[Value] = []


def count_as(process: str) -> str:
    """Continue in the files of this process name, and return the previous name."""
    global _process
    previous, _process = _process, process
    for file in _files.values():
        file.close()
    _files.clear()
    for value in _values:
        value._open()
    return previous


if METRICS_DIR in os.environ:  # the condition by which prometheus_client chooses values in files
    _prometheus_client.use(Value)
