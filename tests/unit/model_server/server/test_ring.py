import contextlib
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any, List

import pytest

from model_server.metrics.samples import SampleReason
from model_server.server import ring
from model_server.server.ring import BLOCK, Ring, read_ring

REJECTED, UNCERTAIN, OUTLYING = SampleReason
MAX_BYTES = 30 * BLOCK  # 10 blocks for each reason: five samples of an image and its JSON


@pytest.fixture(autouse=True)
def _large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "FEWEST", 1)


def files(directory: Path) -> List[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != ring.LOCK)


def on_disk(directory: Path) -> int:
    """Return what the files take that are there at a moment; others may go and come meanwhile."""
    total = 0
    for path in files(directory):
        with contextlib.suppress(FileNotFoundError):
            total += -(-path.stat().st_size // BLOCK) * BLOCK
    return total


def keep(directory: Path, reason: SampleReason = OUTLYING, image: bytes = b"image", **answer: Any) -> bool:
    return Ring(directory, MAX_BYTES).keep(reason, image, ".jpg", answer)


def test_a_sample_is_an_image_and_what_was_answered(tmp_path: Path) -> None:
    assert keep(tmp_path / "samples", confidence=0.5)
    (sample,) = read_ring(tmp_path / "samples")

    assert sample.reason is OUTLYING
    assert sample.image.read_bytes() == b"image"
    assert sample.answer == {"image": f"{sample.name}.jpg", "confidence": 0.5}
    assert [path.suffix for path in files(tmp_path)] == [".jpg", ".json"]


def test_samples_are_for_their_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        keep(tmp_path / "samples")
    finally:
        os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "samples", tmp_path / "samples" / "outlying")}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in files(tmp_path)} == {0o600}


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    for number in range(8):
        keep(tmp_path, number=number)
    assert [sample.answer["number"] for sample in read_ring(tmp_path)] == [3, 4, 5, 6, 7]
    keep(tmp_path, image=bytes(3 * BLOCK))
    assert [sample.answer.get("number") for sample in read_ring(tmp_path)] == [5, 6, 7, None]


def test_a_flood_of_one_reason_leaves_the_others(tmp_path: Path) -> None:
    keep(tmp_path, REJECTED)
    keep(tmp_path, UNCERTAIN)
    for _ in range(20):
        keep(tmp_path, OUTLYING)
    assert [sample.reason for sample in read_ring(tmp_path)] == [REJECTED, UNCERTAIN, *[OUTLYING] * 5]


def test_an_image_above_the_share_is_left_out(tmp_path: Path) -> None:
    keep(tmp_path)
    assert not keep(tmp_path, image=bytes(10 * BLOCK))
    assert keep(tmp_path, image=bytes(9 * BLOCK))
    assert len(read_ring(tmp_path)) == 1


@pytest.mark.parametrize(("max_bytes", "largest"), [(3_000_000, 100_000), (1_500_000_000, 5_000_000)])
def test_an_image_has_a_tenth_of_the_share_and_5_mb_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int, largest: int
) -> None:
    monkeypatch.undo()
    kept = Ring(tmp_path, max_bytes)
    assert kept.largest == largest
    assert kept.keep(OUTLYING, bytes(largest), ".jpg", {})
    assert not kept.keep(OUTLYING, bytes(largest + 1), ".jpg", {})
    assert len(read_ring(tmp_path)) == 1


def test_there_are_not_more_than_people_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "MOST", 3)
    for number in range(5):
        keep(tmp_path, number=number)
    assert [sample.answer["number"] for sample in read_ring(tmp_path)] == [2, 3, 4]


def flood(directory: Path, size: int) -> None:
    for _ in range(60):
        keep(directory, OUTLYING, bytes(size))


def test_the_cap_holds_while_several_processes_write(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    keep(tmp_path)
    writers = [context.Process(target=flood, args=(tmp_path, size)) for size in (10, BLOCK, 2 * BLOCK, 5 * BLOCK)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(on_disk(tmp_path))
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0] * 4
    assert max(seen, default=0) <= MAX_BYTES // 3
    samples = read_ring(tmp_path)
    assert 1 <= len(samples) <= 5
    assert len(files(tmp_path)) == 2 * len(samples)


def die_at(directory: Path, step: str) -> None:
    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "rename":
        Path.rename = die  # type: ignore[assignment]
    else:
        write = ring._write
        ring._write = lambda path, content: die() if path.suffix == ".partial" else write(path, content[:3])
    keep(directory)


@pytest.mark.parametrize("step", ["write", "rename"])
def test_what_a_killed_worker_leaves_is_no_sample_and_goes_with_the_next(tmp_path: Path, step: str) -> None:
    keep(tmp_path, number=1)
    process = multiprocessing.get_context("fork").Process(target=die_at, args=(tmp_path, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(files(tmp_path)) > 2
    assert len(read_ring(tmp_path)) == 1

    keep(tmp_path, number=2)
    assert [sample.answer["number"] for sample in read_ring(tmp_path)] == [1, 2]
    assert len(files(tmp_path)) == 4


def write_too_much(directory: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, BLOCK))
    try:
        keep(directory, image=bytes(2 * BLOCK))
    except OSError:
        os._exit(7)


def test_of_what_cannot_be_written_nothing_is_left(tmp_path: Path) -> None:
    keep(tmp_path)
    before = files(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=write_too_much, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert files(tmp_path) == before


def test_a_sample_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    keep(tmp_path, number=1)
    (tmp_path / "outlying" / "0.json").touch()
    (tmp_path / "outlying" / "1.json").write_text(json.dumps([]))
    assert [sample.answer["number"] for sample in read_ring(tmp_path)] == [1]


def test_a_directory_that_is_not_there_has_no_samples(tmp_path: Path) -> None:
    assert read_ring(tmp_path / "none") == []
