"""The machines of scenario `offline`, as tests/integration has them."""

from tests.integration.conftest import load, server

__all__ = ["load", "server"]
