"""Preprocessing on CPython 3.8, whose last Pillow has no official way to its pixels: `script/bench preprocessing`.

`python -m benchmarks.preprocessing` prints the CPU seconds per image of each size, as JSON.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import List

from benchmarks.figures import Bar, judge, show
from benchmarks.servers import BUNDLE, CACHE, REPOSITORY

OLD_PYTHON = CACHE / "python3.8" / "bin" / "python"  # script/bench makes it
SIZES = ((640, 480), (1920, 1080))
WARM_UP, COUNT = 20, 100  # images
BARS = tuple(
    Bar(f"CPU time of preprocessing {width}×{height}, to this Python's", 1.2, "lower", "ratio")
    for width, height in SIZES
)


def measure(rounds: int) -> bool:
    """Print what preprocessing costs on CPython 3.8 to this Python, in turns, and return whether it meets the bars."""
    pairs = [(_run(OLD_PYTHON), _run(Path(sys.executable))) for _ in range(rounds)]
    old, new = ([median(sizes) for sizes in zip(*found)] for found in zip(*pairs))
    for (width, height), before, own in zip(SIZES, old, new):
        print(f"{width}×{height}: {before * 1e3:.2f} ms CPU on CPython 3.8, {own * 1e3:.2f} on this one")
    return show(judge({bar.name: before / own for bar, before, own in zip(BARS, old, new)}, BARS))


def _run(python: Path) -> List[float]:
    command = [str(python), "-m", "benchmarks.preprocessing"]
    found: List[float] = json.loads(subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout)
    return found


def main() -> None:
    """Time the steps between a decoded image and the forward pass, on one thread."""
    from model_server.commands.drawings import draw_fruit  # noqa: PLC0415
    from model_server.model.bundle import read_bundle  # noqa: PLC0415
    from model_server.model.classifier import Classifier  # noqa: PLC0415 - this one imports torch

    classifier = Classifier(read_bundle(BUNDLE))
    seconds = []
    for width, height in SIZES:
        image = draw_fruit("apple", Random("preprocessing"), width, height)
        for turn in range(WARM_UP + COUNT):
            if turn == WARM_UP:
                began = time.process_time()
            classifier.preprocess(image)
        seconds.append((time.process_time() - began) / COUNT)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
