"""The thread that reads: what is asked for, and what other workers have changed meanwhile."""

import logging
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from ...exceptions import StoreUnavailable
from ...models import ResumableStreamItem
from ..shared.backend import SharedBackend
from ..shared.local import LocalStream
from ..shared.outage import UNAVAILABLE
from .files import WorkerLock
from .log import Piece, read_pieces
from .rows import read_states, read_workers, text_of
from .threads import File, FileThread, PendingJob, answer

logger = logging.getLogger("fastapi_resumable")

FAST = 0.004
"""Seconds between looks at the file while something is expected of other workers."""
CALM = 0.4
"""The same, once nothing has come for long, and after a failure; in between, it is one part in `PATIENCE` of the
silence."""
PATIENCE = 50
CHECK = 0.5
"""The fewest seconds between looks at whether the other workers are alive."""


class Changed(NamedTuple):
    """A change of state, as the table `changes` has it."""

    owner: str | None
    epoch: str
    code: str
    item: ResumableStreamItem | None
    """For those that watch, if anything does."""


class Found(NamedTuple):
    """What a look has found."""

    news: Sequence[Piece] = ()
    changes: Sequence[Changed] = ()
    has_gap: bool = False
    """Whether changes were missed, because this process stood still for so long, or the file is another."""
    dead: Sequence[str] = ()
    """Workers that have died."""


class ReaderThread(FileThread):
    """Reads the file, and looks for what others have changed, for as long as anything here could be concerned."""

    use = "read"

    def __init__(
        self,
        file: File,
        on_up: Callable[[], object],
        lock: WorkerLock,
        backend: SharedBackend,
        on_found: Callable[[Found], None],
    ) -> None:
        super().__init__(file, on_up)
        self.waiting: set[LocalStream] = set()
        """Streams whose producers wait for readers on other workers: each change of the file may be what they need."""
        self._worker_lock = lock
        self._backend = backend
        self._streams, self._watchers = backend.streams, backend.watchers
        self._on_found = on_found
        self._is_resting = self._is_due = self._is_handed_over = False
        self._expected_at = self._looked_at = self._checked_at = -math.inf
        self._version: int | None = None
        """Of the file when all of it was read; `None` if the next look has to read all again."""
        self._change: int | None = None

    # On the event loop.

    def note_change(self) -> None:
        """This worker has changed the file itself: what watches here is to hear of it at once."""
        if self._watchers:
            self.look_now()
        elif self._is_resting:
            # Something here could be concerned by what others do from now on.
            self.wake()

    def look_now(self) -> None:
        """Look at once."""
        self._is_due = True
        self.wake()

    def expect_news(self) -> None:
        """Look often from now on."""
        self._expected_at = monotonic()
        self.wake()

    def _pass_on(self, found: Found) -> None:
        self._is_handed_over = False
        self.outage.note_up()
        self._on_found(found)
        waiting, self.waiting = self.waiting, set()
        for stream in waiting:
            stream.note_room()
        if self._is_due or any(piece.end < piece.tail for piece in found.news):
            self.look_now()

    def _note_failed_look(self, failure: Exception) -> None:
        self.note_failure(failure)
        if self.outage.is_too_long:
            self._backend.on_outage(StoreUnavailable(UNAVAILABLE))

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
        """Look, if it is time to; return in how many seconds it is again."""
        if self._is_due or self._pause() <= 0:
            self._look()
        # Said first: what comes between the question and the rest wakes the thread.
        self._is_resting = True
        pause = self._pause()
        self._is_resting = pause == math.inf
        return None if self._is_resting else max(0.0, pause)

    def _pause(self) -> float:
        streams = self._streams
        if not (streams.followed or streams.local or streams.queued or self._watchers or self.waiting):
            return math.inf
        now = monotonic()
        interval = min(CALM, max(FAST, (now - self._expected_at) / PATIENCE))
        return self._looked_at + interval - now

    def _look(self) -> None:
        self._looked_at = monotonic()
        if self._is_handed_over:
            # A busy event loop is not given the same once more.
            return
        # Never taken back without a look: the event loop may ask for one at any moment.
        if is_due := self._is_due:
            self._is_due = False
        change = self._change
        try:
            connection = self.open()
            self._check(connection)
            # Costs microseconds, and changes only if another connection has changed the file.
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version != self._version or is_due:
                found = self._find(connection)
                is_missing = any(piece.is_missing for piece in found.news)
                self._version = None if is_missing else version
                if found.news:
                    self.sync()
                    if not is_missing:
                        self._expected_at = self._looked_at
                self._hand_over(found)
        except Exception as exc:  # noqa: BLE001  # it counts as an outage, and passes
            # What was found has not been handed over.
            self._change = change
            self.reconnect_after(exc)
            # The next look is a calm one.
            self._expected_at, self._version = -math.inf, None
            self.call(self._note_failed_look, exc)

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Hand over everything that has changed up to now, as a job."""
        dead = self._worker_lock.find_dead(read_workers(connection))
        self._hand_over(self._find(connection)._replace(dead=dead))

    def _check(self, connection: sqlite3.Connection) -> None:
        if (now := monotonic()) - self._checked_at >= CHECK:
            self._checked_at = now
            self._worker_lock.keep()
            # Most of what a look costs, so that only those are asked about that matter here.
            if self._watchers or self.waiting:
                workers = read_workers(connection)
            else:
                workers = list({stream.worker for stream in list(self._streams.followed.values())})
            self._hand_over(Found(dead=self._worker_lock.find_dead(workers)))

    def _hand_over(self, found: Found) -> None:
        # Also that the file can be read again: a failure much later is no part of the same outage.
        if any(found) or self.waiting or self.outage.is_noted:
            self._is_handed_over = True
            self.call(self._pass_on, found)

    def _find(self, connection: sqlite3.Connection) -> Found:
        offsets = {epoch: stream.log.tail for epoch, stream in list(self._streams.followed.items())}
        # One snapshot for both: a change must not be seen without the bytes that came before it.
        with connection:
            connection.execute("BEGIN")
            return Found(_read_news(connection, offsets), *self._find_changes(connection))

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
        if self._change < last:
            self._is_due = True
        changes = [self._change_of(*row) for _, *row in rows]
        if has_gap:
            # Those that watch get what there is now, instead of what was missed.
            for owner, ids in self._watchers.watched().items():
                states = read_states(connection, owner, ids, with_variants=True)
                changes += [Changed(owner, "", "", state.item) for state in states]
        return changes, has_gap

    def _change_of(self, owner: str | bytes | None, epoch: str, code: str, text: str) -> Changed:
        item = None
        if self._watchers:
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
