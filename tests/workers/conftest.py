"""Three workers on each store that several workers can share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.redis.plant import ROOMS
from tests.support.redis_server import RedisServer
from tests.support.server import Server
from tests.support.site import Site, environment, serving


@pytest.fixture(scope="session", params=[pytest.param("redis", marks=pytest.mark.redis), "sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store of that kind, for every test that does it no harm."""
    directory = tmp_path_factory.mktemp("store")
    if request.param == "redis":
        with RedisServer(directory) as redis:
            yield redis.url
    else:
        yield f"sqlite:///{directory}/streams.db"


@pytest.fixture(scope="session")
def workers(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Server], Path]]:
    """Three workers on it, for every test that does them no harm."""
    notes = tmp_path_factory.mktemp("workers") / "notes"
    with serving([environment(store_url, notes, rooms=ROOMS)] * 3) as servers:
        yield servers, notes


@pytest.fixture
async def site(workers: tuple[list[Server], Path]) -> AsyncIterator[Site]:
    """Those workers, and connections of the test's own."""
    site = Site(*workers)
    yield site
    await site.close()
