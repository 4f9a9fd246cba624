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
from functools import lru_cache
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
    """A file of metrics that no worker can have written; the message is a sentence without its full stop."""


class Key(NamedTuple):
    """What an entry is the value of: the family, the sample's name and its sorted labels, the help text."""

    family: str
    name: str
    labels: Tuple[Tuple[str, str], ...]
    help_text: str


class Entry(NamedTuple):
    """An entry of a file: its key, and the offsets of its first byte and of its value."""

    key: bytes
    begin: int
    value: int


@lru_cache(maxsize=1 << 14)  # the files of all workers have nearly the same keys
def parse_key(encoded: bytes) -> Key:
    """Read a key.

    Raises:
        ValueError: it is none.
    """
    fields = json.loads(encoded)
    if not isinstance(fields, list) or [type(field) for field in fields] != [str, str, dict, str]:
        raise ValueError("not a list of a family, a name, labels and a help text")
    family, name, labels, help_text = fields
    if not all(isinstance(value, str) for value in labels.values()):
        raise ValueError("a label that is no text")
    return Key(family, name, tuple(sorted(labels.items())), help_text)


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
        raise MetricsFileError(f"{path} has {len(data)} bytes, but its header says that {used} are in use")
    if used < 0:
        raise MetricsFileError(f"{path} has a header that says that {used} bytes are in use")
    position = HEADER
    while position < used:
        (length,) = _INT.unpack_from(data, position)
        begin, value = position, position + 4 + length + 8 - (length + 4) % 8
        position = value + VALUE
        if length < 0 or position > used:
            raise MetricsFileError(f"{path} has an entry of {length} bytes at {begin}, beyond the bytes in use")
        key = data[begin + 4 : begin + 4 + length]
        try:
            parse_key(key)
        except ValueError as error:
            raise MetricsFileError(f"{path} has an entry at {begin} whose key cannot be read") from error
        yield Entry(key, begin, value)


def put_aside(path: str, problem: str) -> None:
    """Rename a file that cannot be used, so that nobody reads it again; only who renames it logs the problem."""
    aside = path + ".damaged"
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        return
    log.error("%s; it is kept as %s, and counting continues in a new file.", problem, aside)


class ValueFile:
    """A file of values that survives a full disk.

    prometheus_client creates sparse files; on a full disk a write to one kills the process (SIGBUS). This one reserves
    its space first. On a full disk, new values stay in memory and are missing on the page /metrics.
    """

    _reported = False

    def __init__(self, path: str) -> None:
        """Open the file; one that is damaged is put aside, and a new one takes its place."""
        self._path = path
        try:
            self._open()
        except MetricsFileError as error:
            self.close()
            put_aside(path, str(error))
            self._open()

    def _open(self) -> None:
        self._file: Optional[int] = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        status = os.fstat(self._file)
        self._identity = status.st_dev, status.st_ino
        self._map = self._mapped(max(INITIAL_SIZE, status.st_size))
        self._positions = {entry.key: entry.value for entry in entries(self._map, self._path)}
        self._cells = memoryview(self._map).cast("d")
        self._used = max(HEADER, used_bytes(self._map))
        self._map[: _INT.size] = _INT.pack(self._used)

    def is_lost(self) -> bool:
        """Return whether the file has been removed or renamed: whoever reads its path does not see it any more."""
        if self._file is None:
            return False
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != self._identity

    def replaced(self) -> "ValueFile":
        """Return a new file at the same path with the same values."""
        new = ValueFile(self._path)
        for key, position in self._positions.items():
            cells, index = new.cell(key)
            cells[index] = self._cells[position // CELL]
        self.close()
        return new

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

    def get_exemplar(self) -> None:
        """Return none: the page has no exemplars."""

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


def restore_lost_files() -> None:
    """Write the files of this process again that another one has put aside."""
    lost = [kind for kind, file in _files.items() if file.is_lost()]
    for kind in lost:
        _files[kind] = _files[kind].replaced()
    for value in _values if lost else ():
        value._open()


if METRICS_DIR in os.environ:  # the condition by which prometheus_client chooses values in files
    _prometheus_client.use(Value)
