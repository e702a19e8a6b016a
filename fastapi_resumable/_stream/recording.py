"""What the producer of a stream writes: framed into whole events, bounded, and counted for as long as it is held."""

import logging

from .._core.log import Budget, ByteLog
from .._core.sse import BLANK_LINE, EventFramer, events
from .._core.terminal import write_terminal_event
from ..exceptions import OffsetLost
from ..models import ResumableStatus
from .fanout import NO_READERS
from .stream import Head, Limits

logger = logging.getLogger("fastapi_resumable")

PIECE = 64 * 1024
"""The most that is recorded at once, so that a huge chunk goes through a small log piece by piece."""
EVENT_PIECE = 16 * 1024
"""The same of an event stream: it may be thousands of events, each of which takes its time."""


class Recording:
    """The log of one epoch, from its first byte to its terminal event, and those that read it here.

    What it holds is counted in the budget until that is given back: by `release`, or when the recording is freed.
    """

    __slots__ = (
        "_boundary",
        "_overhead",
        "_searched",
        "bound",
        "budget",
        "closed",
        "epoch",
        "fanout",
        "framer",
        "head",
        "limits",
        "log",
        "piece",
    )

    def __init__(self, epoch: str, head: Head, limits: Limits, budget: Budget, overhead: int = 0) -> None:
        """Begin a log; `overhead` is what is counted beside its bytes."""
        self.epoch = epoch
        self.head = head
        self.limits = limits
        self.budget = budget
        self.closed = False
        """Whether no more may be written."""
        self.bound = limits.max_stream_bytes
        """How many of the newest bytes are kept for readers that come later."""
        self.log = ByteLog(limits.block_size, budget=budget)
        self.fanout = NO_READERS
        """The readers in this process."""
        self.framer = new_framer(epoch, limits, self.bound, budget) if head.is_event_stream else None
        self.piece = EVENT_PIECE if head.is_event_stream else PIECE
        """The most that may be recorded at once."""
        self._boundary = 0
        self._searched = 0
        self._overhead = overhead
        budget.used += overhead

    # The last holder may be a reader or a hook, which knows nothing of the budget.
    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Give back everything now, even if something still refers to the recording."""
        if self.log.size:
            self.log.restart(self.log.tail)
        self._drop_framer()
        self.budget.used -= self._overhead
        self._overhead = 0

    def _drop_framer(self) -> None:
        if self.framer is not None:
            held_back = self.framer.held_back
            self.budget.used -= held_back
            self.framer = None

    @property
    def held(self) -> int:
        """What is counted now."""
        return self._overhead + self.log.size + (0 if self.framer is None else self.framer.held_back)

    @property
    def is_mid_event(self) -> bool:
        """Whether the log ends within an event that was too large to hold back."""
        return self.framer is not None and self.framer.oversize

    @property
    def takes_ping(self) -> bool:
        """Whether a keep-alive can be recorded: not in other media than events, in mid-event, or without room."""
        return self.framer is not None and not self.framer.oversize and not self.fanout.is_waiting

    def keep(self, data: bytes) -> None:
        """Add bytes to the log, as they are."""
        self.log.append(data)
        self.settle()

    def settle(self) -> None:
        """Drop what is beyond the bound, and see to it that everything together is not too much."""
        self.trim()
        if self.budget.is_exceeded:
            self.budget.on_excess()

    def trim(self) -> None:
        """Drop what is beyond the bound, except what an attached reader still needs."""
        log = self.log
        # Whole blocks are dropped, so there is nothing to do until there is one too many. A large event is one block,
        # so of events nearly as large as the bound, two are held.
        if log.tail > self.bound and log.size > self.bound + log.block_size:
            self._trim_to(self.bound)

    def _trim_to(self, size: int, *, exactly: bool = False) -> None:
        log, fanout = self.log, self.fanout
        slowest = fanout.slowest if log.tail - fanout.slowest <= size else fanout.find_slowest()
        # Three bytes more, to see the blank line that the first event which is kept comes after.
        log.trim(int(min(log.tail - size - 3, slowest)), exactly=exactly)

    def close(self, status: ResumableStatus, code: str, message: str) -> None:
        """Take no more, and end the log: with what is left over if it `completed`, or with the terminal event."""
        self.closed = True
        log, framer = self.log, self.framer
        if framer is not None:
            if status is ResumableStatus.COMPLETED:
                log.append(framer.finish(log.tail))
                self.framer = None
            else:
                self._drop_framer()
                event = end_event(self.epoch, self.limits, log.tail, framer.oversize, status, code, message)
                # How it ended is kept on top of what the bound allows, however small that is.
                self.bound += len(event)
                log.append(event)
        self.trim()
        log.close()

    def read(self, offset: int) -> bytes:
        """Return the next bytes that may be read; none at the tail.

        Raises:
            OffsetLost: They were dropped.
        """
        # Not always up to the log's own tail: what is not visible yet may still be taken back.
        visible = self.fanout.visible
        left = (self.log.tail if visible is None else visible) - offset
        try:
            return self.log.read(offset, left) if left > 0 else b""
        except LookupError:
            raise OffsetLost(self.earliest) from None

    def reopen(self, offset: int) -> None:
        """Drop what was written from `offset` on, so that the log can end otherwise."""
        self.log.truncate(offset)
        if self.closed and self.head.is_event_stream:
            # Without ids: what follows is the terminal event, which is framed by itself.
            self.framer = EventFramer(None, self.bound, budget=self.budget)
        self.closed = False

    @property
    def earliest(self) -> int:
        """The first offset that can be resumed from: of an event stream, the start of an event."""
        log = self.log
        low = max(log.floor, log.tail - self.bound)
        if low == 0 or not self.head.is_event_stream:
            return low
        if self._boundary >= low:
            return self._boundary
        # Where there was no boundary before, there is none now: what is searched once is not searched again.
        # Three bytes back, as a blank line has up to four, and may lie across the place where the last search ended.
        start = max(log.floor, low - 3, min(self._searched, log.tail) - 3)
        for event in events(log.chunks(start)):
            start += len(event)
            if start >= low and BLANK_LINE.search(event[-4:]):
                self._boundary = start
                return start
        self._searched = log.tail
        return low


def new_framer(epoch: str, limits: Limits, limit: int, budget: Budget | None = None) -> EventFramer:
    """A framer for bytes of one epoch, that holds back no more than `limit` of them."""
    ids = epoch if limits.event_ids else None
    return EventFramer(ids, limit, ids_first=limits.event_ids == "first", budget=budget)


def end_event(
    epoch: str, limits: Limits, tail: int, is_mid_event: bool, status: ResumableStatus, code: str, message: str
) -> bytes:
    """The terminal event of a stream, as it is recorded at `tail`; empty if `terminal_event` wants none.

    A user's function that fails must not keep a stream from ending: the default event takes its place.
    """
    event, failure = write_terminal_event(limits.terminal_event, status.value, code, message)
    if failure is not None:
        logger.error(
            "terminal_event failed; the stream ends with the default one", exc_info=failure, extra={"epoch": epoch}
        )
    if not event:
        return b""
    # An event too large to hold back lies half in the log: a blank line ends it.
    gap = b"\n\n" if is_mid_event else b""
    # As large as the event, which must not be cut even if it exceeds the bound of the stream.
    framer = new_framer(epoch, limits, len(event))
    stamped = framer.feed(event, tail + len(gap))
    return gap + stamped + framer.finish(tail + len(gap) + len(stamped))
