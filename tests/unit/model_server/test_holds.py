"""The releases that are installed still have what is used of them beyond their documented interfaces."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any, Dict

import pytest

from model_server.metrics import _prometheus_client
from model_server.metrics import requests as request_metrics
from model_server.server import _gunicorn, _uvicorn, _uvicorn_http

MODULES = (_gunicorn, _uvicorn_http, _uvicorn, _prometheus_client, request_metrics)
HOLDS: Dict[str, str] = {hold: purpose for module in MODULES for hold, purpose in module.HOLDS.items()}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "internals.md"
CASES = pytest.mark.parametrize("hold", HOLDS)


def find(dotted: str) -> Any:
    """Import the longest part of a name that is a module, and get the rest as attributes."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AttributeError(dotted)


def missing(hold: str) -> str:
    """Say what is gone of `a.b`, of `a.b(the, parameters)` or of `a.Class:self.attribute`; nothing when it is there."""
    parts = re.fullmatch(r"([\w.]+)(?:\((.*)\)|:(self\.\w+))?", hold)
    assert parts is not None, f"{hold} cannot be read"
    name, parameters, attribute = parts.groups()
    try:
        found = find(name)
    except AttributeError:
        return f"{name} is gone"
    if parameters is not None:
        have = list(inspect.signature(found).parameters)
        return "" if have == parameters.split(", ") else f"{name} takes ({', '.join(have)})"
    if attribute is not None and not re.search(rf"{re.escape(attribute)}\b.* = ", inspect.getsource(found)):
        return f"{name} sets no {attribute}"
    return ""


@CASES
def test_it_is_there(hold: str) -> None:
    gone = missing(hold)
    assert not gone, f"{gone}, but it is used: {HOLDS[hold]}"


@CASES
def test_the_page_has_it(hold: str) -> None:
    assert f"| `{hold}` | {HOLDS[hold]} |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("hold", "sentence"),
    [
        ("uvicorn.server.Server.nothing(self)", "uvicorn.server.Server.nothing is gone"),
        ("uvicorn.nowhere.Server", "uvicorn.nowhere.Server is gone"),
        ("uvicorn.server.Server.on_tick(self, number)", "uvicorn.server.Server.on_tick takes (self, counter)"),
        ("uvicorn.server.Server:self.nothing", "uvicorn.server.Server sets no self.nothing"),
    ],
)
def test_a_missing_hold_is_named(hold: str, sentence: str) -> None:
    assert missing(hold) == sentence
