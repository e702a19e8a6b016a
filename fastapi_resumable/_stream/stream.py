"""A stream as the rest of the library sees it: what it is, what a reader may ask of it, what its producer may do.

A client continues from an offset, from an event id of ours, or from one of the application's own: see `find_position`.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from .._core.ids import StreamKey, parse_event_id
from .._core.log import BLOCK_SIZE, ByteLog
from .._core.search import Search, search_dispatch, search_event_id
from .._core.terminal import TerminalEvent
from ..exceptions import (
    OffsetLost,
    OffsetOutOfRange,
    ResumableError,
    StreamCancelled,
    StreamReplaced,
    UnknownEventId,
)
from ..models import ResumableStatus, ResumableStreamItem
from .fanout import Cursor

_T = TypeVar("_T")

YIELD_EVERY = 16
"""After how many writes a producer yields to the event loop, which a generator that never awaits would block."""

YIELD_SIZE = 8192
"""It yields after each write of more bytes, which may be thousands of events."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that a store keeps; the fields are the settings of the same name."""

    max_stream_bytes: int = 4 * 1024 * 1024
    max_total_bytes: int = 1024 * 1024 * 1024
    max_streams: int = 10_000
    max_streams_per_owner: int | None = None
    retention: float = 300.0
    event_ids: bool | Literal["first"] = True
    terminal_event: TerminalEvent = "sse"

    @property
    def block_size(self) -> int:
        """In blocks of how many bytes a log is kept, so that a small one is bounded, too."""
        return max(1, min(BLOCK_SIZE, self.max_stream_bytes // 8))

    @property
    def check_every(self) -> int:
        """After how many bytes a stream looks whether it is within its bounds: often enough for all of them."""
        # What all streams together write between two looks is a sixteenth of what they may hold.
        in_total = self.max_total_bytes // max(1024, 16 * self.max_streams)
        return max(1, min(4096, self.max_stream_bytes // 8, in_total))


@dataclass(slots=True, weakref_slot=True)
class Head:
    """Status and headers of the recorded response, as replays repeat them."""

    status_code: int
    headers: tuple[tuple[bytes, bytes], ...]
    traceparent: str | None = None
    """The trace that the stream was generated in, for the spans of replays to link to."""
    content_type: str | None = field(init=False, compare=False)
    """The media type with its parameters."""
    is_event_stream: bool = field(init=False, compare=False)
    """Whether the body is server-sent events, as they are."""

    def __post_init__(self) -> None:
        content_type, is_encoded = None, False
        for name, value in self.headers:
            if name == b"content-type" and content_type is None:
                content_type = value.decode("latin-1")
            elif name == b"content-encoding" and value != b"identity":
                # Under an encoding of the application's own, bytes are no lines.
                is_encoded = True
        media_type = (content_type or "").partition(";")[0].strip().lower()
        # Worked out once, because each chunk and each reader asks.
        self.content_type = content_type
        self.is_event_stream = media_type == "text/event-stream" and not is_encoded


class Stream(Protocol):
    """One epoch of a stream, for its readers, which change nothing of it."""

    key: StreamKey
    epoch: str
    head: Head
    status: ResumableStatus
    started_at: float
    """Unix seconds."""
    completed_at: float
    """Unix seconds; 0 while it is live."""
    is_final: bool
    """Whether the log has ended, for its readers."""
    failure: ResumableError | None
    """Why readings have to end before the stream does."""

    @property
    def tail(self) -> int:
        """How far the stream can be read."""

    @property
    def earliest(self) -> int:
        """The first offset that can be resumed from: of an event stream, the start of an event."""

    @property
    def item(self) -> ResumableStreamItem:
        """The stream as a lookup shows it."""

    def attach(self, cursor: Cursor) -> None:
        """Keep what `cursor` has yet to read, and wake it for what comes."""

    def detach(self, cursor: Cursor) -> None:
        """Forget `cursor`."""

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""

    def read(self, offset: int) -> bytes:
        """Return the next bytes from `offset` on; none at the tail.

        Raises:
            OffsetLost: This process does not hold them; see `fetch`.
        """

    async def fetch(self, offset: int) -> bytes:
        """Return the next bytes from `offset` on, which is before the tail, from wherever they are kept.

        Raises:
            OffsetLost: Nothing holds them.
            StoreUnavailable: What holds them cannot be asked.
        """


class WritableStream(Stream, Protocol):
    """A stream whose producer runs in this process."""

    log: ByteLog
    """What this process holds of it."""
    piece: int
    """The most bytes that `offer` takes."""

    @property
    def closed(self) -> bool:
        """Whether no more may be written."""

    def offer(self, chunk: bytes, now: float) -> bool:
        """Record a chunk if that can be done at once: it is not too large, the log is open, and there is room.

        `now` is in seconds of the monotonic clock.
        """

    async def wait_for_room(self, size: int) -> None:
        """Wait until the slowest attached reader has caught up far enough for `size` more bytes, or the stream ends."""

    def ping(self) -> None:
        """Record a keep-alive, where one can be."""


def ends_in_order(stream: Stream) -> bool:
    """Whether a stream that is over ends like any other body: events say by themselves how their stream ended."""
    return stream.status is ResumableStatus.COMPLETED or stream.head.is_event_stream


async def blocks(stream: Stream, offset: int) -> list[bytes]:
    """Everything from `offset`, which is retained, to where the tail is now: the log may be trimmed meanwhile."""
    tail, found = stream.tail, []
    while offset < tail:
        found.append(await stream.fetch(offset))
        offset += len(found[-1])
    return found


def stream_item(stream: Any) -> ResumableStreamItem:
    """A stream, or what a store says of one, as a lookup shows it."""
    return ResumableStreamItem(
        conversation_id=stream.key.id,
        status=stream.status,
        is_done=stream.is_final,
        epoch=stream.epoch,
        total_bytes=stream.tail,
        dropped_bytes=stream.earliest,
        content_type=stream.head.content_type,
        started_at=int(stream.started_at),
        completed_at=int(stream.completed_at),
    )


async def find_position(stream: Stream, offset: int | None, last_event_id: str | None) -> int:
    """Turn what a client asks for into an offset; `last_event_id` wins.

    Raises:
        OffsetLost: The bytes there were dropped.
        OffsetOutOfRange: The offset is past the tail.
        StreamCancelled: The stream was stopped or replaced after it was found.
        StreamReplaced: The event id is of another epoch.
        UnknownEventId: No event in the log has that id.
    """
    position = offset or 0
    if last_event_id:
        event_id = parse_event_id(last_event_id)
        if event_id is None:
            return await _after_event(stream, last_event_id)
        if event_id.epoch != stream.epoch:
            try:
                # It may be the application's own: what it passes on was recorded by another server of this kind.
                return await _after_event(stream, last_event_id)
            except UnknownEventId:
                raise StreamReplaced from None
        position = event_id.offset
    # Before the look at what is kept: an offset past the end was never valid, so it must not read as lost.
    if position > stream.tail:
        raise OffsetOutOfRange(stream.tail)
    if position < (earliest := stream.earliest):
        raise loss_of(stream, OffsetLost(earliest))
    return position


def loss_of(stream: Stream, loss: ResumableError) -> ResumableError:
    """What a client gets that has had nothing of a stream yet, and cannot have it."""
    if stream.status is not ResumableStatus.CANCELLED or not isinstance(loss, OffsetLost):
        return loss
    # Its log is dropped as soon as it has no reader, so nothing of it can be read from another offset either.
    return StreamCancelled(message="The stream was stopped, or a newer request replaced it.")


async def _after_event(stream: Stream, event_id: str) -> int:
    start = stream.earliest
    found = None
    if stream.head.is_event_stream:
        found = await run_search(search_event_id(await blocks(stream, start), event_id))
    if found is None:
        raise UnknownEventId(
            "No event in the log has that id; it was dropped, or never sent. Resume with from=, or start over."
        )
    return start + found


async def is_exhausted(stream: Stream, offset: int) -> bool:
    """Whether the stream has ended and nothing from `offset` on would make a client dispatch an event."""
    if not stream.is_final:
        return False
    if not stream.head.is_event_stream:
        return offset == stream.tail
    return not await run_search(search_dispatch(await blocks(stream, offset)))


async def run_search(search: Search[_T]) -> _T:
    """Run a search through a log to its end, and let others run between two steps of it."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            result: _T = end.value
            return result
        await asyncio.sleep(0)
