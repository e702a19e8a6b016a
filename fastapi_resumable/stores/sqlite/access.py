"""Writes what the streams of this worker have recorded."""

import asyncio
import logging
from collections import deque
from time import monotonic
from typing import Any, Protocol

from ...exceptions import StoreUnavailable
from .files import explain
from .threads import RETRY, unavailable
from .writer import Job, WriterThread

logger = logging.getLogger("fastapi_resumable")

BATCH = 512
"""How many streams are written in one transaction at most."""
PAUSE = 0.002
"""The fewest seconds between two transactions, and for which a stream that writes very often collects more."""
MOST_POSTS = 10_000
"""How many jobs that no caller waits for are kept while the file cannot be used."""


class Pending(Protocol):
    """Something that has a job for the writer."""

    def next_job(self) -> Job | None:
        """What to do for it now."""

    def take_result(self, result: Any) -> None:
        """What came of it: a reply, or an exception."""

    def on_outage(self, failure: StoreUnavailable) -> None:
        """The file cannot be used; there will be another attempt."""


class Appender:
    """Writes what the streams of this worker have recorded: one transaction at a time, with all that has come in."""

    def __init__(self, writer: WriterThread) -> None:
        self._writer = writer
        self._dirty: dict[Pending, None] = {}
        self._waiting: dict[Pending, None] = {}
        self._failing: dict[Pending, float] = {}
        self._posts: deque[Job] = deque(maxlen=MOST_POSTS)
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

    def post(self, job: Job) -> None:
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
        works: list[Job] = []
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
            results = await self._writer.run_all([*works, *posts])
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
            logger.error("a stream could not be written: %s", explain(failure, self._writer.file.path))
        since = self._failing.setdefault(pending, monotonic())
        if monotonic() - since > self._writer.file.timeout:
            pending.on_outage(unavailable())
        asyncio.get_running_loop().call_later(RETRY, self.mark, pending)
