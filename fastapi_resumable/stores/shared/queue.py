"""Writes to the backend what the streams of this worker have recorded, and what its readers report.

One batch is under way at a time, and what comes in meanwhile goes into the next: so a slow backend delays a stream by
its latency, and not by its latency for each event. What several streams write goes together; and fast streams wait a
moment before each batch, the longer the more of them there are, so that it takes many events along.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from ..._core.ids import StreamKey
from ..._stream.fanout import FLUSH_INTERVAL
from ...exceptions import StoreUnavailable

logger = logging.getLogger("fastapi_resumable")

BATCH = 512
"""How many streams are written in one batch."""
BATCH_BYTES = 1024 * 1024
"""How many bytes fill a batch, which has to be through within one attempt."""
MOST_POSTS = 10_000
"""How many jobs that no caller waits for are kept while the backend cannot be used."""
RETRY = 0.5
"""Seconds between attempts, once the store counts as gone."""
PAUSE = 0.025
"""The most seconds for which a fast stream collects what it writes next."""
SHARE = 0.0004
"""What each fast stream adds to that: a few of them need not wait for long."""

Job = TypeVar("Job")
Job_co = TypeVar("Job_co", covariant=True)


class Subject(Hashable, Protocol):
    """What is marked: a stream, or an epoch that has none."""

    @property
    def key(self) -> StreamKey:
        """Owner and id."""

    @property
    def epoch(self) -> str:
        """Which incarnation of the id it is."""


class Source(Protocol[Job_co]):
    """Where jobs come from."""

    def next_job(self, subject: Any) -> Job_co | None:
        """What to do for it now."""

    def take_reply(self, subject: Any, reply: Any) -> None:
        """What came of it."""

    def on_outage(self, subject: Any, failure: StoreUnavailable) -> None:
        """It could not be done; there will be another attempt."""


class WriteQueue(Generic[Job]):
    """What has something to write, each with its source; and jobs that no caller waits for."""

    def __init__(
        self,
        execute: Callable[[Sequence[Job]], Any],
        size: Callable[[Job], int],
        *,
        interval: float = 0.0,
        collect: float | None = None,
    ) -> None:
        """Set it up.

        `execute` does some jobs, and returns a reply to each: a `StoreUnavailable` to one that is refused, while the
        others go on. It raises that if none can be done. `size` says how many bytes a job writes,
        `interval` how many seconds lie at least between the beginnings of two batches, and `collect` for how many
        seconds a fast stream collects what it writes next, while there is no other.
        """
        self._execute = execute
        self._size = size
        self._interval = interval
        self._begun = 0.0
        self._is_closed = False
        self._dirty: dict[Subject, Source[Job]] = {}
        self._collecting: dict[Subject, Source[Job]] = {}
        self._posts: deque[Job] = deque(maxlen=MOST_POSTS)
        self._collect_for = self._pause = FLUSH_INTERVAL if collect is None else collect
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

    def mark(self, source: Source[Job], subject: Subject, *, may_wait: bool = False) -> None:
        """Note that there is something to write; if it `may_wait`, with what else comes in the next moment."""
        if self._is_closed:
            return
        if not may_wait:
            self._dirty[subject] = source
            self._wake.set()
            return
        if not self._collecting:
            asyncio.get_running_loop().call_later(self._pause, self._collect)
        self._collecting[subject] = source

    def _collect(self) -> None:
        self._pause = min(PAUSE, self._collect_for + SHARE * len(self._collecting))
        self._dirty |= self._collecting
        self._collecting = {}
        self._wake.set()

    def post(self, *jobs: Job) -> None:
        """Do jobs whose replies do not matter, soon. In a long outage the oldest are dropped."""
        self._posts.extend(jobs)
        self._wake.set()

    def close(self) -> None:
        """Write no more, and keep nothing."""
        self._is_closed = True
        self._dirty.clear()
        self._collecting.clear()

    async def flush(self) -> None:
        """Write what is left, and wait for that."""
        self._idle.clear()
        self._collect()
        await self._idle.wait()

    async def run(self) -> None:
        """Write, for as long as the task lives."""
        while True:
            if not self._dirty and not self._posts:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            if (left := self._begun + self._interval - monotonic()) > 0:
                await asyncio.sleep(left)
            self._begun = monotonic()
            await self._write_batch()

    async def _write_batch(self) -> None:
        taken = self._take()
        posts = [self._posts.popleft() for _ in range(min(len(self._posts), BATCH))]
        try:
            await self._write(taken, posts)
        except BaseException as exc:
            # Nothing is lost, as everything may be done again.
            self._dirty |= {subject: source for subject, source, _ in taken}
            self._posts.extendleft(reversed(posts))
            if not isinstance(exc, StoreUnavailable):
                raise
            for subject, source in list(self._dirty.items()):
                _note_outage(source, subject, exc)
            await asyncio.sleep(RETRY)

    def _take(self) -> list[tuple[Subject, Source[Job], Job]]:
        """Take as many streams as fill a batch, each with what is to be done for it."""
        taken: list[tuple[Subject, Source[Job], Job]] = []
        size = 0
        for subject in list(self._dirty)[:BATCH]:
            source = self._dirty.pop(subject)
            try:
                job = source.next_job(subject)
            except Exception as exc:
                logger.exception("the next write of a stream could not be determined", extra=_fields(subject))
                self._put_off(source, subject, exc)
                continue
            if job is not None:
                taken.append((subject, source, job))
                size += self._size(job)
                if size >= BATCH_BYTES:
                    break
        return taken

    async def _write(self, taken: Sequence[tuple[Subject, Source[Job], Job]], posts: Sequence[Job]) -> None:
        if not taken and not posts:
            return
        replies = await self._execute([*(job for _, _, job in taken), *posts])
        for (subject, source, _), reply in zip(taken, replies, strict=False):
            if isinstance(reply, Exception):
                self._put_off(source, subject, reply)
                continue
            try:
                source.take_reply(subject, reply)
            except Exception as exc:
                logger.exception("a reply of the store could not be handled", extra=_fields(subject))
                self._put_off(source, subject, exc)

    def _put_off(self, source: Source[Job], subject: Subject, failure: Exception) -> None:
        """Try again with one stream later, while the others go on."""
        if not isinstance(failure, StoreUnavailable):
            cause, failure = failure, StoreUnavailable("The store of streams cannot be used. Try again in a moment.")
            failure.__cause__ = cause
        _note_outage(source, subject, failure)
        asyncio.get_running_loop().call_later(RETRY, self.mark, source, subject)


def _fields(subject: Subject) -> dict[str, str | None]:
    return subject.key.fields(subject.epoch)


def _note_outage(source: Source[Any], subject: Subject, failure: StoreUnavailable) -> None:
    try:
        source.on_outage(subject, failure)
    except Exception:
        logger.exception("a stream could not take note of an outage", extra=_fields(subject))
