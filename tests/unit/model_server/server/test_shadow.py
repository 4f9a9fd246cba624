"""A shadow beside real gunicorns: whatever happens to it, requests are answered as without it."""

import asyncio
import random
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest

from model_server.server.shadow import SOCKET, Copied, Copies
from tests.unit.model_server.server.gunicorn_process import Server, wait_for

Encode = Callable[..., bytes]
PROGRAM = str(Path(__file__).with_name("lemon_shadow.py"))


@contextmanager
def shadow(server: Server, **variables: str) -> "Iterator[subprocess.Popen[str]]":
    """Run a shadow that wants all requests, until the end of the block."""
    environment = {**server.environment, **variables}
    command = [sys.executable, PROGRAM, "100"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def compare(server: Server, image: bytes, number: int) -> None:
    """Send an image until the shadow has seen it some times; workers look for a shadow once a second."""

    def compared() -> bool:
        answer = server.predict(image)
        assert answer is not None
        assert answer.status_code == 200
        return seen(server) >= number

    wait_for(compared)


def seen(server: Server) -> float:
    """Return of how many images the shadow has said something, or failed to."""
    counters = ("shadow_predictions_total", "shadow_failures_total")
    return sum(value for name, value in server.samples().items() if name.startswith(counters))


def agreement(server: Server) -> float:
    return server.samples()["shadow_agreement_ratio[]"]


@pytest.mark.parametrize(("says", "ratio"), [("lemon", 1.0), ("apple", 0.0)])
def test_agreement_with_the_model_that_serves_is_on_its_page(
    server: Server, encode: Encode, says: str, ratio: float
) -> None:
    with shadow(server, LEMON_SAYS=says):
        compare(server, encode((40, 30)), 5)

        samples = server.samples()

    agrees = "true" if ratio else "false"
    assert samples["shadow_agreement_ratio[]"] == ratio
    assert samples[f"shadow_predictions_total[('agrees', '{agrees}'), ('class', '{says}')]"] >= 5
    assert samples[f"shadow_prediction_confidence_sum[('class', '{says}')]"] >= 5 * 0.8 - 1e-9
    assert samples["shadow_stage_cpu_seconds_count[('stage', 'forward')]"] >= 5
    assert any(name.startswith("shadow_info") and "('version', '2.0')" in name for name in samples)


def test_page_has_nothing_of_a_shadow_that_has_ended(server: Server, encode: Encode) -> None:
    with shadow(server) as process:
        compare(server, encode((40, 30)), 1)
        process.terminate()
        _, error = process.communicate(timeout=20)

    assert (process.returncode, error) == (0, "")
    assert [name for name in server.samples() if "shadow" in name] == []
    assert not (server.runtime_dir / SOCKET).exists()


def test_image_that_no_socket_holds_is_compared(server: Server, encode: Encode) -> None:
    large = encode((1200, 900), kind="BMP")
    assert len(large) > 3_000_000
    with shadow(server):
        compare(server, large, 3)
        assert agreement(server) == 1


def test_model_that_fails_does_not_agree(server: Server, encode: Encode) -> None:
    with shadow(server, LEMON_FAILS="yes") as process:
        compare(server, encode((40, 30)), 3)
        assert agreement(server) == 0
        assert server.samples()["shadow_failures_total[]"] >= 3
        process.terminate()
        _, error = process.communicate(timeout=20)
    assert "The shadow could say nothing of an image: RuntimeError('a lemon')" in error


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_shadow_that_does_not_answer_costs_no_request(server: Server, encode: Encode, fault: int) -> None:
    image = encode((40, 30))
    with shadow(server) as process:
        compare(server, image, 1)
        before = server.lemons()
        process.send_signal(fault)
        for _ in range(40):
            answer = server.predict(image)
            assert answer is not None
            assert answer.status_code == 200
        assert server.lemons() == before + 40

    with shadow(server):  # the next one takes its place
        compare(server, image, 1)
        assert agreement(server) == 1


def test_busy_shadow_costs_no_request(server: Server, encode: Encode) -> None:
    image = encode((40, 30))
    with shadow(server, LEMON_SLEEPS="60"):
        wait_for(lambda: server.predict(image) and (server.runtime_dir / "asked").exists())
        before = server.lemons()
        for _ in range(40):
            assert server.predict(image)
        assert server.lemons() == before + 40
        assert seen(server) == 0


def test_chance_decides_by_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: List[Tuple[bytes, str]] = []
    copied, copies = Copied(tmp_path, 0.25), Copies(tmp_path)

    async def offer(draw: float, image: bytes) -> None:
        monkeypatch.setattr(random, "random", lambda: draw)
        copies.offer(image, "lemon")
        await asyncio.sleep(0)

    def take(image: bytes, served_class: str) -> None:
        taken.append((image, served_class))

    copies.refresh()  # connects
    copied.take(take)  # accepts, and asks for the first
    asyncio.run(offer(0.0, b"too early"))
    copies.refresh()  # knows the share
    asyncio.run(offer(0.25, b"not drawn"))
    asyncio.run(offer(0.24, b"drawn"))
    asyncio.run(offer(0.0, b"while it is busy"))
    copied.take(take)
    asyncio.run(offer(0.0, b"next"))
    copied.take(take)
    copied.close()
    asyncio.run(offer(0.0, b"without a shadow"))
    assert taken == [(b"drawn", "lemon"), (b"next", "lemon")]
    assert list(tmp_path.iterdir()) == []
