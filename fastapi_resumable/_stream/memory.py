"""A stream whose log is in this process and nowhere else: the shortest way from producer to readers."""

from collections.abc import Callable
from time import monotonic

from .._core.ids import StreamKey
from .._core.lifecycle import Current
from .._core.log import Budget
from .._core.sse import PING
from ..exceptions import ResumableError
from ..models import ResumableStatus, ResumableStreamItem
from .fanout import NO_READERS, Cursor, Fanout, Traffic
from .recording import Recording
from .stream import Head, Limits, stream_item


class MemoryStream(Recording):
    """A log with a beginning and an end, and the readers that wait for more of it.

    Most chunks are taken without a look at the bound, at the budget or at readers that are behind. That is done in
    steps of some bytes, before the next of which nothing can go wrong: `_check_at` is where the next check is due.
    """

    __slots__ = (
        "__weakref__",
        "_check_at",
        "_traffic",
        "completed_at",
        "failure",
        "gone",
        "is_final",
        "key",
        "on_stop",
        "started_at",
        "state",
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
        started_at: float,
        on_stop: Callable[[str], None] | None = None,
        overhead: int = 0,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(epoch, head, limits, budget, overhead)
        self.key = key
        self.started_at = started_at
        self.completed_at = 0.0
        self.status = ResumableStatus.IN_PROGRESS
        self.is_final = False
        self.failure: ResumableError | None = None
        self.state: Current | None = None
        """The epoch as the store has it."""
        self.gone: str | None = None
        """Why the store keeps it no longer: `cancelled`, `replaced` or `expired`."""
        self.on_stop = on_stop
        """Called with `cancelled` or `replaced` if the stream is stopped; dropped at the end."""
        self._traffic = traffic
        # The first chunk is checked, which sets the mark.
        self._check_at = 0

    @property
    def is_read(self) -> bool:
        """Whether a reader is attached."""
        return self.fanout is not NO_READERS

    # The producer's side.

    def offer(self, chunk: bytes, now: float) -> bool:
        """Record a chunk if that can be done at once: it is not too large, the log is open, and there is room."""
        log = self.log
        if log.tail + len(chunk) > self._check_at:
            return self._offer_with_check(chunk, now)
        # The same as below, in as few calls as possible, because each call is measurable.
        if self.framer is not None:
            chunk = self.framer.feed(chunk, log.tail)
        if chunk:
            log.append(chunk)
            fanout = self.fanout
            if fanout.cursors and not fanout.is_due:
                fanout.announce(chunk, log.tail, now)
        elif self.budget.is_exceeded:
            # It is held back, as a part of an event that is not whole.
            self.budget.on_excess()
        return True

    def _offer_with_check(self, chunk: bytes, now: float) -> bool:
        if self.closed or len(chunk) > self.piece or not self.has_room(len(chunk)):
            return False
        self._keep(chunk if self.framer is None else self.framer.feed(chunk, self.log.tail), now)
        if not self.closed:
            # The slowest reader only moves forward, so up to here there is room for it without another look.
            room_to = self.fanout.find_slowest() + self.bound
            self._check_at = int(min(self.log.tail + self.limits.check_every, room_to))
        return True

    def _keep(self, data: bytes, now: float) -> None:
        self.keep(data)
        if data:
            self.fanout.announce(data, self.log.tail, now)

    @property
    def unread(self) -> int:
        """How many bytes attached readers have yet to read."""
        return self.log.tail - int(min(self.fanout.find_slowest(), self.log.tail))

    def shrink(self, size: int) -> None:
        """Hold no more than `size`, except what a reader still needs of a stream that the store keeps."""
        if self.held <= size:
            return
        # What the producer may write without a check was worked out for the size of before.
        self._check_at = 0
        # The store is full, and a reader of a stream that is not kept any more would hold more than a live one may.
        if self.gone is not None and self.unread > size:
            # It has lost its place.
            self.release()
            return
        size = max(0, size - self._overhead)
        flushed = b""
        if self.framer is not None:
            # Half an event is shown rather than held back, because what is held back cannot be dropped.
            if self.framer.held_back > size:
                flushed = self.framer.flush(self.log.tail)
                self.log.append(flushed)
            size = max(0, size - self.framer.held_back)
        self._trim_to(size, exactly=True)
        if flushed:
            # Last, because a delivery may end the stream.
            self.fanout.announce(flushed, self.log.tail, monotonic())

    def ping(self) -> None:
        """Record a keep-alive, except in other media than events, in mid-event, or while readers leave no room."""
        if self.takes_ping:
            self._keep(PING, monotonic())

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes leave everything in place that an attached reader still needs."""
        # In a store that is full, nothing is added to what readers have yet to read.
        return self.fanout.has_room(size, 0 if self.budget.is_exceeded else self.bound)

    async def wait_for_room(self, size: int) -> None:
        """Wait until the slowest attached reader has caught up far enough for `size` more bytes, or the stream ends."""
        while not self.is_final and not self.has_room(size):
            await self.fanout.wait_for_room()

    def end(self, status: ResumableStatus, code: str, message: str, now: float) -> None:
        """End the log, once: with what is left over if it `completed`, with the terminal event otherwise."""
        if self.is_final:
            return
        # It leads to the producer, and so to the request, which are freed at the end of the stream.
        self.on_stop = None
        self._check_at = 0
        self.close(status, code, message)
        self.status, self.completed_at, self.is_final = status, now, True
        self.fanout.notify()

    # The readers' side.

    @property
    def tail(self) -> int:
        """How far the stream can be read."""
        return self.log.tail

    @property
    def item(self) -> ResumableStreamItem:
        """The stream as a lookup shows it."""
        return stream_item(self)

    def attach(self, cursor: Cursor) -> None:
        """Keep what `cursor` has yet to read, and wake it for what comes."""
        if not self.is_read:
            self.fanout = Fanout(self.log, self._traffic)
        self.fanout.attach(cursor)
        # The new reader may be further behind than the mark allows for.
        self._check_at = 0

    def detach(self, cursor: Cursor) -> None:
        """Forget `cursor`; the producer waits for it no longer."""
        self.fanout.detach(cursor)
        if not self.fanout.cursors:
            self.fanout = NO_READERS
        self._give_back()

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""
        self.fanout.advance(cursor, size)
        if self.gone is not None:
            self._give_back()

    def discard(self, why: str) -> None:
        """Give back the bytes as soon as they have no reader any more: the store keeps the stream no longer."""
        self.gone = why
        self.bound = 0
        self._give_back()

    def _give_back(self) -> None:
        """Hold of a stream that the store keeps no longer only what its readers still need."""
        if self.gone is not None:
            if self.is_read:
                self.trim()
            else:
                self.release()

    async def fetch(self, offset: int) -> bytes:
        """Return what `read` does: what this process does not hold, nothing else has."""
        return self.read(offset)
