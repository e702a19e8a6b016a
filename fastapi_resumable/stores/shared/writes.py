"""What streams ask of their backend, what it replies, and what it has yet to get of a log.

Every write may be sent again if the reply to it was lost: it says where it begins, and bytes that are there already
are left as they are.
"""

import math
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol

from ..._core.ids import StreamKey
from ..._core.lifecycle import Queued
from ..._core.log import BLOCK_SIZE, Budget
from ..._core.sse import BLANK_LINE
from ..._stream.recording import Recording
from ..._stream.stream import Head, Limits, stream_item
from ...models import ResumableStatus, ResumableStreamItem
from ..base import queued_item

AHEAD = 256 * 1024
"""The most bytes a producer may be ahead of what the backend has acknowledged."""
FULL = 1024 * 1024
"""How many bytes fill a write: after an outage there may be more, which would not be through within one attempt."""

_EVENT_END = re.compile(BLANK_LINE.pattern + rb"\Z")

END_MESSAGES = {
    "replaced": "A newer request replaced this stream.",
    "cancelled": "The stream was stopped.",
    "producer_lost": "The server that produced this answer was lost.",
}
"""What the terminal event says, by its code, where another worker than the producer's writes it."""


class Ending(NamedTuple):
    """How a stream ended."""

    status: ResumableStatus
    code: str
    completed_at: float
    """Unix seconds."""


class Begin(NamedTuple):
    """Begin the stream: that could not be done when it began here."""


class Restore(NamedTuple):
    """Begin the stream anew, without any bytes: the backend has lost it, or is too far behind.

    The reply is `Gap(earliest)`.
    """

    earliest: int
    """The offset that its log is to begin at."""


class Write(NamedTuple):
    """Add `data` to the log, which ends at `first`; and end it, if there is an `ending`."""

    first: int
    last: int
    """The offset after `data`."""
    data: bytes
    earliest: int
    """What can be resumed from now; 0 if nothing has to be dropped."""
    is_mid_event: bool
    """Whether the log then ends within an event."""
    renew: bool
    """Whether to see that the stream is still there, and to keep it from expiring."""
    may_fill: bool
    """Whether readers elsewhere may have to be waited for, so that `Written` has to name the slowest."""
    ending: Ending | None


class Written(NamedTuple):
    """It is written. `slowest` is the offset of the slowest reader elsewhere, if there is one and it was asked for."""

    slowest: float = math.inf


class Gap(NamedTuple):
    """The log ends at `offset`: write from there."""

    offset: int


class Missing(NamedTuple):
    """The backend has nothing of the stream."""


class Ended(NamedTuple):
    """Another worker has ended or replaced the stream."""


Reply = Written | Gap | Missing | Ended


class Sync(Enum):
    """What the next write has to do."""

    BEGIN = "begin"
    """Begin the stream, which could not be done when it began here."""
    WRITE = "write"
    """Add what is new."""
    RESTORE = "restore"
    """Begin it anew: the backend has lost it, or has been gone for longer than this log remembers."""
    LEFT = "left"
    """Nothing. There is no way back from here."""


class Outbox:
    """How far a backend is behind a recording."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.ahead = max(1, min(AHEAD, recording.limits.max_stream_bytes // 4))
        """The most bytes that may be written before the backend has acknowledged them."""
        self.sync = Sync.WRITE
        self.recorded = 0
        """How much the backend has acknowledged."""
        self.sent: Write | None = None
        """The last write."""
        self.renew = True
        """Whether to ask the backend for a sign that it still has the stream."""
        self.ending: Ending | None = None
        """How the log has ended."""

    def next_write(self) -> Begin | Restore | Write | None:
        """What the backend is to do now."""
        if self.sync is Sync.LEFT:
            return None
        recording = self._recording
        if self.sync is Sync.BEGIN:
            return Begin()
        # What the backend lacks was dropped here in the meantime, so there can be no log without a gap.
        if self.sync is Sync.RESTORE or self.recorded < recording.log.floor:
            self.sync = Sync.RESTORE
            return Restore(recording.earliest)
        first = last = self.recorded
        tail = recording.log.tail
        if first == tail and self.ending is None and not self.renew:
            return None
        chunks = []
        # Whole blocks, which end where events do, unless one is too large to hold back.
        for chunk in recording.log.chunks(first):
            chunks.append(chunk)
            last += len(chunk)
            if last - first >= FULL:
                break
        self.sent = Write(
            first,
            last,
            b"".join(chunks),
            earliest=min(recording.earliest, last) if last > recording.bound else 0,
            is_mid_event=recording.is_mid_event if last == tail else self._cuts_event(chunks[-1]),
            renew=self.renew or not first,
            # As long as the log cannot fill up before the next reply, no reader has to be waited for.
            may_fill=last + 2 * max(self.ahead, BLOCK_SIZE) > recording.bound,
            ending=self.ending if last == tail else None,
        )
        self.renew = False
        return self.sent

    def _cuts_event(self, chunk: bytes) -> bool:
        return self._recording.head.is_event_stream and not _EVENT_END.search(chunk[-4:])

    def take(self, reply: Reply) -> bool:
        """Note what came of the last write; return whether the stream still belongs to this worker."""
        match reply:
            case Written():
                assert self.sent is not None
                self.recorded = self.sent.last
            case Gap(offset):
                self.sync, self.renew, self.recorded = Sync.WRITE, True, offset
            case Missing():
                self.sync = Sync.RESTORE
            case Ended():
                return False
        # A backend that has more than was written here has it from another worker.
        return self.recorded <= self._recording.log.tail


class Page(NamedTuple):
    """Some bytes of a log, and how the log ended if nothing comes after them."""

    data: bytes
    ending: Ending | None = None


class RemoteState(NamedTuple):
    """What the backend says of an epoch now."""

    key: StreamKey
    epoch: str
    worker: str
    """Where its producer runs."""
    head: Head
    status: ResumableStatus
    tail: int
    earliest: int
    started_at: float
    completed_at: float
    idempotency_key: str | None

    @property
    def is_final(self) -> bool:
        """Whether the stream has ended."""
        return self.status is not ResumableStatus.IN_PROGRESS

    @property
    def item(self) -> ResumableStreamItem:
        """The stream as a lookup shows it."""
        return stream_item(self)


class KeyState(NamedTuple):
    """What the backend says of a key now."""

    key: StreamKey
    current: RemoteState | None
    queued: tuple[Queued, ...]
    gone: Mapping[str, str]
    """Why it went, `cancelled` or `replaced`, for each epoch that was stopped or replaced a short while ago."""

    @property
    def item(self) -> ResumableStreamItem | None:
        """What a lookup shows: the current epoch, or else the newest request that is queued."""
        if self.current is not None:
            return self.current.item
        newest = self.queued[-1] if self.queued else None
        return newest and queued_item(self.key, newest.epoch, newest.requested_at)

    @property
    def live(self) -> list[Queued | RemoteState]:
        """What waits or runs."""
        return [*self.queued, *([] if self.current is None or self.current.is_final else [self.current])]

    @property
    def workers(self) -> set[str]:
        """The workers that have to be alive for this to be true."""
        return {each.worker for each in self.live}


class StreamBackend(Protocol):
    """What local and remote streams need of the backend. Each `stream` is one of them."""

    limits: Limits
    budget: Budget
    """What the logs of this worker are counted in."""
    degrade: bool
    """Whether local streams go on without the backend while that is gone."""
    mark: Callable[[Any], None]
    """Write soon what a stream has to write."""

    async def page(self, stream: Any, offset: int) -> Page:
        """Bytes of the log from `offset` on; none at its end.

        Raises:
            OffsetLost: The bytes there were dropped.
            StoreUnavailable: The backend cannot be used.
        """

    async def slowest_reader(self, stream: Any) -> float:
        """Where the slowest reader on another worker is; infinity if there is none.

        Raises:
            StoreUnavailable: The backend cannot be used.
        """

    def forget(self, stream: Any) -> None:
        """Ask a local stream for no more writes: the backend has the whole of it, or is to have no more."""

    def ensure_ended(self, key: StreamKey, epoch: str) -> None:
        """Make sure that an epoch stays neither queued nor live, as soon as the backend can be reached."""

    def end_elsewhere(self, stream: Any, code: str = "cancelled") -> None:
        """Another worker has ended a local stream: have it take that over."""

    def note_end(self, stream: Any) -> None:
        """A local stream is about to end: count it no longer, so that its owner may begin another at once."""

    async def announce(self, stream: Any) -> None:
        """Notify those that watch of the state of a local stream."""

    def follow(self, stream: Any) -> None:
        """Give what is added to a log, from the remote stream's `log.tail` on, to `take`; and its end to `finish`."""

    def unfollow(self, stream: Any) -> None:
        """Stop that."""
