"""One epoch of a stream in this process: its head, its log, who follows it, and how it ends.

Invariant: whatever an attached cursor has yet to read stays in the log until it has read it or let go.
Readers and the producer share one event loop; `append` never waits, `wait` is level-triggered, so no wake-up is lost.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic

from .._core.ids import StreamKey, parse_event_id
from .._core.log import BLOCK_SIZE, ByteLog
from .._core.sse import EventFramer, find_boundary, find_event_id, would_dispatch
from .._core.terminal import TerminalEvent, write_terminal_event
from ..exceptions import OffsetLost, OffsetOutOfRange, ResumableError, StreamReplaced, UnknownEventId
from ..models import ResumableStatus, ResumableStreamItem
from .pulse import PULSE, Pulse

logger = logging.getLogger("fastapi_resumable")

PING = b": ping\n"
PIECE = 64 * 1024
"""The most that is recorded at once, so that a huge chunk goes through a small log piece by piece."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store has to keep to; the fields are the settings of the same name."""

    max_stream_bytes: int = 4 * 1024 * 1024
    max_total_bytes: int = 1024 * 1024 * 1024
    max_streams: int = 10_000
    max_streams_per_owner: int | None = None
    retention: float = 300.0
    event_ids: bool = True
    terminal_event: TerminalEvent = "sse"


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of the recorded response, as replays repeat them."""

    status_code: int
    headers: tuple[tuple[bytes, bytes], ...]
    traceparent: str | None = None
    """The trace that the stream was generated in, for the spans of replays to link to."""
    content_type: str | None = field(init=False, compare=False)
    """The media type with its parameters."""
    is_event_stream: bool = field(init=False, compare=False)
    """Whether the body is server-sent events."""

    def __post_init__(self) -> None:
        content_type = next((value.decode("latin-1") for name, value in self.headers if name == b"content-type"), None)
        object.__setattr__(self, "content_type", content_type)
        media_type = (content_type or "").partition(";")[0].strip().lower()
        object.__setattr__(self, "is_event_stream", media_type == "text/event-stream")


@dataclass(slots=True)
class Budget:
    """Bytes held by all logs of a store; `on_excess` is called when they pass `limit`."""

    limit: float = math.inf
    on_excess: Callable[[], None] = lambda: None
    used: int = 0


class Cursor:
    """A reader's place in a log, and what to tell the reader."""

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def on_append(self, data: bytes, tail: int) -> None:
        """The log can be read up to `tail`; its last bytes are `data`."""

    def on_change(self) -> None:
        """The log has ended, or cannot be read any further."""


def nobody(_code: str) -> None:
    """There is no producer any more that could be told to stop; and no reference that keeps it alive."""


_NONE: frozenset[Cursor] = frozenset()
"""The cursors of a stream that nobody reads: a set of its own would take more room than all else but the bytes."""


class Stream:
    """A log with a beginning and an end, and everybody who waits for more of it."""

    __slots__ = (
        "_bound",
        "_budget",
        "_counted",
        "_cursors",
        "_framer",
        "_is_due",
        "_limits",
        "_pulse",
        "_quiet_until",
        "_room",
        "_slowest",
        "_told",
        "closed",
        "completed_at",
        "epoch",
        "failure",
        "head",
        "idempotency_key",
        "is_final",
        "key",
        "log",
        "on_stop",
        "started_at",
        "status",
    )

    def __init__(
        self,
        key: StreamKey,
        epoch: str,
        head: Head,
        *,
        limits: Limits,
        budget: Budget,
        pulse: Pulse | None = None,
        started_at: float,
        idempotency_key: str | None = None,
        on_stop: Callable[[str], None],
    ) -> None:
        self.key = key
        self.epoch = epoch
        self.head = head
        self.idempotency_key = idempotency_key
        self.started_at = started_at
        self.completed_at = 0.0
        self.status = ResumableStatus.IN_PROGRESS
        self.closed = False
        """Whether no more may be written."""
        self.is_final = False
        """Whether the log has ended, for those who read it."""
        self.failure: ResumableError | None = None
        """Why readers have to be sent away before the end."""
        self.on_stop = on_stop
        self.log = ByteLog(max(1, min(BLOCK_SIZE, limits.max_stream_bytes // 8)))
        self._limits = limits
        self._bound = limits.max_stream_bytes
        self._budget = budget
        self._counted = 0
        self._framer = (
            EventFramer(epoch if limits.event_ids else None, limits.max_stream_bytes) if head.is_event_stream else None
        )
        self._cursors: set[Cursor] | frozenset[Cursor] = _NONE
        # A lower bound of the attached cursors' offsets: they only move forward, so a stale one errs on the safe side.
        self._slowest: float = math.inf
        self._room: asyncio.Future[None] | None = None
        self._pulse = pulse or Pulse()
        self._quiet_until = 0.0
        self._is_due = False
        # Up to where readers had been told, when last there was more.
        self._told = 0

    # The producer's side.

    def write(self, chunk: bytes) -> None:
        """Record what the application sent; of an event stream, the events that are whole by now."""
        if self._framer is not None:
            chunk = self._framer.feed(chunk, self.log.tail)
        if chunk:
            self._append(chunk)

    def ping(self) -> None:
        """Record a keep-alive: a comment line alone, as some decoders dispatch an empty event at a blank line."""
        if not self.closed and self._room is None and not (self._framer is None or self._framer.oversize):
            self._append(PING)

    def offer(self, chunk: bytes, _now: float) -> bool:
        """Record a chunk if that can be done at once: it is not too large, the log is open, and there is room.

        The time, seconds of the monotonic clock, is for who can make use of it.
        """
        if self.closed or len(chunk) > PIECE or not self.has_room(len(chunk)):
            return False
        self.write(chunk)
        return True

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes leave everything in place that an attached reader still needs."""
        tail, limit = self.log.tail, self._bound
        if tail + size - self._slowest <= limit:
            return True
        self._slowest = min((cursor.offset for cursor in self._cursors), default=math.inf)
        return tail + size - self._slowest <= limit or self._slowest >= tail

    async def wait_for_room(self, size: int) -> None:
        """Wait until the slowest attached reader has caught up far enough for `size` more bytes, or the stream ends."""
        while not self.closed and not self.has_room(size):
            # First: readers may make room as they are woken.
            self._room = asyncio.get_running_loop().create_future()
            self._wake()
            try:
                await self._room
            finally:
                self._room = None

    def end(self, status: ResumableStatus, code: str, message: str, now: float) -> None:
        """End the log, once: with what is left over if it `completed`, with the terminal event otherwise."""
        if self.closed:
            return
        self._close(status, code, message)
        self.status = status
        self.completed_at = now
        self.is_final = True
        self.log.close()
        self._settle()
        self._tell()
        self._make_room()

    def _close(self, status: ResumableStatus, code: str, message: str) -> None:
        """Record the last bytes."""
        self.closed = True
        self.on_stop = nobody
        if self._framer is not None:
            if status is ResumableStatus.COMPLETED:
                rest = self._framer.finish(self.log.tail)
            else:
                rest = self._terminal_event(status, code, message)
                # How it ended is kept on top of what the bound allows, however small that is.
                self._bound += len(rest)
            if rest:
                self._append(rest)
        self._framer = None

    def _terminal_event(self, status: ResumableStatus, code: str, message: str) -> bytes:
        assert self._framer is not None
        event, failure = write_terminal_event(self._limits.terminal_event, status.value, code, message)
        if failure is not None:
            logger.error("terminal_event failed; the stream ends with the default one", exc_info=failure)
        if not event:
            return b""
        # An event too large to hold back lies half in the log: a blank line ends it.
        gap = b"\n\n" if self._framer.oversize else b""
        stamp = EventFramer(self.epoch if self._limits.event_ids else None, len(event))
        offset = self.log.tail + len(gap)
        stamped = stamp.feed(event, offset)
        return gap + stamped + stamp.finish(offset + len(stamped))

    def _append(self, data: bytes) -> None:
        self._keep(data)
        if self._cursors and not self._is_due:
            self._announce(data, monotonic())

    def _announce(self, data: bytes, now: float) -> None:
        """Tell readers of the last bytes of the log; a little later, if they were told of others just now."""
        tail = self.log.tail
        if now < self._quiet_until:
            self._is_due = True
            self._told = tail - len(data)
            self._pulse.add(self._announce_late)
        else:
            self._quiet_until = now + PULSE
            cursors = tuple(self._cursors)
            for cursor in cursors:
                cursor.on_append(data, tail)
            if len(cursors) > 1:
                # With many readers that took its time, and a producer that is late by now has more at once.
                self._quiet_until = monotonic() + PULSE

    def _announce_late(self) -> None:
        self._is_due = False
        self._wake()
        self._quiet_until = monotonic() + PULSE

    def _wake(self) -> None:
        """Tell readers of all that they were not told of."""
        tail = self.tail
        size = tail - self._told
        data = b""
        if len(self._cursors) > 1 and 0 < size <= BLOCK_SIZE and self._told >= self.log.floor:
            # Once for all, instead of a copy for each; unless it lies in more than one block.
            data = self.log.read(self._told, size)
            if len(data) != size:
                data = b""
        self._told = tail
        for cursor in tuple(self._cursors):
            if cursor.offset < tail:
                cursor.on_append(data, tail)

    def _keep(self, data: bytes) -> None:
        self.log.append(data)
        self._settle()

    def _settle(self) -> None:
        """Drop what is beyond the bound, and count what is held."""
        log, bound, budget = self.log, self._bound, self._budget
        if log.tail > bound and log.size > bound + log.block_size:
            if log.tail - self._slowest > bound:
                self._slowest = min((cursor.offset for cursor in self._cursors), default=math.inf)
            # Three bytes more, to see the blank line that the first event which is kept comes after.
            log.trim(int(min(log.tail - bound - 3, self._slowest)))
        size = log.size
        budget.used += size - self._counted
        self._counted = size
        if budget.used > budget.limit:
            budget.on_excess()

    def _tell(self) -> None:
        for cursor in tuple(self._cursors):
            cursor.on_change()

    # The readers' side.

    @property
    def tail(self) -> int:
        """How far the stream can be read."""
        return self.log.tail

    @property
    def earliest(self) -> int:
        """The first offset that can be resumed from: of an event stream, the start of an event."""
        low = max(self.log.floor, self.log.tail - self._bound)
        if low == 0 or not self.head.is_event_stream:
            return low
        start = max(self.log.floor, low - 3)
        while (boundary := find_boundary(self._retained(start))) is not None and start + boundary < low:
            start += boundary
        return low if boundary is None else start + boundary

    async def position(self, offset: int | None, last_event_id: str | None) -> int:
        """Turn what a client asks for into an offset; `last_event_id` wins.

        Raises:
            OffsetLost: The bytes there were dropped.
            OffsetOutOfRange: The offset is past the tail.
            StreamReplaced: The event id is of another epoch.
            UnknownEventId: No event in the log has that id.
        """
        position = offset or 0
        if last_event_id:
            event_id = parse_event_id(last_event_id)
            if event_id is None:
                return await self._after_event(last_event_id)
            if event_id.epoch != self.epoch:
                raise StreamReplaced
            position = event_id.offset
        if position > self.tail:
            raise OffsetOutOfRange(self.tail)
        if position < (earliest := self.earliest):
            raise OffsetLost(earliest)
        return position

    async def _after_event(self, event_id: str) -> int:
        start = self.earliest
        found = find_event_id(await self.blocks(start), event_id) if self.head.is_event_stream else None
        if found is None:
            raise UnknownEventId(
                "No event in the log has that id; it was dropped, or never sent. Resume with from=, or start over."
            )
        return start + found

    async def is_exhausted(self, offset: int) -> bool:
        """Whether the stream has ended and nothing from `offset` on would make a client dispatch an event."""
        if not self.is_final:
            return False
        return not would_dispatch(await self.blocks(offset)) if self.head.is_event_stream else offset == self.tail

    async def blocks(self, offset: int) -> Iterable[bytes]:
        """Everything from `offset`, which is retained, to the tail."""
        return self._retained(offset)

    def _retained(self, offset: int) -> Iterator[bytes]:
        while offset < self.tail:
            block = self.log.read(offset)
            offset += len(block)
            yield block

    def attach(self, cursor: Cursor) -> None:
        """Keep what `cursor` has yet to read."""
        if isinstance(self._cursors, frozenset):
            self._cursors = set()
        self._cursors.add(cursor)
        self._slowest = min(self._slowest, cursor.offset)

    def detach(self, cursor: Cursor) -> None:
        """Forget `cursor`; the producer waits for it no longer."""
        self._cursors -= {cursor}
        if not self._cursors:
            self._cursors = _NONE
        if cursor.offset <= self._slowest:
            self._make_room()

    def read(self, cursor: Cursor) -> bytes:
        """Return the next bytes; none at the tail.

        Raises:
            OffsetLost: The bytes there were dropped.
        """
        try:
            return self.log.read(cursor.offset)
        except LookupError:
            raise OffsetLost(self.earliest) from None

    async def recall(self, cursor: Cursor) -> bytes:
        """Return the next bytes of a reader whose place this process no longer holds.

        Raises:
            OffsetLost: Nor does anybody else.
        """
        raise OffsetLost(self.earliest)

    def fail(self, failure: ResumableError) -> None:
        """Send the readers away: the stream goes on, but not here."""
        self.failure = failure
        self._tell()

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""
        offset = cursor.offset
        cursor.offset = offset + size
        # A waiting producer has just worked out who is slowest, and only that one's progress can matter to it.
        if self._room is not None and offset <= self._slowest:
            self._make_room()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    @property
    def item(self) -> ResumableStreamItem:
        """The stream as a lookup shows it."""
        return ResumableStreamItem.of(
            conversation_id=self.key.id,
            status=self.status,
            is_done=self.is_final,
            epoch=self.epoch,
            total_bytes=self.tail,
            dropped_bytes=self.earliest,
            content_type=self.head.content_type,
            started_at=int(self.started_at),
            completed_at=int(self.completed_at),
        )
