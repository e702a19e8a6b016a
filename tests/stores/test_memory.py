"""stores/memory.py: what is forgotten when, and what is held meanwhile; the rest is in the conformance suite."""

import asyncio
import gc
import tracemalloc

import pytest

from fastapi_resumable import (
    MemoryStore,
    ResumableStatus,
    StreamNotFound,
    StreamPending,
)
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.stream import Head, Limits
from fastapi_resumable.models import ResumableStreamItem
from fastapi_resumable.stores.base import Reservation

KEY = StreamKey("ann", "chat")
HEAD = Head(200, ((b"content-type", b"text/event-stream"),))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Told:
    """A reservation, and what it was told."""

    def __init__(self, key: StreamKey, name: str, idempotency_key: str | None = None) -> None:
        self.codes: list[str] = []
        self.reservation = Reservation(key, name * 16, idempotency_key=idempotency_key, on_stop=self.codes.append)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock) -> MemoryStore:
    made = MemoryStore(clock=clock, wall_clock=clock)
    made.configure(Limits(retention=10.0))
    return made


async def test_a_finished_stream_expires_by_the_timer_too(store, clock):
    """Nobody has to ask for memory to be given back."""
    one = Told(KEY, "a")
    await store.reserve(one.reservation, "replace")
    stream = await store.begin(one.reservation, HEAD)
    await store.finish(stream, ResumableStatus.COMPLETED, "", "")
    await store.finish(stream, ResumableStatus.FAILED, "", "")
    assert stream.status is ResumableStatus.COMPLETED
    store._ended._on_timer()
    assert await store.lookup("ann", ["chat"])

    clock.now += 11
    store._ended._on_timer()

    assert not (store._streams or store._queued or store._requests)
    assert not store._variants
    del one, stream
    assert store.held_bytes < 1024, "the head alone, which this module has"
    await store.aclose()


async def test_many_streams_that_expire_together_are_forgotten_in_steps(store, clock):
    """Requests get turns in between, and do not see those whose turn is yet to come."""
    for number in range(100):
        await ended(store, f"chat::{number}", 1024)
    clock.now += 11
    store._ended._on_timer()

    assert 50 < len(store._ended) < 100
    assert [item.conversation_id for item in await store.lookup(None, ["chat"])] == []
    for number in range(100):
        await ended(store, f"chat::{number}", 1024)
    clock.now += 11
    with pytest.raises(StreamNotFound):
        await store.find(StreamKey(None, "chat::99"), 0)
    assert await store.reserve(Told(StreamKey(None, "chat::98"), "b").reservation, "attach") is None
    for _ in range(4):
        store._ended._on_timer()
    assert len(store._ended) == len(store._streams) == 0
    await store.aclose()


async def test_a_variant_is_forgotten_with_its_last_stream(store):
    """The index of variants holds no more than the streams that there are."""
    for name, stream_id in (("a", "chat::x"), ("b", "chat::y")):
        await store.reserve(Told(StreamKey("ann", stream_id), name).reservation, "replace")
    assert [item.conversation_id for item in await store.lookup("ann", ["chat", "chat::x"])] == ["chat::x", "chat::y"]

    await store.stop(StreamKey("ann", "chat::x"), None)
    assert [item.conversation_id for item in await store.lookup("ann", ["chat"])] == ["chat::y"]
    await store.stop(StreamKey("ann", "chat::y"), None)

    assert not store._variants


async def test_a_request_waits_for_pending_timeout_however_many_it_waits_for(store):
    """Each that gives up, and leaves its place to the next one, adds nothing."""
    rival, last = Told(KEY, "a"), Told(KEY, "b").reservation
    last.pending_timeout = 0.05
    await store.reserve(rival.reservation, "attach")
    waiting = asyncio.ensure_future(store.reserve(last, "attach"))
    async with asyncio.timeout(10):
        while not waiting.done():
            await asyncio.sleep(0)
            await store.release(rival.reservation)
            rival = Told(KEY, "a")
            await store.reserve(rival.reservation, "attach")
    with pytest.raises(StreamPending):
        await waiting


async def ended(store: MemoryStore, name: str, size: int) -> None:
    """One answer that has ended; of 32 events."""
    told = Told(StreamKey(None, name), "a")
    await store.reserve(told.reservation, "replace")
    stream = await store.begin(told.reservation, Head(200, ((b"content-type", b"text/event-stream"),)))
    for _ in range(32):
        assert stream.offer(b"data: %s\n\n" % (b"x" * (size // 32 - 8)), 0.0)
    await store.finish(stream, ResumableStatus.COMPLETED, "", "")


async def test_an_answer_that_has_ended_takes_little_more_than_its_bytes():
    """4 KiB cost less than 5 KiB, all told: 10,000 of them fit into 50 MB."""
    store = MemoryStore()
    store.configure(Limits(event_ids=False))
    await ended(store, "warm", 4096)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1000):
            await ended(store, f"chat-{number}", 4096)
        gc.collect()
        each = tracemalloc.get_traced_memory()[0] / 1000
    finally:
        tracemalloc.stop()

    assert 4096 < each < 5 * 1024


async def test_answers_with_the_same_head_share_it():
    """Most answers of an application have the same status and headers."""
    store = MemoryStore()
    store.configure(Limits())
    for name in ("a", "b"):
        await ended(store, name, 1024)
    one, other = [await store.find(StreamKey(None, name), 0) for name in ("a", "b")]

    assert one.head is other.head
    assert one.head == HEAD


async def test_heads_of_one_stream_each_do_not_pile_up(store):
    """A header with a request id makes each its own."""
    for number in range(1000):
        told = Told(KEY, "a")
        await store.reserve(told.reservation, "replace")
        await store.begin(told.reservation, Head(200, ((b"x-request-id", b"%d" % number),)))

    assert len(store._capacity._heads) < 100


async def test_a_lookup_shows_what_a_validated_item_would():
    """Items are made in a hurry; nothing about them tells."""
    store = MemoryStore(wall_clock=lambda: 1700000000.7)
    store.configure(Limits())
    await ended(store, "chat", 1024)
    (item,) = await store.lookup(None, ["chat"])
    validated = ResumableStreamItem.model_validate(item.model_dump(), strict=True)

    assert item == validated
    assert item.model_dump_json() == validated.model_dump_json()
    assert repr(item.model_copy()) == repr(validated)
    assert item.model_fields_set == validated.model_fields_set
