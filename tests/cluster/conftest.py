"""The machines of scenario `cluster`, and the table of figures, as tests/integration has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.integration.conftest import ansible, load, pytest_terminal_summary, receiver, tell
from tests.integration.machines import SCENARIO, Machine, ModelServer, Prometheus, Way

__all__ = ["ansible", "load", "pytest_terminal_summary", "receiver", "tell"]


@dataclass(frozen=True)
class Fleet:
    """Model servers behind a front door, and the hosts that watch them."""

    servers: Sequence[ModelServer]
    door: Machine
    monitors: Sequence[Machine]

    @property
    def ways(self) -> list[Way]:
        """Return the one way that clients have to it."""
        return [self.door.door]

    @property
    def prometheis(self) -> list[Prometheus]:
        return [Prometheus(monitor) for monitor in self.monitors]


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    server_1, server_2, door, *monitors = (
        Machine(f"model-monitoring-{SCENARIO}-{name}")
        for name in ("server-1", "server-2", "door", "monitor", "monitor-2")
    )
    return Fleet([ModelServer(server_1), ModelServer(server_2)], door, monitors)
