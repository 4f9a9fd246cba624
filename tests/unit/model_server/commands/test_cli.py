import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


def train_demo(out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "model_server", "train-demo", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_interrupted_command_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with train_demo(tmp_path / "bundle") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("train-demo: drawing")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "train-demo: interrupted.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_command_ends_without_a_word_when_nobody_reads_its_output(tmp_path: Path) -> None:
    with train_demo(tmp_path / "bundle") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()  # gevent's `communicate`, when Locust is imported, would read both
    assert (process.returncode, error) == (141, "")
    assert list(tmp_path.iterdir()) == []
