"""What changes the file: everything here runs in the writer's thread, within a transaction that is begun already.

An answer that is raised leaves the transaction as it is: nothing has been written for it, or what may be written again.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ..._core import lifecycle
from ..._core.ids import StreamKey
from ..._core.lifecycle import Change, Current, OnConflict, Outcome, Queued, Slot, Verdict
from ..._stream.recording import end_event
from ..._stream.stream import Head, Limits
from ...exceptions import TooManyStreams, TooManyStreamsOfOwner
from ...models import ResumableStatus
from ..shared.writes import Ended, Gap, Reply, Restore, Written
from .files import WorkerLock
from .log import TOGETHER, Append, Log, Logs, check
from .rows import COLUMNS, STATE, Row, Rows, bindable, dump_headers, text_of, wanted

logger = logging.getLogger("fastapi_resumable")

Terminal = Mapping[str, bytes]
"""The terminal events that were made, by code: the application makes them, so that is done outside of a transaction."""


class LacksEventError(Exception):
    """The transaction ends a stream whose readers need a terminal event, and was not given it."""

    def __init__(self, status: ResumableStatus, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class Transactions:
    """The writing side of the file."""

    def __init__(self, connection: sqlite3.Connection, worker: str, limits: Limits, lock: WorkerLock) -> None:
        self.logs = Logs(connection, worker, limits)
        self._execute = connection.execute
        self._worker = worker
        self._limits = limits
        self._lock = lock

    # Requests.

    def reserve(self, key: StreamKey, request: Queued, on_conflict: OnConflict, terminal: Terminal) -> Outcome:
        """Queue a request, or say what it has to follow.

        Raises:
            TooManyStreams: A limit is reached.
        """
        state = self._load(key)
        if self.reap(state.workers, terminal):
            state = self._load(key)
        outcome = lifecycle.reserve(state.slot, request, on_conflict)
        if outcome.changes:
            self._check_limits(key.owner, 1 if outcome.replaces else 0, terminal)
        return self._apply(state, outcome, terminal)

    def _check_limits(self, owner: str | None, allowed: int, terminal: Terminal) -> None:
        most = self._limits.max_streams_per_owner
        if owner is not None and most is not None and self._count_live(owner, terminal) >= most + allowed:
            raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
        if not self.logs.shrink():
            raise TooManyStreams("The server's room for streams is full. Try again in a moment.")

    def _count_live(self, owner: str, terminal: Terminal) -> int:
        query = "SELECT worker FROM streams WHERE owner = ? AND expires_at IS NULL"
        live = [worker for (worker,) in self._execute(query, (bindable(owner),)).fetchall()]
        return self._count_live(owner, terminal) if self.reap(set(live), terminal) else len(live)

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

    def restore(self, key: StreamKey, lost: Current, head: Head, how: Restore) -> Reply:
        """Begin a stream anew that the file has lost, or that has gone on without it."""
        outcome = self._transition(key, {}, lambda slot, _: lifecycle.restore(slot, lost._replace(tail=how.earliest)))
        if outcome.verdict is not Verdict.OK:
            return Ended()
        self._execute("DELETE FROM chunks WHERE stream = (SELECT stream FROM streams WHERE epoch = ?)", (lost.epoch,))
        self._set_head(lost.epoch, head)
        self._execute("UPDATE streams SET earliest = ?, mid_event = 0 WHERE epoch = ?", (how.earliest, lost.epoch))
        return Gap(how.earliest)

    # The state of a key.

    def _load(self, key: StreamKey) -> Rows:
        rows = self._rows("owner IS ? AND id = ? ORDER BY stream", bindable(key.owner), key.id)
        return Rows(key, rows, time.time())

    def _rows(self, where: str, *values: object) -> Iterable[Row]:
        query = f"SELECT {COLUMNS} FROM streams WHERE {where}"  # noqa: S608  # no input
        return map(Row._make, self._execute(query, values).fetchall())

    def _transition(
        self, key: StreamKey, terminal: Terminal, change: Callable[[Slot, float], Outcome], head: Head | None = None
    ) -> Outcome:
        state = self._load(key)
        return self._apply(state, change(state.slot, state.now), terminal, head)

    def _apply(self, state: Rows, outcome: Outcome, terminal: Terminal, head: Head | None = None) -> Outcome:
        """Make the file say what a transition came to; `head` is that of a stream that has begun.

        Raises:
            LacksEventError: It ends a stream that needs a terminal event, and there is none in `terminal`.
        """
        self._end_logs(state, outcome, terminal)
        states = wanted(outcome.slot, state.by_epoch)
        for stream in (*outcome.slot.queued, outcome.slot.current):
            if stream is not None and stream.epoch not in state.by_epoch:
                self._insert(state.key, stream, states[stream.epoch][0])
        for epoch, columns in states.items():
            if (row := state.by_epoch.get(epoch)) is not None and columns != row.state:
                assignments = ", ".join(f"{name} = ?" for name in STATE)
                query = f"UPDATE streams SET {assignments} WHERE stream = ?"  # noqa: S608  # no input
                self._execute(query, (*columns, row.stream))
        if head is not None and outcome.verdict is Verdict.BEGUN and outcome.slot.current is not None:
            self._set_head(outcome.slot.current.epoch, head)
        for change in outcome.changes:
            self._announce(state, change)
        for epoch in state.by_epoch.keys() - states.keys():
            self.logs.delete(state.by_epoch[epoch].stream)
        return outcome

    def _end_logs(self, state: Rows, outcome: Outcome, terminal: Terminal) -> None:
        ended = [
            (change, row)
            for change in outcome.changes
            if change.code and (row := state.by_epoch.get(change.stream.epoch)) is not None and row.is_live_event_stream
        ]
        for change, _ in ended:
            if change.code not in terminal:
                raise LacksEventError(change.status, change.code)
        for change, row in ended:
            if event := terminal[change.code]:
                limits = replace(self._limits, terminal_event=lambda *_, event=event: event)
                data = end_event(row.epoch, limits, row.tail, bool(row.mid_event), change.status, "", "")
                self._execute("INSERT INTO chunks VALUES (?, ?, ?)", (row.stream, row.tail + len(data), data))

    def _insert(self, key: StreamKey, stream: Queued | Current, status: str) -> None:
        at = stream.requested_at if isinstance(stream, Queued) else stream.started_at
        self._execute(
            "INSERT INTO streams (epoch, owner, id, worker, idempotency_key, status, requested_at, started_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                stream.epoch,
                bindable(key.owner),
                key.id,
                stream.worker,
                bindable(stream.idempotency_key),
                status,
                at,
                at,
            ),
        )

    def _set_head(self, epoch: str, head: Head) -> None:
        self._execute(
            "UPDATE streams SET status_code = ?, headers = ?, traceparent = ? WHERE epoch = ?",
            (head.status_code, dump_headers(head), head.traceparent, epoch),
        )

    def _announce(self, state: Rows, change: Change) -> None:
        stream, status = change.stream, change.status
        (row,) = self._rows("epoch = ?", stream.epoch)
        item = row.item(state.key)
        if item.status is not status:
            # A request that was given back is still in the file, as queued.
            item = item.model_copy(update={"status": status, "is_done": True, "completed_at": int(state.now)})
        self._execute(
            "INSERT INTO changes (at, owner, epoch, worker, status, code, item) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                state.now, bindable(state.key.owner), stream.epoch, stream.worker, status.value, change.code,
                item.model_dump_json(),
            ),
        )  # fmt: skip

    # Bytes.

    def write(self, appends: Sequence[Append]) -> list[Reply]:
        """Write what streams have recorded, those that are still live: the others learn that they are not."""
        if not appends:
            return []
        logs = self.logs.find([append.epoch for append in appends])
        replies = [check(append, logs.get(append.epoch)) for append in appends]
        written = [append for append, reply in zip(appends, replies, strict=True) if isinstance(reply, Written)]
        chunks: list[object] = []
        for append in written:
            if append.write.last > logs[append.epoch].tail:
                chunks += (logs[append.epoch].stream, append.write.last, append.write.data)
        if self.logs.take(sum(len(append.write.data) for append in written)):
            self.logs.shrink()
        for start in range(0, len(chunks), 3 * TOGETHER):
            some = chunks[start : start + 3 * TOGETHER]
            values = ", ".join(["(?, ?, ?)"] * (len(some) // 3))
            self._execute(f"INSERT INTO chunks VALUES {values}", some)  # noqa: S608  # no input
        for index, append in enumerate(appends):
            if isinstance(replies[index], Written):
                replies[index] = self._follow_up(append, logs[append.epoch])
        return replies

    def _follow_up(self, append: Append, log: Log) -> Written:
        write, ending = append.write, append.write.ending
        if write.is_mid_event != bool(log.mid_event) or write.earliest > log.earliest:
            earliest = max(write.earliest, log.earliest)
            self._execute(
                "UPDATE streams SET mid_event = ?, earliest = ? WHERE stream = ?",
                (int(write.is_mid_event), earliest, log.stream),
            )
            self._execute("DELETE FROM chunks WHERE stream = ? AND end <= ?", (log.stream, earliest))
        if ending is not None and log.status == ResumableStatus.IN_PROGRESS:
            at, retention = ending.completed_at, self._limits.retention

            def end(slot: Slot, _: float) -> Outcome:
                return lifecycle.end(slot, append.epoch, ending.status, ending.code, at, retention)

            self._transition(append.key, {}, end)
        return Written(self.logs.slowest_reader(append.epoch)) if write.may_fill else Written()

    def clean_up(self) -> float | None:
        """Delete what is past its time; return when there is more to delete."""
        return self.logs.clean_up()

    # Workers.

    def register(self, pid: int) -> None:
        """Note that this worker is there."""
        self._execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", (self._worker, pid, time.time()))

    def leave(self) -> None:
        """Note that this worker goes."""
        self._forget_worker(self._worker)

    def _forget_worker(self, worker: str) -> None:
        self._execute("DELETE FROM readers WHERE worker = ?", (worker,))
        self._execute("DELETE FROM workers WHERE worker = ?", (worker,))

    def reap(self, workers: Iterable[str], terminal: Terminal) -> bool:
        """End everything that belongs to those workers that have died; return whether one has."""
        dead = self._lock.find_dead(workers)
        for worker in dead:
            self._reap(worker, terminal)
        return bool(dead)

    def _reap(self, worker: str, terminal: Terminal) -> None:
        query = "SELECT DISTINCT owner, id FROM streams WHERE worker = ? AND expires_at IS NULL"
        keys = [StreamKey(text_of(owner), stream_id) for owner, stream_id in self._execute(query, (worker,))]
        retention = self._limits.retention
        for key in keys:
            outcome = self._transition(key, terminal, lambda slot, now: lifecycle.lose(slot, worker, now, retention))
            for change in outcome.changes:
                if change.code:
                    extra = key.fields(change.stream.epoch)
                    logger.warning("stream %r is interrupted: worker %s has died", key.id, worker, extra=extra)
        self._forget_worker(worker)
        self._lock.remove(worker)
