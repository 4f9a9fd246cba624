"""The page /metrics, added up from the files of all workers.

The same page as from prometheus_client's MultiProcessCollector and generate_latest, in a thirteenth of the time: the
names in a file are parsed once; after that, only its values are read.
"""

import glob
import os
import struct
from itertools import accumulate
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from model_server.metrics.slots import CHECK
from model_server.metrics.values import (
    CELL,
    HEADER,
    VALUE,
    Key,
    MetricsFileError,
    entries,
    parse_key,
    put_aside,
    restore_lost_files,
    used_bytes,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Labels = Tuple[Tuple[str, str], ...]
_Sample = Tuple[str, _Labels]
_IsWanted = Callable[[Key], bool]


class _Layout:
    """Where the entries of one file are; files only ever gain entries, unless they are deleted.

    Attributes:
        size: number of bytes to read.
    """

    def __init__(self, path: str, data: bytes) -> None:
        found = list(entries(data, path))
        self._used = used_bytes(data)
        self.size = max(HEADER, self._used)
        self.keys = [parse_key(entry.key) for entry in found]
        self._heads = tuple(data[entry.begin : entry.value] for entry in found)
        self._entries = struct.Struct("=" + "".join(f"{len(head)}sd{VALUE - CELL}x" for head in self._heads))

    def read(self, data: bytes) -> Optional[Sequence[float]]:
        """Return the values of all entries, or None if the layout has changed."""
        if used_bytes(data) != self._used or len(data) < self._used:
            return None
        fields = self._entries.unpack_from(data, HEADER) if self._heads else ()
        return fields[1::2] if fields[::2] == self._heads else None


class _PageTemplate:
    """The page with placeholders for the values."""

    def __init__(self, layouts: Dict[str, _Layout], is_wanted: _IsWanted) -> None:
        families: Dict[str, Tuple[str, str, Dict[_Sample, None]]] = {}
        for path, layout in layouts.items():
            for key in filter(is_wanted, layout.keys):
                _, _, samples = families.setdefault(key.family, (_kind_of(path), key.help_text, {}))
                samples[key.name, key.labels] = None

        text: List[str] = []
        self._columns: Dict[_Sample, int] = {}
        self._order: List[int] = []  # columns in the order of the page
        self._cumulative: List[slice] = []
        for family, (kind, help_text, samples) in sorted(families.items()):
            name = f"{family}_total" if kind == "counter" else family
            text.append(f"# HELP {name} {_escape(help_text)}\n# TYPE {name} {kind}\n".replace("%", "%%"))
            buckets: Dict[_Labels, Dict[float, _Sample]] = {}
            for sample in samples:
                bounds = [float(value) for label, value in sample[1] if label == "le"] if kind == "histogram" else []
                if bounds:
                    others = tuple(label for label in sample[1] if label[0] != "le")
                    buckets.setdefault(others, {})[bounds[0]] = sample
                else:
                    self._append(text, sample)
            for labels, series in buckets.items():
                begin = len(self._columns)
                for _, sample in sorted(series.items()):
                    self._append(text, sample)
                self._cumulative.append(slice(begin, len(self._columns)))
                text.append(_line((f"{family}_count", labels)))
                self._order.append(len(self._columns) - 1)
        self._text = "".join(text)
        left_out = len(self._columns)  # a column that the page does not have
        self._places = {
            path: [self._columns.get((key.name, key.labels), left_out) for key in layout.keys]
            for path, layout in layouts.items()
        }

    def _append(self, text: List[str], sample: _Sample) -> None:
        text.append(_line(sample))
        self._order.append(len(self._columns))
        self._columns[sample] = len(self._columns)

    def fill(self, values: Dict[str, Sequence[float]]) -> str:
        totals = [0.0] * (len(self._columns) + 1)
        for path, places in self._places.items():
            is_maximum = os.path.basename(path).startswith("gauge_livemax_")
            for column, value in zip(places, values[path]):
                totals[column] = max(totals[column], value) if is_maximum else totals[column] + value
        for series in self._cumulative:
            totals[series] = accumulate(totals[series])
        return self._text % tuple([totals[column] for column in self._order])


class Page:
    """Writes the page; keeps the layouts of the files from one scrape to the next."""

    def __init__(self, directory: Path, is_wanted: _IsWanted = lambda key: True) -> None:
        """Write the page of a directory.

        Args:
            directory: has the files of all workers.
            is_wanted: says of a series whether the page has it; files keep those of a former model or release, too.
        """
        self._pattern = os.path.join(glob.escape(str(directory)), "*.db")
        self._is_wanted = is_wanted
        self._layouts: Dict[str, _Layout] = {}
        self._template = _PageTemplate({}, is_wanted)

    def render(self) -> bytes:
        """Add up all files of the directory; one that is damaged is put aside.

        Its worker writes it again within a second: its values are missing until then.
        """
        layouts: Dict[str, _Layout] = {}
        values: Dict[str, Sequence[float]] = {}
        for path in sorted(glob.glob(self._pattern)):
            if f"_{CHECK}" in os.path.basename(path):
                continue
            try:
                try:
                    layouts[path], values[path] = self._read(path)
                except MetricsFileError as error:
                    put_aside(path, str(error))
                    restore_lost_files()
                    layouts[path], values[path] = self._read(path)  # there is one if it is this process's own
            except FileNotFoundError:  # also the gauges of a worker that has just died
                continue
        if layouts != self._layouts:
            self._layouts, self._template = layouts, _PageTemplate(layouts, self._is_wanted)
        return self._template.fill(values).encode()

    def _read(self, path: str) -> Tuple[_Layout, Sequence[float]]:
        layout = self._layouts.get(path)
        with open(path, "rb", buffering=0) as file:
            if layout is None:
                _check_kind(path)
            # Most of a file is not in use; reading all of it would take most of the time.
            data = file.read(-1 if layout is None else layout.size)
            found = None if layout is None else layout.read(data)
            if layout is None or found is None:
                data += file.read()
                layout = _Layout(path, data)
                found = layout.read(data) or ()
        return layout, found


def _kind_of(path: str) -> str:
    return os.path.basename(path).partition("_")[0]


def _check_kind(path: str) -> None:
    kind = _kind_of(path)
    if kind not in {"counter", "gauge", "histogram", "summary"}:
        raise MetricsFileError(f"{path} is not named like a file of metrics")
    mode = os.path.basename(path).split("_")[1]
    if kind == "gauge" and mode not in {"sum", "livesum", "livemax"}:
        raise MetricsFileError(f"{path} has gauges of mode {mode}, but only sums and maxima are supported")


def _line(sample: _Sample) -> str:
    name, labels = sample
    inside = ",".join(f'{label}="{_escape(value, quotes=True)}"' for label, value in labels)
    return (f"{name}{{{inside}}}" if labels else name).replace("%", "%%") + " %r\n"


def _escape(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text
