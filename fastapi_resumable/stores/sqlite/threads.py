"""The threads of a worker, each with a connection of its own, so that the event loop never waits for a disk.

Every job may be done twice, so that one whose result was lost, or came too late, is simply done again.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

from ...exceptions import ResumableError, StoreUnavailable
from ..shared.outage import FIRST_PAUSE, UNAVAILABLE, Outage
from .files import UnusableFileError, connect

logger = logging.getLogger("fastapi_resumable")
T = TypeVar("T")

BATCH = 512
"""How many calls are answered together at most."""
CLOSING = 2.0
"""The most seconds for which a thread is waited for at the end."""

Job = Callable[[Any], Any]
"""What a thread does: with the connection, or with the `Transactions` of the writer."""
Caller = asyncio.Future[list[Any]]
"""What waits for the results of some jobs."""
Call = tuple[Sequence[Job], Caller]
PendingJob = tuple[Job, Caller]
"""A job, and what waits for its result."""


class File(NamedTuple):
    """Which file to use, and how."""

    path: Path
    synchronous: str
    timeout: float
    """Seconds for which it may be unusable before it is given up."""


class FileThread(ABC):
    """A thread with a connection, which is opened when it is needed, and again after a failure.

    A subclass says what is done in the thread: `on_open`, `work`, and perhaps `tick`.
    """

    use: str
    """What the thread does with the file, for the log."""

    def __init__(self, file: File, on_up: Callable[[], object]) -> None:
        """`on_up` is called on the event loop when the file can be used again, or is another one."""
        self.file = file
        self._on_up = on_up
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._is_closed = False
        self.outage = Outage(
            file.timeout,
            f"the store of streams cannot be {self.use}: %s",
            f"the store of streams can be {self.use} again after %.1f s",
            on_up,
        )
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._log: int | None = None

    # On the event loop.

    async def run(self, job: Callable[[Any], T]) -> T:
        """Have a job done, again and again until it works; return its result.

        Raises:
            StoreUnavailable: The file has not been usable for the timeout.
        """
        result: T | Exception
        (result,) = await self.run_all([job])
        if isinstance(result, Exception):
            raise result
        return result

    async def run_all(self, jobs: Sequence[Job]) -> list[Any]:
        """Have some jobs done; exceptions that answer one, or by which it alone fails, are among the results.

        Raises:
            StoreUnavailable: None of them could be done, as for `run`.
        """
        begun = monotonic()
        for attempts in count():
            if self._is_closed:
                break
            results = await self._try(jobs)
            failures = [
                each for each in results if isinstance(each, Exception) and not isinstance(each, ResumableError)
            ]
            if len(failures) < len(results):
                self.outage.note_up()
                return results
            since = self.note_failure(failures[0])
            if isinstance(failures[0], UnusableFileError) or not await self.outage.pause(begun, since, attempts):
                raise StoreUnavailable(UNAVAILABLE) from failures[0]
        raise StoreUnavailable("The store is closed.")

    async def _try(self, jobs: Sequence[Job]) -> list[Any]:
        future: Caller = self._loop.create_future()
        late = [TimeoutError("the disk does not answer")] * len(jobs)
        timer = self._loop.call_later(self.outage.attempt, _deliver, [(future, late)])
        try:
            self._put((jobs, future))
            return await future
        finally:
            timer.cancel()

    def wake(self) -> None:
        """Have the thread look whether something is due."""
        self._put(None)

    def _put(self, call: Call | None) -> None:
        self._calls.put(call)
        if self._thread is None:
            # A daemon: a disk that hangs must not keep the process from its exit.
            thread = threading.Thread(target=self._run, name=f"resumable sqlite {self.use}", daemon=True)
            # Where the system has no room for one more, the next call tries again.
            thread.start()
            self._thread = thread

    def note_failure(self, failure: Exception) -> float:
        """Note that the file cannot be used; return since when."""
        return self.outage.note_down(f"{self.file.path}: {failure}")

    def close(self) -> None:
        """Have the thread do what was handed over, and end."""
        self._is_closed = True
        if self._thread is not None:
            self.wake()

    async def wait_closed(self) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None:
            # With a limit, because a disk may hang.
            await asyncio.wait({self._ended}, timeout=CLOSING)

    # In the thread.

    def _run(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._answer_calls()
            except Exception as exc:  # noqa: BLE001  # it counts as an outage, and calls that got no answer are repeated
                is_open = not self._is_closed
                self.call(self.note_failure, exc)
                sleep(FIRST_PAUSE)
        self._close()
        self.on_end()
        self.call(self._ended.set_result, None)

    def _answer_calls(self) -> bool:
        """Do what was handed over, once there is something; return whether more may come."""
        calls = self._take()
        # Looked at before the calls are answered, and after they were taken: what was handed over before the end is
        # still done.
        is_open = not (self._is_closed and self._calls.empty())
        if calls:
            results = iter(self._perform([(job, future) for jobs, future in calls for job in jobs]))
            self.call(_deliver, [(future, list(islice(results, len(jobs)))) for jobs, future in calls])
        return is_open

    def _take(self) -> list[Call]:
        """Wait for calls, and take all that there are, except those whose callers wait no longer."""
        taken: list[Call | None] = []
        with suppress(queue.Empty):
            taken.append(self._calls.get(timeout=self.tick()))
            while len(taken) < BATCH:
                taken.append(self._calls.get_nowait())
        return [call for call in taken if call is not None and not call[1].done()]

    def _perform(self, pending: Sequence[PendingJob]) -> Sequence[Any]:
        """Do some jobs together, and should that fail, each on its own; the result of each, or its exception."""
        try:
            return self.work(self.open(), pending)
        except Exception as exc:  # noqa: BLE001  # it goes to the callers
            self.reconnect_after(exc)
            # A disk, or a lock, is in the way of all of them. A damaged page is not, and is another error.
            if len(pending) == 1 or isinstance(exc, sqlite3.OperationalError | UnusableFileError | OSError):
                return [exc] * len(pending)
        return [result for each in pending for result in self._perform([each])]

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have the event loop call a function."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop has been closed, so nothing waits for it any more.
            self._is_closed = True

    @abstractmethod
    def work(self, connection: sqlite3.Connection, pending: Sequence[PendingJob]) -> Sequence[Any]:
        """Do some jobs; return the result of each."""

    @abstractmethod
    def on_open(self, connection: sqlite3.Connection) -> None:
        """Make use of a new connection."""

    def on_end(self) -> None:  # noqa: B027  # not every thread has something to do then
        """The connection is closed for good."""

    def tick(self) -> float | None:
        """Do what is due; return after how many seconds something will be, `None` if nothing will."""
        return None

    def open(self) -> sqlite3.Connection:
        """The connection to the file that is at the path now."""
        if self._connection is not None and self._identity != self._find_identity():
            self._close()
        if self._connection is None:
            # SQLite says that the file is locked before an attempt is taken for lost, which is after a fourth.
            self._connection = connect(self.file.path, min(1.0, self.file.timeout / 8))
            try:
                self.on_open(self._connection)
            except BaseException:
                self._close()
                raise
            before, self._identity = self._identity, self._find_identity()
            if before not in (None, self._identity):
                self.call(self._on_up)
                logger.warning("%s was deleted or replaced while it was in use", self.file.path)
        return self._connection

    def sync(self) -> None:
        """Wait until the disk has what was committed, by this worker or by another.

        SQLite would do so itself, but while it holds the lock: then no other worker could write meanwhile, nor for as
        long as this process is stopped there.
        """
        # `fdatasync` on the log: a commit is durable when its frames are (https://www.sqlite.org/wal.html).
        if self.file.synchronous == "full" and self._connection is not None:
            if self._log is None:
                self._log = os.open(f"{self.file.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._log)

    def reconnect_after(self, failure: Exception) -> None:
        """Begin with a new connection next time, unless another one cannot do any better."""
        name = getattr(failure, "sqlite_errorname", "")
        if isinstance(failure, sqlite3.Error) and not name.startswith(("SQLITE_BUSY", "SQLITE_FULL")):
            self._close()

    def _find_identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.file.path)  # noqa: PTH116  # looked at so often that it matters
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            os.close(log)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def answer(pending: PendingJob, given: object) -> Any:
    """The result of a job, or what it raises as its answer; it is not done if its caller has given it up."""
    job, caller = pending
    # While the file was waited for: a stream may have ended otherwise by now.
    if caller.done():
        return None
    try:
        return job(given)
    except ResumableError as exc:
        # It has changed nothing, and is no failure of the file.
        return exc


def _deliver(answers: Sequence[tuple[Caller, list[Any]]]) -> None:
    for future, results in answers:
        # Its caller may have been cancelled, or wait no longer.
        if not future.done():
            future.set_result(results)
