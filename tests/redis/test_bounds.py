"""Bounds: backpressure across workers, memory, connections and keys in Redis."""

import asyncio
import re
from collections.abc import Awaitable

import pytest

from tests.redis.plant import MIB, ROOMS
from tests.support.apps.player import forever, numbered, send, unique, wait
from tests.support.redis_server import RedisServer
from tests.support.site import Site, code_of, drain, until, whole
from tests.support.ssemodel import our_ids, without_ids

pytestmark = pytest.mark.redis

ASYNC = [("prefer", "respond-async")]


async def test_a_fast_producer_waits_for_a_reader_on_another_worker(site: Site) -> None:
    """20 MB go through a log of 1 MiB: the reader elsewhere gets every byte, once, with nobody reading on the spot."""
    name, gate = unique("id"), unique("gate")
    steps = (send(b"data: begun\n\n"), wait(gate), numbered(5000, 4096))
    await site.player(0, "small").record(name, *steps, headers=ASYNC, name=name)
    readers = [await site.player(worker, "small").follow(name) for worker in (1, 2)]
    for reader in readers:
        await reader.read_until(b"\n\n")
    await site.player(0).open(gate)
    bodies = await asyncio.gather(*(drain(reader) for reader in readers))
    expected = b"data: begun\n\n" + whole(5000, 4096)
    for reader, body in zip(readers, bodies, strict=True):
        assert reader.clean
        assert without_ids(body) == expected
    assert our_ids(bodies[0])[-1][1] == len(bodies[0])


async def test_a_reader_elsewhere_that_takes_nothing_holds_the_producer(site: Site) -> None:
    """It gets no further ahead than the log's bound, and goes on when the reader does: nothing is lost."""
    name, gate = unique("id"), unique("gate")
    steps = (send(b"data: begun\n\n"), wait(gate), numbered(3000, 4096))
    await site.player(0, "small").record(name, *steps, headers=ASYNC, name=name)
    reader = await site.player(1, "small").follow(name, receive_buffer=4096)
    await reader.read_until(b"\n\n")
    await site.player(0).open(gate)
    await reader.read(65_536)
    sizes = [0]

    async def stands_still() -> bool:
        await asyncio.sleep(0.1)  # between two looks at whether anything moves
        [item] = await site.player(2, "small").lookup(name)
        sizes.append(item["total_bytes"])
        return len(sizes) > 4 and len({*sizes[-4:]}) == 1

    async with asyncio.timeout(60):
        while not await stands_still():
            pass
    assert sizes[-1] < 9 * MIB, "the producer ran ahead of its reader"
    assert site.count(f"ended:{name}") == 0
    body = await drain(reader)
    assert reader.clean
    assert without_ids(body) == b"data: begun\n\n" + whole(3000, 4096)


@pytest.mark.parametrize(("count", "size"), [(5000, 4096), (40_000, 60)], ids=["20-MB", "tokens"])
async def test_a_stream_takes_bounded_memory_in_redis(
    site: Site, redis_server: RedisServer, count: int, size: int
) -> None:
    """At most two and a half times `max_stream_bytes`, at any time, with nobody reading; the tail can be replayed."""
    name = unique("id")
    # Not the leases of its workers: without them they would count as dead, and the stream as interrupted.
    redis_server.control.delete(*redis_server.list_keys("tests-small:{*") or ["-"])
    most = 0
    await site.player(0, "small").record(name, numbered(count, size), headers=ASYNC, name=name)
    item = {"is_done": False}
    while not item["is_done"]:
        most = max(most, redis_server.memory(f"*{name}*"))
        [item] = await site.player(1, "small").lookup(name)
    assert site.count(f"finished:{name}") == 1
    replay = await site.player(1, "small").replay(name, from_=item["dropped_bytes"])
    most = max(most, redis_server.memory(f"*{name}*"))
    assert item["total_bytes"] > count * size
    assert item["total_bytes"] - item["dropped_bytes"] >= MIB - 2 * size - 100
    assert without_ids(replay.body) == whole(count, size)[-len(without_ids(replay.body)) :]
    assert (await site.player(1, "small").replay(name)).status == 400
    assert 0 < most <= 2.5 * MIB


async def test_readers_of_one_worker_share_a_connection(site: Site, redis_server: RedisServer) -> None:
    """A hundred follow one stream on another worker: Redis sees some connections more, not a hundred."""
    name, gate = unique("id"), unique("gate")
    live = await site.player(0).post(name, numbered(10, 60), wait(gate), numbered(10, 60), name=name)
    await live.read_until(b"00000009")
    before = redis_server.connections()
    readers = [await site.player(1).follow(name) for _ in range(100)]
    for reader in readers:
        await reader.read_until(b"00000009")
    assert redis_server.connections() <= before + 5
    await site.player(0).open(gate)
    await live.read_all()
    await asyncio.gather(*(reader.read_all() for reader in readers))
    assert {reader.body for reader in readers} == {live.body}
    assert all(reader.clean for reader in readers)


async def test_many_streams_of_one_worker_share_its_connections(site: Site, redis_server: RedisServer) -> None:
    """Thirty streams, each followed elsewhere, are no thirty connections."""
    names, gate = [unique("id") for _ in range(30)], unique("gate")
    live = [await site.player(0).post(name, send(b"data: 1\n\n"), wait(gate)) for name in names]
    for each in live:
        await each.read_until(b"\n\n")
    before = redis_server.connections()
    readers = [await site.player(1).follow(name) for name in names]
    for reader in readers:
        await reader.read_until(b"\n\n")
    assert redis_server.connections() <= before + 10
    await site.player(0).open(gate)
    await asyncio.gather(*(each.read_all() for each in (*live, *readers)))
    assert [each.body for each in live] == [each.body for each in readers]


async def test_every_key_expires_at_every_moment(site: Site, redis_server: RedisServer) -> None:
    """Whatever happens to a stream, no look at Redis finds a key that would stay."""
    looks = 0

    async def watched(scenes: Awaitable[None]) -> None:
        nonlocal looks
        playing = asyncio.ensure_future(scenes)
        while not playing.done():
            assert redis_server.list_keys_without_expiry() == []
            looks += 1
            await asyncio.sleep(0)
        await playing

    async def scenes() -> None:
        for room, options in ROOMS.items():
            player, other = (site.player(worker, room, [("x-user", unique("user"))]) for worker in (0, 1))
            name, before, gate = unique("id"), unique("before"), unique("gate")
            posting = asyncio.create_task(
                player.post(name, numbered(10, 60), wait(gate), numbered(10, 60), before=[wait(before)])
            )
            await player.waits_at(before)
            await player.open(before)
            live = await posting
            if not options.get("owned"):
                await (await other.follow(name)).read_until(b"00000009")
            await player.open(gate)
            await live.read_all()
            stopped = await player.post(f"{name}-2", send(b"data: 1\n\n"), forever())
            await player.stop(f"{name}-2")
            await stopped.read_all()
            assert code_of(stopped.body) == "cancelled"

    await watched(scenes())
    assert looks > 10


async def test_keys_are_under_their_prefix_with_a_tag_for_the_cluster(site: Site, redis_server: RedisServer) -> None:
    """All keys of one stream are on one node."""
    name = unique("id")
    await site.player(0).record(name, numbered(3, 60))
    keys = redis_server.list_keys(f"*{name}*")
    assert keys
    assert all(key.startswith("tests:") for key in keys)
    assert {match[1] if (match := re.search(r"\{([^}]+)\}", key)) else None for key in keys} == {f"/{name}"}


async def test_two_prefixes_do_not_see_each_other(site: Site) -> None:
    """The same id in two applications on one Redis is two streams: to read, to look up, to stop."""
    name, gate = unique("id"), unique("gate")
    live = await site.player(0).post(name, send(b"data: 1\n\n"), wait(gate))
    await live.read_until(b"\n\n")
    other = site.player(1, "attach")
    assert (await other.replay(name)).status == 404
    assert await other.lookup(name) == []
    assert (await other.stop(name)).status == 204
    mine = await other.record(name, send(b"data: 2\n\n"))
    assert without_ids(mine.body) == b"data: 2\n\n"
    await site.player(0).open(gate)
    await live.read_all()
    assert without_ids(live.body) == b"data: 1\n\n"


async def test_expired_streams_leave_nothing_behind(site: Site, redis_server: RedisServer) -> None:
    """After `retention` no key tells of the stream; its bytes go as well, a minute later for those who still read."""
    name = unique("id")
    await site.player(0, "brief").record(name, numbered(3, 60))
    await until(lambda: len(redis_server.list_keys(f"*{name}*")) < 2, "the expiry of what tells of the stream")
    for key in redis_server.list_keys(f"*{name}*"):
        assert 0 < redis_server.control.ttl(key) <= 60
        assert redis_server.control.type(key) == "stream"


async def test_a_reader_on_the_spot_takes_no_detour(site: Site, redis_server: RedisServer) -> None:
    """Following a stream on its own worker reads nothing from Redis, however long the stream."""

    async def reads_during(streams: int) -> int:
        before = redis_server.calls("xread") + redis_server.calls("xrange")
        for _ in range(streams):
            live = await site.player(0).post(unique("id"), ["paced", 50, 60, 0.001])
            await live.read_all()
        return redis_server.calls("xread") + redis_server.calls("xrange") - before

    # Idle workers read too: from their channels of control. That is a matter of time, and not of events.
    assert await reads_during(4) < 4 * 25


async def test_appends_are_batched(site: Site, redis_server: RedisServer) -> None:
    """A burst of events is appended in far fewer calls than there are events."""
    before = redis_server.calls("xadd")
    await site.player(0).record(unique("id"), numbered(2000, 60))
    assert 0 < redis_server.calls("xadd") - before < 500


async def test_a_stop_reaches_the_producer_under_load(site: Site) -> None:
    """Within a second, while forty streams run on the same workers."""
    gate, name = unique("gate"), unique("id")
    load = [await site.player(number % 2).post(unique("load"), ["paced", 100, 60, 0.01]) for number in range(40)]
    live = await site.player(0).post(name, send(b"data: 1\n\n"), wait(gate), name=name)
    await live.read_until(b"\n\n")
    reading = [asyncio.create_task(each.read_all()) for each in load]
    await site.player(2).stop(name)
    await site.until_noted(f"CancelledError:{name}")
    await asyncio.gather(*reading)
    assert all(without_ids(each.body) == whole(100, 60) for each in load)
