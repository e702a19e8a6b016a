"""What a memory store holds is what it counts, whatever has happened; and it holds no more than it may."""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_resumable import MemoryStore, ResumableStatus, StreamCancelled, TooManyStreams
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.fanout import Cursor
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.stream import Head, Limits, find_position
from fastapi_resumable.exceptions import InvalidRequest, OffsetLost
from fastapi_resumable.stores.base import Reservation

MIB = 1024 * 1024
BYTES, EVENTS = b"application/octet-stream", b"text/event-stream"
epochs = (f"{number:016}" for number in count())


def store_of(**limits: int) -> MemoryStore:
    store = MemoryStore()
    store.configure(Limits(**limits))
    return store


async def begin(
    store: MemoryStore, name: str = "chat", media_type: bytes = BYTES, key: str | None = None, number: int = 0
) -> MemoryStream:
    head = Head(200, ((b"content-type", media_type), (b"x-number", b"%d" % number)))
    reservation = Reservation(StreamKey("ann", name), next(epochs), idempotency_key=key, on_stop=lambda _code: None)
    assert await store.reserve(reservation, "replace") is None
    return await store.begin(reservation, head)


def fill(stream: MemoryStream, size: int, piece: int = 4096) -> int:
    """Write up to `size` bytes, as long as there is room; return how many were written."""
    written = 0
    while written < size and stream.offer(bytes(piece), 0.0):
        written += piece
    return written


async def end(store: MemoryStore, stream: MemoryStream) -> None:
    await store.finish(stream, ResumableStatus.COMPLETED, "", "")


async def test_what_is_replaced_or_stopped_is_gone_at_once() -> None:
    """Not only after the retention, and whoever still has the stream in hand."""
    store = store_of()
    old = await begin(store)
    fill(old, MIB)
    await end(store, old)
    new = await begin(store)
    assert old.log.size == 0
    fill(new, MIB)
    await store.stop(new.key, None)
    assert new.log.size == len(store._ended) == 0
    assert store.held_bytes < 1024, "the head alone, as long as the stream is in hand"
    del old, new
    assert store.held_bytes == 0
    await store.aclose()


async def test_what_is_replaced_counts_until_its_last_reader_has_gone() -> None:
    """The reader gets all of it."""
    store = store_of()
    old = await begin(store)
    fill(old, MIB)
    cursor = Cursor(0)
    old.attach(cursor)
    await store.stop(old.key, None)
    assert store.held_bytes > MIB
    assert len(old.read(cursor.offset)) > 0
    old.detach(cursor)
    assert store.held_bytes < 1024
    del old
    assert store.held_bytes == 0


async def test_a_request_that_waited_for_a_stopped_stream_gets_an_error() -> None:
    """In the one turn of the loop in which it could not have attached to it."""
    store = store_of()
    first = Reservation(StreamKey("ann", "chat"), next(epochs), idempotency_key=None, on_stop=lambda _code: None)
    second = Reservation(StreamKey("ann", "chat"), next(epochs), idempotency_key=None, on_stop=lambda _code: None)
    await store.reserve(first, "attach")
    waiting = asyncio.ensure_future(store.reserve(second, "attach"))
    await asyncio.sleep(0)
    await store.begin(first, Head(200, ()))
    await store.stop(first.key, None)
    with pytest.raises(StreamCancelled):
        await waiting


@pytest.mark.parametrize("how", ["stopped", "replaced"])
async def test_a_request_that_found_a_stream_which_is_stopped_then_gets_an_error(how: str) -> None:
    """Before it could attach to it: the log is gone by then, and `offset_lost` would have it read on from elsewhere."""
    store = store_of()
    await begin(store, "chat")
    found = await store.find(StreamKey("ann", "chat"), 0)
    assert isinstance(found, MemoryStream)
    fill(found, 100)
    if how == "stopped":
        await store.stop(found.key, None)
    else:
        await begin(store, "chat")
    with pytest.raises(StreamCancelled):
        await find_position(found, None, None)


async def test_an_unfinished_event_is_counted() -> None:
    """Although nothing of it is in the log."""
    store = store_of()
    stream = await begin(store, media_type=EVENTS)
    for _ in range(64):
        assert stream.offer(b"data: " + bytes(16 * 1024 - 6), 0.0)
    assert stream.log.size == 0
    assert store.held_bytes > MIB


async def test_live_streams_share_what_there_is() -> None:
    """With a reader that takes nothing each waits at its share; with none it keeps its newest bytes."""
    store = store_of(max_total_bytes=4 * MIB)
    read, unread = [[await begin(store, f"{kind}-{number}") for number in range(20)] for kind in ("read", "unread")]
    for stream in read:
        stream.attach(Cursor(0))
    for _ in range(64):
        for stream in read + unread:
            fill(stream, 64 * 1024)
    assert store.held_bytes < 1.1 * 4 * MIB
    assert all(stream.log.floor == 0 and 0 < stream.tail < MIB for stream in read)
    assert all(stream.tail == 4 * MIB and stream.log.size > 0 for stream in unread)


async def test_a_live_stream_that_is_silent_gives_up_what_is_over_its_share() -> None:
    """The first one does not keep what others need."""
    store = store_of(max_total_bytes=4 * MIB)
    silent, *others = [await begin(store, f"{number}") for number in range(8)]
    fill(silent, 4 * MIB - 64 * 1024)
    for stream in others:
        fill(stream, 4 * MIB)
    assert store.held_bytes < 1.1 * 4 * MIB
    assert silent.log.size < MIB
    with pytest.raises(TooManyStreams):
        await begin(store, "one more")


async def test_many_live_streams_share_what_there_is_in_steps() -> None:
    """No write has the event loop wait until all of them have been looked at."""
    store = store_of(max_total_bytes=4 * MIB)
    streams = [await begin(store, f"{number}") for number in range(1000)]
    most = 0
    for _ in range(8):
        for stream in streams:
            floors = [other.log.floor for other in streams]
            fill(stream, 1024, 1024)
            most = max(most, sum(other.log.floor != floor for other, floor in zip(streams, floors, strict=True)))
    assert 100 < most <= 256 + 1
    assert store.held_bytes < 1.1 * 4 * MIB
    assert min(stream.log.size for stream in streams) > MIB // 1000


async def test_a_stream_is_not_held_to_the_share_of_a_time_when_there_were_many() -> None:
    """What was worked out for all of them is not left half done until the store is full again."""
    store = store_of(max_total_bytes=4 * MIB)
    streams = [await begin(store, f"{number}") for number in range(600)]
    lasting = await begin(store, "lasting")
    writers = cycle(streams)
    while streams[0].log.floor == 0:
        fill(next(writers), 1024, 1024)
    for stream in streams:
        await store.stop(stream.key, None)
    for _ in range(10):
        await asyncio.sleep(0)
    other = await begin(store, "other")
    fill(lasting, 3 * MIB)
    fill(other, 3 * MIB)
    assert lasting.log.size > MIB


async def test_many_streams_that_have_yet_to_write_little_hold_no_more_than_there_may_be() -> None:
    """However small a part of it each of them is."""
    store = store_of(max_total_bytes=4 * MIB)
    streams = [await begin(store, f"{number}") for number in range(2000)]
    for _ in range(10):
        for stream in streams:
            fill(stream, 300, 300)
    assert store.held_bytes < 1.1 * 4 * MIB


async def test_unfinished_events_of_silent_generators_give_up_what_is_over_their_share() -> None:
    """They are shown as far as they are there, and go on to their ends."""
    store = store_of(max_total_bytes=4 * MIB)
    silent, *others = [await begin(store, f"{number}", EVENTS) for number in range(8)]
    cursor = Cursor(0)
    silent.attach(cursor)
    silent.offer(b"data: 1", 0.0)
    for _ in range(120):
        assert silent.offer(b"1" * 16 * 1024, 0.0)
    for stream in others:
        for _ in range(240):
            assert stream.offer(b"data: 2" + b"2" * 15_000, 0.0)
    assert store.held_bytes < 1.1 * 4 * MIB
    assert 1.8 * MIB < silent.tail < 2 * MIB
    silent.advance(cursor, silent.tail)
    assert silent.offer(b"1\n\n", 0.0)
    held = b"".join(silent.log.chunks(silent.log.floor))
    assert held.startswith(b"data: 11")
    assert held.endswith(b"1\nid: %s-%d\n\n" % (silent.epoch.encode(), silent.tail))


async def test_replaced_streams_with_readers_have_no_more_than_their_share() -> None:
    """A reader that takes nothing loses its place rather than to take that of live streams; others read to the end."""
    store = store_of(max_total_bytes=4 * MIB, max_streams=2)
    reads = []
    for _ in range(40):
        stream = await begin(store)
        reads.append((stream, Cursor(0)))
        stream.attach(reads[-1][1])
        fill(stream, 60 * 64 * 1024, 64 * 1024)
        assert store.held_bytes <= 1.1 * 4 * MIB
    lost = 0
    for stream, cursor in reads:
        try:
            while cursor.offset < stream.tail:
                stream.advance(cursor, len(stream.read(cursor.offset)))
        except OffsetLost:
            lost += 1
        stream.detach(cursor)
    assert 30 < lost < 40


async def test_what_readers_of_a_replaced_stream_have_had_is_given_back() -> None:
    """Although others have yet to read the rest."""
    store = store_of()
    stream = await begin(store)
    fast, slow = Cursor(0), Cursor(0)
    stream.attach(fast)
    stream.attach(slow)
    fill(stream, MIB)
    await store.stop(stream.key, None)
    stream.advance(fast, MIB)
    assert stream.log.floor == 0
    stream.advance(slow, MIB // 2)
    assert stream.tail - MIB // 2 - 3 - stream.log.floor + 64 * 1024 > 0
    assert stream.log.floor >= MIB // 2 - 64 * 1024 - 3


async def test_a_head_is_counted_for_as_long_as_a_stream_has_it() -> None:
    """Also when that is not the one that brought it."""
    store = store_of()
    first, second = [await begin(store, name) for name in ("a", "b")]
    assert first.head is second.head
    await store.stop(first.key, None)
    del first
    assert store.held_bytes > 1024 + 512 + 2 * 128
    await store.stop(second.key, None)
    del second
    assert store.held_bytes == 0


async def test_an_id_of_many_variants_costs_no_more_than_its_length() -> None:
    """One entry, however many ids it is a variant of; and each of those finds it."""
    store = store_of()
    name = "chat" + "::a" * 150
    gc.collect()
    tracemalloc.start()
    try:
        stream = await begin(store, name)
        await end(store, stream)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 8 * 1024
    finally:
        tracemalloc.stop()
    for asked in ("chat", "chat::a", "chat" + "::a" * 149):
        assert [item.conversation_id for item in await store.lookup("ann", [asked])] == [name]
    assert await store.lookup("ann", ["cha", "chat::"]) == []
    await store.aclose()
    assert len(store._variants) == 0


async def test_a_finished_stream_makes_room_for_a_new_one_that_would_just_not_fit() -> None:
    """Where what is held is within the bound, but would not be with the new stream."""
    store = store_of(max_total_bytes=64 * 1024)
    for number in range(3):
        stream = await begin(store, f"chat-{number}")
        assert stream.offer(bytes(16_384), 0.0)
        await end(store, stream)
    last = await begin(store, "last")
    assert last.offer(bytes(64 * 1024 - store.held_bytes - 500), 0.0)
    assert store.held_bytes == 64 * 1024 - 500
    await begin(store, "new")
    assert len(store._ended) == 2
    await store.aclose()


async def test_an_idempotency_key_has_512_bytes_at_most_and_is_counted() -> None:
    """A longer one is refused; the header is read as Latin-1, in which a character is a byte."""
    store = store_of()
    await begin(store, key="k" * 512)
    assert store.held_bytes > 1024 + 512
    with pytest.raises(InvalidRequest, match="513 bytes"):
        await begin(store, key="k" * 513)
    with pytest.raises(InvalidRequest):
        await begin(store, key="\u00e9" * 513)


async def test_ids_that_are_watched_are_counted() -> None:
    """And refused where there is no room for them."""
    store = store_of(max_total_bytes=MIB)
    ends = [await store.watch("ann", [f"{one}-{other}" for other in range(100)], lambda _: None) for one in range(18)]
    with pytest.raises(TooManyStreams):
        await store.watch("ann", [str(other) for other in range(200)], lambda _: None)
    assert 0.9 * MIB < store.held_bytes <= MIB
    for unwatch in [*ends, *ends]:
        unwatch()
    assert store.held_bytes == 0


async def test_what_has_ended_makes_room_for_a_watch() -> None:
    """A store that is full of answers which may expire early refuses nothing."""
    store = store_of(max_total_bytes=MIB)
    for number in range(8):
        stream = await begin(store, str(number))
        fill(stream, MIB // 4)
        await end(store, stream)
    assert store.held_bytes > 0.7 * MIB
    unwatch = await store.watch("ann", [f"{number}" for number in range(1000)], lambda _: None)
    assert store.held_bytes <= MIB
    unwatch()
    await store.aclose()


async def test_a_lookup_of_ids_that_are_variants_of_each_other_lets_others_run() -> None:
    """However often it finds the same streams."""
    store = store_of()
    await end(store, await begin(store, "a" + "::b" * 100))
    for number in range(100):
        await end(store, await begin(store, "a" + "::b" * 100 + f"::{number}"))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    found = await store.lookup("ann", ["a" + "::b" * number for number in range(100)])
    assert len(found) == 101
    assert turns >= 100 * 100 / 256 - 1
    task.cancel()
    await store.aclose()


async def test_a_lookup_of_one_id_many_times_is_one_lookup() -> None:
    """And one of many lets others run in between."""
    store = store_of()
    for number in range(1000):
        await end(store, await begin(store, f"v::{number}"))
    ran = 0

    async def others() -> None:
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    assert len(await store.lookup("ann", ["v"] * 1000)) == 1000
    assert ran >= 2
    task.cancel()
    await store.aclose()


KINDS = ["begin", "begin events", "queue", "release", "stop", "finish", "attach", "read", "detach", "watch", "unwatch"]
STEPS = st.lists(
    st.tuples(st.sampled_from([*KINDS, "write", "write", "write", "wait"]), st.integers(0, 9)), max_size=80
)


class History:
    """Requests, readers and watches of a store, in any order, as a server would have them."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.now = 0.0
        store._clock = store._ended._clock = lambda: self.now
        self.cursors: list[tuple[MemoryStream, Cursor]] = []
        self.queued: list[Reservation] = []
        self.watches: list[Callable[[], None]] = []

    async def take(self, number: int, step: str, which: int) -> None:
        name = f"chat-{which}" + "::x" * (which * 15)
        stream = self.store._streams.get(("ann", name))
        if step in ("begin", "begin events"):
            await begin(self.store, name, EVENTS if "events" in step else BYTES, f"{number}" * 50, number)
        elif step == "queue":
            request = Reservation(
                StreamKey("ann", name), next(epochs), idempotency_key=f"{number}" * 50, on_stop=lambda _code: None
            )
            if await self.store.reserve(request, "replace") is None:
                self.queued.append(request)
        elif step == "release" and self.queued:
            await self.store.release(self.queued.pop(which % len(self.queued)))
        elif step == "watch":
            self.watches.append(await self.store.watch("ann", [f"{number}-{it}" for it in range(50)], print))
        elif step == "unwatch" and self.watches:
            self.watches.pop(which % len(self.watches))()
        elif step == "stop":
            await self.store.stop(StreamKey("ann", name), None)
        elif step in ("read", "detach") and self.cursors:
            self.read(which % len(self.cursors), leaves=step == "detach")
        elif step == "wait":
            self.now += which * 50
        elif stream is not None:
            await self.on_stream(stream, step, which)

    def read(self, index: int, *, leaves: bool) -> None:
        stream, cursor = self.cursors[index]
        try:
            stream.advance(cursor, len(stream.read(cursor.offset)))
        except OffsetLost:
            leaves = True
        if leaves:
            del self.cursors[index]
            stream.detach(cursor)

    async def on_stream(self, stream: MemoryStream, step: str, which: int) -> None:
        if step == "write":
            # Whole events, or pieces of one that has no end.
            for _ in range(25):
                stream.offer(b"data: " + bytes(16_000) + (b"\n\n" if which % 3 else b""), 0.0)
            for _ in range(which * 10):
                stream.offer(b"data: x\n\n", 0.0)
        elif step == "finish":
            await end(self.store, stream)
        elif step == "attach":
            self.cursors.append((stream, Cursor(stream.earliest)))
            stream.attach(self.cursors[-1][1])


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """Objects that are there already are not looked at again, at each collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("frozen")
@given(STEPS)
@settings(deadline=None, max_examples=40)
def test_the_books_say_what_memory_holds(steps: list[tuple[str, int]]) -> None:
    """To a tenth and a mebibyte, after any history; no more than there may be; and nothing is left in the end."""

    async def run() -> None:
        store = store_of(max_total_bytes=6 * MIB, max_stream_bytes=MIB)
        gc.collect()
        tracemalloc.start()
        try:
            history = History(store)
            for number, (step, which) in enumerate(steps):
                with suppress(TooManyStreams):
                    await history.take(number, step, which)
            gc.collect()
            measured, counted = tracemalloc.get_traced_memory()[0], store.held_bytes
        finally:
            tracemalloc.stop()
        assert abs(measured - counted) <= 0.1 * max(measured, counted) + MIB
        # Each stream may add one chunk to what its readers have had.
        assert counted <= 6 * MIB * 65 / 64 + 10 * 64 * 1024
        for request in history.queued:
            await store.release(request)
        for unwatch in history.watches:
            unwatch()
        for stream in list(store._streams.values()):
            await store.stop(stream.key, None)
        for stream, cursor in history.cursors:
            stream.detach(cursor)
        history.cursors.clear()
        stream = cursor = None
        assert store.held_bytes == 0
        assert not (store._streams or store._queued or store._requests or store._variants or store._live)
        await store.aclose()

    asyncio.run(run())
