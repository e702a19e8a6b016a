"""What becomes of streams whose end, or whose beginning, Redis has acknowledged and then forgotten: consistency.md."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.redis.plant import SEEN_DEAD, Plant, plant
from tests.support.apps.player import numbered, unique, wait
from tests.support.faults import FaultyLink
from tests.support.redis_server import RedisServer
from tests.support.site import code_of, until, whole
from tests.support.ssemodel import without_ids

pytestmark = pytest.mark.redis


class Forgetful:
    """Workers on a primary, and a replica that stops to follow it and takes its place."""

    def __init__(self, line: Plant, primary: RedisServer, replica: RedisServer, replication: FaultyLink) -> None:
        self.line = line
        self._primary = primary
        self._replica = replica
        self._replication = replication

    async def remember(self, name: str, status: str) -> None:
        """From here on the replica learns nothing more; what it knows is the stream with this status, and its bytes."""
        key = f"tests:{{/{name}}}"

        def known() -> bool:
            there, here = self._replica.control.hgetall(key), self._primary.control.hgetall(key)
            return there == here and there["status"] == status

        await until(known, f"{name!r} on the replica")
        self._replication.hold()

    async def fail_over(self) -> None:
        """Forget everything since."""
        self._primary.kill()
        self._replica.promote()
        for link in self.line.links:
            link.lead_to(self._replica.port)
            link.cut()
        await self.line.works_again(0, 1)


@pytest.fixture
async def forgetful(own_redis: Callable[..., Any], tmp_path: Path) -> AsyncIterator[Forgetful]:
    """Two workers on such a Redis."""
    with ExitStack() as stack:
        primary, replica = stack.enter_context(own_redis()), stack.enter_context(own_redis(name="replica"))
        replication = stack.enter_context(FaultyLink(primary.port))
        replica.follow(replication.port)
        async with plant(primary, tmp_path) as line:
            yield Forgetful(line, primary, replica, replication)


@pytest.mark.parametrize("how", ["finished", "stopped"])
async def test_a_stream_whose_end_was_forgotten_ends_for_those_who_read_it(forgetful: Forgetful, how: str) -> None:
    """Its worker is asked, and says that it does not write it: no reader waits for ever."""
    line, name = forgetful.line, unique("id")
    live = await line.player(0).post(name, numbered(5, 60), wait("go"), name=name)
    await live.read_until(b"00000004")
    await forgetful.remember(name, "in_progress")
    if how == "finished":
        await line.player(0).open("go")
    else:
        assert (await line.player(1).stop(name)).status == 204
    await live.read_all()
    await forgetful.fail_over()
    async with asyncio.timeout(SEEN_DEAD):
        late = await line.player(1).replay(name)
    assert code_of(late.body) == "producer_lost"
    assert without_ids(late.body).startswith(whole(5, 60))
    assert [item["status"] for item in await line.player(0).lookup(name)] == ["interrupted"]


async def test_a_stream_whose_beginning_was_forgotten_is_cancelled(forgetful: Forgetful) -> None:
    """Redis knows the earlier stream of the id alone: the producer of the newer one ends, and the earlier is served."""
    line, name = forgetful.line, unique("id")
    earlier = await line.player(0).record(name, numbered(5, 60))
    await forgetful.remember(name, "completed")
    newer = await line.player(0).post(name, ["paced", 30_000, 60, 0.02], name=name)
    await newer.read_until(b"00000010")
    await forgetful.fail_over()
    async with asyncio.timeout(SEEN_DEAD):
        await newer.read_all()
    assert code_of(newer.body) == "cancelled"
    assert (await line.player(1).replay(name)).body == earlier.body
