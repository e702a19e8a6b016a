"""A worker that is shut down, and one that starts without Redis."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.apps.player import forever, numbered, send, unique
from tests.support.asgi import bounded
from tests.support.redis_server import RedisServer
from tests.support.site import Site, code_of, environment, site_of
from tests.support.ssemodel import without_ids

pytestmark = pytest.mark.redis


async def test_a_worker_that_is_shut_down_says_so_to_readers_elsewhere(
    site: Site, redis_server: RedisServer, tmp_path: Path, took: Callable[[str, float], None]
) -> None:
    """Past the grace its streams end as `interrupted`, for everybody the same; the process goes in time."""
    name, plain = unique("id"), unique("plain")
    leaving = environment(redis_server.url, tmp_path / "notes")
    async with site_of([leaving]) as other:
        live = await other.player(0).post(name, numbered(3, 60), forever(), name=name)
        text = await other.player(0).post(plain, send(b"text"), forever(), media_type="text/plain")
        readers = [await site.player(worker).follow(name) for worker in (0, 1)]
        plain_reader = await site.player(1).follow(plain)
        for each in (live, *readers):
            await each.read_until(b"00000002")
        await plain_reader.read(4)
        begun = time.monotonic()
        other.servers[0].terminate()
        for each in (live, *readers, text, plain_reader):
            await each.read_all()
        took("readers elsewhere told", time.monotonic() - begun)
        assert await asyncio.to_thread(other.servers[0].wait) in (0, -15)
        assert other.count(f"CancelledError:{name}") == 1
    assert code_of(live.body) == "interrupted"
    assert {each.body for each in readers} == {live.body}
    assert (plain_reader.body, plain_reader.clean) == (b"text", False)
    items = await site.player(2).lookup(name, plain)
    assert [item["status"] for item in items] == ["interrupted", "interrupted"]
    assert (await site.player(2).replay(name)).body == live.body
    again = await site.player(2).record(name, send(b"data: again\n\n"))
    assert without_ids(again.body) == b"data: again\n\n"


async def test_a_worker_starts_and_recovers_without_redis(
    own_redis: Callable[..., object], tmp_path: Path, took: Callable[[str, float], None]
) -> None:
    """It answers what needs no store, refuses new streams under `fail`, and works once Redis is there."""
    with own_redis() as redis:  # type: ignore[attr-defined]
        redis.kill()
        store = {"lease": 2, "store_timeout": 1, "on_store_failure": "fail"}
        async with site_of([environment(redis.url, tmp_path / "notes", store=store)]) as site:
            refused = await bounded(site.player(0).record("early", send(b"data: 1\n\n")))
            assert refused.status == 503
            assert b"store_unavailable" in refused.body
            redis.start()
            begun = time.monotonic()
            async with asyncio.timeout(60):
                while (answer := await site.player(0).record("late", send(b"data: 1\n\n"))).status != 200:
                    pass
            took("a new stream works", time.monotonic() - begun)
            assert without_ids(answer.body) == b"data: 1\n\n"
            assert (await site.player(0).replay("late")).body == answer.body
