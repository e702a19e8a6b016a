"""What changes the file: everything here runs in the writer's thread, within a transaction that is begun already.

What is raised here was raised before anything was written, and leaves the transaction as it is.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..._core import lifecycle
from ..._core.ids import StreamKey
from ..._core.lifecycle import Current, OnConflict, Outcome, Queued, Slot, Verdict
from ..._stream.stream import Head, Limits
from ...exceptions import TooManyStreams, TooManyStreamsOfOwner
from ...models import ResumableStatus
from ..shared.writes import Ended, Gap, Missing, Reply, Restore, Write, Written
from .rows import bindable, dump_headers, text_of
from .tables import Tables, Terminal

READER = 20.0
"""Seconds for which a reader on another worker holds a producer without being heard of again."""
TOGETHER = 64
"""How many rows one statement adds."""


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
        self.tables = Tables(connection, limits)
        self._execute = connection.execute
        self._worker = worker
        self._limits = limits
        self._is_dead = is_dead

    # Requests.

    def reserve(self, key: StreamKey, request: Queued, on_conflict: OnConflict) -> Outcome:
        """Queue a request, or say what it has to follow.

        Raises:
            TooManyStreams: A limit is reached.
            WorkerDiedError: Its rival's worker has died.
        """
        state = self.tables.load(key, time.time())
        self._check_workers(state.workers)
        outcome = lifecycle.reserve(state.slot, request, on_conflict)
        if outcome.changes:
            self._check_limits(key.owner, allowed=1 if outcome.replaces else 0)
        self.tables.apply(state, outcome, {}, request.requested_at)
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
        if self.tables.shrink():
            raise TooManyStreams("The server's room for streams is full. Try again in a moment.")

    def begin(self, key: StreamKey, request: Queued, head: Head, terminal: Terminal, *, queue: bool = False) -> Outcome:
        """Make a request the current epoch; if it is to `queue`, it is queued before, should the file not know it."""

        def transition(slot: Slot, now: float) -> Outcome:
            outcome = lifecycle.begin(slot, request.epoch, now)
            if outcome.verdict is Verdict.UNKNOWN and queue:
                queued = lifecycle.reserve(slot, request, "replace")
                outcome = lifecycle.begin(queued.slot, request.epoch, now)
            return outcome

        return self.tables.transition(key, terminal, transition, head)

    def release(self, key: StreamKey, epoch: str, terminal: Terminal) -> Outcome:
        """Give a request back; should it have begun, end it."""
        retention = self._limits.retention
        return self.tables.transition(key, terminal, lambda slot, now: lifecycle.abandon(slot, epoch, now, retention))

    def stop(self, key: StreamKey, epoch: str | None, terminal: Terminal) -> Outcome:
        """Stop what is queued or live, forget what has ended."""
        return self.tables.transition(key, terminal, lambda slot, now: lifecycle.stop(slot, epoch, now))

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
        self.tables.make_room(sum(len(append.write.data) for append in appends))
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
            self.tables.transition(
                append.key,
                {},
                lambda slot, _: lifecycle.end(slot, append.epoch, ending.status, ending.code, at, retention),
            )
        return Written(self.slowest_reader(append.epoch) if write.may_fill else None)

    def restore(self, key: StreamKey, lost: Current, head: Head, how: Restore) -> Reply:
        """Begin a stream anew that the file has lost, or that has gone on without it."""
        outcome = self.tables.transition(
            key, {}, lambda slot, _: lifecycle.restore(slot, lost._replace(tail=how.earliest))
        )
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

    def clean_up(self) -> float | None:
        """Delete what is past its time; say when there is more to delete."""
        return self.tables.clean_up()

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
            state = self.tables.load(key, now)
            outcome = lifecycle.lose(state.slot, worker, now, retention)
            self.tables.apply(state, outcome, terminal, now)
            ended += (change.stream.epoch for change in outcome.changes if change.stream.worker == worker)
        self._execute("DELETE FROM readers WHERE worker = ?", (worker,))
        self._execute("DELETE FROM workers WHERE worker = ?", (worker,))
        return ended
