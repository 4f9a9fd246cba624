"""Hands over between real gunicorns, while clients send requests."""

import http.client
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Callable, Dict, List

import httpx
import pytest

from model_server.server.handover import ORDER, SUCCESSOR, ServingMaster
from tests.unit.model_server.server.gunicorn_process import GUNICORN, Server, connection_header, is_alive, wait_for
from tests.unit.model_server.server.gunicorn_process import environment as variables

Encode = Callable[..., bytes]
COMMAND = [sys.executable, "-m", "model_server", "handover"]


def hand_over(server: Server, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Do what the unit's ExecReload does, with a changed environment."""
    return subprocess.run(
        COMMAND, env=environment(server, changes), capture_output=True, text=True, timeout=60, check=False
    )


def begin_handover(server: Server) -> "subprocess.Popen[str]":
    """Start one whose successor takes a minute to check itself, and return once that one is there."""
    slow = environment(server, {"LEMON_SLEEPS": "60"})
    handover = subprocess.Popen(COMMAND, env=slow, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: _target(server))
    return handover


def environment(server: Server, changes: Dict[str, str]) -> Dict[str, str]:
    return {**server.environment, "MAINPID": str(server.master), **changes}


def serving(server: Server) -> int:
    return int(os.readlink(str(server.runtime_dir / "serving")))


def test_the_last_master_that_was_set_is_serving(tmp_path: Path) -> None:
    serving_master = ServingMaster(tmp_path)
    assert serving_master.get() is None
    serving_master.set(11)
    serving_master.set(12)
    assert serving_master.get() == 12
    assert [path.name for path in tmp_path.iterdir()] == ["serving"]
    nowhere = ServingMaster(None)
    nowhere.set(11)
    assert nowhere.get() is None


def test_a_handover_loses_no_request(server: Server, encode: Encode) -> None:
    stop, image, before = Event(), encode((40, 30)), serving(server)

    def client(kept: int) -> List[Any]:
        outcomes: List[Any] = []
        limits = httpx.Limits(max_keepalive_connections=kept)
        with httpx.Client(base_url=server.url, timeout=20, limits=limits) as http:
            while not stop.is_set():
                try:
                    answer = http.post("/predict", content=image, headers={"content-type": "image/jpeg"})
                    outcomes.append(answer.status_code)
                except httpx.TransportError as error:
                    outcomes.append(error)
                stop.wait(0.02)  # so that connections are idle, too
        return outcomes

    assert before == server.master
    with ThreadPoolExecutor(6) as executor:
        clients = [executor.submit(client, kept) for kept in (0, 0, 1, 1, 1, 1)]
        try:
            for release in ("second", "third"):
                done = hand_over(server, MODEL_SERVER_RELEASE=release)
                assert (done.returncode, done.stderr) == (0, "")
                wait_for(partial(gone, server.master), 10)
                assert parent(serving(server)) not in {server.master, server.process.pid}, "systemd's own child"
                server.master = serving(server)
                wait_for(lambda: len(server.workers()) == 2, 5)
                assert any(f"('release', '{release}')" in name for name in server.samples())
        finally:
            stop.set()

    outcomes = [outcome for future in clients for outcome in future.result()]
    assert set(outcomes) == {200}
    assert server.lemons() == len(outcomes), "counters go on"
    server.wait_until_idle()
    assert not (server.runtime_dir / ORDER).exists()
    assert not (server.runtime_dir / SUCCESSOR).is_symlink()


def test_classes_of_a_former_bundle_leave_the_metrics(server: Server, encode: Encode) -> None:
    def classes() -> Dict[str, float]:
        page = server.samples().items()
        return {name.split("'")[3]: value for name, value in page if name.startswith("predictions_total")}

    assert server.predict(encode((40, 30)))
    assert classes() == {"apple": 0, "grapes": 0, "lemon": 1}
    for names in ("lime lemon", "grapes lemon"):
        done = hand_over(server, LEMON_CLASSES=names)
        assert (done.returncode, done.stderr) == (0, "")
        wait_for(partial(gone, server.master), 10)
        server.master = serving(server)
        assert classes() == {names.split()[0]: 0, "lemon": 1}, "and what goes on is not forgotten"
        samples = server.samples()
        assert not any("apple" in name for name in samples)
        assert any(name.startswith("fastapi_requests_total") and "/predict" in name for name in samples)


@pytest.mark.parametrize(
    ("changes", "where", "sentence"),
    [
        (
            {"LEMON_FAILS": "yes"},
            "log",
            "model server: POST /predict failed in a check before the start: RuntimeError(",
        ),
        ({"MODEL_SERVER_WORKERS": "0"}, "handover", "model server: handover: MODEL_SERVER_WORKERS is '0': "),
    ],
    ids=["prediction", "setting"],
)
def test_a_successor_that_does_not_start_changes_nothing(
    server: Server, encode: Encode, changes: Dict[str, str], where: str, sentence: str
) -> None:
    workers = server.workers()
    done = hand_over(server, **changes)

    assert done.returncode == 1
    assert done.stderr.startswith("model server: handover: ")
    assert done.stderr.count("\n") == 1
    assert server.workers() == workers
    assert server.predict(encode((40, 30)))
    assert serving(server) == server.master
    assert sentence in {"log": server.log.read_text(), "handover": done.stderr}[where]

    done = hand_over(server)
    assert (done.returncode, done.stderr) == (0, ""), "the next one succeeds"
    server.master = serving(server)


def test_connections_are_closed_while_a_successor_loads(server: Server) -> None:
    kept = http.client.HTTPConnection(server.url[7:], timeout=10)
    assert connection_header(kept) is None
    handover = begin_handover(server)
    wait_for(lambda: connection_header(kept) == "close")
    assert serving(server) == server.master

    os.kill(int(_target(server)), signal.SIGKILL)
    handover.communicate(timeout=20)
    assert handover.returncode == 1
    wait_for(lambda: connection_header(kept) is None)
    kept.close()


def test_an_interrupted_handover_is_taken_back_by_the_next(server: Server) -> None:
    first = begin_handover(server)
    successor = int(_target(server))
    first.kill()
    first.communicate()

    done = hand_over(server)

    assert (done.returncode, done.stderr) == (0, "")
    assert not is_alive(successor)
    server.master = serving(server)
    wait_for(lambda: len(server.workers()) == 2, 5)


def test_a_timeout_of_systemd_leaves_the_old_one(server: Server) -> None:
    handover = begin_handover(server)
    successor = int(_target(server))
    wait_for(lambda: list(server.metrics_dir.glob("*_check*.db")))
    handover.terminate()
    _, told = handover.communicate(timeout=20)

    assert handover.returncode == 1
    assert "TimeoutStartSec" in told
    assert not is_alive(successor)
    assert server.get("/readyz")
    assert list(server.metrics_dir.glob("*_check*.db")), "the check was ended before it could tidy up"
    server.wait_until_idle()
    done = hand_over(server)
    assert (done.returncode, done.stderr) == (0, "")
    server.master = serving(server)
    assert not list(server.metrics_dir.glob("*_check*.db"))


def test_without_an_order_the_signal_has_no_effect(server: Server) -> None:
    os.kill(server.master, signal.SIGUSR2)
    wait_for(lambda: "The handover failed" in server.log.read_text())
    assert server.get("/readyz")
    wait_for(lambda: len(server.workers()) == 2, 5)


def test_it_says_that_it_is_for_systemd(server: Server) -> None:
    done = hand_over(server, MAINPID="")
    assert done.returncode == 1
    assert done.stderr == "model server: handover: this is for systemd alone; run systemctl reload model-server.\n"


def test_a_missing_master_is_explained_in_a_sentence(server: Server) -> None:
    done = hand_over(server, MAINPID="999999999")
    assert done.returncode == 1
    assert done.stderr == "model server: handover: there is no process 999999999 to take over from.\n"
    assert not (server.runtime_dir / ORDER).exists()


def gone(process: int) -> bool:
    return not is_alive(process)


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _target(server: Server) -> str:
    link = str(server.runtime_dir / SUCCESSOR)
    return os.readlink(link) if os.path.islink(link) else ""


def test_a_master_of_an_earlier_release_can_hand_over(tmp_path: Path) -> None:
    """It names its successor's configuration as it was named then."""
    (tmp_path / "metrics").mkdir()
    former = [*GUNICORN[:-1], "python:model_server.gunicorn_conf", "--check-config", "lemon:app()"]
    done = subprocess.run(former, env=variables(tmp_path / "metrics"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
