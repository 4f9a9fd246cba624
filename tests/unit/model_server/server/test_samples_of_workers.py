import os
import random
import signal
import time
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from model_server.server.ring import read_ring
from tests.unit.model_server.server.gunicorn_process import Server, wait_for
from tests.unit.model_server.server.test_ring import files, on_disk

Encode = Callable[..., bytes]
MAX_BYTES = 1_000_000
WANTED = 40  # samples of each reason: more than the ring has room for


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


def kept(server: Server) -> List[float]:
    page = server.samples()
    return [page[f"samples_kept_total[('reason', '{reason}')]"] for reason in ("rejected", "uncertain")]


def test_workers_share_one_ring_whose_cap_holds_also_when_they_are_killed(
    keeping: Server, ring: Path, encode: Encode
) -> None:
    random.seed(0)
    image, sizes, kills = encode(), [], iter((10, 20, 30))
    kill, deadline = next(kills), time.monotonic() + 120
    while min(kept(keeping)) < WANTED:
        assert time.monotonic() < deadline, kept(keeping)
        keeping.predict(image)
        keeping.predict(os.urandom(random.randrange(20_000, MAX_BYTES // 30)))
        sizes.append(on_disk(ring))
        if min(kept(keeping)) >= kill:
            kill = next(kills, WANTED)
            before = keeping.workers()
            os.kill(before[0], signal.SIGKILL)
            keeping.wait_for_replacement(before)

    assert max(sizes) <= MAX_BYTES
    assert max(sizes) > MAX_BYTES / 3
    assert keeping.samples()["samples_failed_total[]"] == 0
    wait_for(lambda: len(files(ring)) == 2 * len(read_ring(ring)), 5, "the last sample to be whole")
    for sample in read_ring(ring):
        assert sample.answer["request_id"]
        assert sample.answer["model"] == {"name": "lemon", "version": "1.0"}
