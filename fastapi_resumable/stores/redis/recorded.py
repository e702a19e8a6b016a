"""A stream as the worker sees it that records it: what is written, and how far Redis has acknowledged that."""

import asyncio
import logging
import math
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..._core.log import BLOCK_SIZE
from ..._core.sse import EventFramer
from ..._stream.stream import Budget, Cursor, Stream, nobody
from ...exceptions import OffsetLost, StoreUnavailable
from ...models import ResumableStatus
from .keys import log_key, readers_key
from .link import Call
from .scripts import APPEND, RESTORE, WAIT

if TYPE_CHECKING:
    from .site import Site

logger = logging.getLogger("fastapi_resumable")

AHEAD = 256 * 1024
"""The most bytes a producer may be ahead of what Redis has acknowledged."""
FAST = 250.0
"""Events a second of a stream that need not be written one by one."""
SILENCE = 0.01
"""Seconds after which such a stream is taken for a slow one again."""
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
        "_called",
        "_ending",
        "_is_ended",
        "_is_fast",
        "_lost",
        "_recorded",
        "_renew",
        "_sent",
        "_sent_end",
        "_settled",
        "_slowest_elsewhere",
        "_stop_producer",
        "_waiting",
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
        self._called = 0.0
        self._waiting = 0
        """How often something was written since the last call."""
        self._is_fast = False
        """Whether that happens so often that the next call is best put off, to take more along."""
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
        if not self._waiting:
            self.site.appender.mark(self, may_wait=self._is_fast and monotonic() - self._called < SILENCE)
        self._waiting += 1

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes leave in place what readers need, here and elsewhere, and what is to be written."""
        tail = self.log.tail
        ahead = tail + size - self.visible
        if ahead > self._ahead // 2 and tail > self.visible:
            # Enough to be written at once, so that the producer need not wait for that.
            self.site.appender.mark(self)
            if ahead > self._ahead:
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
            self._told, self.visible = self.visible, offset
            self._wake()
            self._make_room()

    def _finalize(self, status: ResumableStatus, now: float) -> None:
        if self.is_final:
            return
        self.visible = self.log.tail
        self.status = status
        self.completed_at = now
        self.is_final = True
        self._tell()
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
        now = monotonic()
        self._is_fast = self._waiting > FAST * (now - self._called)
        self._called, self._waiting = now, 0
        if self._begin is not None:
            return self._begin
        if self._recorded < self.log.floor:
            self._lost = True
        if self._lost:
            return Call(
                RESTORE,
                [self.name, log_key(self.name, self.epoch)],
                [self.epoch, site.worker, *site.describe(self), site.ttl, self.earliest],
            )
        first, last, anew = self._recorded, self.log.tail, self._renew
        if first == last and self._ending is None and not anew:
            return None
        self._sent, self._sent_end, self._renew = last, self._ending is not None, False
        return Call(
            APPEND,
            [self.name],
            [
                self.epoch,
                first,
                last,
                b"".join(self.log.snapshot(first)),
                self.earliest if last > self._bound else 0,
                int(self._framer is not None and self._framer.oversize),
                site.ttl,
                int(anew or not first),
                # As long as the log cannot fill up before the next reply, no reader has to be waited for.
                int(last + 2 * max(self._ahead, BLOCK_SIZE) > self._bound),
                " ".join(map(str, self._ending or ())),
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
            # What has come meanwhile is marked already.
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
        self._budget.used -= self._counted
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
