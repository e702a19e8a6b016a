"""The threads that a worker has for the file. The event loop hands them jobs, and never waits for a disk itself."""

import asyncio
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...exceptions import ResumableError
from ..shared.writes import Reply
from .files import FileLostError, connect, is_of_the_whole_file
from .log import Append, give_room_back
from .transactions import LacksEventError, Transactions

logger = logging.getLogger("fastapi_resumable")

BATCH = 256
"""How many jobs go into one transaction at most."""

CLOSING = 2.0
"""The most seconds for which a thread is waited for at the end."""

ANSWERS = (ResumableError, LacksEventError)
"""What a job raises to answer; it is no failure of the file, and nothing is undone for it."""


class Job(NamedTuple):
    """Something to do with the connection, and where its result goes."""

    work: Any
    result: asyncio.Future[Any]


class FileThread:
    """One thread with one connection to the file, opened when it is needed and again after a failure."""

    name: str
    use: str
    """What it does with the file, for the log."""

    def __init__(self, path: Path, synchronous: str, busy: float) -> None:
        """`busy` is the most seconds for which one attempt waits while another connection writes."""
        self.path = path
        self._synchronous = synchronous
        self._log: int | None = None
        self._busy = busy
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._identity: tuple[int, int] | None = None
        self.connection: sqlite3.Connection | None = None

    def submit(self, work: Any) -> asyncio.Future[Any]:
        """Have some work done; call it from the event loop."""
        result: asyncio.Future[Any] = self._loop.create_future()
        with self._wake:
            self._jobs.append(Job(work, result))
            self._wake.notify()
        if self._thread is None:
            # A daemon: a disk that hangs must not keep the process from its exit.
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        return result

    async def aclose(self) -> None:
        """Do what was handed over, and end the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread is not None:
            # Not for ever: a disk may hang.
            await asyncio.wait({self._ended}, timeout=CLOSING)

    def _run(self) -> None:
        try:
            while jobs := self._next_jobs():
                try:
                    results = self._do(jobs)
                except Exception as exc:
                    # Whatever goes wrong, the thread goes on, and the callers learn of it.
                    logger.exception("%s failed", self.name)
                    results = [exc] * len(jobs)
                self.call(_deliver, jobs, results)
        finally:
            self._close()
            self.call(self._ended.set_result, None)

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have the event loop call a function."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop has been closed, so nothing waits for it any more.
            self._is_closing = True

    def _next_jobs(self) -> list[Job]:
        """Wait for jobs; none means that it is time to end."""
        with self._wake:
            while True:
                while not self._jobs and not self._is_closing:
                    self._wait()
                jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), BATCH))]
                # Some callers wait no longer.
                if (wanted := [job for job in jobs if not job.result.done()]) or not jobs:
                    return wanted

    def _wait(self) -> None:
        self._wake.wait()

    def _do(self, jobs: Sequence[Job]) -> list[Any]:
        raise NotImplementedError

    def open(self) -> sqlite3.Connection:
        """The connection to the file that is at the path now."""
        if self.connection is not None and self._identity != self._find_identity():
            self._close()
            raise FileLostError("the file was deleted or replaced while it was in use")
        if self.connection is None:
            connection = connect(self.path, self._busy)
            self.connection, self._identity = connection, self._find_identity()
            self.on_open(connection)
        return self.connection

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Make use of a new connection."""

    def sync(self) -> None:
        """Wait until the disk has what was committed, by this worker or by another.

        SQLite would do so itself, but while it holds the lock: then nobody else could write meanwhile, nor for as long
        as this process is stopped there.
        """
        if self._synchronous == "full":
            if self._log is None:
                self._log = os.open(self.path.with_name(self.path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
            (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._log)

    def _find_identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            os.close(log)
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as exc:
                logger.warning("%s was not closed in order: %s", self.path, exc)

    def fail(self, failure: Exception) -> None:
        """Begin with a new connection next time, unless another one cannot do any better."""
        name = str(getattr(failure, "sqlite_errorname", ""))
        if isinstance(failure, sqlite3.Error) and not name.startswith(("SQLITE_BUSY", "SQLITE_FULL")):
            self._close()


class WriterThread(FileThread):
    """Changes the file. Everything that has come in meanwhile goes into the next transaction."""

    name = "resumable sqlite writer"
    use = "written"

    def __init__(
        self, path: Path, synchronous: str, busy: float, *, on_open: Callable[[sqlite3.Connection], Transactions]
    ) -> None:
        super().__init__(path, synchronous, busy)
        self._on_open = on_open
        self._transactions: Transactions | None = None

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Begin to use a new connection."""
        self._transactions = None
        self._transactions = self._on_open(connection)

    def _do(self, jobs: Sequence[Job]) -> list[Any]:
        try:
            return self._commit(jobs)
        except Exception as exc:  # noqa: BLE001  # it goes to the callers
            self.fail(exc)
            if len(jobs) == 1 or is_of_the_whole_file(exc):
                return [exc] * len(jobs)
        # One of them fails, and the others must not for that.
        results: list[Any] = []
        for job in jobs:
            try:
                results += self._commit([job])
            except Exception as exc:  # noqa: BLE001  # it goes to the caller
                self.fail(exc)
                results.append(exc)
        return results

    def _commit(self, jobs: Sequence[Job]) -> list[Any]:
        connection = self.open()
        transactions = self._transactions
        if transactions is None:
            # Opened, but what had to be done next failed.
            self.on_open(connection)
            transactions = self._transactions
            assert transactions is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = _perform(transactions, jobs)
            if self._identity != self._find_identity():
                raise FileLostError("the file was deleted or replaced while it was in use")
            connection.execute("COMMIT")
        except BaseException as exc:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._close()
            if isinstance(exc, FileLostError):
                self._close()
            raise
        self.sync()
        if Transactions.clean_up in (job.work for job in jobs):
            give_room_back(connection)
        return results


def _perform(transactions: Transactions, jobs: Sequence[Job]) -> list[Any]:
    appends = [job.work for job in jobs if isinstance(job.work, Append)]
    replies: list[Reply] = transactions.write(appends) if appends else []
    written = iter(replies)
    results: list[Any] = []
    for job in jobs:
        if isinstance(job.work, Append):
            results.append(next(written))
            continue
        try:
            results.append(job.work(transactions))
        except ANSWERS as answer:
            results.append(answer)
    return results


def _deliver(jobs: Sequence[Job], results: Sequence[Any]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.result.done():
            # Its caller has been cancelled, or waits no longer.
            continue
        if isinstance(result, Exception):
            job.result.set_exception(result)
        else:
            job.result.set_result(result)
