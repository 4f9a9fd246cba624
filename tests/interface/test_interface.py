"""The OpenAPI document against the app: requests that schemathesis makes of it are answered as the document says.

Not among the unit tests: Locust, which those import, replaces Python's threads. Here they are needed as they are.
"""

import re
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import checks

from model_server.app import create_app
from model_server.settings import Settings
from tests.unit.model_server.test_app import Client, FakeClassifier

with NamedTemporaryFile("w") as KEYS:
    KEYS.write("k" * 32)
    KEYS.flush()
    APP = create_app(Settings(bundle=Path("none"), feedback_keys_file=Path(KEYS.name)), FakeClassifier())
SCHEMA: Any = schemathesis.openapi.from_asgi("/openapi.json", APP)
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def test_every_path_is_asked() -> None:
    assert {operation.label for operation in OPERATIONS} == {
        "GET /",
        "GET /healthz",
        "GET /model",
        "GET /readyz",
        "GET /v2/models/lemon",
        "POST /feedback",
        "POST /predict",
        "POST /probe",
    }


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_documentation_needs_no_other_host(path: str) -> None:
    client = Client(APP)
    page = client.get(path).text
    assert "https://" not in page
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) >= 2
    for file in files:
        assert client.get(file).status_code == 200, file


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_answers_are_those_of_the_document(operation: Any) -> None:
    @settings(max_examples=60, deadline=None)
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()
