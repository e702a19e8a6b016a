"""What a `SqliteStore` has on one event loop: what requests and streams ask of the file, as jobs for its threads."""

import time
from collections.abc import Sequence
from typing import Any

from ..._core.ids import StreamKey
from ..._core.lifecycle import Current, OnConflict, Outcome, Queued, Verdict
from ..._stream.stream import Limits
from ...exceptions import StoreUnavailable
from ...models import ResumableStatus
from ..base import Reservation
from ..shared.backend import Answer, SharedBackend
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import Begin, Ended, Gap, KeyState, Page, Restore
from .log import UNREAD, Append, Piece, read_page
from .rows import read_states
from .threads import File
from .worker import SqliteWorker
from .writer import Job

REPORT = 8.0
"""Seconds between reports of where the readers here are."""


class SqliteBackend(SharedBackend):
    """The worker, and the streams that it has."""

    worker: SqliteWorker

    def __init__(self, file: File, limits: Limits, *, degrade: bool) -> None:
        super().__init__(limits, degrade=degrade)
        self.worker = SqliteWorker(file, limits, self)
        self.waiting: set[LocalStream] = set()
        """Streams whose producers wait for readers on other workers."""
        self._timeout = file.timeout
        self._reported_at = 0.0

    async def aclose(self) -> None:
        """Write what is left, and end."""
        await self.worker.aclose()
        await super().aclose()

    # Requests.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow."""
        reservation.requested_at = now
        request = self._request(reservation)
        outcome = await self.worker.change(
            lambda transactions, terminal: transactions.reserve(reservation.key, request, on_conflict, terminal)
        )
        if outcome.verdict is Verdict.QUEUED:
            self.check_limit(replaces=outcome.replaces)
        return Answer(outcome.verdict, outcome.rival)

    def _request(self, reservation: Reservation) -> Queued:
        return Queued(reservation.epoch, self.worker.name, reservation.idempotency_key, reservation.requested_at)

    async def begin(self, reservation: Reservation, stream: LocalStream) -> Answer:
        """Make a request the current epoch."""
        request, queued = self._request(reservation), self.streams.queued
        outcome = await self.worker.change(
            lambda transactions, terminal: transactions.begin(
                stream.key, request, stream.head, terminal, queue=stream.epoch in queued
            )
        )
        return Answer(outcome.verdict, code=outcome.code)

    async def release(self, reservation: Reservation) -> None:
        """Make sure that a request stays neither queued nor live, now or when the file can be used again."""
        key, epoch = reservation.key, reservation.epoch
        try:
            await self.worker.change(lambda transactions, terminal: transactions.release(key, epoch, terminal))
        except StoreUnavailable:
            self.worker.abandon(key, epoch)

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        await self.worker.change(lambda transactions, terminal: transactions.stop(key, epoch, terminal))

    # Looking.

    async def state(self, key: StreamKey) -> KeyState:
        """What there is under a key."""
        states = await self._states(key.owner, [key.id])
        return states[0] if states else KeyState(key, None, (), {})

    async def states(self, owner: str | None, ids: Sequence[str]) -> list[KeyState]:
        """What there is under some ids and their variants, each once, in the order asked for."""
        return await self._states(owner, ids, with_variants=True)

    async def _states(self, owner: str | None, ids: Sequence[str], *, with_variants: bool = False) -> list[KeyState]:
        return await self.worker.read(
            lambda connection: read_states(connection, owner, ids, with_variants=with_variants),
            lambda states: {worker for state in states for worker in state.workers},
        )

    # What streams ask for.

    async def page(self, stream: LocalStream | RemoteStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        epoch = stream.epoch
        page: Page = await self.worker.reader.run(lambda connection: read_page(connection, epoch, offset))
        return page

    async def slowest_reader(self, stream: LocalStream) -> float:
        """Where the slowest reader on another worker is."""
        # Asked before the next look begins, so that a report in between is not missed.
        self.waiting.add(stream)
        self.worker.note_interest()
        slowest: float = await self.worker.writer.run(
            lambda transactions: transactions.logs.slowest_reader(stream.epoch)
        )
        return slowest

    def _note_room(self) -> None:
        """The readers elsewhere may have come further."""
        waiting, self.waiting = self.waiting, set()
        for stream in waiting:
            stream.note_room()

    def forget(self, stream: LocalStream) -> None:
        """Write no more of a stream."""
        super().forget(stream)
        self.waiting.discard(stream)
        self.worker.plan_clean_up(time.time() + UNREAD)
        self.worker.note_interest()

    def abandon(self, stream: LocalStream) -> None:
        """Make sure that the stream does not stay live in the file."""
        self.worker.abandon(stream.key, stream.epoch)

    async def announce(self, stream: LocalStream) -> None:
        """Nothing is left to say: the transaction that has changed the state has announced that."""
        self.worker.note_change()

    def follow(self, stream: RemoteStream) -> None:
        """Read what is added to a stream."""
        super().follow(stream)
        self.worker.reader.follow(stream.epoch, stream.log.tail)
        self.worker.note_interest()

    def unfollow(self, stream: RemoteStream) -> None:
        """Stop that."""
        if self.streams.followed.get(stream.epoch) is stream:
            super().unfollow(stream)
            self.worker.reader.unfollow(stream.epoch)
            self.worker.note_interest()

    # What the write queue asks for.

    def next_job(self, stream: LocalStream | RemoteStream) -> Job | None:
        """What to do now for a stream."""
        if isinstance(stream, RemoteStream):
            epoch, slowest = stream.epoch, stream.slowest
            return lambda transactions: transactions.logs.report(epoch, slowest)
        match stream.next_write():
            case None:
                return None
            case Begin():
                request = Queued(stream.epoch, self.worker.name, stream.idempotency_key, stream.started_at)
                terminal = {"replaced": self.worker.terminal_event(ResumableStatus.CANCELLED, "replaced")}
                return lambda transactions: transactions.begin(stream.key, request, stream.head, terminal, queue=True)
            case Restore() as how:
                lost = Current(stream.epoch, self.worker.name, stream.idempotency_key, stream.started_at)
                return lambda transactions: transactions.restore(stream.key, lost, stream.head, how)
            case write:
                return Append(stream.key, stream.epoch, write)

    def take_reply(self, stream: LocalStream | RemoteStream, reply: Any) -> None:
        """What came of it. A report is for the producer's worker, which finds it in the file."""
        if isinstance(stream, LocalStream):
            if isinstance(reply, Outcome):
                self.worker.apply(reply)
                reply = Gap(0) if reply.verdict is Verdict.BEGUN else Ended()
            stream.take_reply(reply)

    # What the worker hears.

    def on_news(self, news: Sequence[Piece]) -> None:
        """Pass on what other workers have written."""
        for piece in news:
            self._take(piece)
        self._note_room()

    def _take(self, piece: Piece) -> None:
        stream = self.streams.followed.get(piece.epoch)
        if stream is None:
            return
        # What a loss of the file has taken, its worker puts back, if it lives.
        stream.missing_since = (stream.missing_since or time.monotonic()) if piece.is_missing else None
        if piece.data:
            stream.take(piece.start, piece.data)
        if piece.status is not None:
            stream.finish(piece.tail, piece.status, piece.completed_at)

    def on_return(self) -> None:
        """Ask whether the file still has everything, and read on from where the readers are."""
        for stream in self.streams.local.values():
            stream.check()
        for followed in self.streams.followed.values():
            self.worker.reader.follow(followed.epoch, followed.log.tail)
        self.worker.note_interest()

    def is_following(self) -> bool:
        """Whether something here waits for what another worker writes."""
        return bool(self.streams.followed or self.waiting)

    def is_live(self) -> bool:
        """Whether there is something here that another worker could end."""
        return bool(self.streams.local or self.streams.queued)

    def look(self) -> None:
        """Keep the reports from expiring, and send readers away whose stream no worker has put back."""
        now = time.monotonic()
        is_due = now - self._reported_at >= REPORT
        if is_due:
            self._reported_at = now
        for stream in list(self.streams.followed.values()):
            if is_due:
                stream.report()
            if stream.missing_since is not None and now - stream.missing_since > self._timeout:
                stream.fail(StoreUnavailable("The store has lost the stream. Start it again."))
