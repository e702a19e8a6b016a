"""A real Redis, three workers that share it, and the table of how long each recovery took."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.redis.plant import ROOMS
from tests.support.redis_server import RedisServer
from tests.support.server import Server
from tests.support.site import Site, environment, serving


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A plain Redis for everybody who does it no harm."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def workers(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Server], Path]]:
    """Three workers on that Redis, for everybody who does them no harm."""
    notes = tmp_path_factory.mktemp("workers") / "notes"
    with serving([environment(redis_server.url, notes, rooms=ROOMS)] * 3) as servers:
        yield servers, notes


@pytest.fixture
async def site(workers: tuple[list[Server], Path]) -> AsyncIterator[Site]:
    """Those workers, and connections of the test's own."""
    site = Site(*workers)
    yield site
    await site.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes servers that a test may harm."""

    @contextmanager
    def make(*options: str, name: str = "redis", **how: Any) -> Iterator[RedisServer]:
        directory = tmp_path / name
        directory.mkdir()
        with RedisServer(directory, *options, **how) as server:
            yield server

    return make


@pytest.fixture
def took(
    record_property: Callable[[str, object], None], request: pytest.FixtureRequest
) -> Callable[[str, float], None]:
    """Notes how long something took, for the table at the end of the run."""
    name = request.node.name

    def note(what: str, seconds: float) -> None:
        record_property("took", f"{name}: {what}: {seconds:.2f} s")

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    lines = [value for report in reports for name, value in report.user_properties if name == "took"]
    if lines:
        terminalreporter.section("recovery times")
        for line in lines:
            terminalreporter.write_line(str(line))
