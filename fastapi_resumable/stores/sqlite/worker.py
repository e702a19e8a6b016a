"""What a worker has to do with the file on one event loop: its streams, what it follows, and what it watches.

Invariant: another worker may change the file at any time; what is held here is only ever a view of it.
"""

import asyncio
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from ..._core.ids import StreamKey
from ..._core.lifecycle import Outcome
from ..._core.terminal import write_terminal_event
from ..._stream.stream import Budget, Limits
from ..._stream.tasks import Tasks
from ...exceptions import StoreUnavailable
from ...models import ResumableStatus, ResumableStreamItem
from ..base import Reservation
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import END_MESSAGES
from ..watchers import Notify, Watchers
from .access import Appender
from .files import WorkerLock
from .log import UNREAD, Piece
from .lookout import LookOut
from .reader import FAST, SLOW, Found, ReaderThread
from .rows import KeyState, read_states, read_workers
from .threads import File
from .transactions import LacksEventError, Terminal, Transactions
from .writer import WriterThread

logger = logging.getLogger("fastapi_resumable")


class SqliteWorker:
    """Everything of a `SqliteStore` that belongs to one event loop."""

    def __init__(self, file: File, limits: Limits, *, degrade: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = secrets.token_hex(8)
        self.limits = limits
        self.degrade = degrade
        self.budget = Budget()
        self.tasks = Tasks()
        self.lock = WorkerLock(file.path, self.name)
        self.writer = WriterThread(file, self._check_all, self._register)
        self.reader = ReaderThread(file, self._check_all, on_found=self._on_found, on_look_failed=self._on_look_failed)
        self.appender = Appender(self.writer)
        # What is queued and what is recorded here, by epoch.
        self.reservations: dict[str, Reservation] = {}
        self.streams: dict[str, LocalStream] = {}
        self.views: WeakValueDictionary[str, RemoteStream] = WeakValueDictionary()
        """Other streams, by epoch, while anything here refers to them: one view for all."""
        self.followed: dict[str, RemoteStream] = {}
        """Those that have readers."""
        self.waiting_for_room: set[LocalStream] = set()
        """Streams whose producers wait for readers on other workers."""
        self.waiting = 0
        """How many requests wait for a change."""
        self._watchers = Watchers()
        self._started: asyncio.Task[None] | None = None
        self._look_out = LookOut(self.writer, self.followed, is_watching=self._is_watching, bury_dead=self.bury_dead)

    # Starting and ending.

    async def start(self) -> None:
        """Register this worker, and end what dead ones have left; once, and all that ask meanwhile wait for it.

        Raises:
            StoreUnavailable: The file cannot be used.
        """
        if self._started is None:
            self._started = self.loop.create_task(self._start(), name="resumable start")
            self._started.add_done_callback(self._note_start)
        await asyncio.shield(self._started)

    async def _start(self) -> None:
        await self.bury_dead()
        await self.reader.run(self.reader.catch_up)
        self.tasks.keep_running(self.appender.run, "resumable appender", lambda _: None)
        self.tasks.keep_running(self._look_out.run, "resumable look-out", lambda _: None)
        self._look_out.plan_clean_up(time.time())

    def _note_start(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._started = None

    def _register(self, connection: sqlite3.Connection) -> Transactions:
        """In the writer's thread: register with a file that has just been opened."""
        self.lock.take()
        transactions = Transactions(connection, self.name, self.limits, self.lock)
        connection.execute("BEGIN IMMEDIATE")
        transactions.register(os.getpid())
        connection.execute("COMMIT")
        return transactions

    async def aclose(self) -> None:
        """Write what is left, give the lock back, and end the threads."""
        if self._started is not None:
            try:
                async with asyncio.timeout(self.writer.file.attempt):
                    await asyncio.shield(self._started)
                    await self.appender.flush()
                    await self.writer.run(Transactions.leave)
            except (TimeoutError, StoreUnavailable):
                logger.warning("the worker ended before everything was in the file")
        for stream in list(self.streams.values()):
            stream.on_outage(StoreUnavailable("The store is closed."))
        await self.tasks.aclose()
        await self.reader.aclose()
        await self.writer.aclose()
        self.lock.release()

    # Transactions that end streams.

    async def transact(self, job: Callable[[Transactions, Terminal], Any]) -> Any:
        """Do a job in a transaction, given the terminal events that it needs.

        Raises:
            StoreUnavailable: The file cannot be used.
        """
        terminal: dict[str, bytes] = {}
        while True:
            try:
                return await self.writer.run(lambda transactions: job(transactions, terminal))
            except LacksEventError as exc:
                terminal[exc.code] = self.terminal_event(exc.status, exc.code)

    def terminal_event(self, status: ResumableStatus, code: str) -> bytes:
        """The terminal event of a stream that its producer does not end itself."""
        event, failure = write_terminal_event(self.limits.terminal_event, status.value, code, END_MESSAGES[code])
        if failure is not None:
            logger.error("terminal_event failed; the stream ends with the default one", exc_info=failure)
        return event or b""

    def abandon(self, key: StreamKey, epoch: str) -> None:
        """Make sure that what has no producer here stays neither queued nor live, once the file can be used."""
        terminal = {"producer_lost": self.terminal_event(ResumableStatus.INTERRUPTED, "producer_lost")}
        self.appender.post(lambda transactions: transactions.release(key, epoch, terminal))

    async def bury_dead(self) -> None:
        """End what belongs to workers that have died."""
        await self._read(read_workers, set)

    async def _read(self, read: Callable[[sqlite3.Connection], Any], workers_of: Callable[[Any], Iterable[str]]) -> Any:
        """Read something, after what belongs to those of its workers was ended that have died."""

        def look(connection: sqlite3.Connection) -> tuple[Any, list[str]]:
            found = read(connection)
            return found, self.lock.find_dead(workers_of(found))

        while True:
            found, dead = await self.reader.run(look)
            if not dead:
                return found
            await self._bury(dead)

    async def _bury(self, dead: Sequence[str]) -> None:
        await self.transact(lambda transactions, terminal: transactions.bury(dead, terminal))
        self.reader.look_now()

    def obey(self, outcome: Outcome) -> Outcome:
        """Do here what follows from a transition at once, rather than when it is read; return the outcome."""
        for change in outcome.changes:
            if change.code:
                self._end_here(change.stream.epoch, change.code)
        if self._watchers:
            self.reader.look_now()
        self.note_interest()
        return outcome

    def _end_here(self, epoch: str, code: str) -> None:
        if reservation := self.reservations.pop(epoch, None):
            reservation.stop(code)
        elif (stream := self.streams.get(epoch)) is not None:
            self.end_elsewhere(stream, code)

    # Streams that are recorded here.

    def forget(self, stream: LocalStream) -> None:
        """The file has all of a stream, or is to have no more."""
        if self.streams.pop(stream.epoch, None) is not None:
            self.waiting_for_room.discard(stream)
            stream.leave_store()
            self._look_out.plan_clean_up(time.time() + min(UNREAD, self.limits.retention))
            self.note_interest()

    def end_elsewhere(self, stream: LocalStream, code: str = "cancelled") -> None:
        """Take over that another worker has ended a stream, and stop its producer."""
        if stream.epoch in self.streams:
            self.forget(stream)
            self.tasks.spawn(self._end_elsewhere(stream, code), f"resumable end {stream.key.id}")

    async def _end_elsewhere(self, stream: LocalStream, code: str) -> None:
        code = await stream.adopt_end(code)
        stream.stop_producer("interrupted" if code == "producer_lost" else code)

    def _check_all(self) -> None:
        """The file can be used again, or is another one: see what it has of the streams here."""
        for stream in self.streams.values():
            stream.check()
        for followed in self.followed.values():
            self.reader.follow(followed.epoch, followed.log.tail)
        self.note_interest()

    # Looking.

    async def states(self, owner: str | None, ids: Sequence[str], *, with_variants: bool = False) -> list[KeyState]:
        """What the file holds under some ids, after what belonged to dead workers was ended."""
        states: list[KeyState] = await self._read(
            lambda connection: read_states(connection, owner, ids, with_variants=with_variants),
            lambda states: {worker for state in states for worker in state.workers},
        )
        return states

    async def state(self, key: StreamKey) -> KeyState:
        """The same for one key; it may be empty."""
        states = await self.states(key.owner, [key.id])
        return states[0] if states else KeyState(key, (), time.time())

    # What others have changed.

    def note_interest(self) -> None:
        """Look at the file as often as anything here needs it."""
        if self.followed or self.waiting_for_room or self.waiting:
            interval: float | None = FAST
        else:
            interval = SLOW if self.streams or self.reservations or self._watchers else None
        self.reader.set_interval(interval)
        if interval is not None:
            self._look_out.wake()

    def _is_watching(self) -> bool:
        """Whether it matters here that another worker dies."""
        return bool(self.followed or self.waiting or self._watchers)

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""
        await self.start()
        # Changes that came before are read before.
        await self.reader.run(self.reader.catch_up)
        remove = self._watchers.add(owner, ids, notify)
        self.note_interest()

        def unsubscribe() -> None:
            remove()
            self.note_interest()

        return unsubscribe

    def _on_found(self, found: Found) -> None:
        self.reader.note_success()
        for news in found.news:
            self._take_news(news)
        for change in found.changes:
            if change.code:
                self._end_here(change.epoch, change.code)
            if self._watchers:
                try:
                    self._watchers.tell(change.owner, ResumableStreamItem.model_validate_json(change.item))
                except Exception:
                    # One watcher, or a change that another version has written, must not hide what comes after it.
                    logger.exception("a change of stream epoch %s could not be passed on", change.epoch)
        if found.has_gap:
            self._check_all()
        for waiting in list(self.waiting_for_room):
            self.waiting_for_room.discard(waiting)
            waiting.note_room()

    def _take_news(self, news: Piece) -> None:
        stream = self.followed.get(news.epoch)
        if stream is None:
            return
        # What a loss of the file has taken, its worker puts back, if it lives.
        stream.missing_since = (stream.missing_since or self.loop.time()) if news.is_missing else None
        if news.data:
            stream.take(news.start, news.data)
        if news.status is not None:
            stream.finish(news.tail, news.status, news.completed_at)

    def _on_look_failed(self, failure: Exception) -> None:
        self.reader.note_failure(failure)
        if self.reader.is_given_up:
            for stream in list(self.followed.values()):
                stream.fail(StoreUnavailable("The store of streams cannot be used now. Resume in a moment."))
