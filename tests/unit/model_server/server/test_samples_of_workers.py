import os
import random
import signal
from pathlib import Path
from typing import Callable, Iterator

import pytest

from model_server.server.ring import read_ring
from tests.unit.model_server.server.gunicorn_process import Server, wait_for
from tests.unit.model_server.server.test_ring import files, on_disk

Encode = Callable[..., bytes]
MAX_BYTES = 1_000_000


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    return tmp_path / "ring"


@pytest.fixture
def keeping(tmp_path: Path, ring: Path) -> Iterator[Server]:
    (tmp_path / "metrics").mkdir()
    settings = {"DIRECTORY": str(ring), "MAX_BYTES": str(MAX_BYTES), "BELOW_CONFIDENCE": "1"}
    variables = {f"MODEL_SERVER_SAMPLES_{name}": value for name, value in settings.items()}
    server = Server(tmp_path / "metrics", tmp_path / "log", LEMON_KEEPS_ALL="1", **variables)
    try:
        yield server
    finally:
        server.process.terminate()
        assert server.process.wait(20) == 0
        server.client.close()


def test_workers_share_one_ring_whose_cap_holds_also_when_they_are_killed(
    keeping: Server, ring: Path, encode: Encode
) -> None:
    random.seed(0)
    image, sizes = encode(), []
    for number in range(120):
        keeping.predict(image)
        keeping.predict(os.urandom(random.randrange(20_000, 80_000)))
        sizes.append(on_disk(ring))
        if number % 40 == 20:
            before = keeping.workers()
            os.kill(before[0], signal.SIGKILL)
            keeping.wait_for_replacement(before)

    assert max(sizes) <= MAX_BYTES
    assert max(sizes) > MAX_BYTES / 3
    pages = keeping.samples()
    assert pages["samples_kept_total[('reason', 'rejected')]"] > 50
    assert pages["samples_kept_total[('reason', 'uncertain')]"] > 50
    assert pages["samples_failed_total[]"] == 0
    wait_for(lambda: len(files(ring)) == 2 * len(read_ring(ring)), 5, "the last sample to be whole")
    for sample in read_ring(ring):
        assert sample.answer["request_id"]
        assert sample.answer["model"] == {"name": "lemon", "version": "1.0"}
