"""A stream as a worker sees it that only reads it: what is new comes by itself, what is old is fetched on demand."""

import math

from ..._core.log import BLOCK_SIZE, ByteLog
from ..._stream.fanout import Cursor, Fanout
from ..._stream.stream import stream_item
from ...exceptions import OffsetLost, ResumableError, StoreUnavailable
from ...models import ResumableStatus, ResumableStreamItem
from .writes import RemoteState, StreamBackend

WINDOW = 256 * 1024
"""How much of a stream a worker that only reads it keeps; readers further back are served from the backend."""


class RemoteStream:
    """A stream that another worker produces, or that has ended."""

    def __init__(self, backend: StreamBackend, state: RemoteState) -> None:
        self.key = state.key
        self.epoch = state.epoch
        self.worker = state.worker
        """Where the producer runs."""
        self.head = state.head
        self.started_at = state.started_at
        self._backend = backend
        self.failure: ResumableError | None = None
        self.is_final = False
        self.missing_since: float | None = None
        """Since when the backend has not known of it."""
        self.is_doubtful = False
        """Whether the next report is to find out if the backend still knows of it."""
        self.log = ByteLog(BLOCK_SIZE, state.tail, backend.budget)
        self._fanout = Fanout(self.log)
        # How often the producer's worker gets a report of the readers here: for each step of so many bytes.
        self._step = max(1, backend.limits.max_stream_bytes // 8)
        self._reported: float = -1
        self.update(state)

    def update(self, state: RemoteState) -> None:
        """Take what the backend says of the stream now."""
        if self.is_final:
            # It may have been asked before the stream ended.
            return
        self._tail = state.tail
        self.earliest = state.earliest
        """The first offset that can be resumed from, when the backend was last asked."""
        self.status = state.status
        self.completed_at = state.completed_at
        if not self._fanout.cursors and state.tail > self.log.tail:
            self.log.restart(state.tail)
        if state.is_final and self.log.tail >= state.tail:
            self.is_final = True

    @property
    def tail(self) -> int:
        """How far the stream can be read."""
        return max(self._tail, self.log.tail)

    @property
    def item(self) -> ResumableStreamItem:
        """The stream as a lookup shows it."""
        return stream_item(self)

    # What is new.

    def attach(self, cursor: Cursor) -> None:
        """Follow the stream, if there was no reader here before."""
        self._fanout.attach(cursor)
        # One that has failed may have a successor here, which is what is followed by now.
        if len(self._fanout.cursors) == 1 and not self.is_final and self.failure is None:
            self._backend.follow(self)
        self.report()

    def detach(self, cursor: Cursor) -> None:
        """Forget `cursor`, and with the last one what is held here."""
        if cursor not in self._fanout.cursors:
            return
        self._fanout.detach(cursor)
        if not self._fanout.cursors:
            # Nothing is kept for readers that may never come: the backend has it.
            self._backend.unfollow(self)
            self.log.restart(self.tail)
        self.report()

    def fail(self, failure: ResumableError) -> None:
        """End the readings; readers that come later begin anew."""
        self.failure = failure
        self._fanout.notify()
        self._backend.unfollow(self)

    def take(self, start: int, data: bytes) -> None:
        """Add bytes that the backend has from `start` on. What is here already is passed over."""
        log = self.log
        if start > log.tail:
            # Something in between was dropped before it came here; readers that still need it will find that out.
            log.restart(start)
        # Pages and news may overlap, as they come by two ways.
        log.append(data[log.tail - start :])
        log.trim(log.tail - WINDOW)
        # At once, because its writer has collected it for a while already.
        self._fanout.wake()

    def finish(self, tail: int, status: ResumableStatus, completed_at: float) -> None:
        """Note that the stream has ended at `tail`."""
        self._backend.unfollow(self)
        if tail < self.log.tail:
            # The backend has lost, and never got back, what was seen here.
            self.fail(StoreUnavailable("The store has lost a part of the stream, and its producer is gone."))
            return
        # Readers that lack something find out whether the backend has it.
        self.take(tail, b"")
        self.status = status
        self.completed_at = completed_at
        self.is_final = True
        self._fanout.notify()

    # What is old.

    def read(self, offset: int) -> bytes:
        """Return the next bytes from `offset` on; none at the tail.

        Raises:
            OffsetLost: They are not held here; see `fetch`.
        """
        if offset >= self.log.tail:
            return b""
        try:
            return self.log.read(offset)
        except LookupError:
            raise OffsetLost(self.earliest) from None

    async def fetch(self, offset: int) -> bytes:
        """Return bytes that the backend holds.

        Raises:
            OffsetLost: It does not.
            StoreUnavailable: It cannot be asked.
        """
        data = (await self._backend.page(self, offset)).data
        if not data:
            raise OffsetLost(self.earliest)
        return data

    # What the producer has to know.

    @property
    def slowest(self) -> int | None:
        """Where the slowest reader here is; `None` if there is none."""
        return min((cursor.offset for cursor in self._fanout.cursors), default=None)

    def on_outage(self, failure: StoreUnavailable) -> None:
        """End the readings if the report was to find out what has become of the stream; else it is made later."""
        if self.is_doubtful:
            self.fail(failure)

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""
        self._fanout.advance(cursor, size)
        # The exact place matters only where the bound is so small that a chunk may fill it.
        if not self.is_final and (self._step < BLOCK_SIZE or cursor.offset - self._reported >= self._step):
            slowest = self._fanout.find_slowest()
            if slowest - self._reported >= self._step or slowest == self.log.tail:
                self.report()

    def report(self) -> None:
        """Say how far the readers here are: for the producer, and so that what they read is kept for them."""
        slowest = self._fanout.find_slowest()
        self._reported = -1 if slowest == math.inf else slowest
        # By way of the queue, so that a report never overtakes another.
        self._backend.mark(self)
