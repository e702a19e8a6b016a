"""What a stream asks its backend to write, what the backend replies, and what can be read there.

Every write may be sent again if the reply to it was lost: it says where it begins, and what is there already is left
as it is.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..._core.ids import StreamKey
from ..._stream.stream import Head
from ...models import ResumableStatus

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


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin the stream: that could not be done when it began here."""

    how: object
    """What `begin_later` was given."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Begin the stream anew, without any bytes: the backend has lost it, or is too far behind.

    The reply is `Gap(earliest)`.
    """

    earliest: int
    """The offset that its log is to begin at."""


@dataclass(frozen=True, slots=True)
class Write:
    """Add `data` to the log, which ends at `first`; and end it, if there is an `ending`."""

    first: int
    last: int
    """The offset after `data`."""
    data: bytes
    earliest: int
    """What can be resumed from now; 0 if nothing has to be dropped."""
    is_mid_event: bool
    """Whether the log ends within an event."""
    renew: bool
    """Whether to see that the stream is still there, and to keep it from expiring."""
    may_fill: bool
    """Whether readers elsewhere may have to be waited for, so that `Written` has to name the slowest."""
    ending: Ending | None


@dataclass(frozen=True, slots=True)
class Written:
    """It is written. `slowest` is the offset of the slowest reader elsewhere, if it was asked for."""

    slowest: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """The log ends at `offset`: write from there."""

    offset: int


class Missing(NamedTuple):
    """The backend has nothing of the stream."""


class Begun(NamedTuple):
    """The stream has begun."""


class Ended(NamedTuple):
    """Another worker has ended or replaced the stream."""


Reply = Written | Gap | Missing | Begun | Ended


class Page(NamedTuple):
    """Some bytes of a log, and how the log ended if nothing comes after them."""

    data: bytes
    ending: tuple[ResumableStatus, str] | None = None


@dataclass(frozen=True, slots=True)
class RemoteState:
    """What the backend says of a stream now."""

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


class WriterBackend(Protocol):
    """What a local stream needs of its store. There is one for each stream."""

    @property
    def degrade(self) -> bool:
        """Whether a stream goes on without the backend while that is gone."""

    def mark(self, *, may_wait: bool = False) -> None:
        """Call the stream's `next_write` soon; if it `may_wait`, a moment later, with what else comes till then."""

    async def slowest_reader(self) -> int | None:
        """Where the slowest reader on another worker is.

        Raises:
            StoreUnavailable: The backend cannot be used.
        """

    async def page(self, offset: int) -> Page:
        """Bytes of the log from `offset` on; none at its end.

        Raises:
            OffsetLost: The bytes there were dropped.
            StoreUnavailable: The backend cannot be used.
        """

    def forget(self) -> None:
        """Ask for no more writes: the backend has the whole stream, or is to have no more. Calls `leave_store`."""

    def abandon(self) -> None:
        """See to it that the stream does not stay live there, as soon as the backend can be reached."""

    def on_ended_elsewhere(self) -> None:
        """Another worker has ended the stream: `forget` it, have it `adopt_end`, and then `stop_producer`."""


class ReaderBackend(Protocol):
    """What a remote stream needs of its store. There is one for each stream."""

    def follow(self) -> None:
        """Give what is added to the log, from the stream's `log.tail` on, to `take`; and its end to `finish`."""

    def unfollow(self) -> None:
        """Stop that."""

    def report(self) -> None:
        """Tell the producer's worker soon how far the slowest reader here is: the stream's `slowest`."""

    async def page(self, offset: int) -> Page:
        """Bytes of the log from `offset` on; none at its end.

        Raises:
            OffsetLost: The bytes there were dropped.
            StoreUnavailable: The backend cannot be used.
        """
