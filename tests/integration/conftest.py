"""Tests of the running machines: Molecule's verify runs them, and so does

    pytest tests/integration

by hand while scenario `default` is converged (another one: MOLECULE_SCENARIO_NAME=demo). They send
load, kill processes and end with a restart of the machine: not for production.
"""

from __future__ import annotations

import pytest

from tests.integration.machines import SCENARIO, Machine, ModelServer, Prometheus


@pytest.fixture(scope="session")
def server() -> Machine:
    return Machine(f"model-monitoring-{SCENARIO}-server")


@pytest.fixture(scope="session")
def load() -> Machine:
    return Machine(f"model-monitoring-{SCENARIO}-load")


@pytest.fixture(scope="session")
def model_server(server: Machine) -> ModelServer:
    return ModelServer(server)


@pytest.fixture(scope="session")
def prometheus(server: Machine) -> Prometheus:
    return Prometheus(server)
