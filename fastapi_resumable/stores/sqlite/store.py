"""`SqliteStore`: the store protocol on a SQLite file."""

import asyncio
import time
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Literal

from ..._core.ids import StreamKey
from ..._core.lifecycle import Outcome, Queued, Verdict
from ..._stream.stream import Head, Limits, Stream, WritableStream
from ...exceptions import (
    StoreUnavailable,
    StreamCancelled,
    StreamExists,
    StreamNotFound,
    StreamPending,
    StreamReplaced,
    TooManyStreams,
)
from ...models import ResumableStatus, ResumableStreamItem
from ..base import OnConflict, Reservation
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import RemoteState
from ..watchers import Notify
from .backend import SqliteReader, SqliteWriter
from .files import check_file, check_place, parse_path
from .rows import KeyState, Row
from .threads import File
from .waiting import wait_for_rival, wait_for_state
from .worker import SqliteWorker

OnStoreFailure = Literal["degrade", "fail"]


class SqliteStore:
    """Keeps streams in a SQLite file, for all workers of one machine, and over restarts.

    There is nothing to run and nothing to install. `max_streams` counts for each worker; `max_streams_per_owner` and
    `max_total_bytes` count over all of them. Not for network file systems.

    Args:
        path_or_url: A path, or a URL: `sqlite:///streams.db`, or `sqlite:////var/lib/app/streams.db` for an absolute
            path. What was shown outlives a power cut, because each transaction waits until the disk has it; with
            `?synchronous=normal` that is left to the system, and the last moments before a power cut may be lost.
        store_timeout: Seconds for which the file may be unusable before the store gives it up.
        on_store_failure: What happens then: with `degrade`, new requests are answered without being recorded, and live
            streams go on for the readers on their own worker; with `fail`, they are refused, and end with an error.

    Raises:
        ValueError: An argument is wrong, or the file cannot be used there; the message says what to do.
    """

    def __init__(
        self,
        path_or_url: "str | PathLike[str]",
        *,
        store_timeout: float = 10.0,
        on_store_failure: OnStoreFailure = "degrade",
    ) -> None:
        path, synchronous = parse_path(path_or_url)
        if not isinstance(store_timeout, int | float) or not 0 < store_timeout < float("inf"):
            raise ValueError(f"store_timeout must be a positive number of seconds, not {store_timeout!r}.")
        if on_store_failure not in ("degrade", "fail"):
            raise ValueError(f"on_store_failure must be 'degrade' or 'fail', not {on_store_failure!r}.")
        check_place(path)
        check_file(path)
        self._file = File(path, synchronous, float(store_timeout))
        self._degrade = on_store_failure == "degrade"
        self._limits = Limits()
        self._worker: SqliteWorker | None = None

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._file.path)!r})"

    @property
    def held_bytes(self) -> int:
        """How many bytes this process holds: the logs of the streams that it writes or follows."""
        return 0 if self._worker is None else self._worker.budget.used

    def configure(self, limits: Limits) -> None:
        """Take the limits."""
        self._limits = limits

    def _here(self) -> SqliteWorker:
        """The worker of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.loop is not loop:
            self._worker = SqliteWorker(self._file, self._limits, degrade=self._degrade)
        return self._worker

    # Starting.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        """Queue a request, or return the stream it is to follow."""
        worker = self._here()
        try:
            await worker.start()
            return await self._reserve(worker, reservation, on_conflict)
        except StoreUnavailable as exc:
            exc.degrade = self._degrade
            raise

    async def _reserve(self, worker: SqliteWorker, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        key, epoch = reservation.key, reservation.epoch
        reservation.requested_at = time.time()
        request = _queued(worker, reservation)
        while True:
            # Before it is queued: a stop by another worker may be read before this worker hears that it was queued.
            worker.reservations[epoch] = reservation
            try:
                outcome: Outcome = await worker.transact(
                    lambda transactions, terminal: transactions.reserve(key, request, on_conflict, terminal)
                )
                if outcome.verdict is Verdict.QUEUED:
                    self._check_limit(worker, outcome)
            except BaseException:
                await self.release(reservation)
                raise
            worker.obey(outcome)
            if outcome.verdict is Verdict.QUEUED:
                return None
            worker.reservations.pop(epoch, None)
            worker.note_interest()
            if outcome.verdict is Verdict.EXISTS:
                raise StreamExists
            state = await wait_for_rival(worker, key, outcome.rival)
            if state.current is not None and state.current.epoch == outcome.rival:
                # It may be over by now: that is what was waited for, and it is followed.
                return self._open(worker, state.key, state.current)

    def _check_limit(self, worker: SqliteWorker, outcome: Outcome) -> None:
        live = len(worker.reservations) + sum(not stream.closed for stream in worker.streams.values())
        if live > self._limits.max_streams + outcome.replaces:
            raise TooManyStreams("The server has reached its limit of live streams. Try again in a moment.")

    async def begin(self, reservation: Reservation, head: Head) -> WritableStream:
        """Make the reservation the current epoch."""
        worker, key, epoch = self._here(), reservation.key, reservation.epoch
        request = _queued(worker, reservation)
        backend = SqliteWriter(worker, key, epoch)
        stream = backend.stream = LocalStream(
            backend,
            key,
            epoch,
            head,
            limits=self._limits,
            budget=worker.budget,
            now=time.time,
            idempotency_key=reservation.idempotency_key,
            on_stop=reservation.on_stop,
        )
        try:
            outcome: Outcome = await worker.transact(
                lambda transactions, terminal: transactions.begin(
                    key, request, head, terminal, queue=epoch in worker.reservations
                )
            )
        except StoreUnavailable as exc:
            if not self._degrade:
                raise
            event = worker.terminal_event(ResumableStatus.CANCELLED, "replaced")
            backend.begin_job = lambda transactions: transactions.begin(
                key, request, head, {"replaced": event}, queue=True
            )
            stream.begin_later(exc)
        except BaseException:
            # The caller is cancelled, and will never have the stream, which may have begun.
            worker.abandon(key, epoch)
            raise
        else:
            worker.obey(outcome)
            if outcome.verdict is not Verdict.BEGUN and reservation.stop_code is None:
                worker.reservations.pop(epoch, None)
                reservation.stop(outcome.code or "cancelled")
        if reservation.stop_code is not None:
            worker.abandon(key, epoch)
            raise StreamReplaced if reservation.stop_code == "replaced" else StreamCancelled
        worker.reservations.pop(epoch, None)
        worker.streams[epoch] = stream
        worker.note_interest()
        return stream

    async def release(self, reservation: Reservation) -> None:
        """Give a reservation back."""
        worker, epoch = self._here(), reservation.epoch
        if worker.reservations.pop(epoch, None) is not None:
            # In a task of its own, which goes on if the caller is cancelled.
            await asyncio.shield(worker.tasks.spawn(self._release(worker, reservation), "resumable release"))

    async def _release(self, worker: SqliteWorker, reservation: Reservation) -> None:
        key, epoch = reservation.key, reservation.epoch
        try:
            outcome = await worker.transact(lambda transactions, terminal: transactions.release(key, epoch, terminal))
            worker.obey(outcome)
        except StoreUnavailable:
            worker.abandon(key, epoch)

    async def finish(self, stream: WritableStream, status: ResumableStatus, code: str, message: str) -> None:
        """End a stream; it expires after the retention."""
        if stream.closed:
            return
        assert isinstance(stream, LocalStream)
        stream.end(status, code, message, time.time())
        await stream.settled()

    # Looking.

    def _open(self, worker: SqliteWorker, key: StreamKey, row: Row) -> Stream:
        """The stream as it is read here."""
        local = worker.streams.get(row.epoch)
        if local is not None:
            local.note_recorded(row.tail)
            return local
        state = RemoteState(
            key=key,
            epoch=row.epoch,
            worker=row.worker,
            head=row.head,
            status=ResumableStatus(row.status),
            tail=row.tail,
            earliest=row.earliest,
            started_at=row.started_at,
            completed_at=row.completed_at,
            idempotency_key=row.idempotency_key,
        )
        view = worker.views.get(row.epoch)
        if view is None or view.failure is not None:
            backend = SqliteReader(worker, row.epoch)
            view = worker.views[row.epoch] = backend.stream = RemoteStream(
                backend, state, limits=self._limits, budget=worker.budget
            )
        else:
            view.update(state)
        return view

    async def find(self, key: StreamKey, timeout: float, *, live: bool = False) -> Stream:
        """Return the current epoch, after waiting for one that is queued."""
        worker = self._here()

        def is_here(state: KeyState) -> bool:
            current = state.slot.current
            return not state.slot.queued or (current is not None and not (live and not current.is_live))

        try:
            await worker.start()
            state = await wait_for_state(worker, key, timeout, is_here)
        except StoreUnavailable:
            local = next((stream for stream in worker.streams.values() if stream.key == key), None)
            if local is None:
                raise
            return local
        if state is None:
            raise StreamPending
        if state.current is None:
            raise StreamNotFound
        return self._open(worker, key, state.current)

    async def lookup(self, owner: str | None, ids: Sequence[str]) -> list[ResumableStreamItem]:
        """Return the streams with these `ids`, each once, in the order asked for."""
        if not ids:
            return []
        worker = self._here()
        await worker.start()
        states = await worker.states(owner, ids, with_variants=True)
        return [state.shown.item(state.key) for state in states if state.shown is not None]

    async def watch(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` at every change of the owner's streams with these `ids`."""
        return await self._here().subscribe(owner, ids, notify)

    # Stopping.

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        worker = self._here()
        try:
            await worker.start()
            worker.obey(await worker.transact(lambda transactions, terminal: transactions.stop(key, epoch, terminal)))
        except StoreUnavailable:
            # What runs here can be stopped without the file, which learns of it when it can be used again.
            mine = [stream for stream in worker.streams.values() if stream.key == key and epoch in (None, stream.epoch)]
            if not mine:
                raise
            for stream in mine:
                stream.stop_here()

    async def aclose(self) -> None:
        """End the threads and give the lock back; streams stay in the file."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.loop is asyncio.get_running_loop():
            await worker.aclose()


def _queued(worker: SqliteWorker, reservation: Reservation) -> Queued:
    return Queued(reservation.epoch, worker.name, reservation.idempotency_key, reservation.requested_at)
