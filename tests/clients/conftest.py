"""One server for the clients of a module."""

from collections.abc import Iterator

import pytest

from tests.support.server import Server, serve


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The application that counts behind bad lines."""
    with serve("tests.support.apps.counting:app") as running:
        yield running
