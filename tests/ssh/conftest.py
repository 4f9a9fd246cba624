"""The machines of scenario `ssh`, as tests/integration has them."""

from tests.integration.conftest import ansible, load, prometheus, server

__all__ = ["ansible", "load", "prometheus", "server"]
