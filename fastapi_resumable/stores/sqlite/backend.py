"""What a `SqliteStore` has on one event loop: what requests and streams ask of the file, as jobs for its threads."""

import sqlite3
from collections.abc import Callable, Sequence
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
from ..watchers import Notify
from .log import UNREAD, read_page
from .rows import read_states
from .threads import File, Job
from .transactions import Transactions
from .worker import SqliteWorker
from .writer import Append


class SqliteBackend(SharedBackend):
    """The worker, and the streams that it has."""

    worker: SqliteWorker

    def __init__(self, file: File, limits: Limits, *, degrade: bool) -> None:
        super().__init__(limits, degrade=degrade)
        self.worker = SqliteWorker(file, limits, self)
        self.outage, self.queue = self.worker.writer.outage, self.worker.queue

    async def register(self) -> None:
        """Begin to look at the file."""
        await self.worker.register()

    async def leave(self) -> None:
        """Tell others that the worker is gone."""
        await self.worker.transact(Transactions.leave)

    async def aclose(self) -> None:
        """Write what is left, and end."""
        await super().aclose()
        await self.worker.aclose()

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""
        return await self.worker.subscribe(owner, ids, notify)

    # Requests.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow."""
        reservation.requested_at = now
        request = self._request(reservation)
        outcome = await self._change(lambda transactions: transactions.reserve(reservation.key, request, on_conflict))
        if outcome.verdict is Verdict.QUEUED:
            self.check_limit(replaces=outcome.replaces)
        return Answer(outcome.verdict, outcome.rival)

    def _request(self, reservation: Reservation) -> Queued:
        return Queued(reservation.epoch, self.worker.name, reservation.idempotency_key, reservation.requested_at)

    async def begin(self, reservation: Reservation, stream: LocalStream) -> Answer:
        """Make a request the current epoch."""
        request, queued = self._request(reservation), self.streams.queued
        outcome = await self._change(
            lambda transactions: transactions.begin(stream.key, request, stream.head, queue=stream.epoch in queued)
        )
        return Answer(outcome.verdict, code=outcome.code)

    async def release(self, reservation: Reservation) -> None:
        """Make sure that a request stays neither queued nor live, now or when the file can be used again."""
        key, epoch = reservation.key, reservation.epoch
        if self.worker.writer.outage.is_too_long:
            # The request has waited for long enough.
            self.worker.ensure_ended(key, epoch)
            return
        try:
            await self._change(lambda transactions: transactions.release(key, epoch))
        except StoreUnavailable:
            self.worker.ensure_ended(key, epoch)

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        await self._change(lambda transactions: transactions.stop(key, epoch))

    async def _change(self, job: Callable[[Transactions], Outcome]) -> Outcome:
        """Do a job that changes the state of a stream, and here at once what follows from that."""
        return self._apply(await self.worker.transact(job))

    def _apply(self, outcome: Outcome) -> Outcome:
        for change in outcome.changes:
            if change.code:
                self.on_ended(change.stream.epoch, change.code)
        self.worker.note_change()
        return outcome

    # Looking.

    async def state(self, key: StreamKey) -> KeyState:
        """What there is under a key."""
        states = await self._states(key.owner, [key.id])
        return states[0] if states else KeyState(key, None, (), {})

    async def states(self, owner: str | None, ids: Sequence[str]) -> list[KeyState]:
        """What there is under some ids and their variants, each once, in the order asked for."""
        return await self._states(owner, ids, with_variants=True)

    async def _states(self, owner: str | None, ids: Sequence[str], *, with_variants: bool = False) -> list[KeyState]:
        def look(connection: sqlite3.Connection) -> tuple[list[KeyState], list[str]]:
            states = read_states(connection, owner, ids, with_variants=with_variants)
            return states, self.worker.lock.find_dead({worker for state in states for worker in state.workers})

        while True:
            states, dead = await self.worker.reader.run(look)
            if not dead:
                return list(states)
            # What was found is no longer true then, so it is read again.
            await self.worker.reap(dead)

    # What streams ask for.

    async def page(self, stream: LocalStream | RemoteStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        epoch = stream.epoch
        page: Page = await self.worker.reader.run(lambda connection: read_page(connection, epoch, offset))
        return page

    async def slowest_reader(self, stream: LocalStream) -> float:
        """Where the slowest reader on another worker is."""
        # Asked before the next look begins, so that a report in between is not missed.
        self.worker.reader.waiting.add(stream)
        self.worker.reader.expect_news()
        slowest: float = await self.worker.writer.run(
            lambda transactions: transactions.logs.slowest_reader(stream.epoch)
        )
        return slowest

    def forget(self, stream: LocalStream) -> None:
        """Write no more of a stream."""
        super().forget(stream)
        self.worker.reader.waiting.discard(stream)
        self.worker.plan_clean_up(UNREAD)

    def ensure_ended(self, key: StreamKey, epoch: str) -> None:
        """Make sure that an epoch stays neither queued nor live, once the file can be used."""
        self.worker.ensure_ended(key, epoch)

    async def announce(self, stream: LocalStream) -> None:
        """Nothing is left to say: the transaction that has changed the state has announced that."""
        self.worker.note_change()

    def follow(self, stream: RemoteStream) -> None:
        """Read what is added to a stream."""
        super().follow(stream)
        self.worker.reader.expect_news()
        self.worker.reader.look_now()

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
                return self.worker.given_event(
                    ResumableStatus.CANCELLED,
                    "replaced",
                    lambda transactions: transactions.begin(stream.key, request, stream.head, queue=True),
                )
            case Restore() as how:
                lost = Current(stream.epoch, self.worker.name, stream.idempotency_key, stream.started_at)
                return lambda transactions: transactions.restore(stream.key, lost, stream.head, how)
            case write:
                return Append(stream.key, stream.epoch, write)

    def take_reply(self, stream: LocalStream | RemoteStream, reply: Any) -> None:
        """What came of it. A report is for the producer's worker, which finds it in the file."""
        if isinstance(stream, LocalStream):
            if isinstance(reply, Outcome):
                self._apply(reply)
                reply = Gap(0) if reply.verdict is Verdict.BEGUN else Ended()
            stream.take_reply(reply)
