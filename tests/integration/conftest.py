"""Tests of the running machines: Molecule's verify runs them, and so does

    pytest tests/integration

by hand while scenario `default` is converged (another one: MOLECULE_SCENARIO_NAME=demo). They send load,
kill processes, fill a disk, restart the machine and deploy other versions: not for production. What they
measured is printed as a table in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.integration.machines import SCENARIO, Machine, ModelServer, Prometheus, WebhookReceiver
from tests.integration.playbooks import Ansible

FIGURES = pytest.StashKey[list[tuple[str, str]]]()

Tell = Callable[[str, str], None]


@pytest.fixture(scope="session")
def server() -> Machine:
    return Machine(f"model-monitoring-{SCENARIO}-server")


@pytest.fixture(scope="session")
def load() -> Machine:
    return Machine(f"model-monitoring-{SCENARIO}-load")


@pytest.fixture(scope="session")
def stranger() -> Machine:
    return Machine(f"model-monitoring-{SCENARIO}-stranger")


@pytest.fixture(scope="module")
def door(server: Machine) -> Iterator[httpx.Client]:
    with server.door() as client:
        yield client


@pytest.fixture(scope="session")
def model_server(server: Machine) -> ModelServer:
    return ModelServer(server)


@pytest.fixture(scope="session")
def prometheus(server: Machine) -> Prometheus:
    return Prometheus(server)


@pytest.fixture(scope="session")
def receiver(load: Machine) -> WebhookReceiver:
    return WebhookReceiver(load)


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    return Ansible.over_molecule(tmp_path_factory.mktemp("inventory"))


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Tell:
    """Return a function that takes what was done and the figures that came of it, for the table at the end."""
    figures = pytestconfig.stash.setdefault(FIGURES, [])

    def keep(what: str, figure: str) -> None:
        figures.append((what, figure))

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("figures")
        width = max(len(what) for what, _ in figures)
        for what, figure in figures:
            terminalreporter.write_line(f"{what:<{width}}  {figure}")
