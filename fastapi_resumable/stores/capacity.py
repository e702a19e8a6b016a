"""What `MemoryStore` keeps account of: what a process takes, what has ended and until when it is kept, and variants."""

import asyncio
import math
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from weakref import ref

from .._core.log import Budget
from .._stream.memory import MemoryStream
from .._stream.stream import Head, Limits
from ..exceptions import TooManyStreams, TooManyStreamsOfOwner
from .base import Reservation

STREAM_OVERHEAD = 1024
"""What a stream, queued or not, is counted for beside its bytes, id and keys: otherwise empty ones would be free."""
HEADER_OVERHEAD = 128
"""What each header is counted for beside its bytes."""
HEAD_OVERHEAD = 512
"""What a head is counted for beside its headers."""


class Capacity:
    """Counts what is queued and live, and says whether there is room for one more."""

    def __init__(self, budget: Budget, ended: "EndedStreams") -> None:
        self._budget = budget
        self._ended = ended
        self.live = 0
        """How many streams are queued or live."""
        self._live_of_owner: Counter[str] = Counter()
        # Equal heads are one object: most streams of an application have the same one.
        self._heads: dict[object, ref[Head]] = {}

    def count(self, owner: str | None, change: int) -> None:
        """Note that there are more or fewer queued and live streams."""
        self.live += change
        if owner is not None:
            self._live_of_owner[owner] += change
            if not self._live_of_owner[owner]:
                del self._live_of_owner[owner]

    def check(self, limits: Limits, owner: str | None, size: int, allowed: int) -> None:
        """Refuse a request if there is no room for its stream of `size`, with `allowed` more than the limits say.

        Raises:
            TooManyStreams: A limit is reached.
        """
        most = limits.max_streams_per_owner
        if owner is not None and most is not None and self._live_of_owner[owner] >= most + allowed:
            raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
        if self.live >= limits.max_streams + allowed:
            raise TooManyStreams("The server has reached its limit of live streams. Try again in a moment.")
        # What has expired, or may expire early, must not be the reason to refuse a request.
        self._ended.make_room(self._budget, size)
        self._budget.on_excess()
        if self._budget.used + size > limits.max_total_bytes:
            raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")

    def share_head(self, head: Head) -> Head:
        """An equal head that is held already, or this one, which is counted for as long as a stream has it."""
        fields = (head.status_code, head.headers, head.traceparent)
        held = self._heads.get(fields)
        if held is not None and (shared := held()) is not None:
            return shared
        size = HEAD_OVERHEAD + sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in head.headers)
        # Not `self`, which the callback of a weak reference would keep alive.
        heads, budget = self._heads, self._budget

        def give_back(_: object) -> None:
            del heads[fields]
            budget.used -= size

        heads[fields] = ref(head, give_back)
        budget.used += size
        return head


def stream_size(reservation: Reservation) -> int:
    """What a stream is counted for beside its head and its bytes: it keeps the strings of its request."""
    (owner, stream_id), key = reservation.key, reservation.idempotency_key
    size = STREAM_OVERHEAD + sys.getsizeof(stream_id)
    if owner is not None:
        size += sys.getsizeof(owner)
    return size if key is None else size + sys.getsizeof(key)


class EndedStreams:
    """The streams that have ended and are kept for the retention, in the order in which they expire."""

    def __init__(self, clock: Callable[[], float], expire: Callable[[MemoryStream, float], bool]) -> None:
        """`expire` gets a stream whose time has come; it `discard`s the stream and returns true."""
        self._clock = clock
        self._expire = expire
        # Retention is one constant, so streams expire in the order in which they ended.
        self._streams: dict[MemoryStream, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, stream: MemoryStream) -> None:
        """Keep a stream that has just ended."""
        assert stream.state is not None
        self._streams[stream] = stream.state.expires_at
        self._arm()

    def discard(self, stream: MemoryStream) -> None:
        """Keep a stream no longer."""
        self._streams.pop(stream, None)

    def expire(self) -> None:
        """Forget the streams whose time has come."""
        now = self._clock()
        while self.expire_oldest(now):
            pass

    def expire_oldest(self, now: float) -> bool:
        """Forget the first stream if its time has come; return whether there was one."""
        stream, expires_at = next(iter(self._streams.items()), (None, math.inf))
        return stream is not None and expires_at <= now and self._expire(stream, now)

    def make_room(self, budget: Budget, size: int) -> None:
        """Forget streams before their time, the oldest first, until the budget has room for `size` bytes more."""
        while budget.used + size > budget.limit and self.expire_oldest(math.inf):
            pass

    def _arm(self) -> None:
        """Set a timer, so that memory is freed even if no request comes."""
        loop = asyncio.get_running_loop()
        # The application may be started anew on another loop, where a timer of the first one never fires.
        if self._streams and self._timer_loop is not loop:
            left = next(iter(self._streams.values())) - self._clock()
            self._timer = loop.call_later(max(0.0, left) + 0.01, self._on_timer)
            self._timer_loop = loop

    def _on_timer(self) -> None:
        self._timer_loop = None
        self.expire()
        self._arm()

    def close(self) -> None:
        """Stop the timer and forget every stream."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_loop = None
        while self.expire_oldest(math.inf):
            pass


class VariantIndex:
    """The ids that have a `::`, sorted, by owner and by what comes before the first one.

    `a::b::c` is a variant of `a` and of `a::b`; there is one entry for each id.
    """

    def __init__(self) -> None:
        self._by_root: dict[tuple[str | None, str], list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_root.values()))

    def note(self, owner: str | None, stream_id: str, *, held: bool) -> None:
        """Note whether there is a stream under an id that has a `::`."""
        root = (owner, _root(stream_id))
        ids = self._by_root.get(root, [])
        at = bisect_left(ids, stream_id)
        was_held = ids[at : at + 1] == [stream_id]
        if held and not was_held:
            ids.insert(at, stream_id)
            self._by_root[root] = ids
        elif was_held and not held:
            del ids[at]
            if not ids:
                del self._by_root[root]

    def find(self, owner: str | None, stream_id: str) -> list[str]:
        """The ids that are variants of `stream_id`, sorted."""
        ids = self._by_root.get((owner, _root(stream_id)))
        if ids is None:
            return []
        # Right after `::`, in the order of characters, comes `:;`.
        return ids[bisect_left(ids, stream_id + "::") : bisect_left(ids, stream_id + ":;")]


def _root(stream_id: str) -> str:
    return stream_id.partition("::")[0]
