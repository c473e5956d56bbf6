"""HEADRACE_CHAOS_FORM=long is `make chaos`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.servers import OwnServers
from tests.conftest import Deployment, deploy

# The settings refuse variables of headrace that they don't know, so this must be gone before anybody reads them.
_FORM = os.environ.pop("HEADRACE_CHAOS_FORM", "short")


@pytest.fixture
def form() -> str:
    assert _FORM in ("short", "long"), f"HEADRACE_CHAOS_FORM is short or long, not {_FORM!r}"
    return _FORM


@pytest.fixture(scope="package")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServers]:
    """Servers that these tests may kill, stop and freeze."""
    servers = OwnServers(tmp_path_factory.mktemp("servers"))
    try:
        servers.up()
        yield servers
    finally:
        servers.down()


@pytest.fixture
def own_deployment(own_servers: OwnServers, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment on them, without workers."""
    made = deploy(own_servers.settings, tmp_path)
    try:
        yield made
    finally:
        made.stop()  # whatever has become of the servers
        own_servers.up()
        made.drop()
