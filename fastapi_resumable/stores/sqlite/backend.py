"""What a `SqliteStore` has on one event loop: what requests and streams ask of the file, as jobs for its threads."""

import asyncio
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from ..._core.ids import StreamKey
from ..._core.lifecycle import Current, OnConflict, Outcome, Queued, Verdict
from ..._stream.stream import Limits
from ...exceptions import StoreUnavailable
from ..base import Notify, Reservation
from ..shared.backend import Answer, SharedBackend
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import Begin, Ended, Gap, KeyState, Page, Restore
from .files import WorkerLock
from .log import PAGE_SIZE, Append, Piece, read_page
from .reader import Found, ReaderThread
from .rows import read_states
from .threads import File, Job
from .transactions import Transactions, WriterThread

UPKEEP = 5.0
"""The most seconds between reports of where the readers here are, so that none expires; and between clean-ups."""
PAUSE = 0.1
"""Seconds between the steps of a clean-up, in which other workers can write."""


class SqliteBackend(SharedBackend):
    """One worker of the file: its lock, its threads, and the streams that it has."""

    def __init__(self, file: File, limits: Limits, *, degrade: bool) -> None:
        super().__init__(limits, degrade=degrade)
        self._name = secrets.token_hex(8)
        self._lock = WorkerLock(file.path, self._name)
        self._has_dead = asyncio.Event()
        """A worker has died, whose streams are to be ended."""
        self._writer = WriterThread(file, self._on_return, self._name, limits, self._lock)
        self._reader = ReaderThread(file, self._on_return, self._lock, self, self._on_found, self._has_dead.set)
        self.outage = self._writer.outage
        self._reported: set[str] = set()
        """The epochs of which the file knows where the readers here are."""

    # Starting and ending.

    async def register(self) -> None:
        """Begin to look at the file, and to end what dead workers have left."""
        # That is not waited for: a file that somebody has locked can be read.
        await self._reader.look()
        self.keep_writing(self._writer.note_failure)
        self.tasks.keep_running(self._reader.run_looks, "resumable look", self._reader.note_failure)
        self.tasks.keep_running(self._keep_up, "resumable upkeep", self._writer.note_failure)

    async def leave(self) -> None:
        """Note in the file that the worker goes."""
        await self._writer.run(Transactions.leave)

    async def aclose(self) -> None:
        """Write what is left, end the threads, and give the lock back."""
        await super().aclose()
        await self._reader.wait_closed()
        await self._writer.wait_closed()

    def close(self) -> None:
        """Write nothing more, and have the threads end."""
        super().close()
        self._reader.close()
        self._writer.close()

    # Requests.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow."""
        reservation.requested_at = now
        request = self._request(reservation, now)
        outcome = await self._change(lambda transactions: transactions.reserve(reservation.key, request, on_conflict))
        if outcome.verdict is Verdict.QUEUED:
            self.check_limit(replaces=outcome.replaces)
        return Answer(outcome.verdict, outcome.rival)

    def _request(self, about: Reservation | LocalStream, at: float) -> Queued:
        return Queued(about.epoch, self._name, about.idempotency_key, at)

    async def begin(self, reservation: Reservation, stream: LocalStream) -> Answer:
        """Make a request the current epoch."""
        request, queued = self._request(reservation, reservation.requested_at), self.streams.queued
        outcome = await self._change(
            lambda transactions: transactions.begin(stream.key, request, stream.head, queue=stream.epoch in queued)
        )
        return Answer(outcome.verdict, code=outcome.code)

    async def release(self, reservation: Reservation) -> None:
        """Make sure that a request stays neither queued nor live, now or when the file can be used again."""
        key, epoch = reservation.key, reservation.epoch
        # The request has waited for long enough, if the file has been away for too long.
        if not self.outage.is_too_long:
            with suppress(StoreUnavailable):
                await self._change(lambda transactions: transactions.release(key, epoch))
                return
        self.ensure_ended(key, epoch)

    def ensure_ended(self, key: StreamKey, epoch: str) -> None:
        """Make sure that an epoch stays neither queued nor live, once the file can be used."""
        self.queue.run_later(lambda transactions: transactions.release(key, epoch))

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        await self._change(lambda transactions: transactions.stop(key, epoch))

    async def _change(self, job: Callable[[Transactions], Outcome]) -> Outcome:
        """Do a job that changes the state of a stream, and here at once what follows from that."""
        return self._apply(await self._writer.run(job))

    def _apply(self, outcome: Outcome) -> Outcome:
        for change in outcome.changes:
            if change.code:
                self.on_ended(change.stream.epoch, change.code)
        self._reader.note_change()
        return outcome

    # Looking.

    async def state(self, key: StreamKey) -> KeyState:
        """What there is under a key."""
        states = await self.states(key.owner, [key.id], with_variants=False)
        return states[0] if states else KeyState(key, None, (), {})

    async def states(self, owner: str | None, ids: Sequence[str], *, with_variants: bool = True) -> list[KeyState]:
        """What there is under some ids and their variants, each once, in the order asked for."""

        def look(connection: sqlite3.Connection) -> tuple[list[KeyState], list[str]]:
            states = read_states(connection, owner, ids, with_variants=with_variants)
            return states, self._lock.find_dead({worker for state in states for worker in state.workers})

        while True:
            states, dead = await self._reader.run(look)
            if not dead:
                return list(states)
            # What was found is no longer true then, so it is read again.
            await self._writer.run(partial(Transactions.reap, workers=dead))
            self._reader.note_change()

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""
        # Changes that came before are read before.
        await self._reader.look()
        remove = self.watchers.add(owner, ids, notify)
        self._reader.expect_news()
        return remove

    # What streams ask for.

    async def page(self, stream: LocalStream | RemoteStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        epoch = stream.epoch
        return await self._reader.run(lambda connection: read_page(connection, epoch, offset))

    async def slowest_reader(self, stream: LocalStream) -> float:
        """Where the slowest reader on another worker is."""
        # Asked before the next look begins, so that a report in between is not missed.
        self._reader.waiting.add(stream)
        self._reader.expect_news()
        return await self._writer.run(lambda transactions: transactions.logs.slowest_reader(stream.epoch))

    def forget(self, stream: LocalStream) -> None:
        """Write no more of a stream."""
        super().forget(stream)
        self._reader.waiting.discard(stream)

    def note_end(self, stream: LocalStream) -> None:
        """Nothing is to be done: the transaction that ends it counts it no longer."""

    async def announce(self, stream: LocalStream) -> None:
        """Tell those that watch here before it goes on: when the server exits, they end right after the last stream."""
        if self.watchers:
            with suppress(StoreUnavailable):
                await self._reader.look()

    def follow(self, stream: RemoteStream) -> None:
        """Read what is added to a stream."""
        super().follow(stream)
        self._reader.expect_news()
        self._reader.look_now()

    # What the write queue asks for.

    def next_job(self, stream: LocalStream | RemoteStream) -> Job | None:
        """The job to do for a stream now."""
        if isinstance(stream, RemoteStream):
            return self._next_report(stream, stream.slowest)
        match stream.outbox.next_write():
            case None:
                return None
            case Begin():
                request = self._request(stream, stream.started_at)
                return lambda transactions: transactions.begin(stream.key, request, stream.head, queue=True)
            case Restore() as how:
                lost = Current(stream.epoch, self._name, stream.idempotency_key, stream.started_at)
                return lambda transactions: transactions.restore(stream.key, lost, stream.head, how)
            case write:
                return Append(stream.key, stream.epoch, write)

    def _next_report(self, stream: RemoteStream, slowest: int | None) -> Job | None:
        epoch = stream.epoch
        if slowest is None:
            if epoch not in self._reported:
                return None
            self._reported.remove(epoch)
        elif stream.is_final and stream.tail - slowest <= PAGE_SIZE:
            # It is read at once: nothing holds its producer, and nothing has to keep the log from being deleted.
            return None
        else:
            self._reported.add(epoch)
        return lambda transactions: transactions.logs.report(epoch, slowest)

    def take_reply(self, stream: LocalStream | RemoteStream, reply: Any) -> None:
        """Note what came of it."""
        # The reply to a report is for the producer's worker, which finds it in the file.
        if isinstance(stream, LocalStream):
            if isinstance(reply, Outcome):
                self._apply(reply)
                reply = Gap(0) if reply.verdict is Verdict.BEGUN else Ended()
            stream.take_reply(reply)

    async def write(self, jobs: Sequence[Job]) -> list[Any]:
        """Do some jobs; return the reply to each."""
        return await self._writer.run_all(jobs)

    # What a look finds.

    def _on_found(self, found: Found) -> None:
        for piece in found.news:
            if (stream := self.streams.followed.get(piece.epoch)) is not None:
                self._take(stream, piece)
        for change in found.changes:
            if change.code:
                self.on_ended(change.epoch, change.code)
        if found.has_gap:
            self._on_return()
        # Last, so that a watcher that fails hides nothing that a producer has to hear.
        for change in found.changes:
            if change.item is not None:
                self.watchers.notify(change.owner, change.item)

    def _take(self, stream: RemoteStream, piece: Piece) -> None:
        if piece.is_missing:
            # Its worker puts back what a loss of the file has taken, if it lives.
            stream.missing_since = stream.missing_since or monotonic()
            if monotonic() - stream.missing_since > self._reader.file.timeout:
                stream.fail(StoreUnavailable("The store has lost the stream. Start it again."))
            return
        stream.missing_since = None
        # Where there is no data, all of it was dropped before it came here.
        stream.take(piece.start if piece.data else piece.tail, piece.data)
        if piece.ending is not None:
            stream.finish(piece.tail, piece.ending.status, piece.ending.completed_at)

    def _on_return(self) -> None:
        """Ask whether the file still has everything, and read on from where the readers are."""
        self.check_streams()
        self._reader.look_now()

    # What is done from time to time.

    async def _keep_up(self) -> None:
        """Say again where the readers here are, and clean the file up; at once, when a worker has died."""
        is_more = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PAUSE if is_more else UPKEEP):
                    await self._has_dead.wait()
            self._has_dead.clear()
            if not is_more:
                self._reader.poll_if_needed()
                self.report_again()
            with suppress(StoreUnavailable):  # It is done later.
                is_more = await self._writer.run(Transactions.clean_up)
                self._reader.note_change()
