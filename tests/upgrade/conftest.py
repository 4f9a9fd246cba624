"""The machines of scenario `upgrade`, and the table of figures, as tests/integration has them."""

from tests.integration.conftest import (
    ansible,
    load,
    model_server,
    prometheus,
    pytest_terminal_summary,
    receiver,
    server,
    tell,
)

__all__ = ["ansible", "load", "model_server", "prometheus", "pytest_terminal_summary", "receiver", "server", "tell"]
