"""Tests of the dashboards. Those that need a Prometheus under load are run with

    pytest tests/dashboards --prometheus-url http://HOST:9090        (or with PROMETHEUS_URL in the environment)

and are skipped otherwise. `dashboards.questions.unanswered(board, query)` is the same check for other tests.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "roles" / "grafana" / "files" / "dashboards").glob("*.json"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--prometheus-url",
        default=os.environ.get("PROMETHEUS_URL", ""),
        help="a Prometheus that watches a model server under load, for the dashboards' live tests",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "board" in metafunc.fixturenames:
        metafunc.parametrize("board", FILES, ids=lambda file: file.stem, indirect=True)


@pytest.fixture
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return content
