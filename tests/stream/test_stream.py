"""stores/stream.py: one epoch, its cursors, and what they keep in the log."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_resumable import OffsetLost, ResumableStatus, StreamReplaced, UnknownEventId
from fastapi_resumable._core.ids import EventId, StreamKey
from fastapi_resumable._core.log import Budget
from fastapi_resumable._stream.fanout import Cursor
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.stream import Head, Limits, find_position

EPOCH = "abcdefghijklmnop"


def make(media_type: str = "text/plain", budget: Budget | None = None, **limits) -> MemoryStream:
    return MemoryStream(
        StreamKey(None, "s"),
        EPOCH,
        Head(200, ((b"content-type", media_type.encode()),)),
        limits=Limits(**limits),
        budget=budget or Budget(),
        started_at=1.0,
        on_stop=lambda code: None,
    )


def write(stream: MemoryStream, chunk: bytes) -> None:
    """Record a chunk, for which there is room."""
    assert stream.offer(chunk, 0.0)


def test_a_ping_is_left_out_where_it_would_break_something():
    """Never in the middle of an event that was too large to hold back, never after the end, never in other media."""
    events = make("text/event-stream", max_stream_bytes=20)
    write(events, b"data: " + b"x" * 50)
    size = events.log.tail
    events.ping()
    assert events.log.tail == size

    text = make()
    text.ping()
    assert text.log.tail == 0

    ended = make("text/event-stream")
    ended.end(ResumableStatus.COMPLETED, "", "", 2.0)
    ended.ping()
    assert ended.log.tail == 0


def test_the_terminal_event_stands_on_its_own_after_half_an_event():
    """What was handed on of a giant event is cut off by a blank line."""
    stream = make("text/event-stream", max_stream_bytes=20, event_ids=False)
    write(stream, b"data: " + b"x" * 50)
    stream.end(ResumableStatus.FAILED, "producer_failed", "it broke", 2.0)

    assert b"\n\nevent: error\ndata: " in b"".join(stream.log.chunks(stream.log.floor))


def test_only_the_first_end_counts():
    """A stream that was stopped does not complete afterwards."""
    stream = make()
    stream.end(ResumableStatus.CANCELLED, "cancelled", "stopped", 2.0)
    stream.end(ResumableStatus.COMPLETED, "", "", 3.0)

    assert (stream.status, stream.completed_at) == (ResumableStatus.CANCELLED, 2.0)


def test_the_budget_is_called_when_all_logs_together_are_too_large():
    """Every byte is counted, and counted back when it is trimmed."""
    calls = []
    budget = Budget(limit=50, on_excess=lambda: calls.append(budget.used))
    stream = make(budget=budget, max_stream_bytes=64)
    for _ in range(40):
        write(stream, b"0123456789")

    assert calls[0] == 60
    assert budget.used == stream.log.size <= 64 + 2 * stream.log.block_size


def test_a_cursor_whose_bytes_are_gone_gets_an_error():
    """A detached place may be overtaken; that is an error, not other bytes."""
    stream = make(max_stream_bytes=64)
    cursor = Cursor(0)
    stream.attach(cursor)
    stream.detach(cursor)
    for _ in range(40):
        write(stream, b"0123456789")

    with pytest.raises(OffsetLost) as lost:
        stream.read(cursor.offset)
    assert lost.value.earliest == stream.earliest > 0


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60), limit=st.integers(40, 200))
def test_the_earliest_offset_is_the_start_of_an_event_within_the_bound(sizes, limit):
    """The newest whole events that fit are what can be resumed from."""
    stream = make("text/event-stream", max_stream_bytes=limit, event_ids=False)
    ends = [0]
    for size in sizes:
        write(stream, b"data: " + b"x" * size + b"\n\n")
        ends.append(stream.log.tail)

    assert stream.earliest == next(end for end in ends if end >= stream.log.tail - limit)
    assert asyncio.run(find_position(stream, stream.earliest, None)) == stream.earliest


async def test_a_place_is_found_by_offset_by_our_id_and_by_the_applications_own():
    """And refused where it is of another epoch, or unknown."""
    stream = make("text/event-stream")
    write(stream, b"id: own\ndata: a\n\n")

    assert await find_position(stream, None, "own") == await find_position(stream, 17, None) == 17
    assert await find_position(stream, 3, str(EventId(EPOCH, 17))) == 17
    with pytest.raises(StreamReplaced):
        await find_position(stream, None, str(EventId("b" * 16, 17)))
    with pytest.raises(UnknownEventId):
        await find_position(stream, None, "other")
    with pytest.raises(UnknownEventId):
        await find_position(make(), None, "own")


async def test_a_producer_waits_for_the_slowest_cursor_alone():
    """It goes on when that one moves or leaves, and when the stream ends."""
    stream = make(max_stream_bytes=100)
    slow, fast = Cursor(0), Cursor(0)
    stream.attach(slow)
    stream.attach(fast)
    write(stream, b"x" * 100)
    for release in (
        lambda: stream.advance(slow, 60),
        lambda: stream.detach(slow),
        lambda: stream.end(ResumableStatus.CANCELLED, "cancelled", "", 2.0),
    ):
        stream.advance(fast, stream.log.tail - fast.offset)
        waiting = asyncio.ensure_future(stream.wait_for_room(50))
        await asyncio.sleep(0)
        if stream.has_room(50):
            # Only the end releases a producer that waits for a cursor which has caught up.
            waiting.cancel()
            break
        assert not waiting.done()
        release()
        async with asyncio.timeout(5):
            await waiting
        write(stream, b"y" * 50)


class Noting(Cursor):
    """A reader that notes what it is woken for, and takes all of it."""

    def __init__(self, stream: MemoryStream, calls: list[Cursor]) -> None:
        super().__init__(0)
        self.stream = stream
        self.calls = calls
        self.had = b""

    def on_append(self, data: bytes, tail: int) -> None:
        self.calls.append(self)
        missing = self.stream.log.read(self.offset, tail - self.offset)
        assert missing.endswith(data)
        self.had += missing
        self.stream.advance(self, tail - self.offset)

    def on_change(self) -> None:
        self.calls.append(self)


async def test_the_readers_of_a_stream_that_has_thousands_are_woken_in_several_turns():
    """So that no event, and no end, holds up the event loop until all have it; each gets every byte once, in order."""
    stream, calls = make(), []
    cursors = [Noting(stream, calls) for _ in range(1800)]
    for cursor in cursors:
        stream.attach(cursor)
    for number in range(20):
        write(stream, b"%d " % number)
        stream.fanout.flush()
        await asyncio.sleep(0)
        # Also while more comes than all of them can be sent meanwhile.
        assert 0 < len(calls) <= 1000
        calls.clear()
    for _ in range(12):
        await asyncio.sleep(0)
    assert not stream.fanout.is_due
    assert {cursor.had for cursor in cursors} == {b"".join(b"%d " % number for number in range(20))}
    calls.clear()
    stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
    assert 0 < len(calls) <= 500
    for _ in range(3):
        await asyncio.sleep(0)
    assert set(calls) == set(cursors)
    assert len(calls) == 1800
