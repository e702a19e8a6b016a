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
from .log import Piece, read_pieces
from .rows import text_of
from .threads import FileThread, PendingJob, answer

logger = logging.getLogger("fastapi_resumable")

FAST = 0.004
"""Seconds between looks at the file while something is expected of other workers."""
CALM = 0.4
"""The same, once nothing has come for long, and after a failure; in between, it is one part in `PATIENCE` of the
silence."""
PATIENCE = 50
IDLE = 3600.0
"""The same, while nothing here could be concerned by what others do."""
MOST_CHANGES = 1000
"""How many changes are read at once, at most."""


class Seen(NamedTuple):
    """Up to where what the file says is known here."""

    change: int | None = None
    """The last change of state; `None` before the first look."""
    connection: sqlite3.Connection | None = None
    version: int | None = None
    """Of the file, in the numbers of that connection, when all of it was read; `None` if all has to be read again."""


class Changed(NamedTuple):
    """A change of state, as the table `changes` has it."""

    owner: str | None
    epoch: str
    code: str
    item: ResumableStreamItem | None
    """For those that watch, if anything does."""


class Found(NamedTuple):
    """What a look has found."""

    seen: Seen
    news: Sequence[Piece] = ()
    changes: Sequence[Changed] = ()
    has_gap: bool = False
    """Whether changes were missed, because this process stood still for so long, or the file is another."""


class ReaderThread(FileThread):
    """Reads the file."""

    use = "read"

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Nothing is known of a new connection's version."""
        self._synced: int | None = None

    def work(self, connection: sqlite3.Connection, pending: Sequence[PendingJob]) -> Sequence[Any]:
        """Read what is asked for."""
        results = [answer(each, connection) for each in pending]
        # No byte is shown that a power cut could take back.
        if (version := version_of(connection)) != self._synced:
            self.sync()
            self._synced = version
        return results


def version_of(connection: sqlite3.Connection) -> int:
    """A number that costs microseconds, and changes only if another connection has changed the file."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


class Lookout:
    """Looks for what others have changed, for as long as anything here could be concerned."""

    def __init__(self, thread: ReaderThread, backend: SharedBackend, on_found: Callable[[Found], None]) -> None:
        self.waiting: set[LocalStream] = set()
        """Streams whose producers wait for readers on other workers: each change of the file may be what they need."""
        self._thread = thread
        self._backend = backend
        self._on_found = on_found
        self._seen = Seen()
        self._wake = asyncio.Event()
        self._is_due = True
        self._expected_at = self._looked_at = -math.inf

    # When.

    @property
    def is_needed(self) -> bool:
        """Whether anything here could be concerned by what others do."""
        streams = self._backend.streams
        return bool(streams.followed or streams.local or streams.queued or self._backend.watchers or self.waiting)

    def note_change(self) -> None:
        """This worker has changed the file itself: what watches here is to hear of it at once."""
        # Without any, something here could be concerned by what others do from now on.
        self._is_due = self._is_due or bool(self._backend.watchers)
        self._wake.set()

    def look_now(self) -> None:
        """Look at once, and read all again."""
        self._is_due = True
        self._wake.set()

    def expect_news(self) -> None:
        """Look often from now on."""
        self._expected_at = monotonic()
        self._wake.set()

    async def run(self) -> None:
        """Look whenever it is time to."""
        while True:
            while (pause := self._pause()) > 0:
                self._wake.clear()
                timer = self._backend.loop.call_later(pause, self._wake.set)
                await self._wake.wait()
                timer.cancel()
            is_due, self._is_due = self._is_due, False
            try:
                await self.look(reads_all=is_due)
            except Exception as exc:
                # Nothing that it was to find may be passed over.
                self._is_due = True
                if not isinstance(exc, StoreUnavailable):
                    raise
                self._backend.on_outage(exc)
                await asyncio.sleep(CALM)

    def _pause(self) -> float:
        now = monotonic()
        interval = min(CALM, max(FAST, (now - self._expected_at) / PATIENCE)) if self.is_needed else IDLE
        return 0.0 if self._is_due else self._looked_at + interval - now

    # What.

    async def look(self, *, reads_all: bool = False) -> None:
        """Take over everything that has changed up to now; what has not, too, if that is wanted.

        Raises:
            StoreUnavailable: The file cannot be read.
        """
        before: Seen | None = None
        found: Found | None = None
        # Another look, at the same time, may have been faster: nothing is to be heard of twice.
        while before is not self._seen:
            before, self._looked_at = self._seen, monotonic()
            seen = before._replace(version=None) if reads_all else before
            offsets = {epoch: stream.log.tail for epoch, stream in self._backend.streams.followed.items()}
            found = await self._thread.run(partial(self._find, seen, offsets))
            if found is not None and found.has_gap:
                found = await self._add_watched(found)
        if found is not None:
            self._take_over(found)

    async def _add_watched(self, found: Found) -> Found:
        """Give those that watch what there is now, instead of what was missed."""
        changes = list(found.changes)
        for owner, ids in self._backend.watchers.watched().items():
            states = await self._backend.states(owner, ids)
            changes += [Changed(owner, "", "", state.item) for state in states]
        return found._replace(changes=changes)

    def _take_over(self, found: Found) -> None:
        is_missing = any(piece.is_missing for piece in found.news)
        self._seen = found.seen._replace(version=None) if is_missing else found.seen
        if found.news and not is_missing:
            self._expected_at = self._looked_at
        self._on_found(found)
        waiting, self.waiting = self.waiting, set()
        for stream in waiting:
            stream.note_room()
        if len(found.changes) >= MOST_CHANGES or any(piece.end < piece.tail for piece in found.news):
            self.look_now()

    # In the thread.

    def _find(self, seen: Seen, offsets: Mapping[str, int], connection: sqlite3.Connection) -> Found | None:
        version = version_of(connection)
        if (seen.connection, seen.version) == (connection, version):
            return None
        # One snapshot for both: a change must not be seen without the bytes that came before it.
        with connection:
            connection.execute("BEGIN")
            news = _read_news(connection, offsets)
            last, changes, has_gap = self._find_changes(connection, seen.change)
        return Found(Seen(last, connection, version), news, changes, has_gap)

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


def _read_news(connection: sqlite3.Connection, offsets: Mapping[str, int]) -> list[Piece]:
    if not offsets:
        return []
    try:
        return read_pieces(connection, offsets)
    except sqlite3.DatabaseError as exc:
        if len(offsets) > 1:
            # One stream may be damaged: the others are not to suffer for it.
            return [piece for one in offsets.items() for piece in _read_news(connection, dict([one]))]
        (epoch,) = offsets
        logger.warning("stream of epoch %s cannot be read: %s", epoch, exc, extra={"epoch": epoch})
        return [Piece(epoch, is_missing=True)]
