"""A stream whose log is in this process and nowhere else: the shortest way from producer to readers."""

from collections.abc import Callable, Iterable
from time import monotonic

from .._core.ids import StreamKey
from .._core.lifecycle import Current
from .._core.log import Budget
from .._core.sse import PING
from ..exceptions import OffsetLost, ResumableError
from ..models import ResumableStatus, ResumableStreamItem
from .fanout import Cursor, Fanout
from .recording import Recording
from .stream import Head, Limits, stream_item


class MemoryStream:
    """A log with a beginning and an end, and the readers that wait for more of it.

    Most chunks are taken without a look at the bound, at the budget or at readers that are behind. That is done in
    steps of some bytes, before the next of which nothing can go wrong: `_check_at` is where the next check is due.
    """

    __slots__ = (
        "__weakref__",
        "_check_at",
        "_fanout",
        "_recording",
        "completed_at",
        "epoch",
        "failure",
        "gone",
        "head",
        "is_final",
        "key",
        "log",
        "on_stop",
        "piece",
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
    ) -> None:
        self.key, self.epoch, self.head = key, epoch, head
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
        self._recording = Recording(epoch, head, limits, budget, overhead)
        self.log, self.piece = self._recording.log, self._recording.piece
        # Only while there are readers, because most streams that are kept have none.
        self._fanout: Fanout | None = None
        # The first chunk is checked, which sets the mark.
        self._check_at = 0

    @property
    def is_read(self) -> bool:
        """Whether a reader is attached."""
        return self._fanout is not None

    # The producer's side.

    @property
    def closed(self) -> bool:
        """Whether no more may be written."""
        return self.is_final

    def offer(self, chunk: bytes, now: float) -> bool:
        """Record a chunk if that can be done at once: it is not too large, the log is open, and there is room."""
        log = self.log
        if log.tail + len(chunk) > self._check_at:
            return self._offer_with_check(chunk, now)
        # The same as below, in as few calls as possible, because each call is measurable.
        recording = self._recording
        if recording.framer is not None:
            chunk = recording.framer.feed(chunk, log.tail)
        if chunk:
            log.append(chunk)
            fanout = self._fanout
            if fanout is not None and not fanout.is_due:
                fanout.announce(chunk, log.tail, now)
        elif recording.budget.is_exceeded:
            # It is held back, as a part of an event that is not whole.
            recording.budget.on_excess()
        return True

    def _offer_with_check(self, chunk: bytes, now: float) -> bool:
        if self.is_final or len(chunk) > self.piece or not self.has_room(len(chunk)):
            return False
        self._keep(self._recording.frame(chunk), now)
        if not self.is_final:
            self._check_at = self.log.tail + self._recording.limits.check_every
            if self._fanout is not None:
                # The slowest reader only moves forward, so up to here there is room for it without another look.
                self._check_at = min(self._check_at, int(self._fanout.find_slowest()) + self._recording.bound)
        return True

    def _keep(self, data: bytes, now: float) -> None:
        self._recording.keep(data, self._fanout)
        if data and self._fanout is not None:
            self._fanout.announce(data, self.log.tail, now)

    @property
    def held(self) -> int:
        """How many bytes it is counted for."""
        return self._recording.held

    @property
    def unread(self) -> int:
        """How many bytes attached readers have yet to read."""
        return 0 if self._fanout is None else self.log.tail - int(min(self._fanout.find_slowest(), self.log.tail))

    def shrink(self, size: int) -> None:
        """Hold no more than `size`, except what a reader still needs of a stream that the store keeps."""
        if self.held <= size:
            return
        # What the producer may write without a check was worked out for the size of before.
        self._check_at = 0
        # The store is full, and a reader of a stream that is not kept any more would hold more than a live one may.
        if self.gone is not None and self.unread > size:
            # It has lost its place.
            self._recording.release()
            return
        if (flushed := self._recording.shrink(self._fanout, size)) and self._fanout is not None:
            self._fanout.announce(flushed, self.log.tail, monotonic())

    def ping(self) -> None:
        """Record a keep-alive, except in other media than events, in mid-event, or while readers leave no room."""
        is_full = self._fanout is not None and self._fanout.is_waiting
        if self._recording.framer is not None and not self._recording.is_mid_event and not is_full:
            self._keep(PING, monotonic())

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes leave everything in place that an attached reader still needs."""
        if self._fanout is None:
            return True
        # In a store that is full, nothing is added to what readers have yet to read.
        return self._fanout.has_room(size, 0 if self._recording.budget.is_exceeded else self._recording.bound)

    async def wait_for_room(self, size: int) -> None:
        """Wait until the slowest attached reader has caught up far enough for `size` more bytes, or the stream ends."""
        while not self.is_final and self._fanout is not None and not self.has_room(size):
            await self._fanout.wait_for_room()

    def end(self, status: ResumableStatus, code: str, message: str, now: float) -> None:
        """End the log, once: with what is left over if it `completed`, with the terminal event otherwise."""
        if self.is_final:
            return
        recording = self._recording
        # It leads to the producer, and so to the request, which are freed at the end of the stream.
        self.on_stop = None
        self._check_at = 0
        rest = recording.end(status, code, message)
        self.status, self.completed_at, self.is_final = status, now, True
        if rest:
            self.log.append(rest)
        self.log.close()
        # The terminal event has raised the bound, so trimming comes after it.
        recording.trim(self._fanout)
        if self._fanout is not None:
            if rest:
                self._fanout.announce(rest, self.log.tail, monotonic())
            self._fanout.notify()
            self._fanout.make_room()

    # The readers' side.

    @property
    def tail(self) -> int:
        """How far the stream can be read."""
        return self.log.tail

    @property
    def earliest(self) -> int:
        """The first offset that can be resumed from: of an event stream, the start of an event."""
        return self._recording.earliest

    @property
    def item(self) -> ResumableStreamItem:
        """The stream as a lookup shows it."""
        return stream_item(self)

    def attach(self, cursor: Cursor) -> None:
        """Keep what `cursor` has yet to read, and wake it for what comes."""
        if self._fanout is None:
            self._fanout = Fanout(self.log)
        self._fanout.attach(cursor)
        # The new reader may be further behind than the mark allows for.
        self._check_at = 0

    def detach(self, cursor: Cursor) -> None:
        """Forget `cursor`; the producer waits for it no longer."""
        if self._fanout is not None:
            self._fanout.detach(cursor)
            if not self._fanout.cursors:
                self._fanout = None
                if self.gone is not None:
                    self._recording.release()

    def discard(self, why: str) -> None:
        """Give back the bytes as soon as they have no reader any more: the store keeps the stream no longer."""
        self.gone = why
        if self._fanout is None:
            self._recording.release()
        else:
            self._recording.bound = 0
            self._recording.trim(self._fanout)

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""
        if self._fanout is not None:
            self._fanout.advance(cursor, size)
            if self.gone is not None:
                self._recording.trim(self._fanout)

    def read(self, cursor: Cursor) -> bytes:
        """Return the next bytes, or raise `OffsetLost`; none at the tail."""
        try:
            return self.log.read(cursor.offset)
        except LookupError:
            raise OffsetLost(self.earliest) from None

    async def fetch_evicted(self, cursor: Cursor) -> bytes:
        """Raise `OffsetLost`: what this process no longer holds, nothing else has."""
        raise OffsetLost(self.earliest)

    async def blocks(self, offset: int) -> Iterable[bytes]:
        """Everything from `offset`, which is retained, to the tail."""
        return self.log.chunks(offset)
