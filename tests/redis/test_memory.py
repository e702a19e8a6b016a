"""What streams take in Redis: at most two and a half times `max_stream_bytes` for an id, however its bytes come."""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest

from fastapi_resumable import RedisStore
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.stream import Limits, Stream
from fastapi_resumable.exceptions import StreamCancelled, StreamReplaced, TooManyStreams
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.redis.calls import Script, block_size
from fastapi_resumable.stores.redis.keys import Keys, log_key
from fastapi_resumable.stores.shared import queue
from fastapi_resumable.stores.shared.remote import RemoteStream
from tests.conformance.tools import KEY, TEXT, Request, begin, complete, content, following, write
from tests.support.redis_server import RedisServer
from tests.support.site import until

pytestmark = pytest.mark.redis

MIB = 1024 * 1024
SOON = 30.0
"""Seconds within which what nobody reads is given back."""
OpenStore = Callable[..., RedisStore]


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are written one by one are written without a pause after each."""
    monkeypatch.setattr(queue, "LONGEST_PAUSE", 0.0)


@pytest.fixture
def keys() -> Keys:
    """The names under the prefix of one test."""
    return Keys(f"memory-{uuid4().hex}")


@pytest.fixture
async def open_store(redis_server: RedisServer, keys: Keys) -> AsyncIterator[OpenStore]:
    """Opens the store of a worker."""
    stores: list[RedisStore] = []

    def open_store(**limits: float) -> RedisStore:
        store = RedisStore(redis_server.url, key_prefix=keys.prefix)
        store.configure(Limits(**limits))  # type: ignore[arg-type]
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.aclose()
    assert redis_server.list_keys_without_expiry(f"{keys.prefix}*") == []


async def shown(stream: Stream, tail: int) -> None:
    """Wait until Redis has so much of it, by as few looks as can be."""
    while stream.tail < tail:  # noqa: ASYNC110  # looked at in each turn of the loop
        await asyncio.sleep(0)


async def write_one_by_one(stream: Stream, *pieces: bytes) -> None:
    """Write pieces of which each is an entry of its own in Redis."""
    for piece in pieces:
        tail = stream.tail
        await write(stream, piece)
        await shown(stream, tail + len(piece))


async def test_ids_that_are_watched_are_counted(open_store: OpenStore) -> None:
    """In the process that they are watched in: they are refused where there is no room for them."""
    store = open_store(max_total_bytes=65536)
    ids = [f"id-{number}" for number in range(100)]
    unwatch = await store.watch("ann", ids, lambda _: None)
    with pytest.raises(TooManyStreams):
        await store.watch("ann", ids, lambda _: None)
    unwatch()
    assert store.held_bytes == 0


# Small pieces.


def append(server: RedisServer, keys: Keys, epoch: str, pieces: list[bytes], bound: int, start: int = 0) -> int:
    """Write each piece as an entry of its own, as a worker does to whom Redis answers at once; returns the tail."""
    pipeline, tail = server.control.pipeline(transaction=False), start
    for piece in pieces:
        first, tail = tail, tail + len(piece)
        earliest = max(0, tail - bound)
        words = [epoch, first, tail, piece, earliest, 0, 60_000, int(not first), 0, "", 300_000, block_size(bound)]
        pipeline.eval(Script.APPEND.text, 1, keys.stream(KEY), *words)
    assert {reply[0] for [reply] in pipeline.execute()} == {"ok"}
    return tail


@pytest.mark.parametrize("size", [1, 5, 40])
async def test_small_pieces_take_no_more_than_large_ones(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys, size: int
) -> None:
    """As many as fill the log, and twice as many: at no moment is the bound passed, and the newest bytes are there."""
    bound, tail = 8192, 0
    stream = await begin(open_store(max_stream_bytes=bound), KEY, TEXT)
    pieces = [b"%0*d" % (size, number % 10**size) for number in range(2 * bound // size)]
    for start in range(0, len(pieces), 512):
        tail = append(redis_server, keys, stream.epoch, pieces[start : start + 512], bound, tail)
        assert redis_server.memory(f"{keys.prefix}:*{KEY.id}*") <= 2.5 * bound
        found = await open_store(max_stream_bytes=bound).find(KEY, 1)
        whole = b"".join(pieces)[found.earliest : tail]
        async with following(found, found.earliest) as reader:
            assert await reader.reach(len(whole)) == whole
    assert bound <= len(whole) <= bound + size
    tail = append(redis_server, keys, stream.epoch, [bytes(1000)] * 12, bound, tail)
    assert redis_server.memory(f"{keys.prefix}:*{KEY.id}*") <= 2.5 * bound


async def test_small_pieces_can_be_read_from_any_place(open_store: OpenStore) -> None:
    """Wherever they lie by now: a piece, a packed one, or between the two."""
    store, other = (open_store(max_stream_bytes=65536) for _ in range(2))
    stream = await begin(store, KEY, TEXT)
    pieces = [b"%03d," % number if number % 7 else b"%03d" % number * 40 for number in range(700)]
    await write_one_by_one(stream, *pieces)
    whole = b"".join(pieces)
    await complete(store, stream)
    found = await other.find(KEY, 1)
    for offset in [*range(0, len(whole), 997), *range(len(whole) - 600, len(whole), 37)]:
        assert await content(found, offset) == whole[offset:]


async def test_a_follower_keeps_up_while_pieces_are_packed(open_store: OpenStore) -> None:
    """One that reads at once, and one that is far behind, get every byte once."""
    store, other = (open_store(max_stream_bytes=16384) for _ in range(2))
    stream = await begin(store, KEY, TEXT)
    pieces = [b"%d," % number for number in range(700)]
    found = await other.find(KEY, 1)
    async with following(found) as quick, following(found) as slow:
        slow.pace = asyncio.Event()
        await write_one_by_one(stream, *pieces)
        slow.pace.set()
        await complete(store, stream)
        assert await quick.end() == await slow.end() == b"".join(pieces)


async def test_a_packed_log_that_redis_lost_is_written_anew(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys
) -> None:
    """The log alone, or all of it: nothing is there twice afterwards."""
    store, other = open_store(max_stream_bytes=8192), open_store(max_stream_bytes=8192)
    stream = await begin(store, KEY, TEXT)
    pieces = [b"%d," % number for number in range(500)]
    log = log_key(keys.stream(KEY), stream.epoch)
    await write_one_by_one(stream, *pieces[:200])
    assert redis_server.control.exists(f"{log}:packed")
    redis_server.control.delete(log)
    await write_one_by_one(stream, *pieces[200:400])
    redis_server.control.delete(log, f"{log}:packed", keys.stream(KEY))
    await write_one_by_one(stream, *pieces[400:])
    await complete(store, stream)
    assert await content(await other.find(KEY, 1)) == b"".join(pieces)


# Replaced logs.


@pytest.mark.parametrize("how", ["completed", "live", "stopped"])
async def test_epochs_of_an_id_take_no_more_than_one(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys, how: str
) -> None:
    """Twelve turns of one conversation, each of which fills the log: only the last is kept."""
    store, other = open_store(max_stream_bytes=MIB), open_store(max_stream_bytes=MIB)
    for _ in range(12):
        stream = await begin(store, KEY, TEXT)
        await write(stream, *[bytes(64 * 1024)] * 16)
        await shown(stream, MIB)
        if how == "completed":
            await complete(store, stream)
        elif how == "stopped":
            await other.stop(KEY, None)
    most = 2.5 * MIB if how != "stopped" else 0.1 * MIB
    await until(lambda: redis_server.memory(f"{keys.prefix}:*{KEY.id}*") <= most, "the bytes to be given back", SOON)


async def test_an_id_that_is_begun_again_and_again_keeps_little_of_what_it_replaced(
    redis_server: RedisServer, keys: Keys
) -> None:
    """Or each script, which reads all of it, would hold up Redis for everybody."""
    name, control = keys.stream(KEY), redis_server.control
    for number in range(100):
        epoch = f"epoch-{number}"
        control.eval(Script.RESERVE.text, 1, name, epoch, "worker", "", "replace", 0, 60_000)
        control.eval(Script.BEGIN.text, 1, name, epoch, "worker", "[200,[]]", 0, 0, "", 60_000, 60_000, 0)
    marks = [field for field in control.hkeys(name) if field.startswith("x:")]
    assert len(marks) <= 64
    assert "x:epoch-98" in marks


@pytest.mark.parametrize("how", ["completed", "live"])
async def test_readers_of_a_replaced_epoch_read_it_to_its_end(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys, how: str
) -> None:
    """On another worker, however far behind they are; with the last of them the bytes are given back."""
    store, other = open_store(max_stream_bytes=MIB), open_store(max_stream_bytes=MIB)
    stream = await begin(store, KEY, TEXT)
    await write(stream, *[bytes(64 * 1024)] * 12)
    await shown(stream, 12 * 64 * 1024)
    if how == "completed":
        await complete(store, stream)
    log = log_key(keys.stream(KEY), stream.epoch)
    async with following(await other.find(KEY, 1)) as reader:
        reader.pace = asyncio.Event()
        await until(lambda: redis_server.control.exists(f"{log}:readers"), "the report")
        await begin(store, KEY, TEXT)
        reader.pace.set()
        assert len(await reader.end()) == 12 * 64 * 1024
    await until(lambda: not redis_server.list_keys(f"{log}*"), "the bytes to be given back", SOON)


async def test_what_a_dead_workers_readers_left_is_given_back(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys
) -> None:
    """A replaced log that somebody was reading expires within a minute, however long the retention is."""
    store, other = open_store(retention=86400.0), open_store(retention=86400.0)
    stream = await begin(store, StreamKey(None, "long"), TEXT)
    await write(stream, b"x")
    await complete(store, stream)
    log = log_key(keys.stream(stream.key), stream.epoch)
    redis_server.control.hset(f"{log}:readers", "worker", "0 9999999999999")
    redis_server.control.pexpire(f"{log}:readers", 5000)
    await begin(other, stream.key, TEXT)
    assert 0 < redis_server.control.ttl(log) <= 60
    assert (await store.lookup(None, ["long"]))[0].status is ResumableStatus.IN_PROGRESS


async def test_readers_of_a_stream_that_redis_lost_are_not_told_of_a_replacement(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys
) -> None:
    """Redis is back empty, and a worker reports its reader before the producer's has written the stream again."""
    store, other = open_store(), open_store()
    stream = await begin(store, KEY, TEXT)
    found = await other.find(KEY, 1)
    assert isinstance(found, RemoteStream)
    async with following(found) as reader:
        await write(stream, b"one ")
        await reader.reach(4)
        log = log_key(keys.stream(KEY), stream.epoch)
        await until(lambda: redis_server.control.exists(f"{log}:readers"), "the first report")
        redis_server.control.delete(*redis_server.list_keys(f"{keys.prefix}:*{KEY.id}*"))
        found.report()
        await until(lambda: redis_server.control.exists(f"{log}:readers") or found.failure, "the second report")
        assert found.failure is None
        await write(stream, b"two")
        await complete(store, stream)
        assert await reader.end() == b"one two"


@pytest.mark.parametrize("how", ["stopped", "replaced"])
async def test_a_log_stays_for_a_moment_after_its_last_reader(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys, how: str
) -> None:
    """Another reader may have found it just now, and is to see how it ended."""
    store, other = open_store(), open_store()
    stream = await begin(store, KEY, TEXT)
    log = log_key(keys.stream(KEY), stream.epoch)
    await (other.stop(KEY, None) if how == "stopped" else begin(other, KEY, TEXT))
    # In one transaction, in which no time passes: there is a log, and its last reader leaves.
    control = redis_server.control.pipeline()
    control.delete(log, f"{log}:readers", f"{log}:ended")
    control.xadd(log, {"d": "x"}, "1-0")
    control.eval(Script.REPORT.text, 2, keys.stream(KEY), log, "worker", "", 1000)
    control.pttl(log)
    assert 0 < control.execute()[-1] <= 300


@pytest.mark.parametrize(("how", "failure"), [("stopped", StreamCancelled), ("replaced", StreamReplaced)])
async def test_a_reader_that_comes_after_the_log_has_gone_learns_why(
    redis_server: RedisServer, open_store: OpenStore, keys: Keys, how: str, failure: type[Exception]
) -> None:
    """It has found the stream when it was live, and does not wait for more of it."""
    store, other = open_store(), open_store()
    request = Request()
    stream = await request.begin(store, TEXT)
    await write(stream, b"x")
    found = await other.find(KEY, 1)
    await (store.stop(KEY, None) if how == "stopped" else begin(store, KEY, TEXT))
    await request.told()
    log = log_key(keys.stream(KEY), stream.epoch)
    await until(lambda: not redis_server.list_keys(f"{log}*"), "the end of the log")
    async with following(found):
        await until(lambda: found.failure is not None, "the reason")
    assert type(found.failure) is failure
