"""Three workers on each store that several workers can share."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.redis.plant import ROOMS
from tests.support.redis_server import RedisServer
from tests.support.server import Server
from tests.support.site import Site, environment, serving


@pytest.fixture(scope="session", params=[pytest.param("redis", marks=pytest.mark.redis), "sqlite"])
def workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[Server], Path]]:
    """Three workers on a store of that kind, for every test that does them no harm."""
    directory = tmp_path_factory.mktemp("workers")
    with ExitStack() as stack:
        if request.param == "redis":
            url = stack.enter_context(RedisServer(directory)).url
        else:
            url = f"sqlite:///{directory}/streams.db"
        yield (
            stack.enter_context(serving([environment(url, directory / "notes", rooms=ROOMS)] * 3)),
            directory / "notes",
        )


@pytest.fixture
async def site(workers: tuple[list[Server], Path]) -> AsyncIterator[Site]:
    """Those workers, and connections of the test's own."""
    site = Site(*workers)
    yield site
    await site.close()
