"""The two views of a stream that Redis holds: of the worker that records it, and of any other that serves it."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ...core.errors import OffsetLost, ResumableError, StoreUnavailable
from ...core.framing import EventFramer
from ...core.log import BLOCK_SIZE, ByteLog
from ...core.models import ResumableStatus
from ..stream import Budget, Cursor, Stream, nobody
from .follower import Entry
from .keys import log_key, readers_key
from .link import Call
from .scripts import APPEND, REPORT, RESTORE, WAIT

if TYPE_CHECKING:
    from .site import Site
    from .state import State

logger = logging.getLogger("fastapi_resumable")

AHEAD = 256 * 1024
"""The most bytes a producer may be ahead of what Redis has acknowledged."""
WINDOW = 256 * 1024
"""How much of a stream a worker that only follows it keeps; readers further back are served from Redis."""
RECHECK = 1.0
"""Seconds after which a producer that waits for readers elsewhere looks again, should nobody have told it."""

GONE = {
    "replaced": "A newer request replaced this stream.",
    "cancelled": "The stream was stopped.",
    "producer_lost": "The server that produced this answer was lost.",
}


class RecordedStream(Stream):
    """A stream whose producer runs here.

    The log holds all that was written; `visible` is how far Redis has acknowledged it, and readers do not pass that.
    """

    __slots__ = (
        "_ahead",
        "_begin",
        "_ending",
        "_is_ended",
        "_lost",
        "_recorded",
        "_renew",
        "_sent",
        "_sent_end",
        "_settled",
        "_slowest_elsewhere",
        "_stop_producer",
        "is_detached",
        "name",
        "site",
        "visible",
    )

    def __init__(self, site: "Site", name: str, on_stop: Callable[[str], None], **about: Any) -> None:
        super().__init__(limits=site.limits, budget=site.budget, pulse=site.pulse, on_stop=nobody, **about)
        self.name = name
        self.visible = 0
        self._stop_producer: Callable[[str], None] | None = on_stop
        """Told why, if the stream ends by somebody else's hand."""
        self.is_detached = False
        """Whether the stream goes on without Redis, for the readers that it has here."""
        self.site = site
        self._begin: Call | None = None
        """What begins the stream in Redis, if that could not be done before."""
        self._ahead = max(1, min(AHEAD, site.limits.max_stream_bytes // 4))
        self._recorded = 0
        self._sent = 0
        self._sent_end = False
        self._renew = True
        self._lost = False
        self._ending: tuple[ResumableStatus, str, float] | None = None
        self._is_ended = False
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slowest_elsewhere = math.inf

    # The producer's side.

    def _append(self, data: bytes) -> None:
        self._keep(data)
        if self.is_detached:
            self._show(self.log.tail)
        self.site.appender.mark(self)

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes leave in place what readers need, here and elsewhere, and what is to be written."""
        tail = self.log.tail
        if tail > self.visible and tail + size - self.visible > self._ahead:
            return False
        return not self._is_held_elsewhere(size) and super().has_room(size)

    def _is_held_elsewhere(self, size: int) -> bool:
        slowest = self._slowest_elsewhere
        return slowest < self.log.tail and self.log.tail + size - slowest > self._bound

    async def wait_for_room(self, size: int) -> None:
        """Wait until there is room, or the stream ends."""
        while not self.closed and not self.has_room(size):
            patience = None
            if self._is_held_elsewhere(size):
                patience = RECHECK
                await self._look_elsewhere()
                if self.has_room(size):
                    return
            self._room = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(patience):
                    await self._room
            except TimeoutError:
                pass
            finally:
                self._room = None

    async def _look_elsewhere(self) -> None:
        try:
            (slowest,) = await self.site.link.run(
                Call(WAIT, [self.name, readers_key(self.name, self.epoch)], [self.epoch])
            )
        except StoreUnavailable:
            return
        self._slowest_elsewhere = math.inf if slowest is None else int(slowest)

    def note_room(self) -> None:
        """A reader elsewhere has got on."""
        self._make_room()

    def end(self, status: ResumableStatus, code: str, message: str, now: float) -> None:
        """End the log, once; readers see it when Redis has it."""
        if self.closed:
            return
        self._ending = status, code, now
        self._close(status, code, message)
        self.log.close()
        self._make_room()
        self.site.appender.mark(self)
        if self.is_detached:
            self._finalize(status, now)

    async def settled(self) -> None:
        """Wait until the end is there for everybody to see."""
        await asyncio.shield(self._settled)

    def note_recorded(self, offset: int) -> None:
        """Show what others may have shown already, although the reply to it is not here yet."""
        self._show(min(offset, self.log.tail))

    def _show(self, offset: int) -> None:
        if offset > self.visible:
            self.visible = offset
            self._wake()
            self._make_room()

    def _finalize(self, status: ResumableStatus, now: float) -> None:
        if self.is_final:
            return
        self.visible = self.log.tail
        self.status = status
        self.completed_at = now
        self.is_final = True
        self._wake()
        self._make_room()
        if not self._settled.done():
            self._settled.set_result(None)

    def stop_producer(self, code: str) -> None:
        """Tell the producer that the stream has ended by another hand than its own; once."""
        # And keep nothing of it alive afterwards: what its frames hold is closed when they go.
        stop, self._stop_producer = self._stop_producer, None
        if stop is not None:
            stop(code)

    # What the appender asks and tells.

    def next_call(self) -> Call | None:
        """What to write now."""
        if self._is_ended:
            return None
        site = self.site
        if self._begin is not None:
            return self._begin
        keys = [self.name, log_key(self.name, self.epoch), readers_key(self.name, self.epoch)]
        if self._recorded < self.log.floor:
            self._lost = True
        if self._lost:
            return Call(
                RESTORE,
                keys[:2],
                [self.epoch, site.worker, *site.describe(self), site.ttl, self.earliest],
            )
        first, last = self._recorded, self.log.tail
        if first == last and self._ending is None and not self._renew:
            return None
        self._sent, self._sent_end, self._renew = last, self._ending is not None, False
        status, code, now = self._ending or ("", "", 0.0)
        return Call(
            APPEND,
            keys,
            [
                self.epoch,
                first,
                last,
                b"".join(self.log.snapshot(first)),
                self.earliest if last > self._bound else 0,
                int(self._framer is not None and self._framer.oversize),
                site.ttl,
                str(status),
                code,
                now,
                site.retention,
            ],
        )

    def take_reply(self, reply: Any) -> None:
        """What came of the call."""
        if self._is_ended:
            return
        word = reply[0]
        if word == b"ok":
            self._recorded = self._sent
            slowest = reply[1] if len(reply) > 1 else None
            self._slowest_elsewhere = math.inf if slowest is None else int(slowest)
            if self.is_detached and self._recorded == self.log.tail:
                self.is_detached = False
                logger.warning("stream %r is recorded again", self.key.id)
            self._show(self._sent)
            if self._ending is not None and self._sent_end:
                if not self.is_final:
                    self._finalize(self._ending[0], self._ending[2])
                self._stop_producer = None
                self.site.forget(self)
                return
        elif word == b"gap":
            self._lost = False
            self._renew = True
            self._recorded = int(reply[1])
            if self._recorded > self.log.tail:
                self._end_elsewhere()
                return
        elif word in (b"missing", b"unknown"):
            self._begin = None
            self._lost = True
        elif word == b"begun":
            self._begin = None
            self.site.spawn(self.site.tell_ended(self.key, reply[1:], "replaced"), "resumable replaced")
            self.site.appender.mark(self)
        else:
            self._end_elsewhere()
            return
        if self._lost or self._renew or self._recorded < self.log.tail or self._ending is not None:
            self.site.appender.mark(self)

    def leave_store(self) -> None:
        """Write no more to Redis, and count no longer against the bytes that the store may hold."""
        self._is_ended = True
        self._budget.used -= self.log.size
        self._budget = Budget()

    def check(self) -> None:
        """See to it that Redis is asked whether it still has the stream."""
        self._renew = True
        self.site.appender.mark(self)

    def on_outage(self, failure: StoreUnavailable) -> None:
        """Go on for the readers that there are here, or end: as the store is set."""
        if self._is_ended:
            return
        self._renew = True
        if self.site.degrade:
            if not self.is_detached:
                self.detach_from_store(failure)
            if self._ending is not None:
                if not self.is_final:
                    self._finalize(self._ending[0], self._ending[2])
                if self.site.now() > self.completed_at + self.site.limits.retention:
                    self.site.forget(self)
            return
        logger.warning("stream %r is ended: %s", self.key.id, failure.message)
        self.site.forget(self)
        self.site.abandon(self.name, self.epoch)
        self.site.spawn(self.site.free(self.key, self.epoch), "resumable free")
        self.log.truncate(self.visible)
        if self.closed and self.head.is_event_stream:
            # It had ended, but nobody has seen that.
            self.closed = False
            self._framer = EventFramer(None, self._bound)
        self._end_here(ResumableStatus.FAILED, failure.code, failure.message)
        self.stop_producer("interrupted")

    def detach_from_store(self, failure: StoreUnavailable) -> None:
        """Show readers here what Redis has not got, until it has."""
        logger.warning("stream %r goes on unrecorded: %s", self.key.id, failure.message)
        self.is_detached = True
        self._show(self.log.tail)

    def begin_later(self, failure: StoreUnavailable, call: Call) -> None:
        """Begin without Redis, and there as soon as it can be reached."""
        self.detach_from_store(failure)
        self._begin = call
        self.site.appender.mark(self)

    def stop_here(self) -> None:
        """Stop the stream while Redis is away, and tell it later."""
        if not self.closed:
            self.is_detached = True
            self._show(self.log.tail)
            self.end(ResumableStatus.CANCELLED, "cancelled", GONE["cancelled"], self.site.now())
            self.stop_producer("cancelled")

    # Ended by somebody else's hand.

    def _end_elsewhere(self) -> None:
        self.site.end_elsewhere(self)

    async def adopt_end(self, code: str) -> str:
        """Take over how somebody else has ended the log, `code` if that cannot be told; return the code."""
        self._ending = None
        if self.is_final:
            return code
        self.closed = True
        self._make_room()
        status = ResumableStatus.INTERRUPTED if code == "producer_lost" else ResumableStatus.CANCELLED
        if not self.is_detached:
            self.log.truncate(self.visible)
            try:
                while not self.is_final:
                    data, ending = await self.site.page(self.name, self.epoch, self.log.tail)
                    if data:
                        self._keep(data)
                    if ending is not None:
                        status, code = ending
                        self._finalize(status, self.site.now())
                    elif not data:
                        break
            except (StoreUnavailable, OffsetLost) as exc:
                logger.warning("how stream %r was ended cannot be told: %s", self.key.id, exc.message)
        if not self.is_final:
            self.closed = False
            self._end_here(status, code, GONE.get(code, GONE["producer_lost"]))
        return code

    def _end_here(self, status: ResumableStatus, code: str, message: str) -> None:
        """End what the readers here see, and nothing else."""
        if not self.closed:
            self._close(status, code, message)
            self.log.close()
        self._finalize(status, self.site.now())

    # The readers' side.

    @property
    def tail(self) -> int:
        """How far Redis has acknowledged the stream."""
        return self.visible

    def read(self, cursor: Cursor) -> bytes:
        """Return the next bytes that are visible; none at the tail."""
        left = self.visible - cursor.offset
        if left <= 0:
            return b""
        data = super().read(cursor)
        return data if len(data) <= left else data[:left]


class FollowedStream(Stream):
    """A stream that another worker records, or that has ended: what is new comes by itself, what is old on demand."""

    __slots__ = ("__weakref__", "_earliest", "_reported", "_site", "_step", "_tail", "missing_since", "name", "worker")

    def __init__(self, site: "Site", name: str, state: "State") -> None:
        super().__init__(
            state.key,
            state.epoch,
            state.head,
            limits=site.limits,
            budget=site.budget,
            pulse=site.pulse,
            started_at=state.started_at,
            idempotency_key=state.idempotency_key,
            on_stop=lambda _: None,
        )
        self.name = name
        self.closed = True
        self.missing_since: float | None = None
        """Since when Redis has not known of it."""
        self._framer = None
        self._site = site
        self._bound = WINDOW
        self.log = ByteLog(BLOCK_SIZE, state.tail)
        self._step = max(1, site.limits.max_stream_bytes // 8)
        self._reported = -1
        self.update(state)

    def update(self, state: "State") -> None:
        """Take what Redis says of the stream now."""
        self.worker = state.worker
        self._tail = state.tail
        self._earliest = state.earliest
        self.status = state.status
        self.completed_at = state.completed_at
        if not self._cursors and state.tail > self.log.tail:
            self.log = ByteLog(BLOCK_SIZE, state.tail)
        if state.is_final and self.log.tail >= state.tail:
            self.is_final = True

    @property
    def tail(self) -> int:
        """How far the stream can be read."""
        return max(self._tail, self.log.tail)

    @property
    def earliest(self) -> int:
        """The first offset that can be resumed from, when Redis was last asked."""
        return self._earliest

    # What is new.

    def attach(self, cursor: Cursor) -> None:
        """Follow the stream, if nobody here did."""
        super().attach(cursor)
        if len(self._cursors) == 1 and not self.is_final:
            self._site.follow(self)
        self.report()

    def detach(self, cursor: Cursor) -> None:
        """Let go of the stream with its last reader."""
        if cursor not in self._cursors:
            return
        super().detach(cursor)
        if not self._cursors:
            self._site.unfollow(self)
            self._site.budget.used -= self.log.size
            self._tail = self.tail
            self.log = ByteLog(BLOCK_SIZE, self._tail)
        self.report()

    def fail(self, failure: ResumableError) -> None:
        """Send the readers away; who comes now begins anew."""
        super().fail(failure)
        self._site.unfollow(self)

    def take(self, entries: list[Entry]) -> None:
        """Add what Redis has got."""
        for entry_id, fields in entries:
            end = int(entry_id.partition("-")[0])
            if b"s" in fields:
                self._finish(end, ResumableStatus(fields[b"s"].decode()))
                continue
            data = fields[b"d"]
            start = end - len(data)
            if start > self.log.tail:
                # Something in between was dropped before we got here; who still needs it will be told.
                self._site.budget.used -= self.log.size
                self.log = ByteLog(BLOCK_SIZE, start)
            if end > self.log.tail:
                self._append(data[self.log.tail - start :])

    def _keep(self, data: bytes) -> None:
        self.log.append(data)
        self._site.budget.used += len(data) - self.log.trim(self.log.tail - self._bound)

    def _finish(self, tail: int, status: ResumableStatus) -> None:
        self._site.unfollow(self)
        if tail < self.log.tail:
            # Redis has lost, and never got back, what was seen here.
            self.fail(StoreUnavailable("Redis has lost a part of the stream, and its producer is gone."))
            return
        self.status = status
        self.completed_at = self._site.now()
        self.is_final = True
        self._wake()

    # What is old.

    def read(self, cursor: Cursor) -> bytes:
        """Return the next bytes; none at the tail."""
        return super().read(cursor) if cursor.offset < self.log.tail else b""

    async def recall(self, cursor: Cursor) -> bytes:
        """Return bytes that only Redis holds.

        Raises:
            OffsetLost: It does not, either.
            StoreUnavailable: It cannot be asked.
        """
        data, _ = await self._site.page(self.name, self.epoch, cursor.offset)
        if not data:
            raise OffsetLost(self.earliest)
        return data

    async def blocks(self, offset: int) -> Iterable[bytes]:
        """Everything from `offset` to the tail, fetched."""
        tail, blocks = self.tail, []
        while offset < tail:
            data, _ = await self._site.page(self.name, self.epoch, offset)
            if not data:
                raise OffsetLost(self.earliest)
            blocks.append(data)
            offset += len(data)
        return blocks

    # What the producer has to know.

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""
        super().advance(cursor, size)
        # The exact place matters only where the bound is so small that a chunk may fill it.
        if not self.is_final and (self._step < BLOCK_SIZE or cursor.offset - self._reported >= self._step):
            slowest = min((cursor.offset for cursor in self._cursors), default=math.inf)
            if slowest - self._reported >= self._step or slowest == self.log.tail:
                self.report()

    def report(self) -> None:
        """Tell the producer's worker how far the slowest reader is."""
        if self.is_final:
            return
        self._reported = min((cursor.offset for cursor in self._cursors), default=-1)
        # By way of the appender, so that a report never overtakes another.
        self._site.appender.mark(self)

    def next_call(self) -> Call:
        """What to tell."""
        slowest = min((cursor.offset for cursor in self._cursors), default="")
        keys = [self.name, readers_key(self.name, self.epoch)]
        return Call(REPORT, keys, [self._site.worker, slowest, self._site.patience])

    def take_reply(self, reply: Any) -> None:
        """Pass it on to the producer, if that waits for it."""
        if reply:
            self._site.tell(reply[0].decode(), "room", reply[1].decode())

    def on_outage(self, _failure: StoreUnavailable) -> None:
        """It is told as soon as it can be."""
