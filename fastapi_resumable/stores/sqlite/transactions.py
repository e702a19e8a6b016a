"""What changes the file, within transactions that the writer's thread begins and commits.

An answer that is raised leaves the transaction as it is: nothing has been written for it, or what may be written again.
"""

import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..._core import lifecycle
from ..._core.ids import StreamKey
from ..._core.lifecycle import Change, Current, OnConflict, Outcome, Queued, Slot, Verdict
from ..._core.terminal import write_terminal_event
from ..._stream.recording import end_event
from ..._stream.stream import Head, Limits
from ...exceptions import TooManyStreams, TooManyStreamsOfOwner
from ...models import ResumableStatus
from ..shared.writes import END_MESSAGES, Ended, Gap, Missing, Reply, Restore, Write, Written
from .files import WorkerLock
from .log import Append, Logs, append_plainly
from .rows import COLUMNS, Row, Rows, bindable, read_workers, text_of
from .threads import File, FileThread, PendingJob, answer

logger = logging.getLogger("fastapi_resumable")


class Transactions:
    """The writing side of the file."""

    def __init__(
        self, connection: sqlite3.Connection, worker: str, limits: Limits, lock: WorkerLock, call: Callable[..., None]
    ) -> None:
        self.logs = Logs(connection, worker, limits)
        # The event loop does this: handlers of logs are the user's own, and must not run while the file is locked.
        self._call = call
        self._connection = connection
        self._execute = connection.execute
        self._worker = worker
        self._limits = limits
        self._lock = lock

    # Requests.

    def reserve(self, key: StreamKey, request: Queued, on_conflict: OnConflict) -> Outcome:
        """Queue a request, or say what it has to follow.

        Raises:
            TooManyStreams: A limit is reached.
        """
        state = self._load(key)
        if self.reap(state.state.workers):
            state = self._load(key)
        outcome = lifecycle.reserve(state.slot, request, on_conflict)
        if outcome.changes:
            self._check_limits(key.owner, 1 if outcome.replaces else 0)
        return self._apply(state, outcome)

    def _check_limits(self, owner: str | None, allowed: int) -> None:
        most = self._limits.max_streams_per_owner
        if owner is not None and most is not None and self._count_live(owner) >= most + allowed:
            raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
        if not self.logs.shrink():
            raise TooManyStreams("The server's room for streams is full. Try again in a moment.")

    def _count_live(self, owner: str) -> int:
        query = "SELECT worker FROM streams WHERE owner = ? AND expires_at IS NULL"
        live = [worker for (worker,) in self._execute(query, (bindable(owner),)).fetchall()]
        return self._count_live(owner) if self.reap(set(live)) else len(live)

    def begin(self, key: StreamKey, request: Queued, head: Head, *, queue: bool = False) -> Outcome:
        """Make a request the current epoch; if it is to `queue`, it is queued before, should the file not know it."""

        def transition(slot: Slot, now: float) -> Outcome:
            outcome = lifecycle.begin(slot, request.epoch, now)
            if outcome.verdict is Verdict.UNKNOWN and queue:
                queued = lifecycle.reserve(slot, request, "replace")
                outcome = lifecycle.begin(queued.slot, request.epoch, now)
            return outcome

        return self._transition(key, transition, head)

    def release(self, key: StreamKey, epoch: str) -> Outcome:
        """Give a request back; should it have begun, end it."""
        return self._transition(key, lambda slot, now: lifecycle.ensure_ended(slot, epoch, now, self._limits.retention))

    def stop(self, key: StreamKey, epoch: str | None) -> Outcome:
        """Stop what is queued or live, forget what has ended."""
        return self._transition(key, lambda slot, now: lifecycle.stop(slot, epoch, now))

    def restore(self, key: StreamKey, lost: Current, head: Head, how: Restore) -> Reply:
        """Begin a stream anew that the file has lost, or that has gone on without it."""
        lost, state = lost._replace(tail=how.earliest), self._load(key)
        # A file that has known this worker for longer has not lost the stream: while this process stood still, it was
        # ended, and that was forgotten.
        known = "SELECT 1 FROM workers WHERE worker = ? AND started_at <= ?"
        if lost.epoch not in state.by_epoch and self._execute(known, (self._worker, lost.started_at)).fetchone():
            return Ended()
        if self._apply(state, lifecycle.restore(state.slot, lost), head).verdict is not Verdict.OK:
            return Ended()
        self._execute("DELETE FROM chunks WHERE stream = (SELECT stream FROM streams WHERE epoch = ?)", (lost.epoch,))
        self._execute("UPDATE streams SET earliest = ?, mid_event = 0 WHERE epoch = ?", (how.earliest, lost.epoch))
        return Gap(how.earliest)

    # The state of a key.

    def _load(self, key: StreamKey) -> Rows:
        query = f"SELECT {COLUMNS} FROM streams AS s WHERE owner IS ? AND id = ? ORDER BY stream"  # noqa: S608  # no input
        rows = self._execute(query, (bindable(key.owner), key.id)).fetchall()
        return Rows(key, map(Row._make, rows), time.time())

    def _transition(
        self, key: StreamKey, change: Callable[[Slot, float], Outcome], head: Head | None = None
    ) -> Outcome:
        state = self._load(key)
        return self._apply(state, change(state.slot, state.now), head)

    def _apply(self, state: Rows, outcome: Outcome, head: Head | None = None) -> Outcome:
        """Make the file say what a transition came to; `head` is that of a stream that has begun."""
        self._end_logs(state, outcome)
        rows, current = state.changed_to(outcome.slot), outcome.slot.current
        if head is not None and current is not None and outcome.verdict in (Verdict.BEGUN, Verdict.OK):
            rows[current.epoch] = rows[current.epoch].with_head(head)
        for epoch, row in rows.items():
            self._save(state.key, state.by_epoch.get(epoch), row)
        for change in outcome.changes:
            epoch = change.stream.epoch
            self._announce(state, change, rows.get(epoch) or state.by_epoch[epoch])
        for epoch in state.by_epoch.keys() - rows.keys():
            self.logs.delete(state.by_epoch[epoch].stream)
        return outcome

    def _end_logs(self, state: Rows, outcome: Outcome) -> None:
        """Write the terminal events that readers need of what is ended by something other than its producer."""
        for change in outcome.changes:
            row, code = state.by_epoch.get(change.stream.epoch), change.code
            if not (code and row is not None and row.is_live and row.headers and row.head.is_event_stream):
                continue
            is_mid_event, message = bool(row.mid_event), END_MESSAGES[code]
            if data := end_event(row.epoch, self._limits, row.tail, is_mid_event, change.status, code, message):
                tail = row.tail + len(data)
                self._execute("INSERT INTO chunks VALUES (?, ?, ?)", (row.stream, tail, data))
                state.by_epoch[row.epoch] = row._replace(tail=tail)

    def _save(self, key: StreamKey, before: Row | None, row: Row) -> None:
        """Write what is new in a row."""
        columns = row._asdict()
        del columns["tail"]
        if before is None:
            self._execute("INSERT OR IGNORE INTO workers VALUES (?, ?, ?)", (self._worker, os.getpid(), time.time()))
            columns |= {"owner": bindable(key.owner), "id": key.id}
            query = f"INSERT INTO streams ({', '.join(columns)}) VALUES (:{', :'.join(columns)})"  # noqa: S608  # no input
            self._execute(query, columns)
        elif changed := [name for name, value in columns.items() if value != getattr(before, name)]:
            assignments = ", ".join(f"{name} = :{name}" for name in changed)
            self._execute(f"UPDATE streams SET {assignments} WHERE stream = :stream", columns)  # noqa: S608  # no input

    def _announce(self, state: Rows, change: Change, row: Row) -> None:
        item, status = row.item(state.key), change.status
        if item.status is not status:
            # A request that was given back was queued.
            item = item.model_copy(update={"status": status, "is_done": True, "completed_at": int(state.now)})
        about = (state.now, bindable(state.key.owner), row.epoch, row.worker)
        query = "INSERT INTO changes (at, owner, epoch, worker, status, code, item) VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._execute(query, (*about, status.value, change.code, item.model_dump_json()))

    # Bytes.

    def write(self, key: StreamKey, epoch: str, write: Write) -> Reply:
        """Write what a stream has recorded, if it is still live."""
        state, ending = self._load(key), write.ending
        outcome = lifecycle.append(state.slot, epoch, write.first, write.last)
        if ending is not None and outcome.verdict in (Verdict.OK, Verdict.ENDED):
            # It may have ended like this already, if the reply to the same write was lost.
            outcome = lifecycle.end(outcome.slot, epoch, *ending, self._limits.retention)
        if outcome.verdict is Verdict.MISSING:
            return Missing()
        if outcome.verdict is Verdict.ENDED:
            return Ended()
        row = state.by_epoch[epoch]
        if outcome.verdict is Verdict.GAP:
            return Gap(row.tail)
        if row.tail < write.last and row.is_live:
            self._execute("INSERT INTO chunks VALUES (?, ?, ?)", (row.stream, write.last, write.data))
        slowest = self.logs.slowest_reader(epoch) if write.may_fill else math.inf
        earliest = max(write.earliest, row.earliest)
        if earliest > row.earliest:
            # What a reader on another worker has yet to read stays: one write may be larger than the bound.
            self._execute("DELETE FROM chunks WHERE stream = ? AND end <= ?", (row.stream, min(earliest, slowest)))
        written = row._replace(earliest=earliest, mid_event=int(write.is_mid_event), tail=write.last)
        self._save(key, row, written)
        state.by_epoch[epoch] = written
        if self.logs.grow(len(write.data)):
            self.logs.shrink()
        if outcome.changes:
            self._apply(state, outcome)
        return Written(slowest)

    # Workers.

    def clean_up(self) -> bool:
        """End what dead workers have left, and delete what is past its time; return whether more is left of that."""
        workers = read_workers(self._connection)
        self.reap(workers)
        self._lock.clean_up(workers)
        return self.logs.clean_up()

    def leave(self) -> None:
        """Note that this worker goes; what it leaves is lost."""
        self._reap(self._worker)
        self._lock.remove()

    def reap(self, workers: Iterable[str]) -> bool:
        """End everything that belongs to those workers that have died; return whether one has."""
        # Within the transaction, so that two workers do not end the same streams.
        dead = self._lock.find_dead(workers)
        for worker in dead:
            self._reap(worker)
        return bool(dead)

    def _reap(self, worker: str) -> None:
        query = "SELECT DISTINCT owner, id FROM streams WHERE worker = ? AND expires_at IS NULL"
        keys = [StreamKey(text_of(owner), stream_id) for owner, stream_id in self._execute(query, (worker,))]
        for key in keys:
            outcome = self._transition(key, lambda slot, now: lifecycle.lose(slot, worker, now, self._limits.retention))
            for change in outcome.changes:
                if change.code:
                    warn = partial(logger.warning, extra=key.fields(change.stream.epoch))
                    self._call(warn, "stream %r is interrupted: worker %s has ended", key.id, worker)
        for table in ("readers", "workers"):
            self._execute(f"DELETE FROM {table} WHERE worker = ?", (worker,))  # noqa: S608  # no input


class WriterThread(FileThread):
    """Changes the file: everything that has come in meanwhile goes into its next transaction."""

    use = "written"

    def __init__(self, file: File, on_up: Callable[[], object], worker: str, limits: Limits, lock: WorkerLock) -> None:
        super().__init__(file, on_up)
        self._worker = worker
        self._limits = _with_events_made(limits)
        self._lock = lock

    # In the thread.

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Begin with a file that has just been opened."""
        if self._identity not in (None, self._find_identity()):
            # It may be a copy, made while this worker lived, which lacks the streams that have begun since.
            connection.execute("UPDATE workers SET started_at = ? WHERE worker = ?", (time.time(), self._worker))
        self._transactions = Transactions(connection, self._worker, self._limits, self._lock, self.call)

    def on_end(self) -> None:
        """Give the lock back: nothing more is written."""
        self._lock.close()

    def work(self, connection: sqlite3.Connection, pending: Sequence[PendingJob]) -> Sequence[Any]:
        """Do all jobs in one transaction."""
        transactions = self._transactions
        appends = [job for job, _ in pending if isinstance(job, Append) and job.is_plain]
        size = sum(len(append.write.data) for append in appends)
        if len(appends) == len(pending) and not transactions.logs.grow(size) and append_plainly(connection, appends):
            results: list[Any] = [Written()] * len(pending)
        else:
            # Before anything belongs to this worker; and again with each clean-up, should its file be missing.
            self._lock.take()
            # Committed, or rolled back should anything fail.
            with connection:
                # Not `BEGIN`: a transaction that reads first fails to write (SQLITE_BUSY_SNAPSHOT) once another worker
                # has written in between.
                connection.execute("BEGIN IMMEDIATE")
                results = [answer(each, transactions) for each in pending]
        # Before any reply: what is acknowledged is shown to readers.
        self.sync()
        return results


def _with_events_made(limits: Limits) -> Limits:
    """The same limits, with the terminal events made that a transaction may need.

    `terminal_event` may be the user's own, which must not run while the file is locked.
    """
    if not callable(limits.terminal_event):
        return limits
    events = {}
    for code, message in END_MESSAGES.items():
        status = ResumableStatus.INTERRUPTED if code == "producer_lost" else ResumableStatus.CANCELLED
        events[code], failure = write_terminal_event(limits.terminal_event, status.value, code, message)
        if failure is not None:
            logger.error("terminal_event failed for the code %r; the default one is used", code, exc_info=failure)
    return replace(limits, terminal_event=lambda _status, code, _message: events[code])
