"""The default store: streams live in this process, and nowhere else.

No method waits between looking and deciding, so on one event loop each call is atomic. How a stream may change is for
`lifecycle` to say; this module does what follows from each change.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from weakref import WeakSet

from .._core import lifecycle
from .._core.ids import StreamKey
from .._core.lifecycle import Change, OnConflict, Outcome, Queued, Slot, Verdict
from .._core.log import Budget
from .._stream.fanout import Traffic
from .._stream.memory import MemoryStream
from .._stream.stream import Head, Limits, Stream, WritableStream
from ..exceptions import StreamCancelled, StreamExists, StreamNotFound, StreamPending, StreamReplaced
from ..models import ResumableStatus, ResumableStreamItem
from .base import LOOKED_UP_AT_ONCE, Notify, Reservation, Watchers, stop_error, watch_size
from .capacity import Capacity, EndedStreams, VariantIndex, stream_size
from .several import warn_of_workers
from .shared.writes import END_MESSAGES

Key = tuple[str | None, str]  # an owner and an id


class MemoryStore:
    """Keeps streams in process memory, bounded by the limits it is given.

    `max_total_bytes` bounds everything that is held, live streams included. When it is exceeded, finished streams
    expire early, oldest first. Then new requests are refused, and each live stream is held to an equal share of the
    total: one with readers waits for the slowest of them, and one without keeps less of its past. None is ended. A slow
    reader of a stream that was replaced loses its place if that stream holds more than a share.

    Args:
        clock: Seconds that never go backwards, for the retention.
        wall_clock: Unix seconds, for what a lookup shows.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._has_warned = False
        self._clock = clock
        self._wall_clock = wall_clock
        self._limits = Limits()
        self._budget = Budget()
        self._traffic = Traffic()
        self._ended = EndedStreams(clock, self._slot)
        self._capacity = Capacity(self._budget, self._ended, lambda: (*self._streams.values(), *self._still_read))
        self._watchers = Watchers(self._budget)
        # What a slot has, by owner and id: a `StreamKey`, or a plain pair, which is made in less time. Most slots have
        # nothing but a stream that has ended.
        self._streams: dict[Key, MemoryStream] = {}
        self._queued: dict[Key, tuple[Queued, ...]] = {}
        self._requests: dict[str, Reservation] = {}  # what is queued, by epoch
        self._variants = VariantIndex()
        self._still_read: WeakSet[MemoryStream] = WeakSet()  # what is not kept any more; some of it has readers yet

    @property
    def held_bytes(self) -> int:
        """How many bytes all streams are counted for."""
        return self._budget.used

    @property
    def _live(self) -> int:
        """How many streams are queued or live."""
        return self._capacity.live

    def configure(self, limits: Limits) -> None:
        """Take the limits."""
        self._limits = limits
        self._budget.limit = limits.max_total_bytes

    # Starting and ending.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        """Queue a request, or return the stream it is to follow."""
        if not self._has_warned:
            # Not before there is a request, when all workers have been started.
            self._has_warned = True
            warn_of_workers()
        key = reservation.key
        request = Queued(reservation.epoch, idempotency_key=reservation.idempotency_key)
        timeout = reservation.pending_timeout
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while True:
            outcome = lifecycle.reserve(self._slot(key), request, on_conflict)
            if outcome.verdict is Verdict.QUEUED:
                break
            if outcome.verdict is Verdict.EXISTS:
                raise StreamExists
            if outcome.verdict is Verdict.FOLLOW:
                return self._streams[key]
            try:
                async with asyncio.timeout_at(deadline):
                    stream = await self._requests[outcome.rival].settled()
            except TimeoutError:
                raise StreamPending from None
            if stream is not None:
                assert isinstance(stream, MemoryStream)
                if stream.gone in ("cancelled", "replaced"):
                    raise stop_error(stream.gone)
                if stream.gone is None:
                    return stream
        # The stream that this one replaces gives up its place to it.
        reservation.size = stream_size(reservation)
        self._capacity.check(self._limits, key.owner, reservation.size, allowed=1 if outcome.replaces else 0)
        self._budget.used += reservation.size
        self._capacity.count(key.owner, 1)
        reservation.requested_at = self._wall_clock()
        self._requests[reservation.epoch] = reservation
        self._apply(key, outcome)
        return None

    async def begin(self, reservation: Reservation, head: Head) -> MemoryStream:
        """Make the reservation the current epoch."""
        key, epoch = reservation.key, reservation.epoch
        if epoch not in self._requests:
            raise stop_error(reservation.stop_code)
        outcome = lifecycle.begin(self._slot(key), epoch, now := self._wall_clock())
        del self._requests[epoch]
        self._budget.used -= reservation.size
        stream = MemoryStream(
            key,
            epoch,
            self._capacity.share_head(head),
            limits=self._limits,
            budget=self._budget,
            started_at=now,
            on_stop=reservation.on_stop,
            overhead=reservation.size,
            traffic=self._traffic,
        )
        self._apply(key, outcome, "replaced", stream)
        reservation.settle(stream)
        return stream

    async def release(self, reservation: Reservation) -> None:
        """Give a reservation back."""
        if reservation.epoch in self._requests:
            self._apply(reservation.key, lifecycle.release(self._slot(reservation.key), reservation.epoch))

    async def finish(self, stream: WritableStream, status: ResumableStatus, code: str, message: str) -> None:
        """End a stream; it expires after the retention."""
        assert isinstance(stream, MemoryStream)
        if stream.is_final:
            return
        key, retention = stream.key, self._limits.retention
        outcome = lifecycle.end(self._slot(key), stream.epoch, status, code, self._clock(), retention)
        self._end(stream, status, code, message)
        self._apply(key, outcome)
        self._ended.add(stream)

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        self._apply(key, lifecycle.stop(self._slot(key), epoch, self._clock()), "cancelled")

    # What follows from a transition.

    def _slot(self, key: Key, now: float | None = None) -> Slot:
        """What there is under a key; a stream that is past its retention is forgotten."""
        stream = self._streams.get(key)
        held = Slot(None if stream is None else stream.state, self._queued.get(key, ()))
        slot = lifecycle.expire(held, self._clock() if now is None else now)
        if slot is not held:
            self._apply(key, Outcome(slot), "expired")
        return slot

    def _apply(self, key: Key, outcome: Outcome, why: str = "", begun: MemoryStream | None = None) -> None:
        """Take the outcome of a transition. `why` the stream of before is kept no longer; `begun` is the new one."""
        # What is gone is not kept: each request and each stream knows by itself why it is.
        current, queued, _ = outcome.slot
        before = self._streams.get(key)
        if "::" in key[1]:
            self._variants.note(*key, held=current is not None or bool(queued))
        if queued:
            self._queued[key] = queued
        else:
            self._queued.pop(key, None)
        if current is None:
            self._streams.pop(key, None)
        elif (stream := begun or before) is not None:
            self._streams[key] = stream
            stream.state = current
        for change in outcome.changes:
            self._carry_out(key, change, begun if begun is not None and change.stream.epoch == begun.epoch else before)
        if before is not None and (begun is not None or current is None):
            self._ended.discard(before)
            self._still_read.add(before)
            before.discard(why)

    def _carry_out(self, key: Key, change: Change, stream: MemoryStream | None) -> None:
        changed, status, code = change
        if not isinstance(changed, Queued):
            assert stream is not None
            if code:
                self._stop(stream, code)
            subject: MemoryStream | Reservation = stream
        elif status is ResumableStatus.QUEUED:
            subject = self._requests[changed.epoch]
        else:
            subject = self._requests.pop(changed.epoch)
            self._budget.used -= subject.size
            self._capacity.count(key[0], -1)
            if code:
                subject.stop(code)
            else:
                subject.settle()
        if self._watchers:
            if isinstance(subject, Reservation) and status is not ResumableStatus.QUEUED:
                item = subject.ended(status, self._wall_clock())
            else:
                item = subject.item
            self._watchers.notify(key[0], item)

    def _stop(self, stream: MemoryStream, code: str) -> None:
        # Kept here, because the end of the stream drops it.
        on_stop = stream.on_stop
        self._end(stream, ResumableStatus.CANCELLED, code, END_MESSAGES[code])
        if on_stop is not None:
            on_stop(code)

    def _end(self, stream: MemoryStream, status: ResumableStatus, code: str, message: str) -> None:
        stream.end(status, code, message, self._wall_clock())
        self._capacity.count(stream.key.owner, -1)

    # Looking.

    async def find(self, key: StreamKey, timeout: float, *, live: bool = False) -> Stream:
        """Return the current epoch, after waiting for one that is queued."""
        try:
            async with asyncio.timeout(timeout):
                while (slot := self._slot(key)).queued:
                    if slot.current is not None and (slot.current.is_live or not live):
                        break
                    with suppress(StreamCancelled, StreamReplaced):
                        await self._requests[slot.queued[0].epoch].settled()
        except TimeoutError:
            raise StreamPending from None
        if slot.current is None:
            raise StreamNotFound
        return self._streams[key]

    async def lookup(self, owner: str | None, ids: Sequence[str]) -> list[ResumableStreamItem]:
        """Return the streams with these `ids`, each once, in the order asked for."""
        found: dict[str, ResumableStreamItem] = {}
        looked_at = 0
        for asked in dict.fromkeys(ids):
            for stream_id in (asked, *self._variants.find(owner, asked)):
                looked_at += 1
                if looked_at % LOOKED_UP_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if stream_id not in found and (shown := self._shown((owner, stream_id))) is not None:
                    found[stream_id] = shown.item
        return list(found.values())

    def _shown(self, key: Key) -> MemoryStream | Reservation | None:
        """What a lookup shows."""
        shown = self._slot(key).shown
        return self._requests[shown.epoch] if isinstance(shown, Queued) else self._streams.get(key)

    async def watch(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` at each change."""
        # What may expire early must not be the reason to refuse it.
        self._ended.make_room(self._budget, watch_size(ids))
        return self._watchers.add(owner, ids, notify)

    # What is given back.

    async def aclose(self) -> None:
        """Forget every stream that has ended."""
        self._ended.close()
