"""One worker of a SQLite file: its threads, its lock, the streams that it has, and what it hears of other workers."""

import asyncio
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from ..._core.ids import StreamKey
from ..._core.terminal import write_terminal_event
from ..._stream.stream import Limits
from ..._stream.tasks import Tasks
from ...exceptions import StoreUnavailable
from ...models import ResumableStatus, ResumableStreamItem
from ..shared.backend import WorkerStreams
from ..shared.local import LocalStream
from ..shared.outage import UNAVAILABLE
from ..shared.queue import Source, WriteQueue
from ..shared.writes import END_MESSAGES
from ..watchers import Notify, Watchers
from .lock import WorkerLock
from .log import Piece
from .reader import FAST, LIVE, WATCHING, Changed, Found, ReaderThread
from .rows import read_workers
from .threads import File
from .transactions import LacksEventError, Transactions
from .writer import Job, WriterThread, count_bytes

logger = logging.getLogger("fastapi_resumable")

T = TypeVar("T")

INTERVAL = 0.002
"""The fewest seconds between two transactions in which streams are written, so that many of them share one."""
COLLECT = 0.005
"""Seconds for which a fast stream collects what it writes next: transactions take the CPU time, not bytes."""
CLEAN_UP = 5.0
"""The fewest seconds between clean-ups."""


class Handlers(Source[Job], Protocol):
    """What a worker works on, and what hears of changes."""

    streams: WorkerStreams

    def on_news(self, piece: Piece) -> None:
        """The file has something new of a stream that is followed."""

    def on_ended(self, epoch: str, code: str) -> None:
        """Something other than its producer has ended an epoch."""

    def on_outage(self, failure: StoreUnavailable) -> None:
        """The file could not be read for too long."""


class SqliteWorker:
    """The threads and tasks of one worker, and what they work on."""

    def __init__(self, file: File, limits: Limits, handlers: Handlers) -> None:
        self._loop = asyncio.get_running_loop()
        self.name = secrets.token_hex(8)
        self.tasks = Tasks()
        self._handlers = handlers
        self._streams = handlers.streams
        self.waiting: set[LocalStream] = set()
        """Streams whose producers wait for readers on other workers."""
        self._lock = WorkerLock(file.path, self.name)
        self.writer = WriterThread(file, self._on_return, self._register)
        self.reader = ReaderThread(
            file,
            self._on_return,
            self._lock,
            self._offsets,
            on_found=self._on_found,
            on_look_failed=self._on_look_failed,
        )
        self.queue: WriteQueue[Job] = WriteQueue(
            handlers, self.writer.run_all, count_bytes, interval=INTERVAL, collect=COLLECT
        )
        self._limits = limits
        self._watchers = Watchers()
        self._urgent = 0
        """How many of those that watch wait for a change."""
        self._is_started = False
        self._reaping: asyncio.Task[None] | None = None
        self._clean_up: asyncio.TimerHandle | None = None

    # Starting and ending.

    async def register(self) -> None:
        """Begin to look at the file, and to end what dead workers have left."""
        # That is not waited for: a file that somebody has locked can be read.
        self._begin_reaping(await self.reader.run(lambda connection: self._lock.find_dead(read_workers(connection))))
        await self.reader.run(self.reader.catch_up)
        self.tasks.keep_running(self.queue.run, "resumable appender", self.writer.note_failure)
        self.plan_clean_up(time.time())
        self._is_started = True

    def _register(self, connection: sqlite3.Connection) -> Transactions:
        """In the writer's thread: begin with a file that has just been opened."""
        self._lock.take()
        return Transactions(connection, self.name, self._limits, self._lock)

    async def aclose(self) -> None:
        """Write what is left, give the lock back, and end the threads and tasks."""
        if self._is_started:
            try:
                async with asyncio.timeout(self.writer.outage.attempt):
                    await self.queue.flush()
                    await self.transact(Transactions.leave)
            except (TimeoutError, StoreUnavailable):
                logger.warning("the worker ended before everything was written to the file")
        await self.tasks.aclose()
        if self._clean_up is not None:
            self._clean_up.cancel()
        self.queue.close()
        await self.reader.aclose()
        await self.writer.aclose()
        self._lock.release()

    # Transactions, and what is read before them.

    async def transact(self, job: Callable[[Transactions], T]) -> T:
        """Do a job in a transaction, given the terminal events that it needs.

        Raises:
            StoreUnavailable: The file cannot be used.
        """
        # Written here, on the event loop: `terminal_event` may be the user's own, which must not run while the file is
        # locked.
        terminal: dict[str, bytes] = {}
        while True:
            try:
                done: T = await self.writer.run(_given(terminal, job))
            except LacksEventError as exc:
                terminal[exc.code] = self.terminal_event(exc.status, exc.code)
            else:
                return done

    def given_event(self, status: ResumableStatus, code: str, job: Callable[[Transactions], T]) -> Job:
        """A job with the one terminal event that it may need, for the queue."""
        return _given({code: self.terminal_event(status, code)}, job)

    def ensure_ended(self, key: StreamKey, epoch: str) -> None:
        """Make sure that an epoch stays neither queued nor live, once the file can be used."""
        status = ResumableStatus.INTERRUPTED
        self.queue.run_later(
            self.given_event(status, "producer_lost", lambda transactions: transactions.release(key, epoch))
        )

    def terminal_event(self, status: ResumableStatus, code: str) -> bytes:
        """The terminal event of a stream that its producer does not end itself."""
        event, failure = write_terminal_event(self._limits.terminal_event, status.value, code, END_MESSAGES[code])
        if failure is not None:
            logger.error("terminal_event failed; the stream ends with the default one", exc_info=failure)
        return event or b""

    async def read(self, read: Callable[[sqlite3.Connection], T], workers_of: Callable[[T], Iterable[str]]) -> T:
        """Read something, after what belongs to those of its workers was ended that have died."""

        def look(connection: sqlite3.Connection) -> tuple[T, list[str]]:
            found = read(connection)
            return found, self._lock.find_dead(workers_of(found))

        while True:
            found: T
            found, dead = await self.reader.run(look)
            if not dead:
                return found
            # What was found is no longer true then, so it is read again.
            await self._reap(dead)

    async def _reap(self, dead: Sequence[str]) -> None:
        await self.transact(lambda transactions: transactions.reap(dead))
        self.reader.look_now()

    # What others have changed.

    def await_room(self, stream: LocalStream) -> None:
        """Have a stream look for room as soon as the file has changed."""
        self.waiting.add(stream)
        self.reader.await_change()
        self.note_interest()

    def note_interest(self) -> None:
        """Look at the file as often as anything here needs it."""
        if self._urgent or self._streams.followed or self.waiting:
            self.reader.set_interval(FAST)
        elif self._watchers:
            self.reader.set_interval(WATCHING)
        elif self._streams.local or self._streams.queued:
            self.reader.set_interval(LIVE)
        else:
            self.reader.set_interval(None)

    async def subscribe(
        self, owner: str | None, ids: Sequence[str], notify: Notify, *, is_urgent: bool = False
    ) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""
        # Changes that came before are read before.
        await self.reader.run(self.reader.catch_up)
        remove = self._watchers.add(owner, ids, notify)
        self._urgent += is_urgent
        self.note_interest()

        def unsubscribe() -> None:
            nonlocal is_urgent
            remove()
            # A second call takes nothing off.
            self._urgent, is_urgent = self._urgent - is_urgent, False
            self.note_interest()

        return unsubscribe

    def note_change(self) -> None:
        """This worker has changed the file: those that watch here hear of it at once."""
        if self._watchers:
            self.reader.look_now()
        self.note_interest()

    def _offsets(self) -> dict[str, int]:
        """In the reader's thread: how far each stream was read that another worker produces."""
        return {epoch: stream.log.tail for epoch, stream in list(self._streams.followed.items())}

    def _on_found(self, found: Found) -> None:
        self.reader.outage.note_up()
        self.reader.note_taken(is_all=all(piece.end >= piece.tail for piece in found.news))
        for piece in found.news:
            self._handlers.on_news(piece)
        waiting, self.waiting = self.waiting, set()
        for stream in waiting:
            stream.note_room()
        for change in found.changes:
            if change.code:
                self._handlers.on_ended(change.epoch, change.code)
            self._notify(change)
        if found.has_gap:
            self._on_return()
        self._begin_reaping(found.dead)

    def _begin_reaping(self, dead: Sequence[str]) -> None:
        if dead and (self._reaping is None or self._reaping.done()):
            self._reaping = self.tasks.spawn(self._reap_found(dead), "resumable reap")

    async def _reap_found(self, dead: Sequence[str]) -> None:
        with suppress(StoreUnavailable):  # They are found again.
            await self._reap(dead)

    def _notify(self, change: Changed) -> None:
        if self._watchers:
            try:
                self._watchers.notify(change.owner, ResumableStreamItem.model_validate_json(change.item))
            except Exception:
                # One watcher, or a change that another version has written, must not hide what comes after it.
                logger.exception("a change could not be passed on", extra={"epoch": change.epoch})

    def _on_return(self) -> None:
        """Ask whether the file still has everything, and read on from where the readers are."""
        for stream in self._streams.local.values():
            stream.check()
        self.reader.look_now()
        self.note_interest()

    def _on_look_failed(self, failure: Exception) -> None:
        self.reader.note_failure(failure)
        if self.reader.outage.is_too_long:
            self._handlers.on_outage(StoreUnavailable(UNAVAILABLE))

    # What is past its time.

    def plan_clean_up(self, at: float | None) -> None:
        """Clean up at a time; not sooner than `CLEAN_UP` from now."""
        if at is None:
            return
        when = self._loop.time() + max(CLEAN_UP, at - time.time())
        if (planned := self._clean_up) is None or when < planned.when():
            if planned is not None:
                planned.cancel()
            self._clean_up = self._loop.call_at(
                when, lambda: self.tasks.spawn(self._delete_expired(), "resumable clean-up")
            )

    async def _delete_expired(self) -> None:
        self._clean_up = None
        try:
            await self.read(read_workers, set)
            self.plan_clean_up(await self.writer.run(lambda transactions: transactions.logs.clean_up()))
        except StoreUnavailable:
            self.plan_clean_up(0.0)


def _given(terminal: Mapping[str, bytes], job: Callable[[Transactions], T]) -> Callable[[Transactions], T]:
    def work(transactions: Transactions) -> T:
        transactions.terminal = terminal
        return job(transactions)

    return work
