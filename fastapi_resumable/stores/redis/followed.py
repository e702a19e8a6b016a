"""A stream as any other worker sees it that serves it: what Redis has of it, as it comes or on demand."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..._core.log import BLOCK_SIZE, ByteLog
from ..._stream.stream import Cursor, Stream
from ...exceptions import OffsetLost, ResumableError, StoreUnavailable
from ...models import ResumableStatus
from .follower import Entry
from .keys import readers_key
from .link import Call
from .scripts import REPORT

if TYPE_CHECKING:
    from .site import Site
    from .state import State

WINDOW = 256 * 1024
"""How much of a stream a worker that only follows it keeps; readers further back are served from Redis."""


class FollowedStream(Stream):
    """A stream that another worker records, or that has ended: what is new comes by itself, what is old on demand."""

    __slots__ = ("__weakref__", "_earliest", "_reported", "_site", "_step", "_tail", "missing_since", "name", "worker")

    def __init__(self, site: "Site", name: str, state: "State") -> None:
        super().__init__(
            state.key,
            state.epoch,
            state.head,
            limits=site.limits,
            budget=site.budget,
            pulse=site.pulse,
            started_at=state.started_at,
            idempotency_key=state.idempotency_key,
            on_stop=lambda _: None,
        )
        self.name = name
        self.closed = True
        self.missing_since: float | None = None
        """Since when Redis has not known of it."""
        self._framer = None
        self._site = site
        self._bound = WINDOW
        self.log = ByteLog(BLOCK_SIZE, state.tail)
        self._step = max(1, site.limits.max_stream_bytes // 8)
        self._reported = -1
        self.update(state)

    def update(self, state: "State") -> None:
        """Take what Redis says of the stream now."""
        self.worker = state.worker
        self._tail = state.tail
        self._earliest = state.earliest
        self.status = state.status
        self.completed_at = state.completed_at
        if not self._cursors and state.tail > self.log.tail:
            self.log = ByteLog(BLOCK_SIZE, state.tail)
        if state.is_final and self.log.tail >= state.tail:
            self.is_final = True

    @property
    def tail(self) -> int:
        """How far the stream can be read."""
        return max(self._tail, self.log.tail)

    @property
    def earliest(self) -> int:
        """The first offset that can be resumed from, when Redis was last asked."""
        return self._earliest

    # What is new.

    def attach(self, cursor: Cursor) -> None:
        """Follow the stream, if nobody here did."""
        super().attach(cursor)
        if len(self._cursors) == 1 and not self.is_final:
            self._site.follow(self)
        self.report()

    def detach(self, cursor: Cursor) -> None:
        """Let go of the stream with its last reader."""
        if cursor not in self._cursors:
            return
        super().detach(cursor)
        if not self._cursors:
            self._site.unfollow(self)
            self._site.budget.used -= self.log.size
            self._tail = self.tail
            self.log = ByteLog(BLOCK_SIZE, self._tail)
        self.report()

    def fail(self, failure: ResumableError) -> None:
        """Send the readers away; who comes now begins anew."""
        super().fail(failure)
        self._site.unfollow(self)

    def take(self, entries: list[Entry]) -> None:
        """Add what Redis has got."""
        for entry_id, fields in entries:
            end = int(entry_id.partition("-")[0])
            if b"s" in fields:
                self._finish(end, ResumableStatus(fields[b"s"].decode()))
                continue
            data = fields[b"d"]
            start = end - len(data)
            if start > self.log.tail:
                # Something in between was dropped before we got here; who still needs it will be told.
                self._site.budget.used -= self.log.size
                self.log = ByteLog(BLOCK_SIZE, start)
            if end > self.log.tail:
                self._append(data[self.log.tail - start :])

    def _keep(self, data: bytes) -> None:
        self.log.append(data)
        self._site.budget.used += len(data) - self.log.trim(self.log.tail - self._bound)

    def _finish(self, tail: int, status: ResumableStatus) -> None:
        self._site.unfollow(self)
        if tail < self.log.tail:
            # Redis has lost, and never got back, what was seen here.
            self.fail(StoreUnavailable("Redis has lost a part of the stream, and its producer is gone."))
            return
        self.status = status
        self.completed_at = self._site.now()
        self.is_final = True
        self._tell()

    # What is old.

    def read(self, cursor: Cursor) -> bytes:
        """Return the next bytes; none at the tail."""
        return super().read(cursor) if cursor.offset < self.log.tail else b""

    async def recall(self, cursor: Cursor) -> bytes:
        """Return bytes that only Redis holds.

        Raises:
            OffsetLost: It does not, either.
            StoreUnavailable: It cannot be asked.
        """
        data, _ = await self._site.page(self.name, self.epoch, cursor.offset)
        if not data:
            raise OffsetLost(self.earliest)
        return data

    async def blocks(self, offset: int) -> Iterable[bytes]:
        """Everything from `offset` to the tail, fetched."""
        tail, blocks = self.tail, []
        while offset < tail:
            data, _ = await self._site.page(self.name, self.epoch, offset)
            if not data:
                raise OffsetLost(self.earliest)
            blocks.append(data)
            offset += len(data)
        return blocks

    # What the producer has to know.

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""
        super().advance(cursor, size)
        # The exact place matters only where the bound is so small that a chunk may fill it.
        if not self.is_final and (self._step < BLOCK_SIZE or cursor.offset - self._reported >= self._step):
            slowest = min((cursor.offset for cursor in self._cursors), default=math.inf)
            if slowest - self._reported >= self._step or slowest == self.log.tail:
                self.report()

    def report(self) -> None:
        """Tell the producer's worker how far the slowest reader is."""
        if self.is_final:
            return
        self._reported = min((cursor.offset for cursor in self._cursors), default=-1)
        # By way of the appender, so that a report never overtakes another.
        self._site.appender.mark(self)

    def next_call(self) -> Call:
        """What to tell."""
        slowest = min((cursor.offset for cursor in self._cursors), default="")
        keys = [self.name, readers_key(self.name, self.epoch)]
        return Call(REPORT, keys, [self._site.worker, slowest, self._site.patience])

    def take_reply(self, reply: Any) -> None:
        """Pass it on to the producer, if that waits for it."""
        if reply:
            self._site.tell(reply[0].decode(), "room", reply[1].decode())

    def on_outage(self, _failure: StoreUnavailable) -> None:
        """It is told as soon as it can be."""
