"""The OpenAPI document against the app: requests that schemathesis makes of it are answered as the document says."""

from pathlib import Path
from typing import Any

import pytest

from model_server.app import create_app
from model_server.settings import Settings
from tests.unit.model_server.test_app import FakeClassifier

schemathesis = pytest.importorskip("schemathesis", reason="is in the tools' environment only")

from hypothesis import settings  # noqa: E402 - comes with it
from schemathesis import checks  # noqa: E402

schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(Settings(bundle=Path("none")), FakeClassifier()))


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=60, deadline=None)
def test_answers_are_those_of_the_document(case: Any) -> None:
    case.call_and_validate(
        checks=[
            checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]
    )
