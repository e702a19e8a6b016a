"""What other workers have changed in the file: when that is looked for, and what is found."""

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from ...exceptions import StoreUnavailable
from ...models import ResumableStreamItem
from ..shared.backend import SharedBackend
from ..shared.local import LocalStream
from .files import WorkerLock
from .log import Piece, read_news
from .rows import read_workers, text_of
from .threads import File, FileThread, PendingJob, answer

logger = logging.getLogger("fastapi_resumable")

FAST = 0.005
"""Seconds between polls of the file while something is expected of other workers."""
CALM = 0.4
"""The same, once nothing has come for long, and after a failure; in between, it is one part in `PATIENCE` of the
silence."""
PATIENCE = 50
CHECK = 0.5
"""The fewest seconds between looks at whether the other workers are alive."""
HEARTBEAT = 1.0
"""The most seconds between looks while a reader here depends on the thread: by one that fails, it is known to hang."""
MOST_CHANGES = 1000
"""How many changes are read at once, at most."""


class Changed(NamedTuple):
    """A change of state, as the table `changes` has it."""

    owner: str | None
    epoch: str
    code: str
    item: ResumableStreamItem | None
    """For those that watch, if anything does."""


class Found(NamedTuple):
    """What a look has found."""

    change: int
    """The last change of state that is among it, or was known before."""
    news: Sequence[Piece] = ()
    changes: Sequence[Changed] = ()
    has_gap: bool = False
    """Whether changes were missed, because this process stood still for so long, or the file is another."""


class ReaderThread(FileThread):
    """Reads the file, and looks for what others have changed, for as long as anything here could be concerned.

    The thread polls the file by itself, which costs the event loop nothing until something has changed. That is then
    read as a job, with the timeout of all jobs.
    """

    use = "read"

    def __init__(
        self,
        file: File,
        on_up: Callable[[], object],
        lock: WorkerLock,
        backend: SharedBackend,
        on_found: Callable[[Found], None],
        on_death: Callable[[], None],
    ) -> None:
        """`on_found` and `on_death` are called on the event loop, the latter when another worker is dead."""
        super().__init__(file, on_up)
        self.waiting: set[LocalStream] = set()
        """Streams whose producers wait for readers on other workers: each change of the file may be what they need."""
        self._worker_lock = lock
        self._backend = backend
        self._on_found = on_found
        self._on_death = on_death
        self._is_due = asyncio.Event()
        self._change: int | None = None
        """The last change of state that is known here."""
        # Set on the event loop, read in the thread.
        self._is_polling = False
        self._expected_at = -math.inf
        """When something was expected of other workers last."""
        # Of the thread alone.
        self._version: int | None = None
        """Of the file, when it was polled or read last."""
        self._polled_at = self._checked_at = -math.inf

    # On the event loop.

    def note_change(self) -> None:
        """This worker has changed the file itself: what watches here is to hear of it at once."""
        if self._backend.watchers:
            self.look_now()
        elif not self._is_polling:
            # Something here could be concerned by what others do from now on.
            self.poll_if_needed()

    def look_now(self) -> None:
        """Look at once."""
        self._is_due.set()

    def expect_news(self) -> None:
        """Poll often from now on."""
        self._expected_at = monotonic()
        self.poll_if_needed()
        self.wake()

    def poll_if_needed(self) -> None:
        """Have the thread poll while anything here could be concerned by what others do, and rest otherwise."""
        was_polling, streams = self._is_polling, self._backend.streams
        self._is_polling = bool(
            streams.followed or streams.local or streams.queued or self._backend.watchers or self.waiting
        )
        if self._is_polling and not was_polling:
            self.wake()

    async def run_looks(self) -> None:
        """Look whenever something has changed, and so often that a thread that hangs is noticed."""
        while True:
            heartbeat = self._loop.call_later(HEARTBEAT, self.look_now) if self._backend.streams.followed else None
            await self._is_due.wait()
            if heartbeat is not None:
                heartbeat.cancel()
            self._is_due.clear()
            try:
                await self.look()
            except StoreUnavailable as exc:
                self._backend.on_outage(exc)
                await asyncio.sleep(CALM)

    async def look(self) -> None:
        """Take over everything that has changed up to now.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        try:
            self._take_over(await self._find_news())
        except BaseException:
            # The thread has polled what this was to find, and would not say so again.
            self.look_now()
            raise

    async def _find_news(self) -> Found:
        while True:
            known, streams = self._change, self._backend.streams.followed
            offsets = {epoch: stream.log.tail for epoch, stream in streams.items()}
            found = await self.run(partial(self._find, known, offsets))
            if found.has_gap:
                found = await self._add_watched(found)
            # Another look, at the same time, may have been faster: nothing is to be heard of twice.
            if known == self._change:
                return found

    def _take_over(self, found: Found) -> None:
        self._change = found.change
        if found.news and not any(piece.is_missing for piece in found.news):
            self._expected_at = monotonic()
        try:
            self._on_found(found)
            waiting, self.waiting = self.waiting, set()
            for stream in waiting:
                stream.note_room()
        finally:
            self.poll_if_needed()
        if len(found.changes) >= MOST_CHANGES or any(piece.end < piece.tail for piece in found.news):
            self.look_now()

    async def _add_watched(self, found: Found) -> Found:
        """Give those that watch what there is now, instead of what was missed."""
        changes = list(found.changes)
        for owner, ids in self._backend.watchers.watched().items():
            states = await self._backend.states(owner, ids)
            changes += [Changed(owner, "", "", state.item) for state in states]
        return found._replace(changes=changes)

    # In the thread.

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Nothing is known of a new connection's version."""
        self._version = None

    def work(self, connection: sqlite3.Connection, pending: Sequence[PendingJob]) -> Sequence[Any]:
        """Read what is asked for."""
        results = [answer(each, connection) for each in pending]
        # No byte is shown that a power cut could take back.
        self.sync()
        return results

    def tick(self) -> float | None:
        """Poll the file, if it is time to; return in how many seconds it is again."""
        if not self._is_polling:
            return None
        now = monotonic()
        interval = min(CALM, max(FAST, (now - self._expected_at) / PATIENCE))
        if (pause := self._polled_at + interval - now) > 0:
            return pause
        self._polled_at = now
        try:
            self._poll(self.open())
        except Exception as exc:  # noqa: BLE001  # a look finds out whether that goes on, and says so
            self.reconnect_after(exc)
            self.call(self.look_now)
            return CALM
        return interval

    def _poll(self, connection: sqlite3.Connection) -> None:
        if self._polled_at - self._checked_at >= CHECK:
            self._checked_at = self._polled_at
            if self._worker_lock.find_dead(read_workers(connection)):
                self.call(self._on_death)
        if self._has_changed(connection):
            self.call(self.look_now)

    def _has_changed(self, connection: sqlite3.Connection) -> bool:
        # Costs microseconds, and changes only if another connection has changed the file.
        before, (self._version,) = self._version, connection.execute("PRAGMA data_version").fetchone()
        return self._version != before

    def _find(self, known: int | None, offsets: Mapping[str, int], connection: sqlite3.Connection) -> Found:
        self._has_changed(connection)
        # One snapshot for both: a change must not be seen without the bytes that came before it.
        with connection:
            connection.execute("BEGIN")
            news = read_news(connection, offsets)
            last, changes, has_gap = self._find_changes(connection, known)
        return Found(last, news, changes, has_gap)

    def _find_changes(self, connection: sqlite3.Connection, known: int | None) -> tuple[int, list[Changed], bool]:
        # From SQLite's own counter, as the table may be empty: changes are deleted after a minute.
        query = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'changes'"
        last = connection.execute(query).fetchone()[0] or 0
        # What happened before this worker began to look is of no interest to it.
        if known is None:
            known = last
        rows = connection.execute(
            "SELECT change, owner, epoch, code, item FROM changes WHERE change > ? ORDER BY change LIMIT ?",
            (known, MOST_CHANGES),
        ).fetchall()
        has_gap = (rows[0][0] if rows else last + 1) != known + 1
        return rows[-1][0] if rows else last, [self._change_of(*row) for _, *row in rows], has_gap

    def _change_of(self, owner: str | bytes | None, epoch: str, code: str, text: str) -> Changed:
        item = None
        if self._backend.watchers:
            try:
                item = ResumableStreamItem.model_validate_json(text)
            except ValueError:
                logger.exception("a change could not be read", extra={"epoch": epoch})
        return Changed(text_of(owner), epoch, code, item)
