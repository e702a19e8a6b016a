"""The default store: streams live in this process, and nowhere else.

No method waits between looking and deciding, so on one event loop each call is atomic.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from .._core.ids import StreamKey
from .._stream.memory import MemoryStream
from .._stream.stream import Budget, Head, Limits, Stream, WritableStream
from ..exceptions import StreamCancelled, StreamNotFound, StreamPending, StreamReplaced
from ..models import ResumableStatus, ResumableStreamItem
from .base import OnConflict, Reservation
from .capacity import Capacity, request_size, stream_size
from .ended import EndedStreams
from .several import ADVICE, count_workers
from .slot import Slot
from .variants import VariantIndex
from .watchers import Watchers

logger = logging.getLogger("fastapi_resumable")

LOOKED_UP_AT_ONCE = 256
"""How many streams a lookup finds before others run."""


class MemoryStore:
    """Keeps streams in process memory, bounded by the limits it is given.

    `max_total_bytes` bounds everything that is held, live streams included. When it is exceeded, finished streams
    expire early, oldest first. Then new requests are refused, and each live stream is held to an equal share of the
    total: one with readers waits for the slowest of them, and one without keeps less of its past. None is ended.

    Args:
        clock: Seconds that never go backwards, for the retention.
        wall_clock: Unix seconds, for what a lookup shows.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._has_warned = False
        self._wall_clock = wall_clock
        self._limits = Limits()
        self._budget = Budget(on_excess=self._shrink)
        # By owner and id: a `StreamKey`, or a plain pair, which is made in less time.
        self._slots: dict[tuple[str | None, str], Slot] = {}
        self._variants = VariantIndex()
        self._watchers = Watchers(self._budget)
        self._swept_at = 0
        self._capacity = Capacity(self._budget)
        self._ended = EndedStreams(clock, self._retire)

    @property
    def held_bytes(self) -> int:
        """How many bytes all streams are counted for."""
        return self._budget.used

    @property
    def _live(self) -> int:
        """How many streams are queued or live."""
        return self._budget.live

    def configure(self, limits: Limits) -> None:
        """Take the limits."""
        self._limits = limits
        self._budget.limit = limits.max_total_bytes

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        """Queue a request, or return the stream it is to follow."""
        if not self._has_warned:
            # Not before there is a request, when all workers have been started.
            self._has_warned = True
            if (workers := count_workers()) > 1:
                logger.warning(ADVICE, workers)
        while (rival := self._rival(reservation, on_conflict)) is not None:
            if not isinstance(rival, Reservation):
                return rival
            stream = await reservation.wait(rival.settled())
            if stream is not None:
                assert isinstance(stream, MemoryStream)
                if stream.gone in ("cancelled", "replaced"):
                    raise StreamReplaced if stream.gone == "replaced" else StreamCancelled
                if stream.gone is None:
                    return stream
        slot = self._slots.get(reservation.key)
        # The stream that this one replaces gives up its place to it.
        replaces = slot is not None and slot.live is not None and not slot.queued
        self._capacity.check(self._limits, reservation.key.owner, allowed=1 if replaces else 0)
        if slot is None:
            slot = self._slots[reservation.key] = Slot()
            self._variants.add(*reservation.key)
        self._budget.used += request_size(reservation)
        reservation.requested_at = self._wall_clock()
        slot.queued += (reservation,)
        self._capacity.count(reservation.key.owner, 1)
        self._tell(reservation)
        return None

    def _rival(self, reservation: Reservation, on_conflict: OnConflict) -> MemoryStream | Reservation | None:
        """What a request has to follow, or to wait for before it can tell."""
        self._expire()
        slot = self._slots.get(reservation.key)
        return None if slot is None else slot.find_rival(reservation.idempotency_key, on_conflict)

    async def begin(self, reservation: Reservation, head: Head) -> MemoryStream:
        """Make the reservation the current epoch."""
        slot = self._slots.get(reservation.key)
        if slot is None or reservation not in slot.queued:
            raise StreamReplaced if reservation.stop_code == "replaced" else StreamCancelled
        older = slot.queued[: slot.queued.index(reservation)]
        self._dequeue(reservation)
        for queued in older:
            self._dequeue(queued)
            queued.stop("replaced")
            self._tell_end(queued, ResumableStatus.CANCELLED)
        if slot.current is not None:
            self._stop_live(slot.current, "replaced")
            self._drop(slot, "replaced")
        now = self._wall_clock()
        head, head_size = self._capacity.share_head(head)
        slot.current = MemoryStream(
            reservation.key,
            reservation.epoch,
            head,
            limits=self._limits,
            budget=self._budget,
            started_at=now,
            idempotency_key=reservation.idempotency_key,
            on_stop=reservation.on_stop,
            overhead=stream_size(reservation) + head_size,
        )
        self._capacity.count(reservation.key.owner, 1)
        reservation.settle(slot.current)
        self._tell(slot.current)
        return slot.current

    async def release(self, reservation: Reservation) -> None:
        """Give a reservation back."""
        slot = self._slots.get(reservation.key)
        if slot is not None and reservation in slot.queued:
            self._dequeue(reservation)
            self._forget_if_empty(reservation.key, slot)
            reservation.settle()
            self._tell_end(reservation, ResumableStatus.FAILED)
            self._tell_rest(slot)

    def _dequeue(self, reservation: Reservation) -> None:
        slot = self._slots[reservation.key]
        slot.queued = tuple(queued for queued in slot.queued if queued is not reservation)
        self._budget.used -= request_size(reservation)
        self._capacity.count(reservation.key.owner, -1)

    async def finish(self, stream: WritableStream, status: ResumableStatus, code: str, message: str) -> None:
        """End a stream; it expires after the retention."""
        assert isinstance(stream, MemoryStream)
        if stream.is_final:
            return
        self._end(stream, status, code, message)
        self._ended.add(stream, self._limits.retention)

    def _end(self, stream: MemoryStream, status: ResumableStatus, code: str, message: str) -> None:
        stream.end(status, code, message, self._wall_clock())
        self._capacity.count(stream.key.owner, -1)
        self._tell(stream)

    async def find(self, key: StreamKey, timeout: float, *, live: bool = False) -> Stream:
        """Return the current epoch, after waiting for one that is queued."""
        self._expire()
        slot = self._slots.get(key)
        if slot is None:
            raise StreamNotFound
        if slot.current is not None and not (live and slot.queued):
            return slot.current
        try:
            async with asyncio.timeout(timeout):
                while slot.queued and (slot.current is None or (live and slot.current.is_final)):
                    await slot.queued[0].settled()
        except TimeoutError:
            raise StreamPending from None
        except (StreamCancelled, StreamReplaced):
            return await self.find(key, timeout, live=live)
        if slot.current is None:
            raise StreamNotFound
        return slot.current

    async def lookup(self, owner: str | None, ids: Sequence[str]) -> list[ResumableStreamItem]:
        """Return the streams with these `ids`, each once, in the order asked for."""
        self._expire()
        found: dict[str, ResumableStreamItem] = {}
        for asked in dict.fromkeys(ids):
            for stream_id in (asked, *self._variants.find(owner, asked)):
                if stream_id not in found and (slot := self._slots.get((owner, stream_id))) is not None:
                    found[stream_id] = slot.shown.item
                    if len(found) % LOOKED_UP_AT_ONCE == 0:
                        await asyncio.sleep(0)
        return list(found.values())

    async def watch(
        self, owner: str | None, ids: Sequence[str], notify: Callable[[ResumableStreamItem], None]
    ) -> Callable[[], None]:
        """Call `notify` at each change."""
        return self._watchers.add(owner, ids, notify)

    def _tell(self, changed: MemoryStream | Reservation) -> None:
        if self._watchers:
            self._watchers.tell(changed.key.owner, changed.item)

    def _tell_end(self, reservation: Reservation, status: ResumableStatus) -> None:
        if self._watchers:
            self._watchers.tell(reservation.key.owner, reservation.ended(status, self._wall_clock()))

    def _tell_rest(self, slot: Slot) -> None:
        """Pass on what a lookup shows, now that a request has gone."""
        if not slot.is_empty:
            self._tell(slot.shown)

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        slot = self._slots.get(key)
        if slot is None:
            return
        stopped: list[MemoryStream | Reservation] = []
        for queued in slot.queued:
            if epoch in (None, queued.epoch):
                stopped.append(queued)
                self._dequeue(queued)
                queued.stop("cancelled")
                self._tell_end(queued, ResumableStatus.CANCELLED)
        if slot.current is not None and epoch in (None, slot.current.epoch):
            stopped.append(slot.current)
            self._stop_live(slot.current, "cancelled")
            self._drop(slot, "cancelled")
        self._forget_if_empty(key, slot)
        if stopped:
            self._tell_rest(slot)

    def _stop_live(self, stream: MemoryStream, code: str) -> None:
        if stream.is_final:
            return
        on_stop = stream.on_stop
        message = "A newer request replaced this stream." if code == "replaced" else "The stream was stopped."
        self._end(stream, ResumableStatus.CANCELLED, code, message)
        if on_stop is not None:
            on_stop(code)

    def _drop(self, slot: Slot, why: str) -> None:
        """Forget the current epoch. Readers that are attached read it to its end."""
        assert slot.current is not None
        self._ended.discard(slot.current)
        slot.current.discard(why)
        slot.current = None

    def _forget_if_empty(self, key: StreamKey, slot: Slot) -> None:
        if slot.is_empty:
            del self._slots[key]
            self._variants.discard(*key)

    def _expire(self) -> None:
        self._ended.expire()

    def _shrink(self) -> None:
        """Make finished streams expire early, oldest first, and then live ones keep less; none of these is ended."""
        budget = self._budget
        while self._ended and budget.is_exceeded:
            self._ended.retire_oldest()
        if not budget.is_exceeded:
            self._swept_at = 0
        elif budget.used > self._swept_at:
            # Seldom, as this looks at all of them. A stream that settles calls back here, so the mark comes first.
            self._swept_at = budget.used + self._limits.max_total_bytes // 64
            for slot in list(self._slots.values()):
                if slot.live is not None:
                    slot.live.settle()

    def _retire(self, stream: MemoryStream) -> None:
        slot = self._slots[stream.key]
        self._drop(slot, "expired")
        self._forget_if_empty(stream.key, slot)

    async def aclose(self) -> None:
        """Forget every stream that has ended."""
        self._ended.close()
