"""What a worker has of the file on one event loop, whatever it streams: threads, tasks, and what it hears of others.

Invariant: another worker may change the file at any time; what is held here is only ever a view of it.
"""

import asyncio
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from ..._core.ids import StreamKey
from ..._core.lifecycle import Outcome
from ..._core.terminal import write_terminal_event
from ..._stream.stream import Limits
from ..._stream.tasks import Tasks
from ...exceptions import StoreUnavailable
from ...models import ResumableStatus, ResumableStreamItem
from ..shared.queue import Source, WriteQueue
from ..shared.writes import END_MESSAGES
from ..watchers import Notify, Watchers
from .files import WorkerLock
from .log import Piece
from .reader import FAST, SLOW, Changed, Found, ReaderThread
from .rows import read_workers
from .threads import UNAVAILABLE, File
from .transactions import LacksEventError, Terminal, Transactions
from .writer import Job, WriterThread, count_bytes

logger = logging.getLogger("fastapi_resumable")

T = TypeVar("T")

INTERVAL = 0.002
"""The fewest seconds between two transactions in which streams are written, so that many of them share one."""
COLLECT = 0.005
"""Seconds for which a fast stream collects what it writes next: the CPU time goes into transactions, not into bytes."""
LOOK = 0.25
"""Seconds between looks at whether other workers are alive, while that matters here."""
CLEAN_UP = 5.0
"""The fewest seconds between clean-ups."""


class Handlers(Source[Job], Protocol):
    """What is done with what a worker hears, and with the replies to what streams write."""

    def on_news(self, news: Sequence[Piece]) -> None:
        """Other workers have changed the file, and may have written to what is followed."""

    def on_ended(self, epoch: str, code: str) -> None:
        """Something other than its producer has ended an epoch."""

    def on_return(self) -> None:
        """The file can be used again, or is another one, or changes were missed: see what it has."""

    def on_outage(self, failure: StoreUnavailable) -> None:
        """The file could not be read for too long."""

    def is_following(self) -> bool:
        """Whether something here waits for what another worker writes."""

    def is_live(self) -> bool:
        """Whether there is something here that another worker could end."""

    def look(self) -> None:
        """Do what has to be done now and then, while something is followed."""


class SqliteWorker:
    """The threads and tasks of one worker."""

    def __init__(self, file: File, limits: Limits, handlers: Handlers) -> None:
        self.name = secrets.token_hex(8)
        self.tasks = Tasks()
        self.writer = WriterThread(file, handlers.on_return, self._register)
        self.reader = ReaderThread(
            file, handlers.on_return, on_found=self._on_found, on_look_failed=self._on_look_failed
        )
        self.queue: WriteQueue[Job] = WriteQueue(
            handlers, self.writer.run_all, count_bytes, interval=INTERVAL, collect=COLLECT
        )
        self._lock = WorkerLock(file.path, self.name)
        self._limits = limits
        self._handlers = handlers
        self._watchers = Watchers()
        self._urgent = 0
        """How many of those that watch wait for a change."""
        self._is_started = False
        self._wake = asyncio.Event()
        self._clean_up_at: float | None = None

    # Starting and ending.

    async def register(self) -> None:
        """Register, end what dead workers have left, and begin to look at the file."""
        await self.reap_dead()
        await self.reader.run(self.reader.catch_up)
        self.tasks.keep_running(self.queue.run, "resumable appender", self.writer.note_failure)
        self.tasks.keep_running(self._look_out, "resumable look-out", self.writer.note_failure)
        self.plan_clean_up(time.time())
        self._is_started = True

    def _register(self, connection: sqlite3.Connection) -> Transactions:
        """In the writer's thread: register with a file that has just been opened."""
        self._lock.take()
        transactions = Transactions(connection, self.name, self._limits, self._lock)
        connection.execute("BEGIN IMMEDIATE")
        transactions.register(os.getpid())
        connection.execute("COMMIT")
        return transactions

    async def aclose(self) -> None:
        """Write what is left, give the lock back, and end the threads and tasks."""
        if self._is_started:
            try:
                async with asyncio.timeout(self.writer.outage.attempt):
                    await self.queue.flush()
                    await self.writer.run(Transactions.leave)
            except (TimeoutError, StoreUnavailable):
                logger.warning("the worker ended before everything was in the file")
        await self.tasks.aclose()
        self.queue.close()
        await self.reader.aclose()
        await self.writer.aclose()
        self._lock.release()

    # Transactions, and what is read before them.

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

    async def change(self, job: Callable[[Transactions, Terminal], Outcome]) -> Outcome:
        """The same for a job that changes the state of a stream: what follows from that is done here at once."""
        return self.apply(await self.transact(job))

    def apply(self, outcome: Outcome) -> Outcome:
        """Do here what follows from a transition, rather than when it is read; return the outcome."""
        for change in outcome.changes:
            if change.code:
                self._handlers.on_ended(change.stream.epoch, change.code)
        self.note_change()
        return outcome

    def abandon(self, key: StreamKey, epoch: str) -> None:
        """Make sure that an epoch stays neither queued nor live, once the file can be used."""
        terminal = {"producer_lost": self.terminal_event(ResumableStatus.INTERRUPTED, "producer_lost")}
        self.queue.post(lambda transactions: transactions.release(key, epoch, terminal))

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
            await self._reap(dead)

    async def _reap(self, dead: Sequence[str]) -> None:
        await self.transact(lambda transactions, terminal: transactions.reap(dead, terminal))
        self.reader.look_now()

    async def reap_dead(self) -> None:
        """End what belongs to workers that have died."""
        await self.read(read_workers, set)

    # What others have changed.

    def note_interest(self) -> None:
        """Look at the file as often as anything here needs it."""
        is_watching = bool(self._watchers)
        if self._urgent or self._handlers.is_following():
            interval: float | None = FAST
        else:
            interval = SLOW if is_watching or self._handlers.is_live() else None
        self.reader.set_interval(interval)
        if interval == FAST or is_watching:
            self._wake.set()

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
            self._urgent -= is_urgent
            is_urgent = False
            self.note_interest()

        return unsubscribe

    def note_change(self) -> None:
        """This worker has changed the file: those that watch here hear of it at once."""
        if self._watchers:
            self.reader.look_now()
        self.note_interest()

    def _on_found(self, found: Found) -> None:
        self.reader.outage.note_up()
        self._handlers.on_news(found.news)
        for change in found.changes:
            if change.code:
                self._handlers.on_ended(change.epoch, change.code)
            self._notify(change)
        if found.has_gap:
            self._handlers.on_return()

    def _notify(self, change: Changed) -> None:
        if self._watchers:
            try:
                self._watchers.notify(change.owner, ResumableStreamItem.model_validate_json(change.item))
            except Exception:
                # One watcher, or a change that another version has written, must not hide what comes after it.
                logger.exception("a change could not be passed on", extra={"epoch": change.epoch})

    def _on_look_failed(self, failure: Exception) -> None:
        self.reader.note_failure(failure)
        if self.reader.outage.is_too_long:
            self._handlers.on_outage(StoreUnavailable(UNAVAILABLE))

    # What is done now and then; nothing, while nothing here needs it.

    def plan_clean_up(self, at: float | None) -> None:
        """Clean up at a time; not sooner than `CLEAN_UP` from now."""
        if at is not None:
            at = max(at, time.time() + CLEAN_UP)
            self._clean_up_at = at if self._clean_up_at is None else min(at, self._clean_up_at)
            self._wake.set()

    async def _look_out(self) -> None:
        while True:
            is_watching = bool(self._watchers) or self._handlers.is_following()
            pause = None if self._clean_up_at is None else max(LOOK, self._clean_up_at - time.time())
            if is_watching:
                await asyncio.sleep(LOOK)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
            self._wake.clear()
            try:
                if is_watching:
                    self._handlers.look()
                    await self.reap_dead()
                if self._clean_up_at is not None and time.time() >= self._clean_up_at:
                    self._clean_up_at = None
                    self.plan_clean_up(await self.writer.run(Transactions.clean_up))
            except StoreUnavailable:
                await asyncio.sleep(LOOK)
