"""How the event loop uses the file: again and again, until it works or the file has been unusable for too long.

Every job may be done twice, so a result that comes too late is no problem.
"""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol, TypeVar

from ...exceptions import StoreUnavailable
from .files import UnusableFileError, explain
from .log import Append
from .reading import ReaderThread
from .threads import ANSWERS, FileThread, WriterThread
from .transactions import Transactions

logger = logging.getLogger("fastapi_resumable")

T = TypeVar("T")

BATCH = 512
"""How many streams are written in one transaction at most."""
RETRY = 0.5
"""The longest pause between two attempts, in seconds."""
PAUSE = 0.002
"""The fewest seconds between two transactions, and for which a stream that writes very often collects more."""
MOST_POSTS = 10_000
"""How many jobs that no caller waits for are kept while the file cannot be used."""

TransactionJob = Callable[[Transactions], Any]


class Access:
    """Both threads, and whether the file can be used."""

    def __init__(
        self, writer: WriterThread, reader: ReaderThread, timeout: float, *, on_up: Callable[[], object]
    ) -> None:
        self.writer = writer
        self.reader = reader
        self.timeout = timeout
        self.attempt = max(0.5, timeout / 4)
        """Seconds after which one attempt is taken for lost."""
        self.is_closed = False
        self._on_up = on_up
        self._down_since: dict[FileThread, float] = {}
        """Since when a thread cannot use the file; reading may work where writing does not."""

    async def write(self, job: TransactionJob) -> Any:
        """Do a job within a transaction.

        Raises:
            StoreUnavailable: The file has not been usable for `timeout` seconds.
        """
        return await self._run(self.writer, job)

    async def read(self, job: Callable[[Any], T]) -> T:
        """Do a job with a connection, for reading.

        Raises:
            StoreUnavailable: As for `write`.
        """
        result: T = await self._run(self.reader, job)
        return result

    async def write_all(self, works: list[Append | TransactionJob]) -> list[Any]:
        """Do some jobs in one transaction; exceptions that answer one are among the results.

        Raises:
            StoreUnavailable: None of them could be done, as for `write`.
        """
        begun, delay = self._begin(), 0.02
        while True:
            futures = [self.writer.submit(work) for work in works]
            await asyncio.wait(futures, timeout=self.attempt)
            results = [_outcome(future) for future in futures]
            failures = [each for each in results if isinstance(each, Exception) and not isinstance(each, ANSWERS)]
            if len(failures) < len(results):
                self.note_up(self.writer)
                return results
            await self._note_failure(self.writer, failures[0], begun, delay)
            delay = min(delay * 2, RETRY)

    async def _run(self, thread: FileThread, job: Any) -> Any:
        begun, delay = self._begin(), 0.02
        while True:
            try:
                async with asyncio.timeout(self.attempt):
                    result = await thread.submit(job)
            except ANSWERS:
                self.note_up(thread)
                raise
            except Exception as exc:  # noqa: BLE001  # whatever it is, it counts as an outage, and passes
                await self._note_failure(thread, exc, begun, delay)
                delay = min(delay * 2, RETRY)
            else:
                self.note_up(thread)
                return result

    def _begin(self) -> float:
        if self.is_closed:
            raise StoreUnavailable("The store is closed.")
        return monotonic()

    async def _note_failure(self, thread: FileThread, failure: Exception, begun: float, delay: float) -> None:
        """Wait a moment, if there is to be another attempt.

        Raises:
            StoreUnavailable: There is not.
        """
        since = self.note_down(thread, failure)
        # While the file is known to be unusable, one attempt is enough.
        until = min(begun + self.timeout, max(since + self.timeout, begun + self.attempt))
        if self.is_closed or monotonic() + delay > until or isinstance(failure, UnusableFileError):
            raise StoreUnavailable("The store of streams cannot be used now. Try again in a moment.") from failure
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # no secret

    def note_down(self, thread: FileThread, failure: Exception) -> float:
        """Note that a thread cannot use the file; return since when."""
        if thread not in self._down_since:
            self._down_since[thread] = monotonic()
            logger.warning("the store of streams cannot be %s: %s", thread.use, explain(failure, thread.path))
        return self._down_since[thread]

    def note_up(self, thread: FileThread) -> None:
        """Note that a thread can use the file."""
        if (since := self._down_since.pop(thread, None)) is not None:
            logger.warning("the store of streams can be %s again after %.1f s", thread.use, monotonic() - since)
            self._on_up()

    def is_gone(self, thread: FileThread) -> bool:
        """Whether the file has been unusable for longer than the timeout."""
        return monotonic() - self._down_since.get(thread, math.inf) > self.timeout

    async def aclose(self) -> None:
        """End both threads."""
        self.is_closed = True
        await self.reader.aclose()
        await self.writer.aclose()


def _outcome(future: asyncio.Future[Any]) -> Any:
    if not future.done():
        future.cancel()
        return TimeoutError("the disk does not answer")
    return future.exception() or future.result()


class Pending(Protocol):
    """Something that has a job for the writer."""

    def next_job(self) -> Append | TransactionJob | None:
        """What to do for it now."""

    def take_result(self, result: Any) -> None:
        """What came of it: a reply, or an exception."""

    def on_outage(self, failure: StoreUnavailable) -> None:
        """The file cannot be used; there will be another attempt."""


class Appender:
    """Writes what the streams of this worker have recorded: one transaction at a time, with all that has come in."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._dirty: dict[Pending, None] = {}
        self._waiting: dict[Pending, None] = {}
        self._failing: dict[Pending, float] = {}
        self._posts: deque[TransactionJob] = deque(maxlen=MOST_POSTS)
        self._written_at = 0.0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

    def mark(self, pending: Pending, *, may_wait: bool = False) -> None:
        """Note that there is something to write; if it `may_wait`, with what else comes in the next moment."""
        if not may_wait:
            self._dirty[pending] = None
            self._wake.set()
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(PAUSE, self._collect)
        self._waiting[pending] = None

    def _collect(self) -> None:
        self._dirty |= self._waiting
        self._waiting = {}
        self._wake.set()

    def post(self, job: TransactionJob) -> None:
        """Do a job whose result does not matter, as soon as possible; in a long outage the oldest are dropped."""
        self._posts.append(job)
        self._wake.set()

    async def flush(self) -> None:
        """Write what is left, and wait for that."""
        self._collect()
        self._idle.clear()
        await self._idle.wait()

    async def run(self) -> None:
        """Write whenever there is something to write."""
        while True:
            if not self._dirty and not self._posts:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            if (pause := self._written_at + PAUSE - monotonic()) > 0:
                # Many streams write: what they have in a moment goes into one transaction.
                await asyncio.sleep(pause)
            self._written_at = monotonic()
            await self._write()

    async def _write(self) -> None:
        taken = list(self._dirty)[:BATCH]
        works: list[Append | TransactionJob] = []
        pending: list[Pending] = []
        for each in taken:
            del self._dirty[each]
            if (work := each.next_job()) is not None:
                works.append(work)
                pending.append(each)
        posts = [self._posts.popleft() for _ in range(min(len(self._posts), BATCH))]
        if not works and not posts:
            return
        try:
            results = await self._access.write_all([*works, *posts])
        except StoreUnavailable as exc:
            self._dirty |= dict.fromkeys(pending)
            self._posts.extendleft(reversed(posts))
            for each in list(self._dirty):
                each.on_outage(exc)
            await asyncio.sleep(RETRY)
            return
        except BaseException:
            self._dirty |= dict.fromkeys(pending)
            raise
        for each, result in zip(pending, results, strict=False):
            if isinstance(result, Exception):
                self._note_failure(each, result)
            else:
                self._failing.pop(each, None)
                each.take_result(result)

    def _note_failure(self, pending: Pending, failure: Exception) -> None:
        """Try again later: this one could not be written, as with a damaged page, and others could."""
        if pending not in self._failing:
            logger.error("a stream could not be written: %s", explain(failure, self._access.writer.path))
        since = self._failing.setdefault(pending, monotonic())
        if monotonic() - since > self._access.timeout:
            pending.on_outage(StoreUnavailable("The store of streams cannot be used now. Try again in a moment."))
        asyncio.get_running_loop().call_later(RETRY, self.mark, pending)
