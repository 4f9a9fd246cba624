"""Compares the page with the one of prometheus_client, on files that prometheus_client wrote."""

import random
import struct
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import prometheus_client.values
import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    generate_latest,
    multiprocess,
)
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from model_server.metrics.exposition import Page
from model_server.metrics.slots import CHECK
from model_server.metrics.values import Key

AWKWARD = ["plain", 'quo"ted', "back\\slash", "new\nline", "50 %", "%d %r", "лимон 🍋", "", "a,b=c", "\\n"]


class Workers:
    """Counts in the files of one slot after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.slot = "master"
        self.values = prometheus_client.values.MultiProcessValue(lambda: self.slot)  # type: ignore[no-untyped-call]


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    workers = Workers(tmp_path)
    monkeypatch.setattr(prometheus_client.values, "ValueClass", workers.values)
    opened: List[MmapedDict] = []

    def open_file(name: str) -> MmapedDict:
        opened.append(MmapedDict(name))  # type: ignore[no-untyped-call]
        return opened[-1]

    monkeypatch.setattr(prometheus_client.values, "MmapedDict", open_file)
    yield workers
    for file in opened:
        file.close()  # type: ignore[no-untyped-call]


Families = Dict[str, Tuple[str, str, Dict[Tuple[str, Tuple[Tuple[str, str], ...]], float]]]


def parse(page: bytes) -> Families:
    found: Families = {}
    for family in text_string_to_metric_families(page.decode()):
        samples = [((sample.name, tuple(sorted(sample.labels.items()))), sample.value) for sample in family.samples]
        assert len(dict(samples)) == len(samples), f"{family.name} has duplicates"
        assert family.name not in found, f"{family.name} comes twice"
        found[family.name] = family.type, family.documentation, dict(samples)
    return found


def reference(directory: Path) -> Families:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    return parse(generate_latest(registry))


def assert_same(page: Page, directory: Path) -> None:
    ours, theirs = parse(page.render()), reference(directory)
    assert {name: family[:2] for name, family in ours.items()} == {name: family[:2] for name, family in theirs.items()}
    for name, (_, _, samples) in theirs.items():
        assert ours[name][2] == pytest.approx(samples, rel=1e-12), name


def make_metrics() -> List[Any]:
    # Not in a registry, for two tests may use the same names.
    return [
        Counter("plain", "No labels", registry=None),
        Counter("labelled_total", 'Help with "quotes", \\ and\na second line, 100 %', ["one", "two"], registry=None),
        Gauge("running", "In progress", ["method"], multiprocess_mode="livesum", registry=None),
        Gauge("stock", "Kept", multiprocess_mode="sum", registry=None),
        Histogram("seconds", "Durations", ["path", "le_not"], registry=None),
        Histogram("size", "Sizes", registry=None, buckets=[4**k * 1000 for k in range(12)]),
        Summary("summed", "A summary", ["x"], registry=None),
    ]


def count(metrics: List[Any], number: int) -> None:
    plain, labelled, running, stock, seconds, size, summed = metrics
    plain.inc(number)
    stock.set(number)
    for index, text in enumerate(AWKWARD):
        labelled.labels(text, AWKWARD[-index]).inc(number + index / 3)
        running.labels(text).inc(index)
        seconds.labels(text, "x").observe(0.001 * 4**index)
        size.observe(10**index)
        summed.labels(text).observe(number)


def test_an_empty_directory_makes_an_empty_page(tmp_path: Path) -> None:
    assert Page(tmp_path).render() == b""


def test_the_page_is_that_of_prometheus_client(workers: Workers) -> None:
    page, metrics = Page(workers.directory), make_metrics()
    assert_same(page, workers.directory)
    for number, slot in enumerate(["master", "0", "1", "2", "0", "11"]):
        workers.slot = slot
        count(metrics, number)
        assert_same(page, workers.directory)
        assert_same(Page(workers.directory), workers.directory)


def test_the_self_check_is_not_counted(workers: Workers) -> None:
    metrics = make_metrics()
    count(metrics, 1)
    before = Page(workers.directory).render()
    workers.slot = f"{CHECK}123"
    count(metrics, 2)
    assert (workers.directory / f"counter_{CHECK}123.db").exists()
    assert Page(workers.directory).render() == before


def test_new_series_appear(workers: Workers) -> None:
    page, metrics = Page(workers.directory), make_metrics()
    for slot in "01":
        workers.slot = slot
        count(metrics, 1)
    assert_same(page, workers.directory)
    for index in range(2000):  # far beyond the 64 KiB that a file begins with
        metrics[1].labels("new", str(index)).inc(index)
        if index % 500 == 0:
            assert_same(page, workers.directory)
    assert_same(page, workers.directory)


def test_series_that_are_not_wanted_are_left_out(workers: Workers) -> None:
    def is_wanted(key: Key) -> bool:
        return key.family != "size" and ("one", "plain") not in key.labels

    page, metrics = Page(workers.directory, is_wanted), make_metrics()
    for slot in "01":
        workers.slot = slot
        count(metrics, 2)
        shown, everything = parse(page.render()), reference(workers.directory)
        assert everything.keys() - shown.keys() == {"size"}
        labelled = everything["labelled"][2]
        assert shown["labelled"][2] == {key: value for key, value in labelled.items() if ("one", "plain") not in key[1]}
        assert len(shown["labelled"][2]) < len(labelled)
        assert shown["seconds"] == everything["seconds"]


def test_the_gauges_of_a_lost_worker_go(workers: Workers) -> None:
    page, metrics = Page(workers.directory), make_metrics()
    for slot in "01":
        workers.slot = slot
        count(metrics, 1)
    assert_same(page, workers.directory)
    multiprocess.mark_process_dead(1)  # type: ignore[no-untyped-call]
    assert_same(page, workers.directory)
    multiprocess.mark_process_dead(0)  # type: ignore[no-untyped-call]
    assert "running" not in parse(page.render())
    assert_same(page, workers.directory)


@pytest.mark.parametrize("after", [["PUT"], ["PUT", "GET"], ["OPTIONS"], ["GET", "PUT", "HEAD"]])
def test_a_replaced_file_is_read_again(workers: Workers, after: List[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(workers.directory)
    for slot in "01":
        workers.slot = slot
        gauge = Gauge("running", "In progress", ["method"], multiprocess_mode="livesum", registry=None)
        for method in ("GET", "PUT"):
            gauge.labels(method).inc()
    assert_same(page, workers.directory)
    # Of the same length, and likely at the same inode: only what is in it tells that it is another.
    multiprocess.mark_process_dead(1)  # type: ignore[no-untyped-call]
    replacement = Workers(workers.directory)
    replacement.slot = "1"
    monkeypatch.setattr(prometheus_client.values, "ValueClass", replacement.values)
    gauge = Gauge("running", "In progress", ["method"], multiprocess_mode="livesum", registry=None)
    for method in after:
        gauge.labels(method).inc(7)
    assert_same(page, workers.directory)


def test_a_file_that_was_just_made_counts_once_it_is_written(workers: Workers) -> None:
    count(make_metrics(), 1)
    page = Page(workers.directory)
    before = parse(page.render())
    (workers.directory / "counter_7.db").write_bytes(b"")
    (workers.directory / "histogram_7.db").write_bytes(bytes(65536))
    assert parse(page.render()) == before
    for kind in ("counter", "histogram"):
        written = (workers.directory / f"{kind}_master.db").read_bytes()
        (workers.directory / f"{kind}_7.db").write_bytes(written)
    assert parse(page.render()) != before
    assert_same(page, workers.directory)


def test_a_series_with_values_that_are_no_numbers(workers: Workers) -> None:
    gauge = Gauge("odd", "Odd", ["x"], multiprocess_mode="sum", registry=None)
    gauge.labels("inf").set(float("inf"))
    gauge.labels("negative").set(float("-inf"))
    gauge.labels("large").set(1e300)
    gauge.labels("small").set(-1.5e-300)
    assert_same(Page(workers.directory), workers.directory)


def key_size(data: bytes) -> int:
    """Return the length of the first entry's key."""
    length: int = struct.unpack_from("=i", data, 8)[0]
    return length


DAMAGE: Dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:100],
    "of a negative length": lambda data: data[:8] + struct.pack("i", -5) + data[12:],
    "random": lambda data: data[:8] + random.Random(1).getrandbits(8 * 900).to_bytes(900, "big") + data[908:],
    "with a key that is no text": lambda data: data[:14] + b"\xff\xfe" + data[16:],
    "with a key that is no list": lambda data: data[:12] + b"0".ljust(key_size(data)) + data[12 + key_size(data) :],
    "negative in use": lambda data: struct.pack("i", -1) + data[4:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_put_aside_and_logged_once(
    workers: Workers, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    count(make_metrics(), 1)
    whole = Page(workers.directory).render()
    path = workers.directory / "counter_master.db"
    damaged = DAMAGE[damage](path.read_bytes())
    path.write_bytes(damaged)
    for page in (Page(workers.directory), Page(workers.directory)):
        rendered = page.render()
        assert b"labelled_total" not in rendered
        assert b"seconds_count" in rendered
        assert set(rendered.splitlines()) < set(whole.splitlines())
    assert path.with_name("counter_master.db.damaged").read_bytes() == damaged
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(f"{path} has ")
    assert line.endswith(f"; it is kept as {path}.damaged, and counting continues in a new file.")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gauge_min_7.db", "has gauges of mode min, but only sums and maxima are supported"),
        ("x.db", "is not named like a file"),
    ],
)
def test_a_file_that_cannot_be_added_up_is_put_aside(
    workers: Workers, name: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    count(make_metrics(), 1)
    page = Page(workers.directory)
    whole = page.render()
    (workers.directory / name).write_bytes((workers.directory / "counter_master.db").read_bytes())
    assert page.render() == whole
    assert f"{name} {problem}" in caplog.text
