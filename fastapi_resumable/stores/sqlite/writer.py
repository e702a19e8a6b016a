"""The thread that writes: everything that has come in meanwhile goes into its next transaction."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from ..shared.writes import Written
from .files import is_of_the_whole_file
from .log import Append, Logs, append_plainly, give_room_back
from .threads import ANSWERS, File, FileThread
from .transactions import Transactions

Job = Append | Callable[[Transactions], Any]


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

    def perform(self, works: Sequence[Job]) -> Sequence[Any]:
        """Do all jobs in one transaction; should that fail because of one of them, each in one of its own."""
        try:
            return self._commit(works)
        except Exception as exc:
            if len(works) == 1 or is_of_the_whole_file(exc):
                raise
            self.note_failed(exc)
        return super().perform([lambda _, job=job: self._commit([job])[0] for job in works])

    def _commit(self, jobs: Sequence[Job]) -> list[Any]:
        connection, transactions = self.open(), self._transactions
        assert transactions is not None
        if self._append(connection, transactions.logs, jobs):
            self.sync()
            return [Written()] * len(jobs)
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = _do(jobs, transactions)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.sync()
        if Transactions.clean_up in jobs:
            give_room_back(connection)
        return results

    def _append(self, connection: sqlite3.Connection, logs: Logs, jobs: Sequence[Job]) -> bool:
        appends = [job for job in jobs if isinstance(job, Append) and job.is_plain]
        if len(appends) < len(jobs) or logs.take(sum(len(append.write.data) for append in appends)):
            return False
        return append_plainly(connection, appends)


def _do(jobs: Sequence[Job], transactions: Transactions) -> list[Any]:
    written = iter(transactions.write([job for job in jobs if isinstance(job, Append)]))
    results: list[Any] = []
    for job in jobs:
        try:
            results.append(next(written) if isinstance(job, Append) else job(transactions))
        except ANSWERS as answer:
            results.append(answer)
    return results


def count_bytes(job: Job) -> int:
    """How many bytes a job writes."""
    return len(job.write.data) if isinstance(job, Append) else 0
