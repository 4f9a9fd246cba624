"""Runs gunicorn itself: what happens to workers and their metrics is not to be had otherwise."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Callable, Dict

import pytest

from model_server.metrics.journal import LINES
from tests.unit.model_server.server.gunicorn_process import GUNICORN, Server, environment, wait_for

Encode = Callable[..., bytes]


def test_counters_survive_the_workers_that_counted(server: Server, encode: Encode) -> None:
    image = encode((40, 30))
    answered, last = 0, 0.0
    for round_ in range(20):
        before = wait_for(lambda: len(server.workers()) == 2 and server.workers())  # a list that the kernel may cut
        for _ in range(3):
            answered += server.predict(image) is not None
        os.kill(before[round_ % 2], signal.SIGKILL)
        for _ in range(3):  # while a worker is missing
            answered += server.predict(image) is not None
            counted = server.lemons()
            assert last <= counted <= answered + round_ + 1, "counters never fall, and grow by what was sent"
            last = counted
        server.wait_for_replacement(before)
    # A request whose worker was killed between counting and answering is counted, though not answered.
    assert answered <= server.lemons() <= answered + 20
    slots = {name.rsplit("_", 1)[1] for name in server.files()}
    assert slots <= {"0.db", "1.db", "master.db"}, "files do not grow with the number of workers"
    server.wait_until_idle()


def test_a_reload_replaces_the_workers_and_keeps_the_counters(server: Server, encode: Encode) -> None:
    image, before = encode((40, 30)), server.workers()
    for _ in range(10):
        assert server.predict(image)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(server.workers()) == 2 and not set(server.workers()) & set(before))
    for _ in range(10):
        assert server.predict(image)
    assert server.lemons() == 20
    # Old and new workers live side by side for a while, in four slots.
    assert {name.rsplit("_", 1)[1] for name in server.files()} <= {"0.db", "1.db", "2.db", "3.db", "master.db"}


def test_more_workers_by_signal(server: Server, encode: Encode) -> None:
    server.process.send_signal(signal.SIGTTIN)
    wait_for(lambda: len(server.workers()) == 3)
    server.process.send_signal(signal.SIGTTOU)
    wait_for(lambda: len(server.workers()) == 2)
    assert server.predict(encode((40, 30)))
    assert server.lemons() == 1


def test_workers_do_not_collect_garbage_in_shared_memory(server: Server) -> None:
    answer = server.get("/frozen")
    assert answer
    assert answer.json() > 10_000


def test_only_requests_that_fail_are_logged(server: Server, encode: Encode) -> None:
    assert server.predict(encode((40, 30)))
    assert server.client.get("/nowhere", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    answer = server.client.post("/predict", files={"file": ("a\nb.jpg", b"", "image/jpeg")})
    expected = f" 400 POST /predict from 127.0.0.1, id {answer.headers['x-request-id']} File 'a"
    log = wait_for(lambda: expected in server.log.read_text() and server.log.read_text())  # after the answer
    assert "Listening at" in log
    assert " 404 GET /nowhere from 127.0.0.1, id mine-1\n" in log
    assert log.count("/predict") == 1


def test_a_flood_of_failing_requests_is_counted_in_the_log(server: Server) -> None:
    for _ in range(50):
        assert server.get("/nowhere")
    assert server.log.read_text().count("/nowhere") <= 2 * LINES


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({}, "192.0.2.7"),
        ({"MODEL_SERVER_TRUSTED_PROXIES": "127.0.0.0/8"}, "192.0.2.7"),
        ({"MODEL_SERVER_TRUSTED_PROXIES": "10.0.0.0/8"}, "127.0.0.1"),
    ],
    indirect=["server"],
)
def test_address_that_a_proxy_tells_is_believed_from_a_trusted_one(server: Server, told: str) -> None:
    server.client.get("/nowhere", headers={"X-Forwarded-For": "192.0.2.7"})
    wait_for(lambda: f" 404 GET /nowhere from {told}, id" in server.log.read_text())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": "none"}, "model server: MODEL_SERVER_WORKERS is 'none': input should be a valid integer"),
        ({"worker": "1"}, "model server: MODEL_SERVER_WORKER is not a setting of the model server; did you mean"),
        (
            {"trusted_proxies": "a b"},
            "model server: MODEL_SERVER_TRUSTED_PROXIES has 'a b', which is neither a network",
        ),
    ],
)
def test_a_bad_setting_ends_the_start_with_a_sentence(tmp_path: Path, settings: Dict[str, str], sentence: str) -> None:
    assert_refused(environment(tmp_path, **settings), sentence)


def test_metrics_that_cannot_be_shared_end_the_start_with_a_sentence(tmp_path: Path) -> None:
    missing = environment(tmp_path / "none")
    assert_refused(
        missing, f"model server: PROMETHEUS_MULTIPROC_DIR is '{tmp_path}/none', where no file can be written"
    )
    del missing["PROMETHEUS_MULTIPROC_DIR"]
    assert_refused(missing, "model server: PROMETHEUS_MULTIPROC_DIR is not set;")


def test_a_broken_bundle_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    sentence = f"model server: {tmp_path}/bundle/model.yaml cannot be read: No such file or directory."
    assert_refused(environment(tmp_path, bundle=str(tmp_path / "bundle")), sentence)


def assert_refused(env: Dict[str, str], sentence: str) -> None:
    result = subprocess.run(GUNICORN, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode not in {0, None}
    lines = [line for line in result.stderr.splitlines() if line and "[INFO]" not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith(sentence)
