"""A thread with a connection of its own to the file. The event loop hands it work, and never waits for a disk itself.

Every work may be done twice, so that one whose result was lost, or came too late, is simply done again.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from ...exceptions import ResumableError, StoreUnavailable
from ..shared.outage import Outage
from .files import UnusableFileError, connect, explain
from .transactions import LacksEventError

logger = logging.getLogger("fastapi_resumable")

BATCH = 512
"""How many works are done together at most."""
CLOSING = 2.0
"""The most seconds for which a thread is waited for at the end."""

UNAVAILABLE = "The store of streams cannot be used now. Try again in a moment."

ANSWERS = (ResumableError, LacksEventError)
"""What a work raises to answer, before it has changed anything: it is no failure of the file."""


class File(NamedTuple):
    """Which file to use, and how."""

    path: Path
    synchronous: str
    timeout: float
    """Seconds for which it may be unusable before it is given up."""


class FileThread:
    """One thread with one connection, which is opened when it is needed, and again after a failure.

    A subclass says what is done in the thread: `perform`, `on_open` and `tick`.
    """

    use: str
    """What the thread does with the file, for the log."""

    def __init__(self, file: File, on_up: Callable[[], object]) -> None:
        """`on_up` is called on the event loop when the file can be used again, or is another one."""
        self.file = file
        self._name = str(file.path)
        self._on_up = on_up
        self._loop = asyncio.get_running_loop()
        self._works: queue.SimpleQueue[tuple[Any, asyncio.Future[Any]] | None] = queue.SimpleQueue()
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

    async def run(self, work: Any) -> Any:
        """Have some work done, again and again until it works; return its result.

        Raises:
            StoreUnavailable: The file has not been usable for the timeout.
        """
        (result,) = await self.run_all([work])
        if isinstance(result, Exception):
            raise result
        return result

    async def run_all(self, works: Sequence[Any]) -> list[Any]:
        """Have some works done; exceptions that answer one, or by which it alone fails, are among the results.

        Raises:
            StoreUnavailable: None of them could be done, as for `run`.
        """
        begun = monotonic()
        for attempts in count():
            if self._is_closed:
                break
            futures = [self._submit(work) for work in works]
            await asyncio.wait(futures, timeout=self.outage.attempt)
            results = [_take_result(future) for future in futures]
            failures = [each for each in results if isinstance(each, Exception) and not isinstance(each, ANSWERS)]
            if len(failures) < len(results):
                self.outage.note_up()
                return results
            since = self.note_failure(failures[0])
            if isinstance(failures[0], UnusableFileError) or not await self.outage.pause(begun, since, attempts):
                raise StoreUnavailable(UNAVAILABLE) from failures[0]
        raise StoreUnavailable("The store is closed.")

    def _submit(self, work: Any) -> asyncio.Future[Any]:
        result: asyncio.Future[Any] = self._loop.create_future()
        self._works.put((work, result))
        if self._thread is None:
            # A daemon: a disk that hangs must not keep the process from its exit.
            self._thread = threading.Thread(target=self._run, name=f"resumable sqlite {self.use}", daemon=True)
            self._thread.start()
        return result

    def wake(self) -> None:
        """Have the thread look whether something is due."""
        self._submit(None).cancel()

    def note_failure(self, failure: Exception) -> float:
        """Note that the file cannot be used; return since when."""
        return self.outage.note_down(explain(failure, self.file.path))

    async def aclose(self) -> None:
        """Do what was handed over, and end the thread."""
        self._is_closed = True
        if self._thread is not None:
            self._works.put(None)
            # With a limit, because a disk may hang.
            await asyncio.wait({self._ended}, timeout=CLOSING)

    # In the thread.

    def _run(self) -> None:
        is_open = True
        while is_open:
            taken = self._take()
            is_open = None not in taken
            # Some callers wait no longer.
            wanted = [each for each in taken if each is not None and not each[1].done()]
            if not wanted:
                continue
            results: Sequence[Any]
            try:
                results = self.perform([work for work, _ in wanted])
            except Exception as exc:  # noqa: BLE001  # it goes to the callers
                self.note_failed(exc)
                results = [exc] * len(wanted)
            self.call(_deliver, [result for _, result in wanted], results)
        self._close()
        self.call(self._ended.set_result, None)

    def _take(self) -> list[tuple[Any, asyncio.Future[Any]] | None]:
        """Wait for works, and take all that there are; `None` among them is the end."""
        taken = []
        try:
            taken.append(self._works.get(timeout=self.tick()))
            while len(taken) < BATCH:
                taken.append(self._works.get_nowait())
        except queue.Empty:
            pass
        return taken

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have the event loop call a function."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop has been closed, so nothing waits for it any more.
            self._works.put(None)

    def perform(self, works: Sequence[Any]) -> Sequence[Any]:
        """Do some works; return the result of each, an exception if it failed."""
        return [self._outcome(work) for work in works]

    def _outcome(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        try:
            return work(self.open())
        except Exception as exc:  # noqa: BLE001  # it goes to the caller
            self.note_failed(exc)
            return exc

    def on_open(self, connection: sqlite3.Connection) -> None:
        """Make use of a new connection."""

    def tick(self) -> float | None:
        """Do what is due; return after how many seconds something will be, `None` if nothing will."""
        return None

    def open(self) -> sqlite3.Connection:
        """The connection to the file that is at the path now."""
        if self._connection is not None and self._identity != self._find_identity():
            self._close()
        if self._connection is None:
            connection = connect(self.file.path, min(1.0, self.file.timeout / 4))
            try:
                self.on_open(connection)
            except BaseException:
                connection.close()
                raise
            before, self._identity = self._identity, self._find_identity()
            self._connection = connection
            if before not in (None, self._identity):
                logger.warning("%s was deleted or replaced while it was in use", self.file.path)
                self.call(self._on_up)
        return self._connection

    def sync(self) -> None:
        """Wait until the disk has what was committed, by this worker or by another.

        SQLite would do so itself, but while it holds the lock: then no other worker could write meanwhile, nor for as
        long as this process is stopped there.
        """
        if self.file.synchronous == "full" and self._connection is not None:
            if self._log is None:
                self._log = os.open(f"{self._name}-wal", os.O_RDONLY | os.O_CLOEXEC)
            (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._log)

    def note_failed(self, failure: Exception) -> None:
        """Begin with a new connection next time, unless another one cannot do any better."""
        name = str(getattr(failure, "sqlite_errorname", ""))
        if isinstance(failure, sqlite3.Error) and not name.startswith(("SQLITE_BUSY", "SQLITE_FULL")):
            self._close()

    def _find_identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._name)  # noqa: PTH116  # looked at so often that it matters
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            os.close(log)
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as exc:
                logger.warning("%s was not closed in order: %s", self.file.path, exc)


def _take_result(future: asyncio.Future[Any]) -> Any:
    if not future.done():
        future.cancel()
        return TimeoutError("the disk does not answer")
    return future.exception() or future.result()


def _deliver(futures: Sequence[asyncio.Future[Any]], results: Sequence[Any]) -> None:
    for future, result in zip(futures, results, strict=True):
        # Its caller may have been cancelled, or wait no longer.
        if not future.done():
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
