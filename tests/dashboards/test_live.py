"""Every panel has data: asked of a real Prometheus that watches a model server under load."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.dashboards.questions import ALL_HOSTS, Query, unanswered


@pytest.fixture
def query(pytestconfig: pytest.Config) -> Query:
    url = pytestconfig.getoption("--prometheus-url")
    if not url:
        pytest.skip("needs --prometheus-url")

    def query(promql: str) -> list[dict[str, Any]]:
        answer = requests.post(f"{url.rstrip('/')}/api/v1/query", data={"query": promql}, timeout=30)
        assert answer.status_code == 200, f"{promql}: {answer.text}"
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    return query


def test_every_panel_has_data(board: dict[str, Any], query: Query) -> None:
    assert unanswered(board, query, ALL_HOSTS) == []


def test_every_panel_has_data_of_each_model_server(board: dict[str, Any], query: Query) -> None:
    hosts = {series["metric"]["instance"].rpartition(":")[0] for series in query('up{job="model_server"}')}
    assert hosts
    assert {host: missing for host in hosts if (missing := unanswered(board, query, host))} == {}
