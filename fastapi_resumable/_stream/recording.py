"""What the producer of a stream writes: framed into whole events, bounded, and counted for as long as it is held."""

import logging

from .._core.log import BLOCK_SIZE, ByteLog
from .._core.sse import EventFramer, find_boundary
from .._core.terminal import write_terminal_event
from ..models import ResumableStatus
from .fanout import Fanout
from .stream import Budget, Head, Limits

logger = logging.getLogger("fastapi_resumable")

PIECE = 64 * 1024
"""The most that is recorded at once, so that a huge chunk goes through a small log piece by piece."""


class Recording:
    """The log of one epoch, from its first byte to its terminal event.

    What it holds is counted in the budget until that is given back: by `release`, or when the recording is freed.
    """

    __slots__ = (
        "_boundary",
        "_budget",
        "_counted",
        "_most",
        "_overhead",
        "_searched",
        "bound",
        "closed",
        "epoch",
        "framer",
        "head",
        "limits",
        "log",
    )

    def __init__(self, epoch: str, head: Head, limits: Limits, budget: Budget, overhead: int = 0) -> None:
        """Begin a log; `overhead` is what is counted beside its bytes."""
        self.epoch = epoch
        self.head = head
        self.closed = False
        """Whether no more may be written."""
        self.log = ByteLog(max(1, min(BLOCK_SIZE, limits.max_stream_bytes // 8)))
        self.bound = self._most = limits.max_stream_bytes
        """How many of the newest bytes are kept for readers that come later: `max_stream_bytes`, or less if the store
        is full."""
        self.framer = new_framer(epoch, limits, limits.max_stream_bytes) if head.is_event_stream else None
        self._boundary = 0
        self._searched = 0
        self.limits = limits
        self._budget = budget
        self._overhead = self._counted = overhead
        budget.used += overhead

    def __del__(self) -> None:
        self._budget.used -= self._counted

    def release(self) -> None:
        """Give back the bytes now, even if something still refers to the recording."""
        self.log.restart(self.log.tail)
        self._budget.used -= self._counted
        self._counted = 0

    @property
    def is_mid_event(self) -> bool:
        """Whether the log ends within an event that was too large to hold back."""
        return self.framer is not None and self.framer.oversize

    def frame(self, chunk: bytes) -> bytes:
        """Take what the application sent; return what is to be recorded: of an event stream, the whole events."""
        return chunk if self.framer is None else self.framer.feed(chunk, self.log.tail)

    def keep(self, data: bytes, fanout: Fanout | None) -> None:
        """Add bytes to the log, as they are."""
        self.log.append(data)
        self.settle(fanout)

    def settle(self, fanout: Fanout | None) -> None:
        """Drop what is beyond the bound, except what an attached reader still needs, and count what is held."""
        self._trim(fanout)
        budget = self._budget
        self._count()
        if budget.is_exceeded:
            budget.on_excess()
        # While live streams alone fill the store, each is held to an equal share. One that has readers waits for them,
        # and one that has none keeps less of its past. So no stream has to be ended for want of memory.
        bound = int(min(self._most, budget.share)) if budget.is_exceeded else self._most
        if bound != self.bound and not self.closed:
            self.bound = bound
            self.log.block_size = max(1, min(BLOCK_SIZE, bound // 8))
            if self.framer is not None:
                self.framer.limit = bound
            self._trim(fanout)
            self._count()

    def _trim(self, fanout: Fanout | None) -> None:
        log, bound = self.log, self.bound
        if log.tail > bound and log.size > bound + log.block_size:
            # Three bytes more, to see the blank line that the first event which is kept comes after.
            keep_from: float = log.tail - bound - 3
            if fanout is not None:
                keep_from = min(
                    keep_from, fanout.slowest if log.tail - fanout.slowest <= bound else fanout.find_slowest()
                )
            log.trim(int(keep_from))

    def _count(self) -> None:
        size = self._overhead + self.log.size + (0 if self.framer is None else self.framer.held_back)
        self._budget.used += size - self._counted
        self._counted = size

    def end(self, status: ResumableStatus, code: str, message: str) -> bytes:
        """Take no more; return the last bytes to keep: what is left over if it `completed`, or the terminal event."""
        self.closed = True
        framer, self.framer = self.framer, None
        if framer is None:
            return b""
        if status is ResumableStatus.COMPLETED:
            return framer.finish(self.log.tail)
        event = end_event(self.epoch, self.limits, self.log.tail, framer.oversize, status, code, message)
        # How it ended is kept on top of what the bound allows, however small that is.
        self.bound += len(event)
        return event

    def reopen(self, offset: int) -> None:
        """Drop what was written from `offset` on, so that the log can end otherwise."""
        self.log.truncate(offset)
        if self.closed and self.head.is_event_stream:
            self.framer = EventFramer(None, self.bound)
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
        start = max(log.floor, low - 3, min(self._searched, log.tail) - 3)
        while (found := find_boundary(log.chunks(start))) is not None:
            start += found
            if start >= low:
                self._boundary = start
                return start
        self._searched = log.tail
        return low


def new_framer(epoch: str, limits: Limits, limit: int) -> EventFramer:
    """A framer for bytes of one epoch, that holds back no more than `limit` of them."""
    return EventFramer(epoch if limits.event_ids else None, limit, ids_first=limits.event_ids == "first")


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
    framer = new_framer(epoch, limits, len(event))
    stamped = framer.feed(event, tail + len(gap))
    return gap + stamped + framer.finish(tail + len(gap) + len(stamped))
