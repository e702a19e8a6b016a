"""What changes the file: everything here runs in the writer's thread, within a transaction that is begun already.

What is raised here was raised before anything was written, and leaves the transaction as it is.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..._core import lifecycle
from ..._core.ids import StreamKey
from ..._core.lifecycle import Change, Current, OnConflict, Outcome, Queued, Slot, Verdict
from ..._stream.recording import end_event
from ..._stream.stream import Head, Limits
from ...exceptions import TooManyStreams, TooManyStreamsOfOwner
from ...models import ResumableStatus
from ..shared.writes import Ended, Gap, Missing, Reply, Restore, Write, Written
from .rows import COLUMNS, STATE, KeyState, Row, bindable, dump_headers, row_of, text_of, wanted

CHANGES_KEPT = 60.0
"""Seconds for which a change can be read by other workers."""
UNREAD = 5.0
"""Seconds after which the log of a stopped or replaced stream goes, unless a reader is known to follow it."""
READER = 20.0
"""Seconds for which a reader on another worker holds a producer without being heard of again."""
VACUUM_FROM = 256
"""How many pages may lie free before the file is made smaller."""
UNCHECKED = 1024 * 1024
"""How many bytes may be written before the size of the file is looked at."""
TOGETHER = 64
"""How many rows one statement adds."""

Terminal = Mapping[str, bytes]
"""The terminal events that were made, by code: the application makes them, so that is done outside of a transaction."""


class LacksEventError(Exception):
    """The transaction ends a stream whose readers need a terminal event, and was not given it."""

    def __init__(self, status: ResumableStatus, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class WorkerDiedError(Exception):
    """What a transaction looks at belongs to a worker that has died, and has to be ended first."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker


class Append(NamedTuple):
    """What one stream has to write."""

    key: StreamKey
    epoch: str
    write: Write


class Transactions:
    """The writing side of the file."""

    def __init__(
        self, connection: sqlite3.Connection, worker: str, limits: Limits, is_dead: Callable[[str], bool]
    ) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._worker = worker
        self._limits = limits
        self._is_dead = is_dead
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
                self._delete(row.stream)
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

    def _delete(self, stream: int) -> None:
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

    def _transition(
        self,
        key: StreamKey,
        terminal: Terminal,
        transition: Callable[[Slot, float], Outcome],
        head: Head | None = None,
    ) -> Outcome:
        now = time.time()
        state = self.load(key, now)
        outcome = transition(state.slot, now)
        self.apply(state, outcome, terminal, now, head)
        return outcome

    # Requests.

    def reserve(self, key: StreamKey, request: Queued, on_conflict: OnConflict) -> Outcome:
        """Queue a request, or say what it has to follow.

        Raises:
            TooManyStreams: A limit is reached.
            WorkerDiedError: Its rival's worker has died.
        """
        state = self.load(key, time.time())
        self._check_workers(state.workers)
        outcome = lifecycle.reserve(state.slot, request, on_conflict)
        if outcome.changes:
            self._check_limits(key.owner, allowed=1 if outcome.replaces else 0)
        self.apply(state, outcome, {}, request.requested_at)
        return outcome

    def _check_workers(self, workers: set[str]) -> None:
        for worker in workers:
            if self._is_dead(worker):
                raise WorkerDiedError(worker)

    def _check_limits(self, owner: str | None, allowed: int) -> None:
        most = self._limits.max_streams_per_owner
        if owner is not None and most is not None:
            live = self._execute(
                "SELECT worker FROM streams WHERE owner = ? AND expires_at IS NULL", (bindable(owner),)
            ).fetchall()
            if len(live) >= most + allowed:
                self._check_workers({worker for (worker,) in live})
                raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
        if self.shrink():
            raise TooManyStreams("The server's room for streams is full. Try again in a moment.")

    def begin(self, key: StreamKey, request: Queued, head: Head, terminal: Terminal, *, queue: bool = False) -> Outcome:
        """Make a request the current epoch; if it is to `queue`, it is queued before, should the file not know it."""

        def transition(slot: Slot, now: float) -> Outcome:
            outcome = lifecycle.begin(slot, request.epoch, now)
            if outcome.verdict is Verdict.UNKNOWN and queue:
                queued = lifecycle.reserve(slot, request, "replace")
                outcome = lifecycle.begin(queued.slot, request.epoch, now)
            return outcome

        return self._transition(key, terminal, transition, head)

    def release(self, key: StreamKey, epoch: str, terminal: Terminal) -> Outcome:
        """Give a request back; should it have begun, end it."""
        retention = self._limits.retention
        return self._transition(key, terminal, lambda slot, now: lifecycle.abandon(slot, epoch, now, retention))

    def stop(self, key: StreamKey, epoch: str | None, terminal: Terminal) -> Outcome:
        """Stop what is queued or live, forget what has ended."""
        return self._transition(key, terminal, lambda slot, now: lifecycle.stop(slot, epoch, now))

    # Bytes.

    def write(self, appends: Sequence[Append]) -> list[Reply]:
        """Write what streams have recorded, those that are still live: the others learn that they are not."""
        (found,) = self._execute(
            "SELECT json_group_array(json_array(epoch, stream, status, gone, earliest, mid_event, "
            "coalesce((SELECT end FROM chunks WHERE chunks.stream = streams.stream ORDER BY end DESC LIMIT 1), "
            "earliest))) FROM streams WHERE epoch IN (SELECT value FROM json_each(?))",
            (json.dumps([append.epoch for append in appends]),),
        ).fetchone()
        rows = {epoch: about for epoch, *about in json.loads(found)}
        replies: list[Reply] = []
        chunks: list[object] = []
        for append in appends:
            reply = self._check_write(append, rows.get(append.epoch))
            if isinstance(reply, Written) and append.write.last > rows[append.epoch][5]:
                chunks += (rows[append.epoch][0], append.write.last, append.write.data)
            replies.append(reply)
        self._make_room(sum(len(append.write.data) for append in appends))
        for start in range(0, len(chunks), 3 * TOGETHER):
            some = chunks[start : start + 3 * TOGETHER]
            values = ", ".join(["(?, ?, ?)"] * (len(some) // 3))
            self._execute(f"INSERT INTO chunks VALUES {values}", some)  # noqa: S608  # no input
        for index, append in enumerate(appends):
            if isinstance(replies[index], Written):
                replies[index] = self._follow_up(append, *rows[append.epoch])
        return replies

    def _check_write(self, append: Append, row: list[Any] | None) -> Reply:
        if row is None:
            return Missing()
        _, status, gone, _, _, tail = row
        write, ending = append.write, append.write.ending
        if gone or (ending is not None and status == ending.status and tail == write.last):
            return Ended() if gone else Written(None)
        if status == "queued":
            return Missing()
        current = Current(append.epoch, status=ResumableStatus(status), tail=int(tail))
        verdict = lifecycle.append(Slot(current), append.epoch, write.first, write.last).verdict
        if verdict is Verdict.GAP:
            return Gap(int(tail))
        return Written(None) if verdict is Verdict.OK else Ended()

    def _follow_up(
        self, append: Append, stream: int, status: str, _gone: str, earliest: int, mid_event: int, _tail: int
    ) -> Reply:
        write = append.write
        if write.is_mid_event != bool(mid_event) or write.earliest > earliest:
            earliest = max(write.earliest, earliest)
            self._execute(
                "UPDATE streams SET mid_event = ?, earliest = ? WHERE stream = ?",
                (int(write.is_mid_event), earliest, stream),
            )
            self._execute("DELETE FROM chunks WHERE stream = ? AND end <= ?", (stream, earliest))
        if write.ending is not None and status == ResumableStatus.IN_PROGRESS:
            ending, retention = write.ending, self._limits.retention
            at = ending.completed_at
            self._transition(
                append.key,
                {},
                lambda slot, _: lifecycle.end(slot, append.epoch, ending.status, ending.code, at, retention),
            )
        return Written(self.slowest_reader(append.epoch) if write.may_fill else None)

    def restore(self, key: StreamKey, lost: Current, head: Head, how: Restore) -> Reply:
        """Begin a stream anew that the file has lost, or that has gone on without it."""
        outcome = self._transition(key, {}, lambda slot, _: lifecycle.restore(slot, lost._replace(tail=how.earliest)))
        if outcome.verdict is not Verdict.OK:
            return Ended()
        (stream,) = self._execute("SELECT stream FROM streams WHERE epoch = ?", (lost.epoch,)).fetchone()
        self._execute("DELETE FROM chunks WHERE stream = ?", (stream,))
        self._execute(
            "UPDATE streams SET status_code = ?, headers = ?, traceparent = ?, earliest = ?, mid_event = 0 "
            "WHERE stream = ?",
            (head.status_code, dump_headers(head), head.traceparent, how.earliest, stream),
        )
        return Gap(how.earliest)

    # Readers on other workers.

    def report(self, epoch: str, offset: int | None) -> None:
        """Note how far the slowest reader here of a stream is."""
        if offset is None:
            self._execute(
                "DELETE FROM readers WHERE worker = ? AND stream = (SELECT stream FROM streams WHERE epoch = ?)",
                (self._worker, epoch),
            )
        else:
            self._execute(
                "INSERT OR REPLACE INTO readers SELECT stream, ?, ?, ? FROM streams WHERE epoch = ?",
                (self._worker, offset, time.time() + READER, epoch),
            )

    def slowest_reader(self, epoch: str) -> int | None:
        """How far the slowest reader on another worker is."""
        (slowest,) = self._execute(
            "SELECT min(offset) FROM readers WHERE stream = (SELECT stream FROM streams WHERE epoch = ?) "
            "AND worker <> ? AND until > ?",
            (epoch, self._worker, time.time()),
        ).fetchone()
        return None if slowest is None else int(slowest)

    # Workers.

    def register(self, pid: int) -> None:
        """Note that this worker is there."""
        self._execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", (self._worker, pid, time.time()))

    def leave(self) -> None:
        """Note that this worker goes."""
        self._execute("DELETE FROM readers WHERE worker = ?", (self._worker,))
        self._execute("DELETE FROM workers WHERE worker = ?", (self._worker,))

    def bury(self, worker: str, terminal: Terminal) -> list[str]:
        """End everything that belongs to a worker that has died; return the epochs."""
        keys = self._execute(
            "SELECT DISTINCT owner, id FROM streams WHERE worker = ? AND expires_at IS NULL", (worker,)
        ).fetchall()
        ended: list[str] = []
        retention = self._limits.retention
        for owner, stream_id in keys:
            now = time.time()
            key = StreamKey(text_of(owner), stream_id)
            state = self.load(key, now)
            outcome = lifecycle.lose(state.slot, worker, now, retention)
            self.apply(state, outcome, terminal, now)
            ended += (change.stream.epoch for change in outcome.changes if change.stream.worker == worker)
        self._execute("DELETE FROM readers WHERE worker = ?", (worker,))
        self._execute("DELETE FROM workers WHERE worker = ?", (worker,))
        return ended

    # Room.

    def _make_room(self, size: int) -> None:
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
            self._delete(oldest[0])
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
            self._delete(stream)
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
