"""A stream as the worker sees it that produces it: what was written, and how much of that the backend has."""

import asyncio
import logging
import math
from collections.abc import Callable
from time import time

from ..._core.sse import PING
from ..._stream.fanout import Cursor, Fanout
from ..._stream.recording import Recording
from ..._stream.stream import Head, stream_item
from ...exceptions import ResumableError, StoreUnavailable
from ...models import ResumableStatus, ResumableStreamItem
from ..base import Reservation
from .outage import RECHECK
from .writes import END_MESSAGES, Ending, Outbox, Reply, StreamBackend, Sync, Written

logger = logging.getLogger("fastapi_resumable")


class LocalStream:
    """A stream whose producer runs here, and whose log is kept by a backend for all workers.

    The log holds what was written; readers do not pass what the backend has acknowledged, except while the stream is
    detached: in an outage, it goes on for the readers on this worker.
    """

    def __init__(self, backend: StreamBackend, request: Reservation, head: Head) -> None:
        self.key, self.epoch, self.head = request.key, request.epoch, head
        self.idempotency_key = request.idempotency_key
        self.started_at = time()
        self.completed_at = 0.0
        self.status = ResumableStatus.IN_PROGRESS
        self.is_final = False
        self.failure: ResumableError | None = None
        self.is_detached = False
        """Whether readers here have been shown what the backend has not got."""
        self._shows_all = False
        """Whether they are shown what comes now, too: the backend is away."""
        self.backend = backend
        self._stop_producer: Callable[[str], None] | None = request.on_stop
        self._recording = Recording(self.epoch, head, backend.limits, backend.budget)
        self.log, self.piece = self._recording.log, self._recording.piece
        self._fanout = self._recording.fanout = Fanout(self.log)
        self._fanout.visible = 0
        self.outbox = Outbox(self._recording)
        """What the backend is to do next."""
        self._slowest_elsewhere = math.inf
        # Up to this offset, there is room without a check, which would cost more than the rest of a short write.
        self._check_at = 0
        # What others ask of the stream is done by its parts.
        self.detach, self.advance, self.read = self._fanout.detach, self._fanout.advance, self._recording.read
        self.note_room = self._fanout.make_room
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when all workers can see the end."""

    # The producer's side.

    @property
    def closed(self) -> bool:
        """Whether no more may be written."""
        return self._recording.closed

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes leave in place what readers need, here and elsewhere, and what is to be written."""
        unacknowledged = self.log.tail - self._fanout.tail
        if unacknowledged and unacknowledged + size > self.outbox.ahead:
            return False
        return not self._is_held_elsewhere(size) and self._fanout.has_room(size, self._recording.bound)

    def _is_held_elsewhere(self, size: int) -> bool:
        slowest, tail = self._slowest_elsewhere, self.log.tail
        return slowest < tail and tail + size - slowest > self._recording.bound

    async def wait_for_room(self, size: int) -> None:
        """Wait until readers, here and elsewhere, and the backend have got far enough for `size` more bytes."""
        while not self.closed and not self.has_room(size):
            if not self._is_held_elsewhere(size):
                await self._fanout.wait_for_room()
                continue
            self._check_at = 0
            try:
                self._slowest_elsewhere = await self.backend.slowest_reader(self)
            except StoreUnavailable:
                # It has been gone for too long: what comes now is for the readers here.
                self._slowest_elsewhere = math.inf
            if not self.closed and not self.has_room(size):
                await self._fanout.wait_for_room(RECHECK)

    def offer(self, chunk: bytes, _now: float) -> bool:
        """Record a chunk if that can be done at once: it is not too large, the log is open, and there is room."""
        framer, tail = self._recording.framer, self.log.tail
        is_due = tail + len(chunk) > self._check_at
        if is_due and (self.closed or len(chunk) > self.piece or not self.has_room(len(chunk))):
            return False
        self._keep(chunk if framer is None else framer.feed(chunk, tail))
        if is_due and not self.closed:
            self._recording.settle()
            # What the backend has, and the slowest readers, only move forward.
            slowest = min(self._fanout.find_slowest(), self._slowest_elsewhere, self.log.tail)
            self._check_at = min(
                self.log.tail + self.backend.limits.check_every,
                self._fanout.tail + self.outbox.ahead,
                int(slowest) + self._recording.bound,
            )
        return True

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        self.log.append(data)
        if self._shows_all:
            self._fanout.show(self.log.tail)
        self.backend.mark(self)

    def ping(self) -> None:
        """Record a keep-alive, except in other media than events, in mid-event, or while readers leave no room."""
        if self._recording.takes_ping:
            self._keep(PING)

    def end(self, status: ResumableStatus, code: str, message: str, now: float) -> None:
        """End the log, once; readers see it when the backend has it."""
        if self.closed:
            return
        self.outbox.ending = Ending(status, code, now)
        self._close(status, code, message)
        self._fanout.make_room()
        self.backend.mark(self)
        if self.is_detached:
            self._finalize(status, now)

    def _close(self, status: ResumableStatus, code: str, message: str) -> None:
        self._check_at = 0
        self._recording.close(status, code, message)

    def stop_producer(self, code: str) -> None:
        """Tell the producer that the stream was ended by something else; once."""
        # Nothing of it is kept afterwards: what its frames hold is closed when they go.
        stop, self._stop_producer = self._stop_producer, None
        if stop is not None:
            stop(code)

    # What the backend has.

    def take_reply(self, reply: Reply) -> None:
        """Note what came of the last write."""
        outbox = self.outbox
        if outbox.sync is Sync.LEFT:
            return
        if not outbox.take(reply):
            self.backend.end_elsewhere(self)
            return
        if not isinstance(reply, Written):
            self.backend.mark(self)
            return
        if outbox.recorded < self.log.tail:
            self.backend.mark(self)
        assert outbox.sent is not None
        self._slowest_elsewhere, self._check_at = reply.slowest, 0
        self._shows_all = False
        if self.is_detached and outbox.recorded >= self._fanout.tail:
            self.is_detached = False
            self._warn("stream %r is recorded again")
        self._fanout.show(outbox.recorded)
        if (ending := outbox.sent.ending) is not None:
            self._finalize(ending.status, ending.completed_at)
            self._stop_producer = None
            self.backend.forget(self)

    def note_recorded(self, offset: int) -> None:
        """Show what others may have shown already, although the reply to it is not here yet."""
        self._fanout.show(min(offset, self.log.tail))

    def _finalize(self, status: ResumableStatus, now: float) -> None:
        if self.is_final:
            return
        self._fanout.visible = self.log.tail
        self.status, self.completed_at, self.is_final = status, now, True
        self._fanout.notify()
        self.settled.set_result(None)

    # Without the backend.

    def on_outage(self, failure: StoreUnavailable) -> None:
        """Go on for the readers that there are here, or end: as the store is set."""
        if self.outbox.sync is Sync.LEFT:
            return
        self.outbox.renew = True
        # What was stopped meanwhile is over for its readers, and has only to be recorded so.
        if not self.backend.degrade and not self.is_final:
            self._give_up(failure)
            return
        if not self.is_detached:
            self._warn("stream %r goes on unrecorded: %s", failure.message)
        self.is_detached = self._shows_all = True
        self._fanout.show(self.log.tail)
        if (ending := self.outbox.ending) is not None:
            self._finalize(ending.status, ending.completed_at)
            if time() > self.completed_at + self._recording.limits.retention:
                self.backend.forget(self)
                # Readers elsewhere still wait for the end.
                self.backend.ensure_ended(self.key, self.epoch)

    def _give_up(self, failure: StoreUnavailable) -> None:
        self._warn("stream %r is ended: %s", failure.message)
        self.backend.forget(self)
        self.backend.ensure_ended(self.key, self.epoch)
        # If it had ended, no reader has seen that.
        self._recording.reopen(self.tail)
        self._close(ResumableStatus.FAILED, failure.code, failure.message)
        self._finalize(ResumableStatus.FAILED, time())
        self.stop_producer("interrupted")

    def _warn(self, message: str, *about: str) -> None:
        logger.warning(message, self.key.id, *about, extra=self.key.fields(self.epoch))

    def stop_here(self) -> None:
        """Stop the stream while the backend is away, and write that later."""
        if not self.closed:
            self.is_detached = True
            self._fanout.show(self.log.tail)
            self.end(ResumableStatus.CANCELLED, "cancelled", END_MESSAGES["cancelled"], time())
            self.stop_producer("cancelled")

    def refuse(self) -> None:
        """Take no more from the producer."""
        self._recording.closed, self._check_at = True, 0
        self._fanout.make_room()

    async def adopt_end(self, code: str) -> str:
        """Take over how another worker has ended the log (with `code` if that is unknown); return the code."""
        if self.is_final:
            return code
        if not self.is_detached:
            # What it has written since, its own end too, is not in the log.
            self._recording.reopen(self.tail)
        self.refuse()
        try:
            while not (self.is_final or self.is_detached):
                page = await self.backend.page(self, self.log.tail)
                if page.data:
                    self._recording.keep(page.data)
                if page.ending is not None:
                    code = page.ending.code
                    self._finalize(page.ending.status, page.ending.completed_at)
                elif not page.data:
                    break
        except Exception as exc:  # noqa: BLE001  # whatever it is, the readers here have to see an end
            self._warn("how stream %r was ended is unknown: %s", str(exc))
        if not self.is_final:
            status = ResumableStatus.INTERRUPTED if code == "producer_lost" else ResumableStatus.CANCELLED
            self._close(status, code, END_MESSAGES.get(code, END_MESSAGES["producer_lost"]))
            self._finalize(status, time())
        return code

    # The readers' side.

    @property
    def tail(self) -> int:
        """How far the backend has acknowledged the stream, or how far readers may read without it."""
        return self._fanout.tail

    @property
    def earliest(self) -> int:
        """The first offset that can be resumed from: of an event stream, the start of an event."""
        return self._recording.earliest

    @property
    def item(self) -> ResumableStreamItem:
        """The stream as a lookup shows it."""
        return stream_item(self)

    def attach(self, cursor: Cursor) -> None:
        """Keep what `cursor` has yet to read, and wake it for what comes."""
        self._fanout.attach(cursor)
        self._check_at = 0

    async def fetch(self, offset: int) -> bytes:
        """Return what `read` does: what was dropped here was dropped by the backend as well."""
        return self.read(offset)
