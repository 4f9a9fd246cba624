import errno
import os
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from prometheus_client.mmap_dict import MmapedDict

from model_server.metrics import values as values_module
from model_server.metrics.exposition import Page
from model_server.metrics.values import (
    INITIAL_SIZE,
    Value,
    ValueFile,
    count_as,
    put_aside,
    restore_lost_files,
)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield an empty directory for the files of this process, which has no values yet."""
    monkeypatch.setattr(values_module, "_values", [])
    monkeypatch.setattr(values_module, "_files", {})
    monkeypatch.setattr(values_module, "_process", "master")
    monkeypatch.setattr(ValueFile, "_reported", False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    yield tmp_path
    for file in values_module._files.values():
        file.close()


def counter(name: str) -> Value:
    return Value("counter", name, f"{name}_total", (), (), "Help")


def counted(path: Path) -> List[float]:
    """Return the values of a file, as prometheus_client reads them."""
    reader: Any = MmapedDict
    return [value for _, value, _, _ in reader.read_all_values_from_file(str(path))]


def full(file: int, size: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_values_are_in_the_files_of_their_kind(directory: Path) -> None:
    value, gauge = counter("a"), Value("gauge", "b", "b", (), (), "Help", multiprocess_mode="livesum")
    value.inc(1)
    value.inc(0.5)
    gauge.set(7)
    gauge.inc(-3)
    assert (value.get(), gauge.get()) == (1.5, 4)
    assert counted(directory / "counter_master.db") == [1.5]
    assert counted(directory / "gauge_livesum_master.db") == [4]


def test_another_process_counts_in_files_of_its_own_and_a_successor_counts_on(directory: Path) -> None:
    value = counter("a")
    value.inc(1)
    assert count_as("0") == "master"
    value.inc(10)
    assert count_as("1") == "0"
    value.inc(100)
    assert count_as("0") == "1"
    value.inc(1000)
    assert [counted(directory / f"counter_{name}.db") for name in ("master", "0", "1")] == [[1], [1010], [100]]


def test_values_stay_when_their_file_grows(directory: Path) -> None:
    values = [counter(f"{'x' * 1000}{number}") for number in range(200)]
    for number, value in enumerate(values):
        value.inc(number)
    assert counted(directory / "counter_master.db") == list(range(200))
    assert (directory / "counter_master.db").stat().st_size > 200 * 1000


def test_a_file_for_which_there_is_no_space_is_kept_in_memory(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(values_module, "_reserve", full)
    values = [counter("a"), Value("histogram", "b", "b_sum", (), (), "Help")]
    for value in values:
        value.inc(3)
        assert value.get() == 3
    assert [path.stat().st_size for path in directory.iterdir()] == [0, 0]
    assert [record.message for record in caplog.records] == [
        f"{directory}/counter_master.db cannot grow: No space left on device; metrics of this worker are not shown."
    ], "told once"


def test_a_file_that_cannot_grow_goes_on_in_memory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "counter_master.db"
    first = counter("first")
    first.inc(1)
    monkeypatch.setattr(values_module, "_reserve", full)
    values = [counter(f"{'x' * 1000}{number}") for number in range(200)]
    for number, value in enumerate([first, *values]):
        value.inc(number)
    assert [value.get() for value in values] == list(range(1, 201))
    assert path.stat().st_size == INITIAL_SIZE
    assert counted(path)[0] == 1, "what it had goes on there"


def test_space_is_taken_before_it_is_written_to(directory: Path) -> None:
    counter("a")
    assert (directory / "counter_master.db").stat().st_blocks * 512 >= INITIAL_SIZE, "no holes"


def test_a_damaged_file_is_put_aside_when_it_is_opened(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    counter("a").inc(3)
    count_as("0")
    path = directory / "counter_master.db"
    path.write_bytes(b"\xff" * 1000)
    values_module._values.clear()
    count_as("master")
    counter("a").inc(5)
    assert counted(path) == [5]
    assert path.with_name("counter_master.db.damaged").read_bytes()[:1000] == b"\xff" * 1000
    assert caplog.text.count("counting continues in a new file") == 1


def test_a_worker_writes_a_file_again_that_was_put_aside(directory: Path) -> None:
    value, gauge = counter("a"), Value("gauge", "b", "b", (), (), "Help", multiprocess_mode="livesum")
    value.inc(3)
    gauge.set(7)
    path = directory / "counter_master.db"
    put_aside(str(path), "It is damaged")
    restore_lost_files()
    value.inc(1)
    assert counted(path) == [4]
    assert counted(directory / "gauge_livesum_master.db") == [7]


def test_a_page_has_the_values_of_its_own_process_again_at_once(directory: Path) -> None:
    value = counter("a")
    value.inc(3)
    path = directory / "counter_master.db"
    data = path.read_bytes()
    path.write_bytes(data[:14] + b"\xff\xfe" + data[16:])
    assert b"a_total 3.0" in Page(directory).render()
    value.inc(1)
    assert b"a_total 4.0" in Page(directory).render()
