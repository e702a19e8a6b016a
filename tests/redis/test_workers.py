"""Other sets of workers: `uvicorn --workers 4`, a worker that is shut down, and no code but a setting."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.apps.player import forever, numbered, send, unique, wait
from tests.support.asgi import bounded
from tests.support.redis_server import RedisServer
from tests.support.site import Site, code_of, environment, site_of, until, whole
from tests.support.ssemodel import last_ids, without_ids

pytestmark = pytest.mark.redis


@pytest.mark.slow
async def test_uvicorn_with_four_workers_is_one_server(redis_server: RedisServer, tmp_path: Path) -> None:
    """Twenty streams are begun, followed, resumed and stopped by whichever worker the kernel picks."""
    site_environment = environment(redis_server.url, tmp_path / "notes", key_prefix="four")
    async with site_of([site_environment], workers=4) as site:
        await until(lambda: site.servers[0].output.count("startup complete") == 4, "all four workers")
        answered: set[str | None] = set()

        async def one() -> None:
            name = unique("id")
            live = await site.player(0).post(name, ["paced", 60, 60, 0.01], name=name)
            answered.add(live.header("x-worker"))
            got = await live.read_until(b"00000010")
            got += await live.read_until(b"\n\n")
            live.connection.reset()
            while b"00000059" not in got:
                reader = await site.player(0).follow(name, headers=[("last-event-id", last_ids(got)[-1])])
                assert reader.status == 200, await reader.read_all()
                answered.add(reader.header("x-worker"))
                number = len(last_ids(got)) + 5
                if number < 60:
                    got += await reader.read_until(b"%08d" % number)
                    got += await reader.read_until(b"\n\n")
                    reader.connection.reset()
                else:
                    got += await reader.read_all()
                    assert reader.clean
            assert without_ids(got) == whole(60, 60)
            [item] = await site.player(0).lookup(name)
            assert item["status"] == "completed"

        async def stopped() -> None:
            name = unique("stopped")
            live = await site.player(0).post(name, send(b"data: 1\n\n"), forever(), name=name)
            await live.read_until(b"\n\n")
            assert (await site.player(0).stop(name)).status == 204
            await site.until_noted(f"CancelledError:{name}")
            assert (await site.player(0).replay(name)).status == 404
            await live.read_all()
            assert code_of(live.body) == "cancelled"

        async with asyncio.TaskGroup() as scenes:
            for scene in [one] * 20 + [stopped] * 5:
                scenes.create_task(scene())
        assert len(answered) > 1, "all requests went to one worker"
        assert {entry for _, entry in site.noted() if site.count(entry) > 1} == set()


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


async def test_one_variable_in_the_environment_is_enough(redis_server: RedisServer, tmp_path: Path) -> None:
    """`FASTAPI_RESUMABLE_STORE=redis://...`, and two workers are one."""
    variable = {"FASTAPI_RESUMABLE_STORE": redis_server.url}
    name, gate = unique("id"), unique("gate")
    async with site_of([{**environment(None, tmp_path / "notes"), **variable}] * 2) as site:
        live = await site.player(0).post(name, numbered(3, 60), wait(gate), numbered(3, 60))
        reader = await site.player(1).follow(name)
        await reader.read_until(b"00000002")
        await site.player(0).open(gate)
        await live.read_all()
        await reader.read_all()
    assert reader.body == live.body
    assert without_ids(reader.body) == whole(3, 60) * 2
    assert redis_server.list_keys("fastapi-resumable:*")


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
