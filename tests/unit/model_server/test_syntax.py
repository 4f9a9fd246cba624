import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ON_TARGETS = sorted(path for place in ("model_server", "load_test", "roles") for path in (ROOT / place).rglob("*.py"))


@pytest.mark.parametrize("path", ON_TARGETS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_runs_on_a_target_is_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8))
