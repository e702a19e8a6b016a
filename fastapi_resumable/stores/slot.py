"""The streams of one owner and id in the memory of a process."""

from .._stream.memory import MemoryStream
from ..exceptions import StreamExists
from .base import OnConflict, Reservation


class Slot:
    """The current epoch, and the requests that wait, oldest first."""

    __slots__ = ("current", "queued")

    def __init__(self) -> None:
        self.current: MemoryStream | None = None
        self.queued: tuple[Reservation, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is no stream of this id any more."""
        return self.current is None and not self.queued

    @property
    def shown(self) -> MemoryStream | Reservation:
        """What a lookup shows, of a slot that is not empty."""
        return self.current or self.queued[-1]

    @property
    def live(self) -> MemoryStream | None:
        """The current epoch, unless it has ended."""
        return self.current if self.current is not None and not self.current.is_final else None

    def find_rival(self, idempotency_key: str | None, on_conflict: OnConflict) -> MemoryStream | Reservation | None:
        """What a new request has to follow, or to wait for before it can tell.

        Raises:
            StreamExists: Something is queued or live, and the rule is `reject`.
        """
        if idempotency_key is not None:
            if self.current is not None and self.current.idempotency_key == idempotency_key:
                return self.current
            for queued in self.queued:
                if queued.idempotency_key == idempotency_key:
                    return queued
        if on_conflict == "replace" or (self.live is None and not self.queued):
            return None
        if on_conflict == "reject":
            raise StreamExists
        return self.live or self.queued[0]
