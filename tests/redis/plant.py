"""Workers whose way to Redis leads through a line that can fail, and what a test sees while it does."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.support.apps.player import Step, numbered, unique
from tests.support.faults import FaultyLink
from tests.support.rawhttp import Response
from tests.support.redis_server import RedisServer
from tests.support.site import Site, environment, site_of, whole
from tests.support.ssemodel import without_ids

T = TypeVar("T")

MIB = 1024 * 1024
ROOMS: dict[str, dict[str, Any]] = {
    "": {"pending_timeout": 60},
    "attach": {"on_conflict": "attach"},
    "reject": {"on_conflict": "reject"},
    "owned": {"owned": True, "max_streams_per_owner": 2},
    "small": {"max_stream_bytes": MIB},
    "brief": {"retention": 0.5},
    "plain": {"event_ids": False},
}

LEASE = 4.0
STORE_TIMEOUT = 3.0
BUSY = 30
"""Seconds that a busy machine may add to what is promised. The table at the end shows what it has taken."""
SEEN_DEAD = LEASE + 2 + BUSY
"""Seconds within which a dead worker is told from a live one."""
BACK = 3.0 + BUSY
"""Seconds within which a worker that returns after its lease cancels its producers."""
ANSWERED = STORE_TIMEOUT + 5 + BUSY
"""Seconds within which every request is answered while Redis is gone."""


class Plant:
    """Workers, the line of each, and Redis."""

    def __init__(self, site: Site, links: list[FaultyLink], redis: RedisServer) -> None:
        self.site = site
        self.links = links
        self.redis = redis

    def player(self, worker: int, room: str = "", **options: Any) -> Any:
        """A client of a worker."""
        return self.site.player(worker, room, **options)

    async def begin(self, name: str, *steps: Step, readers: tuple[int, ...] = (1,)) -> list[Response]:
        """A stream on the first worker, whose client and readers elsewhere have its first three events."""
        live = await self.player(0).post(name, *steps, name=name)
        await live.read_until(b"00000002")
        following = [await self.player(worker).follow(name) for worker in readers]
        for reader in following:
            await reader.read_until(b"00000002")
        return [live, *following]

    def freeze(self, worker: int) -> None:
        """Stop a worker where it is."""
        os.kill(self.site.pid(worker), signal.SIGSTOP)

    def thaw(self, worker: int) -> None:
        """Let a worker go on."""
        os.kill(self.site.pid(worker), signal.SIGCONT)

    async def works_again(self, *workers: int, deadline: float = 60.0) -> float:
        """Wait until new streams on each worker are recorded, and replayed by the next; the seconds that it took."""
        begun = time.monotonic()

        async def works(worker: int) -> bool:
            name = unique("afterwards")
            live = await self.player(worker).record(name, numbered(20, 60))
            replay = await self.player(workers[workers.index(worker) - 1]).replay(name)
            return replay.status == 200 and replay.body == live.body and without_ids(live.body) == whole(20, 60)

        try:
            async with asyncio.timeout(deadline):
                for worker in workers:
                    while not await works(worker):
                        pass
        except TimeoutError:
            raise AssertionError(f"no new stream worked within {deadline:g} s") from None
        return time.monotonic() - begun

    async def output_names(self, pattern: str, worker: int = 0) -> None:
        """Check that a worker's log says what is wrong."""
        await asyncio.to_thread(self.site.servers[worker].wait_for_output, pattern)

    def staying_healthy(self, *workers: int) -> AbstractAsyncContextManager[None]:
        """Ask all the time how the workers are; each answer comes soon, also on a busy machine."""
        return self.site.staying_healthy(*workers, seconds=BUSY)


@asynccontextmanager
async def plant(
    redis: RedisServer, tmp_path: Path, *, workers: int = 2, rooms: dict[str, Any] | None = None, **store: Any
) -> AsyncIterator[Plant]:
    """Workers, each with its own line to `redis`; `store` goes to their stores."""
    settings = {"lease": LEASE, "store_timeout": STORE_TIMEOUT, **store}
    with ExitStack() as stack:
        links = [stack.enter_context(FaultyLink(redis.port)) for _ in range(workers)]
        environments = [
            environment(redis.url_at(link.port), tmp_path / "notes", store=settings, rooms=rooms or {"": {}})
            for link in links
        ]
        async with site_of(environments) as site:
            yield Plant(site, links, redis)


async def timed(awaitable: Awaitable[T], deadline: float, what: str) -> tuple[T, float]:
    """The result, and the seconds it took; fails after `deadline`."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(deadline):
            return await awaitable, time.monotonic() - begun
    except TimeoutError:
        raise AssertionError(f"{what} took more than {deadline:g} s") from None


Took = Callable[[str, float], None]
