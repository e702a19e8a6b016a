"""The thread that reads: what is asked for, and what other workers have changed meanwhile."""

import logging
import math
import sqlite3
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from .lock import WorkerLock
from .log import Piece, read_pieces
from .rows import read_workers, text_of
from .threads import File, FileThread

logger = logging.getLogger("fastapi_resumable")

FAST = 0.004
"""Seconds between looks at the file while readers here follow what another worker writes."""
CALM = 0.25
"""The same, once nothing has come for long; in between, it is one part in `PATIENCE` of the silence."""
PATIENCE = 50
WATCHING = 0.2
"""Seconds between looks while there are only watchers; and after a failure."""
LIVE = 0.4
"""Seconds between looks while there are only streams here that another worker could stop."""
CHECK = 0.5
"""The fewest seconds between looks at whether the other workers are alive."""


class Changed(NamedTuple):
    """A change of state, as the table `changes` has it."""

    owner: str | None
    epoch: str
    code: str
    item: str


class Found(NamedTuple):
    """What a look has found."""

    news: Sequence[Piece] = ()
    changes: Sequence[Changed] = ()
    has_gap: bool = False
    """Whether changes were missed, because this process stood still for so long, or the file is another."""
    dead: Sequence[str] = ()
    """Workers that have died."""


class ReaderThread(FileThread):
    """Reads the file, and looks at regular intervals for what others have changed, if there is an `interval`."""

    use = "read"

    def __init__(
        self,
        file: File,
        on_up: Callable[[], object],
        lock: WorkerLock,
        offsets: Callable[[], dict[str, int]],
        on_found: Callable[[Found], None],
        on_look_failed: Callable[[Exception], None],
    ) -> None:
        """`offsets` says, in this thread, which streams are followed, and how far each was read."""
        super().__init__(file, on_up)
        self._offsets = offsets
        self._worker_lock = lock
        self._on_found = on_found
        self._on_look_failed = on_look_failed
        self._interval: float | None = None
        self._is_due = self._is_awaited = self._is_handed_over = False
        self._changed_at = self._looked_at = self._checked_at = 0.0
        self._has_failed = False
        self._version: int | None = None
        self._change: int | None = None

    # On the event loop.

    def set_interval(self, interval: float | None) -> None:
        """Look so often; `None`: not at all."""
        if interval != self._interval:
            self._interval = interval
            self._changed_at = monotonic()
            self.wake()

    def look_now(self) -> None:
        """Look at once: this worker itself has changed something, or follows another stream."""
        self._changed_at = monotonic()
        self._is_due = True
        self.wake()

    def note_taken(self, *, is_all: bool) -> None:
        """Look again: what was found was taken; but for `is_all`, there is more."""
        self._is_handed_over = False
        if self._is_due or not is_all:
            self.look_now()

    def await_change(self) -> None:
        """Report the next change of the file, whatever it is."""
        self._is_awaited = True

    # In the thread.

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Nothing is known of a new connection's version."""
        self._version = None

    def perform(self, jobs: Sequence[Callable[[sqlite3.Connection], Any]]) -> Sequence[Any]:
        """Read what is asked for."""
        results = super().perform(jobs)
        # No byte is shown that a power cut could take back.
        self.sync()
        return results

    def tick(self) -> float | None:
        """Look, if it is time to."""
        if self._is_due or self._pause() <= 0:
            self._look()
        pause = self._pause()
        return None if pause == math.inf else max(0.0, pause)

    def _pause(self) -> float:
        """In how many seconds it is time to look."""
        if (interval := self._interval) is None:
            return math.inf
        now = monotonic()
        if self._has_failed:
            interval = WATCHING
        elif interval == FAST:
            interval = min(CALM, max(FAST, (now - self._changed_at) / PATIENCE))
        return self._looked_at + interval - now

    def _look(self) -> None:
        self._looked_at = monotonic()
        if self._is_handed_over:
            # A busy event loop is not given the same once more.
            return
        is_due, self._is_due = self._is_due, False
        try:
            connection = self.open()
            # Costs microseconds, and changes only if another connection has changed the file.
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version != self._version or is_due:
                found = self._find(connection)
                self._version = version
                if found.news:
                    self._changed_at = self._looked_at
                    self.sync()
                self._hand_over(found)
            if self._looked_at - self._checked_at >= CHECK:
                self._checked_at = self._looked_at
                self._worker_lock.keep()
                self._hand_over(Found(dead=self._worker_lock.find_dead(read_workers(connection))))
            self._has_failed = False
        except Exception as exc:  # noqa: BLE001  # it counts as an outage, and passes
            self.reconnect_after(exc)
            # Without a version, the next look reads everything again.
            self._has_failed, self._version = True, None
            self.call(self._on_look_failed, exc)

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Hand over everything that has changed up to now, as a job."""
        self._hand_over(self._find(connection))

    def _hand_over(self, found: Found) -> None:
        if any(found) or self._is_awaited:
            self._is_awaited, self._is_handed_over = False, True
            self.call(self._on_found, found)

    def _find(self, connection: sqlite3.Connection) -> Found:
        # One snapshot for both: a change must not be seen without the bytes that came before it.
        connection.execute("BEGIN")
        try:
            return Found(self._find_news(connection), *self._find_changes(connection))
        finally:
            connection.execute("ROLLBACK")

    def _find_news(self, connection: sqlite3.Connection) -> list[Piece]:
        if not (offsets := self._offsets()):
            return []
        try:
            return read_pieces(connection, offsets)
        except sqlite3.DatabaseError:
            # One stream may be damaged: the others are not to suffer for it.
            return [piece for one in offsets.items() for piece in _read_pieces_of(connection, *one)]

    def _find_changes(self, connection: sqlite3.Connection) -> tuple[list[Changed], bool]:
        # From SQLite's own counter, as the table may be empty: changes are deleted after a minute.
        query = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'changes'"
        last = connection.execute(query).fetchone()[0] or 0
        # What happened before this worker began to look is of no interest to it.
        if self._change is None:
            self._change = last
        rows = connection.execute(
            "SELECT change, owner, epoch, code, item FROM changes WHERE change > ? ORDER BY change LIMIT 1000",
            (self._change,),
        ).fetchall()
        has_gap = (rows[0][0] if rows else last + 1) != self._change + 1
        self._change = rows[-1][0] if rows else last
        self._is_due = self._is_due or self._change < last
        return [Changed(text_of(owner), *about) for _, owner, *about in rows], has_gap


def _read_pieces_of(connection: sqlite3.Connection, epoch: str, offset: int) -> list[Piece]:
    try:
        return read_pieces(connection, {epoch: offset})
    except sqlite3.DatabaseError as exc:
        logger.warning("stream of epoch %s cannot be read: %s", epoch, exc, extra={"epoch": epoch})
        return [Piece(epoch, is_missing=True)]
