"""The thread that reads: what is asked for, and what other workers have changed meanwhile.

A statement gives the interpreter away with each row that it returns, and a busy event loop is slow to give it back. So
what can be many rows is put together by SQLite, and comes as one.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from ...models import ResumableStatus
from .queries import NEWS, read_last_change
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


class News(NamedTuple):
    """What a look has found of one stream that is followed: bytes from `start` on, and how it ended."""

    epoch: str
    start: int
    data: bytes
    is_missing: bool = False
    tail: int = 0
    status: ResumableStatus | None = None
    """Set once the stream is over, and `data` reaches its end."""
    completed_at: float = 0.0


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

    news: list[News]
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

    def _find_news(self, connection: sqlite3.Connection) -> list[News]:
        with self._wake:
            followed = dict(self._followed)
        if not followed:
            return []
        try:
            rows = connection.execute(NEWS, (json.dumps(followed),)).fetchall()
        except sqlite3.DatabaseError:
            # One stream may be damaged: the others are not to suffer for it.
            rows = [row for epoch in followed for row in self._find_news_of(connection, epoch, followed[epoch])]
        return [self._take_news(*row) for row in rows]

    def _find_news_of(self, connection: sqlite3.Connection, epoch: str, offset: int) -> list[tuple[Any, ...]]:
        try:
            return connection.execute(NEWS, (json.dumps({epoch: offset}),)).fetchall()
        except sqlite3.DatabaseError as exc:
            logger.warning("stream of epoch %s cannot be read: %s", epoch, exc, extra={"epoch": epoch})
            return [(epoch, None, None, None, None, None, None)]

    def _take_news(
        self, epoch: str, start: int | None, text: str | None, tail: int | None, status: str, over: int, at: float
    ) -> News:
        if tail is None:
            return News(epoch, 0, b"", is_missing=True)
        data = bytes.fromhex(text) if text else b""
        reached = (start or 0) + len(data) if data else tail
        is_over = bool(over) and reached >= tail
        with self._wake:
            if epoch in self._followed:
                if is_over:
                    del self._followed[epoch]
                else:
                    self._followed[epoch] = max(self._followed[epoch], reached)
                    self._is_due = self._is_due or reached < tail
        return News(epoch, start or 0, data, False, tail, ResumableStatus(status) if is_over else None, at)

    def _find_changes(self, connection: sqlite3.Connection) -> tuple[list[Changed], bool]:
        if self._change is None:
            self._change = read_last_change(connection)
            return [], False
        rows = connection.execute(
            "SELECT change, owner, epoch, worker, status, code, item FROM changes WHERE change > ? ORDER BY change "
            "LIMIT 1000",
            (self._change,),
        ).fetchall()
        if not rows:
            last = read_last_change(connection)
            has_gap, self._change = last != self._change, last
            return [], has_gap
        has_gap = rows[0][0] != self._change + 1
        self._change = rows[-1][0]
        self._is_due = self._is_due or len(rows) == 1000
        return [Changed(change, text_of(owner), *about) for change, owner, *about in rows], has_gap
