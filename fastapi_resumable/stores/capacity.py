"""How much a process takes: its bytes, its live streams, and those of each owner."""

import sys
from weakref import WeakValueDictionary

from .._stream.stream import Budget, Head, Limits
from ..exceptions import TooManyStreams, TooManyStreamsOfOwner
from .base import Reservation

STREAM_OVERHEAD = 1024
"""What a stream is counted for beside its bytes, its id and its keys: without it, empty streams would be free."""
HEADER_OVERHEAD = 128
"""What each header is counted for beside its bytes."""
REQUEST_OVERHEAD = 1024
"""What a request that waits is counted for."""


class Capacity:
    """Counts what is queued and live, and says whether there is room for one more."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._live_of_owner: dict[str, int] = {}
        # Equal heads are one object, by its hash: most streams of an application have the same one.
        self._heads: WeakValueDictionary[int, Head] = WeakValueDictionary()

    def count(self, owner: str | None, change: int) -> None:
        """Note that there are more or fewer queued and live streams."""
        self._budget.live += change
        if owner is not None:
            count = self._live_of_owner.get(owner, 0) + change
            if count:
                self._live_of_owner[owner] = count
            else:
                del self._live_of_owner[owner]

    def check(self, limits: Limits, owner: str | None, allowed: int) -> None:
        """Refuse a request if there is no room for its stream, with `allowed` more than the limits say.

        Raises:
            TooManyStreams: A limit is reached.
        """
        most = limits.max_streams_per_owner
        if owner is not None and most is not None and self._live_of_owner.get(owner, 0) >= most + allowed:
            raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
        if self._budget.live >= limits.max_streams + allowed:
            raise TooManyStreams("The server has reached its limit of live streams. Try again in a moment.")
        self._budget.on_excess()
        if self._budget.used >= limits.max_total_bytes:
            raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")

    def share_head(self, head: Head) -> tuple[Head, int]:
        """An equal head that is held already, or this one and its size."""
        shared = self._heads.get(hash(head))
        if shared == head:
            return shared, 0
        self._heads[hash(head)] = head
        return head, sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in head.headers)


def request_size(reservation: Reservation) -> int:
    """What a request is counted for while it waits."""
    return REQUEST_OVERHEAD + _strings_size(reservation)


def stream_size(reservation: Reservation) -> int:
    """What a stream is counted for beside its head and its bytes: it keeps the strings of its request."""
    return STREAM_OVERHEAD + _strings_size(reservation)


def _strings_size(reservation: Reservation) -> int:
    strings = (reservation.key.id, reservation.key.owner, reservation.idempotency_key)
    return sum(sys.getsizeof(text) for text in strings if text is not None)
