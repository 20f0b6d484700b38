"""Servers that are started once for all tests here."""

from collections.abc import Iterator

import pytest

from . import servers


@pytest.fixture(scope="session")
def tracking_server() -> Iterator[servers.TrackingServer]:
    """An MLflow server with PostgreSQL, proxied artifacts and authentication."""
    with servers.postgresql() as database, servers.tracking_server(database) as server:
        yield server
