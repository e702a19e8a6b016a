"""What a `SqliteStore` has on one event loop: what requests and streams ask of the file, as jobs for its threads."""

import asyncio
from collections.abc import Sequence

from ..._core.ids import StreamKey
from ..._core.lifecycle import OnConflict, Queued, Verdict
from ..._stream.stream import Limits
from ...exceptions import StoreUnavailable
from ..base import Reservation
from ..shared.backend import Answer
from ..shared.local import LocalStream
from ..shared.streams import WorkerStreams
from ..shared.writes import KeyState
from .log import Piece
from .rows import read_states
from .streams import SqliteReader, SqliteWriter
from .threads import File
from .worker import SqliteWorker


class SqliteBackend:
    """The worker, and the streams that it has."""

    def __init__(self, file: File, limits: Limits, *, degrade: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.streams = WorkerStreams(limits)
        self.worker = SqliteWorker(file, limits, self)
        self.tasks = self.worker.tasks
        self.start, self.subscribe = self.worker.start, self.worker.subscribe
        self.writer = SqliteWriter(self.worker, self.streams, degrade=degrade)
        self.reader = SqliteReader(self.worker, self.streams, file.timeout)

    async def aclose(self) -> None:
        """Write what is left, and end."""
        await self.worker.aclose()
        for stream in list(self.streams.local.values()):
            # For producers that ignore their cancellation, and write on.
            stream.on_outage(StoreUnavailable("The store is closed."))

    # Requests.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow."""
        reservation.requested_at = now
        request = self._request(reservation)
        outcome = await self.worker.change(
            lambda transactions, terminal: transactions.reserve(reservation.key, request, on_conflict, terminal)
        )
        if outcome.verdict is Verdict.QUEUED:
            self.streams.check_limit(replaces=outcome.replaces)
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

    def begin_later(self, stream: LocalStream, failure: StoreUnavailable) -> None:
        """Begin a stream without the file, and there as soon as it can be used."""
        stream.begin_later(failure)

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

    # What the worker hears.

    def on_news(self, news: Sequence[Piece]) -> None:
        """Pass on what other workers have written."""
        for piece in news:
            self.reader.take(piece)
        self.writer.note_room()

    def on_ended(self, epoch: str, code: str) -> None:
        """Stop what another worker, or a request to this one, has ended."""
        self.streams.stop(epoch, code)

    def on_return(self) -> None:
        """Ask whether the file still has everything, and read on from where the readers are."""
        for stream in self.streams.local.values():
            stream.check()
        for followed in self.streams.followed.values():
            self.worker.reader.follow(followed.epoch, followed.log.tail)
        self.worker.note_interest()

    def on_outage(self, failure: StoreUnavailable) -> None:
        """Send the readers away."""
        self.streams.fail_followed(failure)

    def is_following(self) -> bool:
        """Whether something here waits for what another worker writes."""
        return bool(self.streams.followed or self.writer.waiting)

    def is_live(self) -> bool:
        """Whether there is something here that another worker could end."""
        return bool(self.streams.local or self.streams.queued)

    def look(self) -> None:
        """Keep the reports of the readers from expiring, and give up what the file has lost for good."""
        self.reader.look()
