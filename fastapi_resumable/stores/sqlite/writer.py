"""The thread that writes."""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..._core.ids import StreamKey
from ..._core.terminal import write_terminal_event
from ..._stream.stream import Limits
from ...models import ResumableStatus
from ..shared.writes import END_MESSAGES, Reply, Write, Written
from .lock import WorkerLock
from .log import TAIL
from .threads import File, FileThread, Job, answer
from .transactions import Transactions

logger = logging.getLogger("fastapi_resumable")

TOGETHER = 64
"""How many logs one statement adds to."""

_APPEND = f"""
INSERT INTO chunks WITH w (epoch, first, last, data) AS (VALUES %s)
SELECT s.stream, w.last, w.data FROM w CROSS JOIN streams AS s ON s.epoch = w.epoch
WHERE s.status = 'in_progress' AND s.gone = '' AND s.mid_event = 0 AND {TAIL} = w.first
"""  # noqa: S608  # no input


@dataclass(slots=True)
class Append:
    """The job that writes what one stream has recorded."""

    key: StreamKey
    epoch: str
    write: Write

    def __call__(self, transactions: Transactions) -> Reply:
        """Do it in a transaction."""
        return transactions.write(self.key, self.epoch, self.write)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but some bytes has to be written."""
        write = self.write
        return bool(write.data) and not (write.ending or write.earliest or write.is_mid_event or write.may_fill)


def append_plainly(connection: sqlite3.Connection, appends: Sequence[Append]) -> bool:
    """Write what is plain, where the file is as expected; return whether everything was written.

    Each statement is a transaction of its own, which takes the lock of the file and gives it back without needing the
    interpreter in between. So what is written most often hardly ever keeps others waiting, not even if this process is
    stopped.
    """
    written = 0
    for start in range(0, len(appends), TOGETHER):
        some = appends[start : start + TOGETHER]
        values = [value for each in some for value in (each.epoch, each.write.first, each.write.last, each.write.data)]
        written += connection.execute(_APPEND % ", ".join(["(?, ?, ?, ?)"] * len(some)), values).rowcount
    return written == len(appends)


def count_bytes(job: Job) -> int:
    """How many bytes a job writes."""
    return len(job.write.data) if isinstance(job, Append) else 0


class WriterThread(FileThread):
    """Changes the file: everything that has come in meanwhile goes into its next transaction."""

    use = "written"

    def __init__(self, file: File, on_up: Callable[[], object], worker: str, limits: Limits, lock: WorkerLock) -> None:
        super().__init__(file, on_up)
        self._worker = worker
        self._limits = _with_events_made(limits)
        self._lock = lock
        self._transactions: Transactions | None = None

    # In the thread.

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Begin with a file that has just been opened."""
        self._lock.take()
        self._transactions = Transactions(connection, self._worker, self._limits, self._lock)

    def on_end(self) -> None:
        """Give the lock back: nothing more is written."""
        self._lock.close()

    def work(self, connection: sqlite3.Connection, jobs: Sequence[Job]) -> Sequence[Any]:
        """Do all jobs in one transaction."""
        transactions = self._transactions
        assert transactions is not None
        appends = [job for job in jobs if isinstance(job, Append) and job.is_plain]
        is_plain = len(appends) == len(jobs) and not transactions.logs.grow(sum(count_bytes(job) for job in jobs))
        if is_plain and append_plainly(connection, appends):
            results: list[Any] = [Written()] * len(jobs)
        else:
            # Not `BEGIN`: a transaction that reads first fails to write (SQLITE_BUSY_SNAPSHOT) once another worker has
            # written in between.
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = [answer(job, transactions) for job in jobs]
                connection.execute("COMMIT")
            except BaseException:
                # Some errors, like a full disk, have rolled it back already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
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
