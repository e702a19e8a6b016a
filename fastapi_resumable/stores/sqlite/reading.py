"""The thread that reads: what is asked for, and what other workers have changed meanwhile.

A statement gives the interpreter away with each row that it returns, and a busy event loop is slow to give it back. So
what can be many rows is put together by SQLite, and comes as one.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from .log import Piece, read_pieces
from .rows import text_of
from .threads import ANSWERS, FileThread, Job

logger = logging.getLogger("fastapi_resumable")

FAST = 0.004
"""Seconds between looks at the file while readers here follow what another worker writes."""
CALM = 0.02
"""The same, once nothing has changed for `CALM_AFTER` seconds."""
CALM_AFTER = 1.0
SLOW = 0.1
"""Seconds between looks while there are only streams here that another worker could stop."""


class Changed(NamedTuple):
    """A change of state, as the table `changes` has it."""

    change: int
    owner: str | None
    epoch: str
    worker: str
    status: str
    code: str
    item: str


class Found(NamedTuple):
    """What a look has found."""

    news: list[Piece]
    changes: list[Changed]
    has_gap: bool
    """Whether changes were missed, because this process stood still for so long, or the file is another."""


class ReaderThread(FileThread):
    """Reads the file, and looks at regular intervals for what others have changed, if there is an `interval`."""

    name = "resumable sqlite reader"
    use = "read"

    def __init__(
        self,
        path: Path,
        synchronous: str,
        busy: float,
        *,
        on_found: Callable[[Found], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        super().__init__(path, synchronous, busy)
        self._on_found = on_found
        self._on_failure = on_failure
        self._interval: float | None = None
        self._followed: dict[str, int] = {}
        self._is_due = False
        self._changed_at = self._looked_at = 0.0
        self._version: int | None = None
        self._change: int | None = None

    # On the event loop.

    def set_interval(self, interval: float | None) -> None:
        """Look so often; `None`: not at all."""
        if interval != self._interval:
            with self._wake:
                self._interval = interval
                self._wake.notify()

    def follow(self, epoch: str, offset: int) -> None:
        """Look for what is added to a stream after `offset`."""
        with self._wake:
            self._followed[epoch] = offset
            self._is_due = True
            self._wake.notify()

    def unfollow(self, epoch: str) -> None:
        """Look no longer."""
        with self._wake:
            self._followed.pop(epoch, None)

    def look_now(self) -> None:
        """Look at once, for what this worker itself has changed."""
        with self._wake:
            self._is_due = True
            self._wake.notify()

    # In the thread.

    def _wait(self) -> None:
        if not self._is_due:
            is_calm = self._interval == FAST and monotonic() - self._changed_at > CALM_AFTER
            self._wake.wait(CALM if is_calm else self._interval)
        if self._jobs or self._is_closing or (self._interval is None and not self._is_due):
            return
        self._wake.release()
        try:
            self._look()
        finally:
            self._wake.acquire()

    def _do(self, jobs: Sequence[Job]) -> list[Any]:
        results: list[Any] = []
        for job in jobs:
            try:
                result = job.work(self.open())
                self.sync()
                results.append(result)
            except ANSWERS as answer:
                results.append(answer)
            except Exception as exc:  # noqa: BLE001  # it goes to the caller
                self.fail(exc)
                results.append(exc)
        if self._interval is not None and monotonic() - self._looked_at > self._interval:
            # Jobs must not keep it from looking.
            self._look()
        return results

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Nothing is known of a new file."""
        self._version = None

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Hand over everything that has changed up to now, as a job."""
        found = self._find(connection)
        if found.news or found.changes or found.has_gap:
            self.call(self._on_found, found)

    def _look(self) -> None:
        is_due, self._is_due, self._looked_at = self._is_due, False, monotonic()
        try:
            connection = self.open()
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version == self._version and not is_due:
                return
            found = self._find(connection)
            self._version, self._changed_at = version, self._looked_at
            if found.news:
                # No byte is shown that a power cut could take back.
                self.sync()
        except Exception as exc:  # noqa: BLE001  # it counts as an outage, and passes
            self.fail(exc)
            self.call(self._on_failure, exc)
            # Not again at once.
            time.sleep(SLOW)
            self._is_due = True
            return
        if found.news or found.changes or found.has_gap:
            self.call(self._on_found, found)

    def _find(self, connection: sqlite3.Connection) -> Found:
        connection.execute("BEGIN")
        try:
            news = self._find_news(connection)
            changes, has_gap = self._find_changes(connection)
        finally:
            connection.execute("ROLLBACK")
        return Found(news, changes, has_gap)

    def _find_news(self, connection: sqlite3.Connection) -> list[Piece]:
        with self._wake:
            followed = dict(self._followed)
        if not followed:
            return []
        try:
            news = read_pieces(connection, followed)
        except sqlite3.DatabaseError:
            # One stream may be damaged: the others are not to suffer for it.
            news = [piece for one in followed.items() for piece in self._find_news_of(connection, *one)]
        with self._wake:
            for piece in news:
                self._note_read(piece)
        return news

    def _find_news_of(self, connection: sqlite3.Connection, epoch: str, offset: int) -> list[Piece]:
        try:
            return read_pieces(connection, {epoch: offset})
        except sqlite3.DatabaseError as exc:
            logger.warning("stream of epoch %s cannot be read: %s", epoch, exc, extra={"epoch": epoch})
            return [Piece(epoch, is_missing=True)]

    def _note_read(self, piece: Piece) -> None:
        """Look for what comes after a piece."""
        if piece.is_missing or piece.epoch not in self._followed:
            return
        if piece.status is not None:
            del self._followed[piece.epoch]
        else:
            self._followed[piece.epoch] = max(self._followed[piece.epoch], piece.end)
            self._is_due = self._is_due or piece.end < piece.tail

    def _find_changes(self, connection: sqlite3.Connection) -> tuple[list[Changed], bool]:
        query = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'changes'"
        last = connection.execute(query).fetchone()[0] or 0
        if self._change is None:
            self._change = last
        rows = connection.execute(
            "SELECT change, owner, epoch, worker, status, code, item FROM changes WHERE change > ? ORDER BY change "
            "LIMIT 1000",
            (self._change,),
        ).fetchall()
        has_gap = (rows[0][0] if rows else last + 1) != self._change + 1
        self._change = rows[-1][0] if rows else last
        self._is_due = self._is_due or self._change < last
        return [Changed(change, text_of(owner), *about) for change, owner, *about in rows], has_gap
