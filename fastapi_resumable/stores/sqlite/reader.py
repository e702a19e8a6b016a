"""What other workers have changed in the file: when that is looked for, and what is found."""

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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

FAST = 0.004
"""Seconds between looks of the thread at the file while something is expected of other workers."""
CALM = 0.4
"""The same, once nothing has come for long, and after a failure; in between, it is one part in `PATIENCE` of the
silence."""
PATIENCE = 50
CHECK = 0.5
"""The fewest seconds between looks at whether the other workers are alive."""
HEARTBEAT = 1.0
"""The most seconds between jobs, while a reader here depends on the thread: by one that fails, it is known to hang."""
MOST_CHANGES = 1000
"""How many changes are read at once, at most."""


class Changed(NamedTuple):
    """A change of state, as the table `changes` has it."""

    owner: str | None
    epoch: str
    code: str
    item: ResumableStreamItem | None
    """For those that watch, if anything does."""


class Look(NamedTuple):
    """What the thread looks for by itself. The event loop replaces it as a whole, so that both can read it."""

    change: int | None
    """The last change of state that is known here."""
    offsets: Mapping[str, int]
    """Up to where each stream that is followed is known."""
    expected_at: float
    """When something was expected of other workers last."""
    is_waiting: bool
    """Whether each change of the file may be what something waits for."""


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

    It polls the file by itself, which costs the event loop nothing until something is found. A look that is to be made
    at once, or that failed, is made as a job, with the timeout of all jobs.
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
        self._expected_at = -math.inf
        self._look: Look | None = None
        """Set on the event loop, read in the thread; without one, the thread rests."""
        self._answered: Look | None = None
        self._looked_at = self._checked_at = -math.inf

    # On the event loop.

    def note_change(self) -> None:
        """This worker has changed the file itself: what watches here is to hear of it at once."""
        if self._backend.watchers:
            self.look_now()
        elif self._look is None:
            # Something here could be concerned by what others do from now on.
            self.renew()

    def look_now(self) -> None:
        """Look at once, and read all again."""
        self._is_due.set()

    def expect_news(self) -> None:
        """Look often from now on."""
        self._expected_at = monotonic()
        self.renew()
        self.wake()

    def renew(self) -> None:
        """Have the thread look for what matters here now."""
        was_resting, streams = self._look is None, self._backend.streams
        is_needed = streams.followed or streams.local or streams.queued or self._backend.watchers or self.waiting
        self._look = self._next_look() if is_needed else None
        if was_resting:
            self.wake()

    def _next_look(self) -> Look:
        offsets = {epoch: stream.log.tail for epoch, stream in self._backend.streams.followed.items()}
        return Look(self._change, offsets, self._expected_at, bool(self.waiting))

    async def run_looks(self) -> None:
        """Look whenever it is to be done at once; and end the readings here if the thread does nothing any more."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT if self._backend.streams.followed else None):
                    await self._is_due.wait()
            try:
                if self._is_due.is_set():
                    self._is_due.clear()
                    await self.look()
                else:
                    await self.run(lambda _: None)
            except Exception as exc:
                # Nothing that it was to find may be passed over.
                self._is_due.set()
                if not isinstance(exc, StoreUnavailable):
                    raise
                self._backend.on_outage(exc)
                await asyncio.sleep(CALM)

    async def look(self) -> None:
        """Take over everything that has changed up to now.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        while True:
            look = self._next_look()
            found = await self.run(partial(self._find, look))
            if found.has_gap:
                found = await self._add_watched(found)
            # Another look, at the same time, may have been faster: nothing is to be heard of twice.
            if look.change == self._change:
                break
        self._take_over(found)
        # The thread may be at rest until after the time of its next look.
        self.wake()

    async def _add_watched(self, found: Found) -> Found:
        """Give those that watch what there is now, instead of what was missed."""
        changes = list(found.changes)
        for owner, ids in self._backend.watchers.watched().items():
            states = await self._backend.states(owner, ids)
            changes += [Changed(owner, "", "", state.item) for state in states]
        return found._replace(changes=changes)

    def _take_answer(self, look: Look, answer: Found | Exception) -> None:
        """Take over what the thread has found by itself; if that is not all, or known already, a job looks again."""
        if isinstance(answer, Exception):
            self.note_failure(answer)
        elif not answer.has_gap and look.change == self._change:
            self._take_over(answer)
            return
        self.look_now()

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
            self.renew()
        if len(found.changes) >= MOST_CHANGES or any(piece.end < piece.tail for piece in found.news):
            self.look_now()

    # In the thread.

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Nothing is known of a new connection's version."""
        self._version: int | None = None
        """Of the file when the thread had read all that it looks for; `None` if it has to read that again."""

    def work(self, connection: sqlite3.Connection, pending: Sequence[PendingJob]) -> Sequence[Any]:
        """Read what is asked for."""
        results = [answer(each, connection) for each in pending]
        # No byte is shown that a power cut could take back.
        self.sync()
        return results

    def tick(self) -> float | None:
        """Look, if it is time to; return in how many seconds it is again."""
        if (look := self._look) is None:
            return None
        # The event loop is not given the same once more if it is busy; nor does it have to wake this thread each time.
        if look is self._answered:
            return FAST
        now = monotonic()
        interval = min(CALM, max(FAST, (now - look.expected_at) / PATIENCE))
        if (pause := self._looked_at + interval - now) > 0:
            return pause
        self._looked_at = now
        found: Found | Exception | None
        try:
            found = self._poll(look, self.open())
        except Exception as exc:  # noqa: BLE001  # it counts as an outage, and passes
            self.reconnect_after(exc)
            self._version, found = None, exc
        if found is None:
            return interval
        self._answered = look
        self.call(self._take_answer, look, found)
        return FAST

    def _poll(self, look: Look, connection: sqlite3.Connection) -> Found | None:
        """What is new, if anything is."""
        if self._looked_at - self._checked_at >= CHECK:
            self._checked_at = self._looked_at
            self._worker_lock.keep()
            if self._worker_lock.find_dead(read_workers(connection)):
                self.call(self._on_death)
        # Costs microseconds, and changes only if another connection has changed the file.
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return None
        found = self._find(look, connection)
        if found.news:
            self.sync()
        # Another look, handed over meanwhile, may be for something else that is in it.
        is_read = look is self._look and not any(piece.is_missing for piece in found.news)
        self._version = version if is_read else None
        return found if found.news or found.changes or found.has_gap or look.is_waiting else None

    def _find(self, look: Look, connection: sqlite3.Connection) -> Found:
        # One snapshot for both: a change must not be seen without the bytes that came before it.
        with connection:
            connection.execute("BEGIN")
            news = read_news(connection, look.offsets)
            last, changes, has_gap = self._find_changes(connection, look.change)
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
