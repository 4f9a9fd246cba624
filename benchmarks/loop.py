"""The lower limit: the model server's decoding, preprocessing and forward pass in a plain loop, without HTTP.

`python -m benchmarks.loop DECODING SECONDS IMAGE BUNDLE` prints the CPU seconds per image and the class, as JSON.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Tuple

from benchmarks.servers import BUNDLE, REPOSITORY, WITH_TORCHVISION, WORKERS
from model_server.model.preprocessing import decoding_of, load, open_image

MAX_PIXELS = 50_000_000
WARM_UP = 15  # batches


def measure(decoding: str, image: Path, seconds: float, bundle: Path = BUNDLE) -> Tuple[float, str]:
    """Return the CPU seconds per image and the class; as many loops run at once as a server has workers.

    Raises:
        subprocess.CalledProcessError: a loop failed; its error is on standard error.
    """
    command = [sys.executable, "-m", "benchmarks.loop", decoding, str(seconds), str(image), str(bundle)]
    environment = {**os.environ, **WITH_TORCHVISION}  # the engine of a bundle may be there
    loops = []
    try:
        loops = [
            subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE) for _ in range(WORKERS)
        ]
        printed = [loop.communicate()[0] for loop in loops]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    for loop in loops:
        if loop.returncode:
            raise subprocess.CalledProcessError(loop.returncode, command)
    answers = [json.loads(lines) for lines in printed]
    return mean(answer["cpu"] for answer in answers), answers[0]["likely_class"]


def main() -> None:
    from model_server.model.bundle import read_bundle  # noqa: PLC0415 - this one imports torch
    from model_server.model.classifier import Classifier  # noqa: PLC0415

    decoding, seconds, image = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]).read_bytes()
    classifier = Classifier(read_bundle(Path(sys.argv[4])))
    how = decoding_of(classifier.manifest, decoding)

    def classify() -> str:
        size = classifier.batch_size
        pixels = [classifier.preprocess(load(open_image(image, MAX_PIXELS), how)) for _ in range(size)]
        return classifier.classify_batch(pixels)[0].likely_class

    for _ in range(WARM_UP):
        likely_class = classify()
    count, begun, until = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        classify()
        count += classifier.batch_size
    print(json.dumps({"cpu": (time.process_time() - begun) / count, "likely_class": likely_class}))


if __name__ == "__main__":
    main()
