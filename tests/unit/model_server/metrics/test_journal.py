import time

import pytest

from model_server.metrics.journal import LimitedLog


def test_a_flood_is_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = LimitedLog("requests failed", lines=2)
    for number in range(5):
        log.add(f"line {number}")
    log.flush()
    now += 60
    log.flush()
    log.flush()
    log.add("line\n5")
    now += 60
    log.flush()
    assert [record.message for record in caplog.records] == [
        "line 0",
        "line 1",
        "3 more requests failed in the last 60 seconds.",
        "line?5",
    ]
