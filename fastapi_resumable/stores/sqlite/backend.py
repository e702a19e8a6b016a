"""What a stream needs of the file: its writes as jobs for the writer's thread, and pages of its log."""

from typing import TYPE_CHECKING, Any

from ..._core.ids import StreamKey
from ..._core.lifecycle import Current, Outcome, Verdict
from ...exceptions import StoreUnavailable
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import Begin, Begun, Ended, Page, Reply, Restore
from .log import Append, read_page
from .writer import Job

if TYPE_CHECKING:
    from .worker import SqliteWorker


class SqliteWriter:
    """For a stream that is produced here."""

    stream: LocalStream
    """Set as soon as there is one."""
    begin_job: Job
    """What begins the stream, where that could not be done at once."""

    def __init__(self, worker: "SqliteWorker", key: StreamKey, epoch: str) -> None:
        self._worker = worker
        self._key = key
        self._epoch = epoch

    @property
    def degrade(self) -> bool:
        """Whether a stream goes on without the file while that cannot be used."""
        return self._worker.degrade

    def mark(self, _stream: LocalStream, *, may_wait: bool = False) -> None:
        """Write soon."""
        self._worker.appender.mark(self, may_wait=may_wait)

    async def slowest_reader(self, _stream: LocalStream) -> int | None:
        """Where the slowest reader on another worker is."""
        # Asked before the next look begins, so that a report in between is not missed.
        self._worker.waiting_for_room.add(self.stream)
        self._worker.note_interest()
        slowest: int | None = await self._worker.writer.run(
            lambda transactions: transactions.logs.slowest_reader(self._epoch)
        )
        return slowest

    async def page(self, _stream: LocalStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        page: Page = await self._worker.reader.run(lambda connection: read_page(connection, self._epoch, offset))
        return page

    def forget(self, _stream: LocalStream) -> None:
        """Ask for no more writes."""
        self._worker.forget(self.stream)

    def abandon(self, _stream: LocalStream) -> None:
        """Make sure that the stream does not stay live in the file."""
        self._worker.abandon(self._key, self._epoch)

    def end_elsewhere(self, _stream: LocalStream, code: str = "cancelled") -> None:
        """Take over how another worker has ended the stream."""
        self._worker.end_elsewhere(self.stream, code)

    async def announce_end(self, _stream: LocalStream) -> None:
        """The transaction that has ended it has written that."""

    # What the appender asks and tells.

    def next_job(self) -> Job | None:
        """What to do now."""
        write = self.stream.next_write()
        if write is None:
            return None
        if isinstance(write, Begin):
            return self.begin_job
        if isinstance(write, Restore):
            stream, how = self.stream, write
            lost = Current(stream.epoch, self._worker.name, stream.idempotency_key, stream.started_at)
            return lambda transactions: transactions.restore(stream.key, lost, stream.head, how)
        return Append(self._key, self._epoch, write)

    def take_result(self, result: Any) -> None:
        """What came of it."""
        self.stream.take_reply(self._reply_to_begin(result) if isinstance(result, Outcome) else result)

    def _reply_to_begin(self, outcome: Outcome) -> Reply:
        self._worker.obey(outcome)
        return Begun() if outcome.verdict is Verdict.BEGUN else Ended()

    def on_outage(self, failure: StoreUnavailable) -> None:
        """The file cannot be used; there will be another attempt."""
        self.stream.on_outage(failure)


class SqliteReader:
    """For a stream that is read here, and produced elsewhere or over."""

    stream: RemoteStream
    """Set as soon as there is one."""

    def __init__(self, worker: "SqliteWorker", epoch: str) -> None:
        self._worker = worker
        self._epoch = epoch

    def follow(self, _stream: RemoteStream) -> None:
        """Read what is added to the stream."""
        self._worker.followed[self._epoch] = self.stream
        self._worker.reader.follow(self._epoch, self.stream.log.tail)
        self._worker.note_interest()

    def unfollow(self, _stream: RemoteStream) -> None:
        """Stop that."""
        if self._worker.followed.get(self._epoch) is self.stream:
            del self._worker.followed[self._epoch]
            self._worker.reader.unfollow(self._epoch)
            self._worker.note_interest()

    def report(self, _stream: RemoteStream) -> None:
        """Tell the producer's worker how far the readers are."""
        self._worker.appender.mark(self)

    async def page(self, _stream: RemoteStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        page: Page = await self._worker.reader.run(lambda connection: read_page(connection, self._epoch, offset))
        return page

    # What the appender asks and tells.

    def next_job(self) -> Job:
        """What to do now."""
        epoch, slowest = self._epoch, self.stream.slowest
        return lambda transactions: transactions.logs.report(epoch, slowest)

    def take_result(self, _result: Any) -> None:
        """The producer's worker finds it in the file."""

    def on_outage(self, _failure: StoreUnavailable) -> None:
        """It is written as soon as it can be."""
