"""What a memory store holds is what it counts, whatever has happened; and it holds no more than it may."""

import asyncio
import gc
import tracemalloc
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_resumable import MemoryStore, ResumableStatus, StreamCancelled, TooManyStreams
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.fanout import Cursor
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.stream import Head, Limits
from fastapi_resumable.exceptions import InvalidRequest
from fastapi_resumable.stores.base import Reservation, no_op

MIB = 1024 * 1024
BYTES = Head(200, ((b"content-type", b"application/octet-stream"),))
EVENTS = Head(200, ((b"content-type", b"text/event-stream"),))
epochs = (f"{number:016}" for number in count())


def store_of(**limits: int) -> MemoryStore:
    store = MemoryStore()
    store.configure(Limits(**limits))
    return store


async def begin(store: MemoryStore, name: str = "chat", head: Head = BYTES, key: str | None = None) -> MemoryStream:
    reservation = Reservation(StreamKey("ann", name), next(epochs), idempotency_key=key, on_stop=no_op)
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
    assert new.log.size == store.held_bytes == len(store._ended) == 0
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
    assert len(old.read(cursor)) > 0
    old.detach(cursor)
    assert store.held_bytes == 0


async def test_a_request_that_waited_for_a_stopped_stream_gets_an_error() -> None:
    """In the one turn of the loop in which it could not have attached to it."""
    store = store_of()
    first = Reservation(StreamKey("ann", "chat"), next(epochs), idempotency_key=None, on_stop=no_op)
    second = Reservation(StreamKey("ann", "chat"), next(epochs), idempotency_key=None, on_stop=no_op)
    await store.reserve(first, "attach")
    waiting = asyncio.ensure_future(store.reserve(second, "attach"))
    await asyncio.sleep(0)
    await store.begin(first, BYTES)
    await store.stop(first.key, None)
    with pytest.raises(StreamCancelled):
        await waiting


async def test_an_unfinished_event_is_counted() -> None:
    """Although nothing of it is in the log."""
    store = store_of()
    stream = await begin(store, head=EVENTS)
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
    assert store.held_bytes < 5 * MIB
    assert all(stream.log.floor == 0 and 0 < stream.tail < MIB for stream in read)
    assert all(stream.tail == 4 * MIB and stream.log.size > 0 for stream in unread)


async def test_a_live_stream_that_is_silent_gives_up_what_is_over_its_share() -> None:
    """The first one does not keep what others need."""
    store = store_of(max_total_bytes=4 * MIB)
    silent, *others = [await begin(store, f"{number}") for number in range(8)]
    fill(silent, 4 * MIB - 64 * 1024)
    for stream in others:
        fill(stream, 4 * MIB)
    assert store.held_bytes < 5 * MIB
    assert silent.log.size < MIB
    with pytest.raises(TooManyStreams):
        await begin(store, "one more")


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


async def test_an_idempotency_key_has_512_bytes_at_most_and_is_counted() -> None:
    """A longer one is refused, in UTF-8."""
    store = store_of()
    await begin(store, key="k" * 512)
    assert store.held_bytes > 1024 + 512
    with pytest.raises(InvalidRequest, match="513 bytes"):
        await begin(store, key="k" * 513)
    with pytest.raises(InvalidRequest):
        await begin(store, key="\u00e9" * 257)


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


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["begin", "begin events", "stop", "finish", "attach", "detach", "watch"]), st.integers(0, 9)
        ),
        st.tuples(st.just("write"), st.integers(0, 9)),
        st.tuples(st.just("queue"), st.integers(0, 9)),
    ),
    max_size=60,
)


async def play(store: MemoryStore, steps: list[tuple[str, int]]) -> list[object]:
    """A history of streams; returns what keeps hold of them, as a server's requests would."""
    cursors: list[tuple[MemoryStream, Cursor]] = []
    held: list[object] = [cursors]
    for number, (step, which) in enumerate(steps):
        name = f"chat-{which}" + "::x" * (which * 15)
        slot = store._slots.get(("ann", name))
        stream = None if slot is None else slot.current
        try:
            if step in ("begin", "begin events"):
                headers = (
                    ((b"content-type", b"text/event-stream"),) if "events" in step else ((b"x-n", b"%d" % number),)
                )
                await begin(store, name, Head(200, headers), key=f"{number}" * 50)
            elif step == "queue":
                await store.reserve(
                    Reservation(StreamKey("ann", name), next(epochs), idempotency_key=None, on_stop=no_op), "replace"
                )
            elif step == "watch":
                await store.watch("ann", [f"{number}-{other}" for other in range(50)], held.append)
        except TooManyStreams:
            continue
        if step == "stop":
            await store.stop(StreamKey("ann", name), None)
        elif step == "detach" and cursors:
            one, cursor = cursors.pop(which % len(cursors))
            one.detach(cursor)
        elif stream is not None and step == "write":
            for _ in range(8):
                stream.offer(b"data: " + bytes(50_000) + (b"\n\n" if which % 2 else b""), 0.0)
        elif stream is not None and step == "finish":
            await end(store, stream)
        elif stream is not None and step == "attach":
            cursors.append((stream, Cursor(stream.earliest)))
            stream.attach(cursors[-1][1])
    return held


@pytest.mark.slow  # each look at what is held walks through all objects there are
@given(STEPS)
@settings(deadline=None, max_examples=20)
def test_the_books_say_what_memory_holds(steps: list[tuple[str, int]]) -> None:
    """To a tenth and a mebibyte, after any history; and nothing is left when everything has gone."""

    async def run() -> tuple[int, int]:
        store = store_of(max_total_bytes=6 * MIB, max_stream_bytes=MIB)
        gc.collect()
        tracemalloc.start()
        try:
            held = await play(store, steps)
            gc.collect()
            measured, counted = tracemalloc.get_traced_memory()[0], store.held_bytes
            assert held
        finally:
            tracemalloc.stop()
        await store.aclose()
        return measured, counted

    measured, counted = asyncio.run(run())
    assert abs(measured - counted) <= 0.1 * max(measured, counted) + MIB
    assert counted <= 6 * MIB + 2 * MIB
