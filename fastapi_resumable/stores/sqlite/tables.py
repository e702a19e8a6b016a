"""The tables: what is under a key, what a transition makes of it, and how much room all of it takes."""

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..._core.ids import StreamKey
from ..._core.lifecycle import Change, Outcome, Queued, Slot, Verdict
from ..._stream.recording import end_event
from ..._stream.stream import Head, Limits
from ...models import ResumableStatus
from .rows import COLUMNS, STATE, KeyState, Row, bindable, dump_headers, row_of, wanted

CHANGES_KEPT = 60.0
"""Seconds for which a change can be read by other workers."""
UNREAD = 5.0
"""Seconds after which the log of a stopped or replaced stream goes, unless a reader is known to follow it."""
VACUUM_FROM = 256
"""How many pages may lie free before the file is made smaller."""
UNCHECKED = 1024 * 1024
"""How many bytes may be written before the size of the file is looked at."""

Terminal = Mapping[str, bytes]
"""The terminal events that were made, by code: the application makes them, so that is done outside of a transaction."""


class LacksEventError(Exception):
    """The transaction ends a stream whose readers need a terminal event, and was not given it."""

    def __init__(self, status: ResumableStatus, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class Tables:
    """The tables, within a transaction that is begun already."""

    def __init__(self, connection: sqlite3.Connection, limits: Limits) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._limits = limits
        self._page_size: int = self._execute("PRAGMA page_size").fetchone()[0]
        self._unchecked = 0
        # What an empty file takes is not counted.
        self._empty: int = self._execute("SELECT count(*) + 3 FROM sqlite_master WHERE rootpage > 0").fetchone()[0]

    # The state of a key.

    def load(self, key: StreamKey, now: float) -> KeyState:
        """Everything under a key."""
        rows = self._execute(
            f"SELECT {COLUMNS} FROM streams WHERE owner IS ? AND id = ? ORDER BY stream",  # noqa: S608  # no input
            (bindable(key.owner), key.id),
        ).fetchall()
        return KeyState(key, map(row_of, rows), now)

    def apply(
        self, state: KeyState, outcome: Outcome, terminal: Terminal, now: float, head: Head | None = None
    ) -> None:
        """Make the file say what a transition came to; `head` is that of a stream that has begun.

        Raises:
            LacksEventError: It ends a stream that needs a terminal event, and there is none in `terminal`.
        """
        for change in outcome.changes:
            row = state.rows.get(change.stream.epoch)
            if change.code and row is not None and change.code not in terminal and _is_live_event_stream(row):
                raise LacksEventError(change.status, change.code)
        for change in outcome.changes:
            row = state.rows.get(change.stream.epoch)
            if change.code and row is not None and _is_live_event_stream(row):
                self._add_terminal_event(row, terminal[change.code])
        states = wanted(outcome.slot, state.rows)
        for epoch, row in state.rows.items():
            if (columns := states.pop(epoch, None)) is None:
                self.delete(row.stream)
            elif columns != (row.status, row.code, row.gone, row.started_at, row.completed_at, row.expires_at):
                assignments = ", ".join(f"{name} = ?" for name in STATE)
                self._execute(
                    f"UPDATE streams SET {assignments} WHERE stream = ?",  # noqa: S608  # no input
                    (*columns, row.stream),
                )
        for epoch, (status, *_) in states.items():
            self._insert(state.key, epoch, status, outcome)
        current = outcome.slot.current
        if head is not None and outcome.verdict is Verdict.BEGUN and current is not None:
            self._execute(
                "UPDATE streams SET status_code = ?, headers = ?, traceparent = ? WHERE epoch = ? AND headers IS NULL",
                (head.status_code, dump_headers(head), head.traceparent, current.epoch),
            )
        for change in outcome.changes:
            self._announce(state.key, change, now)

    def _insert(self, key: StreamKey, epoch: str, status: str, outcome: Outcome) -> None:
        stream = next(each for each in (*outcome.slot.queued, outcome.slot.current) if each and each.epoch == epoch)
        at = stream.requested_at if isinstance(stream, Queued) else stream.started_at
        self._execute(
            "INSERT INTO streams (epoch, owner, id, worker, idempotency_key, status, requested_at, started_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (epoch, bindable(key.owner), key.id, stream.worker, bindable(stream.idempotency_key), status, at, at),
        )

    def delete(self, stream: int) -> None:
        """Delete an epoch and its log."""
        self._execute("DELETE FROM chunks WHERE stream = ?", (stream,))
        self._execute("DELETE FROM readers WHERE stream = ?", (stream,))
        self._execute("DELETE FROM streams WHERE stream = ?", (stream,))

    def _add_terminal_event(self, row: Row, event: bytes) -> None:
        if not event:
            return
        limits = replace(self._limits, terminal_event=lambda *_: event)
        data = end_event(row.epoch, limits, row.tail, bool(row.mid_event), ResumableStatus.CANCELLED, "", "")
        self._execute("INSERT INTO chunks VALUES (?, ?, ?)", (row.stream, row.tail + len(data), data))

    def _announce(self, key: StreamKey, change: Change, now: float) -> None:
        row = self._row(change.stream.epoch)
        if row is not None:
            item = row.item(key)
        else:
            # It is in the file no longer, and was queued.
            assert isinstance(change.stream, Queued)
            stream = change.stream
            at = stream.requested_at
            row = Row(0, stream.epoch, stream.worker, None, "queued", "", "", at, 0, 0, None, None, None, None, 0, 0, 0)
            item = row.item(key)
        is_over = change.status not in (ResumableStatus.QUEUED, ResumableStatus.IN_PROGRESS)
        if is_over:
            completed_at = item.completed_at or int(now)
            item = item.model_copy(update={"status": change.status, "is_done": True, "completed_at": completed_at})
        self._execute(
            "INSERT INTO changes (at, owner, epoch, worker, status, code, item) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                now, bindable(key.owner), change.stream.epoch, change.stream.worker, change.status.value, change.code,
                item.model_dump_json(),
            ),
        )  # fmt: skip

    def _row(self, epoch: str) -> Row | None:
        found = self._execute(
            f"SELECT {COLUMNS} FROM streams WHERE epoch = ?",  # noqa: S608  # no input
            (epoch,),
        ).fetchone()
        return None if found is None else row_of(found)

    def transition(
        self,
        key: StreamKey,
        terminal: Terminal,
        transition: Callable[[Slot, float], Outcome],
        head: Head | None = None,
    ) -> Outcome:
        """Apply a transition to what is under a key."""
        now = time.time()
        state = self.load(key, now)
        outcome = transition(state.slot, now)
        self.apply(state, outcome, terminal, now, head)
        return outcome

    # Room.

    def make_room(self, size: int) -> None:
        """Look at the bound now and then while streams grow."""
        self._unchecked += size
        if self._unchecked >= min(UNCHECKED, self._limits.max_total_bytes // 64):
            self._unchecked = 0
            self.shrink()

    def shrink(self) -> bool:
        """Let finished streams expire early, those first that are gone, until there is room; whether there is none."""
        while self._used() >= self._limits.max_total_bytes:
            oldest = self._execute(
                "SELECT stream FROM streams WHERE expires_at IS NOT NULL ORDER BY gone = '', expires_at LIMIT 1"
            ).fetchone()
            if oldest is None:
                return True
            self.delete(oldest[0])
        return False

    def _used(self) -> int:
        (pages,) = self._execute("PRAGMA page_count").fetchone()
        (free,) = self._execute("PRAGMA freelist_count").fetchone()
        return int((pages - free - self._empty) * self._page_size)

    def clean_up(self) -> float | None:
        """Delete what is past its time; say when there is more to delete."""
        now = time.time()
        expired = self._execute("SELECT stream FROM streams WHERE expires_at <= ? LIMIT 256", (now,)).fetchall()
        for (stream,) in expired:
            self.delete(stream)
        self._execute(
            "DELETE FROM chunks WHERE stream IN (SELECT stream FROM streams WHERE gone <> '' AND status = 'cancelled' "
            "AND expires_at IS NOT NULL AND completed_at <= ?) "
            "AND stream NOT IN (SELECT stream FROM readers WHERE until > ?)",
            (now - UNREAD, now),
        )
        self._execute("DELETE FROM changes WHERE at <= ?", (now - CHANGES_KEPT,))
        self.shrink()
        (following,) = self._execute("SELECT min(expires_at) FROM streams WHERE expires_at IS NOT NULL").fetchone()
        (is_left,) = self._execute(
            "SELECT EXISTS (SELECT 1 FROM streams JOIN chunks USING (stream) WHERE gone <> '' AND status = 'cancelled')"
        ).fetchone()
        return now + UNREAD if is_left else following

    def give_room_back(self) -> None:
        """Make the file smaller, if much of it is free; outside of a transaction."""
        (pages,) = self._execute("PRAGMA page_count").fetchone()
        (free,) = self._execute("PRAGMA freelist_count").fetchone()
        if free > VACUUM_FROM and free * 4 > pages:
            # As a script, because a plain statement stops after the first page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({free})")


def _is_live_event_stream(row: Row) -> bool:
    return row.is_live and row.headers is not None and row.head.is_event_stream
