from pathlib import Path

import pytest

pytest.importorskip("benchmarks.metrics", exc_type=ImportError)

from benchmarks.metrics import NoMetrics
from model_server import app
from model_server.settings import Settings
from tests.unit.model_server.test_app import FakeClassifier


def test_app_without_metrics_has_what_a_worker_asks_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(bundle=Path("none"))
    complete = app.create_app(settings, FakeClassifier())
    monkeypatch.setattr(app, "ModelMetrics", NoMetrics)
    monkeypatch.setattr(app, "instrument", NoMetrics)
    assert app.create_app(settings, FakeClassifier()).state._state.keys() == complete.state._state.keys()
