"""Servers that are started once for all tests here, and what they are asked."""

from collections.abc import Iterator

import pytest
from doors import Doors
from mlflow import MlflowClient

from . import servers
from .sweeps import SEARCH, TWELVE, Swept


@pytest.fixture(scope="session")
def tracking_server() -> Iterator[servers.TrackingServer]:
    """An MLflow server with PostgreSQL, proxied artifacts and authentication."""
    with servers.postgresql() as database, servers.tracking_server(database) as server:
        yield server


@pytest.fixture
def client(
    tracking_server: servers.TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> MlflowClient:
    """A client of that server."""
    for name, value in tracking_server.env.items():
        monkeypatch.setenv(name, value)
    return MlflowClient()


@pytest.fixture(scope="session")
def baseline(doors: Doors, tmp_path_factory) -> dict[str, dict[str, float]]:
    """The figures of the sweep of twelve jobs, one after the other in one process of ours."""
    folder = tmp_path_factory.mktemp("basic")
    done = doors("run", folder, "-m", *TWELVE, "trainer.threads=1")
    assert done.code == 0, done.err
    swept = Swept(MlflowClient(f"sqlite:///{folder}/mlflow.db"), "fmnist_lab")
    assert swept.states() == [(number, "FINISHED") for number in range(12)]
    return swept.figures()


@pytest.fixture(scope="session")
def searched(doors: Doors, tmp_path_factory) -> Swept:
    """The search of six trials, one after the other in one process of ours."""
    folder = tmp_path_factory.mktemp("searched")
    done = doors("run", folder, "-m", *SEARCH, "trainer.threads=1")
    assert done.code == 0, done.err
    swept = Swept(MlflowClient(f"sqlite:///{folder}/mlflow.db"), "fmnist_lab")
    expected = {("trial", "SCHEDULED"), ("trial", "FINISHED"), ("final", "FINISHED")}
    assert swept.kinds() == expected
    return swept
