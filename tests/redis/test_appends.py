"""What is written costs few commands, and nothing of it is held back: appends are batched."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from time import monotonic
from uuid import uuid4

import pytest

from fastapi_resumable import RedisStore
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.stream import Limits, Stream
from fastapi_resumable.stores.redis.keys import Keys, log_key
from fastapi_resumable.stores.shared.local import LocalStream
from tests.conformance.tools import KEY, TEXT, Request, begin, complete, content, following, write
from tests.support.redis_server import RedisServer
from tests.support.site import until

pytestmark = pytest.mark.redis

EVENT = b"data: " + b"x" * 94 + b"\n\n"
MIB = 1024 * 1024

OpenStore = Callable[..., RedisStore]


class Workers:
    """Stores on one Redis, under a prefix of their own; and what they make it do."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.keys = Keys(f"appends-{uuid4().hex}")
        self.stores: list[RedisStore] = []

    def open(self, limits: Limits | None = None) -> RedisStore:
        """A worker's store."""
        store = RedisStore(self.server.url, key_prefix=self.keys.prefix)
        store.configure(limits or Limits())
        self.stores.append(store)
        return store

    def calls(self) -> Counter[str]:
        """How often each command was called so far, by scripts or by anybody else."""
        stats = self.server.commandstats()
        return Counter({name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()})

    def log(self, stream: Stream) -> str:
        """Where the bytes of a stream are."""
        return log_key(self.keys.stream(stream.key), stream.epoch)


@pytest.fixture
async def workers(redis_server: RedisServer) -> AsyncIterator[Workers]:
    """Workers on a Redis that is not harmed."""
    workers = Workers(redis_server)
    try:
        yield workers
    finally:
        for store in workers.stores:
            await store.aclose()
        assert redis_server.list_keys_without_expiry(f"{workers.keys.prefix}*") == []


async def shown(stream: Stream, tail: int | None = None) -> None:
    """Wait until Redis has all that was written, or so much of it."""
    wanted = stream.log.tail if tail is None else tail
    await until(lambda: stream.tail >= wanted, f"{wanted} bytes")


# What it costs.


async def test_many_fast_streams_cost_a_fraction_of_a_command_for_each_event(workers: Workers) -> None:
    """64 streams that await once per event: less than 0.2 commands each, with those that scripts call.

    On a machine that takes longer over them, they are written after each pause, and still not for each event.
    """
    store, turns = workers.open(), 400
    streams = [await begin(store, StreamKey(None, f"id-{number}"), TEXT) for number in range(64)]
    before, begun = workers.calls(), monotonic()
    for _ in range(turns):
        for stream in streams:
            await write(stream, b"x" * 128)
        await asyncio.sleep(0)
    for stream in streams:
        await shown(stream)
    pauses = (monotonic() - begun) / 0.02 + 20
    assert 0 < (workers.calls() - before).total() < max(0.2 * turns, 3.5 * pauses) * len(streams)


async def test_what_many_streams_write_in_one_turn_goes_in_one_call(workers: Workers) -> None:
    """What is there at the same time goes together."""
    store = workers.open()
    streams = [await begin(store, StreamKey(None, f"id-{number}"), TEXT) for number in range(60)]
    for stream in streams:
        await write(stream, b"1")
    for stream in streams:
        await shown(stream)
    before = workers.calls()
    for stream in streams:
        await write(stream, b"2")
    for stream in streams:
        await shown(stream)
    calls = workers.calls() - before
    assert calls["xadd"] >= len(streams)
    assert calls["evalsha"] <= 4


async def test_readers_elsewhere_are_looked_for_only_when_the_log_may_fill_up(workers: Workers) -> None:
    """As long as all of a stream fits in, nothing can be dropped that somebody still needs."""
    stream = await begin(workers.open(Limits(max_stream_bytes=MIB)), KEY, TEXT)

    async def looks() -> int:
        before = workers.calls()
        for _ in range(5):
            await write(stream, b"x")
            await shown(stream)
        return (workers.calls() - before)["hvals"]

    assert await looks() == 0
    await write(stream, *[bytes(MIB // 16)] * 12)
    await shown(stream)
    assert await looks() == 5


async def test_a_log_that_one_chunk_can_fill_looks_for_readers_every_time(workers: Workers) -> None:
    """A reader elsewhere that is still at the start gets every byte, although the next chunk is larger than the log."""
    limits = Limits(max_stream_bytes=4096)
    one, other = workers.open(limits), workers.open(limits)
    stream = await begin(one, KEY, TEXT)
    async with following(await other.find(KEY, 1)) as reader:
        reader.pace = asyncio.Event()
        await until(lambda: workers.server.control.exists(f"{workers.log(stream)}:readers"), "the report")
        await write(stream, b"a" * 100)
        await shown(stream)
        assert not stream.has_room(5000)
        reader.pace.set()
        await write(stream, b"b" * 5000)
        assert await reader.reach(5100) == b"a" * 100 + b"b" * 5000


# What it must not cost.


async def test_what_was_written_is_shown_although_nothing_follows(workers: Workers) -> None:
    """A silence after many events does not hold the last of them back."""
    stream = await begin(workers.open(), KEY, TEXT)
    await write(stream, *[EVENT] * 1000)
    await shown(stream)


async def test_a_producer_is_never_further_ahead_than_a_part_of_the_log(workers: Workers) -> None:
    """It waits for what is to be written then, and goes on by itself, however small the log."""
    stream = await begin(workers.open(Limits(max_stream_bytes=4096)), KEY, TEXT)
    assert isinstance(stream, LocalStream)
    async with asyncio.timeout(60):
        for _ in range(100):
            await write(stream, EVENT)
            assert stream.log.tail - stream.tail <= 1024


async def test_a_store_that_is_closed_writes_what_was_collected(workers: Workers) -> None:
    """All that was written before is there."""
    store = workers.open()
    stream = await begin(store, KEY, TEXT)
    await write(stream, *[EVENT] * 100)
    await store.aclose()
    assert workers.server.control.hget(workers.keys.stream(KEY), "tail") == str(stream.log.tail)


# What may go wrong.


async def test_a_log_that_is_gone_is_written_anew(workers: Workers) -> None:
    """Somebody has deleted the key of the bytes alone: the stream is whole again, and the key expires."""
    one, other = workers.open(), workers.open()
    stream = await begin(one, KEY, TEXT)
    await write(stream, b"one ")
    await shown(stream)
    workers.server.control.delete(workers.log(stream))
    await write(stream, b"two ")
    await shown(stream)
    assert workers.server.list_keys_without_expiry(f"{workers.keys.prefix}*") == []
    await write(stream, b"three")
    await complete(one, stream)
    assert await content(await other.find(KEY, 1)) == b"one two three"


async def test_a_stream_whose_state_is_gone_is_put_back(workers: Workers) -> None:
    """Redis has evicted the hash alone: the producer goes on, and readers elsewhere miss nothing."""
    one, other = workers.open(), workers.open()
    stream = await begin(one, KEY, TEXT)
    await write(stream, b"one ")
    await shown(stream)
    async with following(await other.find(KEY, 1)) as follower:
        await follower.reach(4)
        workers.server.control.delete(workers.keys.stream(KEY))
        await write(stream, b"two ")
        await write(stream, b"three")
        await shown(stream)
        await complete(one, stream)
        assert await follower.end() == b"one two three"
    assert await content(await other.find(KEY, 1)) == b"one two three"


async def test_streams_that_are_written_together_end_each_in_its_own_way(workers: Workers) -> None:
    """One that was replaced elsewhere is refused, and those that share its call are not."""
    one, other = workers.open(), workers.open()
    names = [StreamKey(None, f"id-{number}") for number in range(10)]
    requests = [Request(name) for name in names]
    streams = [await request.begin(one, TEXT) for request in requests]
    for stream in streams:
        await write(stream, b"old ")
    for stream in streams:
        await shown(stream)
    # By a hand that tells nobody.
    workers.server.control.hset(workers.keys.stream(names[3]), "status", "cancelled")
    for stream in streams:
        await write(stream, b"new")
    for stream in streams[:3] + streams[4:]:
        await shown(stream)
    async with asyncio.timeout(10):
        assert await requests[3].told() == "cancelled"
    for number, name in enumerate(names):
        if number != 3:
            await complete(one, streams[number])
            assert await content(await other.find(name, 1)) == b"old new"
