"""What streams ask of the file, those that are produced here and those that are read here, and what it answers."""

import time
from typing import Any

from ..._core.lifecycle import Current, Outcome, Queued, Verdict
from ...exceptions import StoreUnavailable
from ...models import ResumableStatus
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.streams import WorkerStreams
from ..shared.writes import Begin, Begun, Ended, Page, Restore
from .log import UNREAD, Append, Piece, read_page
from .worker import SqliteWorker
from .writer import Job

REPORT = 8.0
"""Seconds between reports of where the readers here are."""


class SqliteWriter:
    """What the streams need that are produced here."""

    def __init__(self, worker: SqliteWorker, streams: WorkerStreams, *, degrade: bool) -> None:
        self.degrade = degrade
        self.waiting: set[LocalStream] = set()
        """Streams whose producers wait for readers on other workers."""
        self._worker = worker
        self._streams = streams

    def mark(self, stream: LocalStream, *, may_wait: bool = False) -> None:
        """Write soon."""
        self._worker.queue.mark(self, stream, may_wait=may_wait)

    async def slowest_reader(self, stream: LocalStream) -> int | None:
        """Where the slowest reader on another worker is."""
        # Asked before the next look begins, so that a report in between is not missed.
        self.waiting.add(stream)
        self._worker.note_interest()
        slowest: int | None = await self._worker.writer.run(
            lambda transactions: transactions.logs.slowest_reader(stream.epoch)
        )
        return slowest

    def note_room(self) -> None:
        """The readers elsewhere may have come further."""
        waiting, self.waiting = self.waiting, set()
        for stream in waiting:
            stream.note_room()

    async def page(self, stream: LocalStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        return await _page(self._worker, stream.epoch, offset)

    def forget(self, stream: LocalStream) -> None:
        """Ask for no more writes."""
        if self._streams.forget(stream):
            self.waiting.discard(stream)
            self._worker.plan_clean_up(time.time() + UNREAD)
            self._worker.note_interest()

    def abandon(self, stream: LocalStream) -> None:
        """Make sure that the stream does not stay live in the file."""
        self._worker.abandon(stream.key, stream.epoch)

    def end_elsewhere(self, stream: LocalStream, code: str = "cancelled") -> None:
        """Take over that another worker has ended a stream, and stop its producer."""
        if stream.epoch in self._streams.local:
            self.forget(stream)
            self._worker.tasks.spawn(self._end_elsewhere(stream, code), f"resumable end {stream.key.id}")

    async def _end_elsewhere(self, stream: LocalStream, code: str) -> None:
        try:
            code = await stream.adopt_end(code)
        finally:
            stream.stop_producer("interrupted" if code == "producer_lost" else code)

    async def announce_end(self, stream: LocalStream) -> None:
        """Nothing is left to say: the transaction that has ended the stream has announced it."""
        self._worker.note_change()

    # What the write queue asks for.

    def next_job(self, stream: LocalStream) -> Job | None:
        """What to do now for a stream."""
        match stream.next_write():
            case None:
                return None
            case Begin():
                request = Queued(stream.epoch, self._worker.name, stream.idempotency_key, stream.started_at)
                terminal = {"replaced": self._worker.terminal_event(ResumableStatus.CANCELLED, "replaced")}
                return lambda transactions: transactions.begin(stream.key, request, stream.head, terminal, queue=True)
            case Restore() as how:
                lost = Current(stream.epoch, self._worker.name, stream.idempotency_key, stream.started_at)
                return lambda transactions: transactions.restore(stream.key, lost, stream.head, how)
            case write:
                return Append(stream.key, stream.epoch, write)

    def take_reply(self, stream: LocalStream, reply: Any) -> None:
        """What came of it."""
        if isinstance(reply, Outcome):
            self._worker.apply(reply)
            reply = Begun() if reply.verdict is Verdict.BEGUN else Ended()
        stream.take_reply(reply)

    def on_outage(self, stream: LocalStream, failure: StoreUnavailable) -> None:
        """The file cannot be used; there will be another attempt."""
        stream.on_outage(failure)


class SqliteReader:
    """What the streams need that are read here, and produced elsewhere or over."""

    def __init__(self, worker: SqliteWorker, streams: WorkerStreams, timeout: float) -> None:
        self._worker = worker
        self._streams = streams
        self._timeout = timeout
        self._reported_at = 0.0

    def follow(self, stream: RemoteStream) -> None:
        """Read what is added to a stream."""
        self._streams.followed[stream.epoch] = stream
        self._worker.reader.follow(stream.epoch, stream.log.tail)
        self._worker.note_interest()

    def unfollow(self, stream: RemoteStream) -> None:
        """Stop that."""
        if self._streams.followed.get(stream.epoch) is stream:
            del self._streams.followed[stream.epoch]
            self._worker.reader.unfollow(stream.epoch)
            self._worker.note_interest()

    def take(self, piece: Piece) -> None:
        """Pass on what was added to a stream, and how it ended."""
        stream = self._streams.followed.get(piece.epoch)
        if stream is None:
            return
        # What a loss of the file has taken, its worker puts back, if it lives.
        stream.missing_since = (stream.missing_since or time.monotonic()) if piece.is_missing else None
        if piece.data:
            stream.take(piece.start, piece.data)
        if piece.status is not None:
            stream.finish(piece.tail, piece.status, piece.completed_at)

    def report(self, stream: RemoteStream) -> None:
        """Tell the producer's worker how far the readers are."""
        self._worker.queue.mark(self, stream)

    async def page(self, stream: RemoteStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        return await _page(self._worker, stream.epoch, offset)

    def look(self) -> None:
        """Keep the reports from expiring, and send readers away whose stream no worker has put back."""
        now = time.monotonic()
        is_due = now - self._reported_at >= REPORT
        if is_due:
            self._reported_at = now
        for stream in list(self._streams.followed.values()):
            if is_due:
                stream.report()
            if stream.missing_since is not None and now - stream.missing_since > self._timeout:
                stream.fail(StoreUnavailable("The store has lost the stream. Start it again."))

    # What the write queue asks for.

    def next_job(self, stream: RemoteStream) -> Job:
        """The report, as it is now."""
        epoch, slowest = stream.epoch, stream.slowest
        return lambda transactions: transactions.logs.report(epoch, slowest)

    def take_reply(self, stream: RemoteStream, reply: Any) -> None:
        """The producer's worker finds it in the file."""

    def on_outage(self, stream: RemoteStream, failure: StoreUnavailable) -> None:
        """It is written as soon as it can be."""


async def _page(worker: SqliteWorker, epoch: str, offset: int) -> Page:
    page: Page = await worker.reader.run(lambda connection: read_page(connection, epoch, offset))
    return page
