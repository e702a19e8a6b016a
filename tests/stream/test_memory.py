"""The short way of an event: as careful as the long one, only not each time."""

import sys

import pytest

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.log import Budget
from fastapi_resumable._stream.fanout import Cursor
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.recording import PIECE
from fastapi_resumable._stream.stream import Head, Limits
from fastapi_resumable.models import ResumableStatus

TEXT = Head(200, ((b"content-type", b"text/plain"),))
EVENTS = Head(200, ((b"content-type", b"text/event-stream"),))
BOUND = 64 * 1024


def make(budget: Budget | None = None, head: Head = TEXT, **limits: int) -> MemoryStream:
    return MemoryStream(
        StreamKey(None, "s"),
        "a" * 16,
        head,
        limits=Limits(**{"max_stream_bytes": BOUND} | limits),
        budget=budget or Budget(),
        started_at=0.0,
        on_stop=lambda _code: None,
    )


def test_a_stream_that_has_ended_takes_nothing():
    """Not even what would have fitted into the step that was begun."""
    stream = make()
    assert stream.offer(b"one", 0.0)
    stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
    assert not any(stream.offer(b"x", 0.0) for _ in range(3))
    assert stream.tail == 3


async def test_a_reader_that_comes_is_waited_for_from_then_on():
    """Also one that comes at the start, when a step is under way."""
    stream = make()
    chunk = b"x" * 1000
    for _ in range(30):
        assert stream.offer(chunk, 0.0)
    stream.attach(Cursor(0))
    taken = 0
    while stream.offer(chunk, 0.0):
        taken += len(chunk)
    assert BOUND - len(chunk) < 30_000 + taken <= BOUND


@pytest.mark.parametrize("size", [1, 100, 4096, 5000, PIECE])
def test_what_is_held_is_counted(size: int):
    """However large the chunks; and what the bound drops is given back."""
    budget = Budget()
    stream = make(budget)
    for _ in range(300_000 // size):
        assert stream.offer(b"x" * size, 0.0)
        assert budget.used == stream.log.size
        assert stream.log.size <= BOUND + stream.log.block_size + max(size, 4096)
    stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
    assert budget.used == stream.log.size


def test_steps_are_as_small_as_the_limits():
    """A store of a few kilobytes notices when they are full."""
    told: list[int] = []
    budget = Budget(limit=10_000, on_excess=lambda: told.append(budget.used))
    stream = make(budget, max_total_bytes=10_000)
    for _ in range(120):
        stream.offer(b"x" * 100, 0.0)
    assert 10_000 < told[0] <= 10_200


def test_what_is_too_large_is_left_to_be_cut():
    """A chunk of more than a piece is not taken as it is."""
    stream = make(max_stream_bytes=4 * PIECE)
    assert not stream.offer(b"x" * (PIECE + 1), 0.0)
    assert stream.offer(b"x" * PIECE, 0.0)


class Dropping:
    """Drops a stream at one of the calls that are made meanwhile, as the garbage collector may do at any of them."""

    def __init__(self, budget: Budget, at: int) -> None:
        self.left = at
        self.held = [make(budget)]
        assert self.held[0].offer(b"x" * 1000, 0.0)

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            self.held.clear()


@pytest.mark.parametrize("at", range(1, 120))
def test_what_is_freed_while_others_write_is_given_back(at: int):
    """Whatever they are doing just then."""
    budget = Budget()
    text, events = make(budget, max_stream_bytes=800), make(budget, EVENTS, max_stream_bytes=800)
    for stream in (text, events):
        stream.attach(cursor := Cursor(0))
        stream.offer(b"x" * 700, 0.0)
        stream.detach(cursor)
    dropping = Dropping(budget, at)
    sys.setprofile(dropping)
    try:
        for chunk in (b"y" * 300, b"data: ", b"z" * 200, b"\n\n"):
            text.offer(chunk, 0.0)
            events.offer(chunk, 0.0)
        text.discard("replaced")
        events.offer(b"data: ", 0.0)
        events.end(ResumableStatus.FAILED, "", "", 1.0)
    finally:
        sys.setprofile(None)
    dropping.held.clear()
    assert budget.used == text.held + events.held
