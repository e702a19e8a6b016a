"""What a log has yet to hand to its backend, cut into writes."""

import pytest

from fastapi_resumable._core.log import Budget
from fastapi_resumable._stream.recording import Recording
from fastapi_resumable._stream.stream import Head, Limits
from fastapi_resumable.stores.shared.writes import FULL, Outbox, Write, Written
from tests.conformance.tools import EVENTS, TEXT

PIECE = 16 * 1024
HALF = b"data: " + b"x" * (PIECE - 6)
END = {b"\n": b"\n\n", b"\r\n": b"\r\n\r\n", b"\r": b"\r\r"}
EVENT = {line: b"data: " + b"x" * (PIECE - 6 - len(end)) + end for line, end in END.items()}


def recorded(*chunks: bytes, head: Head = EVENTS) -> Recording:
    """A log of these chunks, none of which was dropped, as in an outage that somebody reads through."""
    recording = Recording("epoch", head, Limits(max_stream_bytes=FULL // 4, event_ids=False), Budget())
    for chunk in chunks:
        framer = recording.framer
        recording.log.append(chunk if framer is None else framer.feed(chunk, recording.log.tail))
    return recording


def writes(recording: Recording) -> list[Write]:
    """All writes, each of which is acknowledged at once."""
    outbox, made = Outbox(recording), []
    while isinstance(write := outbox.next_write(), Write):
        made.append(write)
        outbox.take(Written())
    return made


@pytest.mark.parametrize("line", END)
def test_a_part_that_ends_where_an_event_does_says_so(line: bytes) -> None:
    """Although the log ends within another, which is too large to hold back."""
    recording = recorded(*[EVENT[line]] * 100, *[HALF] * 100)
    assert recording.is_mid_event
    first, *_, last = writes(recording)
    assert first.data.endswith(END[line])
    assert (first.is_mid_event, last.is_mid_event) == (False, True)


@pytest.mark.parametrize("line", END)
def test_a_part_that_ends_within_an_event_says_so(line: bytes) -> None:
    """Although that one has ended since: what another worker ends the log with would belong to its half."""
    recording = recorded(EVENT[line], *[HALF] * 100, END[line], EVENT[line])
    first, *_, last = writes(recording)
    assert not first.data.endswith(END[line])
    assert (first.is_mid_event, last.is_mid_event) == (True, False)


def test_a_part_of_another_medium_has_no_events() -> None:
    """Nothing is added at its end."""
    assert {write.is_mid_event for write in writes(recorded(*[HALF] * 100, head=TEXT))} == {False}
