"""The thread that writes: everything that has come in meanwhile goes into its next transaction."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from ..shared.writes import Written
from .files import is_of_the_whole_file
from .log import Append, append_plainly
from .threads import ANSWERS, File, FileThread
from .transactions import Transactions

Job = Append | Callable[[Transactions], Any]
"""What the thread does."""


class WriterThread(FileThread):
    """Changes the file."""

    use = "written"

    def __init__(
        self, file: File, on_up: Callable[[], object], register: Callable[[sqlite3.Connection], Transactions]
    ) -> None:
        """`register` is called in the thread with each new connection."""
        super().__init__(file, on_up)
        self._register = register
        self._transactions: Transactions | None = None

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Make the worker known to the file."""
        self._transactions = self._register(connection)

    def perform(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """Do all jobs in one transaction; should that fail because of one of them, each in one of its own."""
        try:
            return self._commit(jobs)
        except Exception as exc:
            if len(jobs) == 1 or is_of_the_whole_file(exc):
                raise
            self.reconnect_after(exc)
        return [self.attempt(job) for job in jobs]

    def do(self, job: Job) -> Any:
        """Do one job in a transaction of its own."""
        return self._commit([job])[0]

    def _commit(self, jobs: Sequence[Job]) -> list[Any]:
        connection, transactions = self.open(), self._transactions
        assert transactions is not None
        appends = [job for job in jobs if isinstance(job, Append) and job.is_plain]
        if len(appends) == len(jobs) and not transactions.logs.take(appends) and append_plainly(connection, appends):
            results: list[Any] = [Written()] * len(jobs)
        else:
            # Not `BEGIN`: a transaction that reads first fails to write (SQLITE_BUSY_SNAPSHOT) once another worker has
            # written in between.
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = [_do(job, transactions) for job in jobs]
                connection.execute("COMMIT")
            except BaseException:
                # Some errors, like a full disk, have rolled it back already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        # Before any reply: what is acknowledged is shown to readers.
        self.sync()
        return results


def _do(job: Job, transactions: Transactions) -> Any:
    try:
        return transactions.write(job) if isinstance(job, Append) else job(transactions)
    except ANSWERS as answer:
        return answer


def count_bytes(job: Job) -> int:
    """How many bytes a job writes."""
    return len(job.write.data) if isinstance(job, Append) else 0
