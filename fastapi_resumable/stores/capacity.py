"""What `MemoryStore` keeps account of: what a process takes, what has ended and until when it is kept, and variants."""

import asyncio
import math
import sys
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from weakref import ref

from .._core.ids import StreamKey
from .._core.log import Budget
from .._stream.memory import MemoryStream
from .._stream.stream import Head, Limits
from ..exceptions import TooManyStreams, TooManyStreamsOfOwner
from .base import LOOKED_UP_AT_ONCE, Reservation

STREAM_OVERHEAD = 1024
"""What a stream, queued or not, is counted for beside its bytes, id and keys: otherwise empty ones would be free."""
HEADER_OVERHEAD = 128
"""What each header is counted for beside its bytes."""
HEAD_OVERHEAD = 512
"""What a head is counted for beside its headers."""
EXPIRED_AT_ONCE = 32
"""How many streams expire before others run."""


class Capacity:
    """Counts what is queued and live, says whether there is room for one more, and makes it where there is not."""

    def __init__(self, budget: Budget, ended: "EndedStreams", streams: Callable[[], Iterable[MemoryStream]]) -> None:
        """`streams` returns those that are kept, and those that are not but may have readers yet."""
        self._budget = budget
        budget.on_excess = self.shrink
        self._ended = ended
        self._streams = streams
        self._shrunk_at: float = 0
        self._sharing: Iterator[bool] | None = None
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
        self.shrink()
        if self._budget.used + size > limits.max_total_bytes:
            raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")

    def shrink(self) -> None:
        """Make finished streams expire early, oldest first, and then live ones keep less; none of these is ended."""
        budget = self._budget
        self._ended.make_room(budget, 0)
        if self._shrunk_at == math.inf:
            # A stream that shrinks calls back here.
            return
        if not budget.is_exceeded:
            self._shrunk_at = 0
        elif budget.used > self._shrunk_at:
            # A step for each write, and then none before there is enough to be had: this looks at all streams.
            is_begun = self._sharing is not None
            self._sharing = self._sharing or self._share_out()
            self._share_on()
            if self._sharing is not None and not is_begun:
                asyncio.get_running_loop().call_soon(self._share_in_turn)

    def _share_on(self) -> None:
        assert self._sharing is not None
        budget, self._shrunk_at = self._budget, math.inf
        is_unfinished = next(self._sharing, False)
        if not is_unfinished:
            self._sharing = None
        self._shrunk_at = 0 if is_unfinished else max(budget.used, budget.limit) + budget.limit // 64

    def _share_in_turn(self) -> None:
        # Also when nothing is written, or the store is full no longer: by the next time, the shares would be others.
        if self._sharing is not None:
            self._share_on()
            asyncio.get_running_loop().call_soon(self._share_in_turn)

    def _share_out(self) -> Iterator[bool]:
        """Hold each stream to an equal share; what readers of live ones have yet to read comes off that of the rest.

        It yields `True` after each step.
        """
        # Weak, because a stream may be freed between two steps.
        streams = [ref(stream) for stream in self._streams()]
        held: list[int] = []
        unread: list[int] = []
        for stream in _in_steps(streams):
            if stream is None:
                yield True
                continue
            held.append(stream.held)
            if stream.gone is None:
                unread.append(stream.unread)
        left = self._budget.limit - (self._budget.used - sum(held))
        share = left // max(1, len(held))
        kept = [size for size in unread if size > share]
        share = max(0, (left - sum(kept)) // max(1, len(held) - len(kept)))
        for stream in _in_steps(streams):
            if stream is None:
                yield True
            else:
                stream.shrink(int(share))

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


def _in_steps(streams: Iterable[ref[MemoryStream]]) -> Iterator[MemoryStream | None]:
    """Those of the streams that hold something, and `None` after each step, as a place to let others run."""
    for count, weak in enumerate(streams, 1):
        stream = weak()
        if stream is not None and (stream.gone is None or stream.is_read):
            yield stream
        if count % LOOKED_UP_AT_ONCE == 0:
            stream = None
            yield stream


class EndedStreams:
    """The streams that have ended and are kept for the retention, in the order in which they expire."""

    def __init__(self, clock: Callable[[], float], expire: Callable[[StreamKey, float], object]) -> None:
        """`expire` gets the key of a stream whose time has come, and the time; it `discard`s the stream."""
        self._clock = clock
        self._expire = expire
        # Retention is one constant, so streams expire in the order in which they ended. To find the first of a plain
        # dictionary takes the longer the more were deleted before it.
        self._streams: OrderedDict[MemoryStream, float] = OrderedDict()
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

    def _expire_oldest(self, now: float) -> bool:
        """Forget the first stream if its time has come; return whether it was forgotten."""
        stream, expires_at = next(iter(self._streams.items()), (None, math.inf))
        if stream is None or expires_at > now:
            return False
        self._expire(stream.key, now)
        return True

    def make_room(self, budget: Budget, size: int) -> None:
        """Forget streams before their time, the oldest first, until the budget has room for `size` bytes more."""
        while budget.used + size > budget.limit and self._expire_oldest(math.inf):
            pass

    def _arm(self) -> None:
        """Set a timer, so that memory is freed even if no request comes."""
        loop = asyncio.get_running_loop()
        # The application may be started anew on another loop, where a timer of the first one never fires.
        if self._streams and self._timer_loop is not loop:
            left = next(iter(self._streams.values())) - self._clock()
            self._timer = loop.call_later(max(0.0, left + 0.01), self._on_timer)
            self._timer_loop = loop

    def _on_timer(self) -> None:
        self._timer_loop = None
        now = self._clock()
        # All that ended in one second expire in one second, too, and others are to run in between.
        for _ in range(EXPIRED_AT_ONCE):
            if not self._expire_oldest(now):
                break
        self._arm()

    def close(self) -> None:
        """Stop the timer and forget every stream."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_loop = None
        while self._expire_oldest(math.inf):
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
        root = (owner, stream_id.partition("::")[0])
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
        first = stream_id + "::"
        ids = self._by_root.get((owner, first.partition("::")[0]), [])
        # Right after `::`, in the order of characters, comes `:;`.
        return ids[bisect_left(ids, first) : bisect_left(ids, stream_id + ":;")]
