"""One worker of a SQLite file: its threads, its lock, and what it hears of other workers."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from ..._core.ids import StreamKey
from ..._core.terminal import write_terminal_event
from ..._stream.stream import Limits
from ...exceptions import StoreUnavailable
from ...models import ResumableStatus, ResumableStreamItem
from ..shared.backend import SharedBackend
from ..shared.outage import UNAVAILABLE
from ..shared.queue import WriteQueue
from ..shared.writes import END_MESSAGES
from ..watchers import Notify
from .lock import WorkerLock
from .log import CLEAN_UP, Piece
from .reader import Changed, Found, ReaderThread
from .threads import File, Job
from .transactions import LacksEventError, Transactions
from .writer import WriterThread, count_bytes

logger = logging.getLogger("fastapi_resumable")

T = TypeVar("T")

INTERVAL = 0.002
"""The fewest seconds between two transactions in which streams are written, so that many of them share one."""
COLLECT = 0.005
"""Seconds for which a fast stream collects what it writes next: transactions take the CPU time, not bytes."""
REPORT = 8.0
"""Seconds between reports of where the readers here are, so that none expires."""


class SqliteWorker:
    """The threads and tasks of one worker. What they find out goes to the `backend`, and to its streams."""

    def __init__(self, file: File, limits: Limits, backend: SharedBackend) -> None:
        self.name = secrets.token_hex(8)
        self.tasks = backend.tasks
        self._backend = backend
        self._streams = backend.streams
        self._limits = limits
        self.lock = WorkerLock(file.path, self.name)
        self.writer = WriterThread(file, self._on_return, self.name, limits, self.lock)
        self.reader = ReaderThread(
            file,
            self._on_return,
            self.lock,
            self._streams,
            on_found=self._on_found,
            on_look_failed=self._on_look_failed,
        )
        self.queue: WriteQueue[Job] = WriteQueue(
            backend, self.writer.run_all, count_bytes, interval=INTERVAL, collect=COLLECT
        )
        self._reaping: asyncio.Task[None] | None = None
        self._clean_up: asyncio.TimerHandle | None = None

    # Starting and ending.

    async def register(self) -> None:
        """Begin to look at the file, and to end what dead workers have left."""
        # That is not waited for: a file that somebody has locked can be read.
        await self.reader.run(self.reader.catch_up)
        self.tasks.keep_running(self.queue.run, "resumable appender", self.writer.note_failure)
        self.tasks.keep_running(self._report, "resumable report", self.writer.note_failure)
        self.plan_clean_up(CLEAN_UP)

    async def aclose(self) -> None:
        """Give the lock back, and end the threads."""
        if self._clean_up is not None:
            self._clean_up.cancel()
        await self.reader.aclose()
        await self.writer.aclose()
        self.lock.close()

    # Transactions.

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
                terminal[exc.code] = self._terminal_event(exc.status, exc.code)
            else:
                return done

    def given_event(self, status: ResumableStatus, code: str, job: Callable[[Transactions], T]) -> Job:
        """A job with the one terminal event that it may need, for the queue."""
        return _given({code: self._terminal_event(status, code)}, job)

    def ensure_ended(self, key: StreamKey, epoch: str) -> None:
        """Make sure that an epoch stays neither queued nor live, once the file can be used."""
        status = ResumableStatus.INTERRUPTED
        self.queue.run_later(
            self.given_event(status, "producer_lost", lambda transactions: transactions.release(key, epoch))
        )

    def _terminal_event(self, status: ResumableStatus, code: str) -> bytes:
        event, failure = write_terminal_event(self._limits.terminal_event, status.value, code, END_MESSAGES[code])
        if failure is not None:
            logger.error("terminal_event failed; the stream ends with the default one", exc_info=failure)
        return event or b""

    async def reap(self, dead: Sequence[str]) -> None:
        """End what belongs to workers that have died."""
        await self.transact(lambda transactions: transactions.reap(dead))
        self.reader.look_now()

    # What others have changed.

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""
        # Changes that came before are read before.
        await self.reader.run(self.reader.catch_up)
        remove = self.reader.watchers.add(owner, ids, notify)
        self.reader.expect_news()
        return remove

    def note_change(self) -> None:
        """This worker has changed the file: those that watch here hear of it at once."""
        if self.reader.watchers:
            self.reader.look_now()
        else:
            self.reader.note_need()

    def _on_found(self, found: Found) -> None:
        self.reader.note_taken(is_all=all(piece.end >= piece.tail for piece in found.news))
        self.reader.outage.note_up()
        for piece in found.news:
            self._take(piece)
        waiting = list(self.reader.waiting)
        self.reader.waiting.clear()
        for stream in waiting:
            stream.note_room()
        for change in found.changes:
            if change.code:
                self._backend.on_ended(change.epoch, change.code)
            self._notify(change)
        if found.has_gap:
            self._on_return()
        if found.dead and (self._reaping is None or self._reaping.done()):
            self._reaping = self.tasks.spawn(self._reap_found(found.dead), "resumable reap")

    async def _report(self) -> None:
        """Say where the readers here are, before what was said expires."""
        while True:
            await asyncio.sleep(REPORT)
            self._backend.report_again()

    def _take(self, piece: Piece) -> None:
        """Pass on what was added to a stream, and how it ended."""
        if (stream := self._streams.followed.get(piece.epoch)) is None:
            return
        if piece.is_missing:
            # Its worker puts back what a loss of the file has taken, if it lives.
            now = time.monotonic()
            stream.missing_since = stream.missing_since or now
            if now - stream.missing_since > self.reader.file.timeout:
                stream.fail(StoreUnavailable("The store has lost the stream. Start it again."))
            return
        stream.missing_since = None
        if piece.data:
            stream.take(piece.start, piece.data)
        if piece.status is not None:
            stream.finish(piece.tail, piece.status, piece.completed_at)

    async def _reap_found(self, dead: Sequence[str]) -> None:
        with suppress(StoreUnavailable):  # They are found again.
            await self.reap(dead)

    def _notify(self, change: Changed) -> None:
        if self.reader.watchers:
            try:
                self.reader.watchers.notify(change.owner, ResumableStreamItem.model_validate_json(change.item))
            except Exception:
                # One watcher, or a change that another version has written, must not hide what comes after it.
                logger.exception("a change could not be passed on", extra={"epoch": change.epoch})

    def _on_return(self) -> None:
        """Ask whether the file still has everything, and read on from where the readers are."""
        for stream in self._streams.local.values():
            stream.check()
        self.reader.look_now()

    def _on_look_failed(self, failure: Exception) -> None:
        self.reader.note_failure(failure)
        if self.reader.outage.is_too_long:
            self._backend.on_outage(StoreUnavailable(UNAVAILABLE))

    # What is past its time.

    def plan_clean_up(self, delay: float) -> None:
        """Clean up after some seconds, unless that is planned for an earlier time."""
        loop = self._backend.loop
        if self._clean_up is not None:
            if self._clean_up.when() <= loop.time() + delay:
                return
            self._clean_up.cancel()
        self._clean_up = loop.call_later(delay, lambda: self.tasks.spawn(self._delete_expired(), "resumable clean-up"))

    async def _delete_expired(self) -> None:
        self._clean_up = None
        delay: float | None = CLEAN_UP
        with suppress(StoreUnavailable):
            delay = await self.transact(Transactions.clean_up)
        if delay is not None:
            self.plan_clean_up(delay)


def _given(terminal: Mapping[str, bytes], job: Callable[[Transactions], T]) -> Callable[[Transactions], T]:
    def work(transactions: Transactions) -> T:
        transactions.terminal = terminal
        return job(transactions)

    return work
