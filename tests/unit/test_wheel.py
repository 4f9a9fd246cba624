"""A release is named after the wheel's bytes, so that nothing but the sources may change them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

REPOSITORY = Path(__file__).parents[2]


def build(sources: Path) -> bytes:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "build"]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    (wheel,) = (sources / "build").iterdir()
    return wheel.read_bytes()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    shutil.copytree(
        REPOSITORY / "model_server", tmp_path / "model_server", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_compiled_files_and_times_do_not_change_the_wheel(sources: Path) -> None:
    before = build(sources)
    cache = sources / "model_server" / "__pycache__"
    cache.mkdir()
    (cache / "app.cpython-38.pyc").write_bytes(b"compiled")
    for path in sources.rglob("*.py"):
        os.utime(path, (1, 1))

    assert build(sources) == before


def test_a_changed_source_changes_the_wheel(sources: Path) -> None:
    before = build(sources)
    with (sources / "model_server" / "app.py").open("a") as source:
        source.write("# changed\n")

    assert build(sources) != before
