"""Writes to the backend what the streams of this worker have recorded, and what its readers report.

One batch is under way at a time, and what comes in meanwhile goes into the next: so a slow backend delays a stream by
its latency, and not by its latency for each event. What several streams write goes together. After each batch there is
a pause, the longer the more streams it held, so that the next one takes many events along.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Generic, TypeVar

from ...exceptions import StoreUnavailable
from .local import LocalStream
from .outage import UNAVAILABLE
from .remote import RemoteStream

logger = logging.getLogger("fastapi_resumable")

BATCH = 512
"""How many streams are written in one batch."""
BATCH_BYTES = 1024 * 1024
"""How many bytes fill a batch, which has to be through within one attempt."""
MOST_LATER = 10_000
"""How many jobs that no caller waits for are kept while the backend cannot be used."""
RETRY = 0.5
"""Seconds between attempts, once the store counts as gone."""
PAUSE = 0.002
"""Seconds between two batches. A stream that writes more seldom never waits, unless others write as well."""
SHARE = 0.0004
"""What each stream of a batch adds to the pause after it: a batch costs less than one for each of its events."""
LONGEST_PAUSE = 0.025

Marked = LocalStream | RemoteStream
Job = TypeVar("Job")


class WriteQueue(Generic[Job]):
    """The streams that have something to write; and jobs that no caller waits for."""

    def __init__(
        self,
        next_job: Callable[[Marked], Job | None],
        take_reply: Callable[[Marked, Any], None],
        execute: Callable[[Sequence[Job]], Any],
    ) -> None:
        """Set it up.

        `next_job` says what to do for a stream now, and `take_reply` gets what came of it. `execute` does some jobs,
        and returns a reply to each: a `StoreUnavailable` to one that is refused, while the others go on. It raises that
        if none can be done.
        """
        self._next_job = next_job
        self._take_reply = take_reply
        self._execute = execute
        self.is_closed = False
        # In the order in which they were marked.
        self._dirty: dict[Marked, None] = {}
        self._later: deque[Job] = deque(maxlen=MOST_LATER)
        self._next_at = 0.0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

    def mark(self, stream: Marked) -> None:
        """Note that there is something to write."""
        # A producer that ignores its cancellation may still write.
        if not self.is_closed:
            self._dirty[stream] = None
            self._wake.set()

    def run_later(self, *jobs: Job) -> None:
        """Do jobs whose replies do not matter, soon. In a long outage the oldest are dropped."""
        if jobs:
            self._later.extend(jobs)
            self._wake.set()

    def close(self) -> None:
        """Write no more, and keep nothing."""
        self.is_closed = True
        self._dirty.clear()

    async def flush(self) -> None:
        """Write what is left, and wait for that."""
        self._idle.clear()
        self._wake.set()
        await self._idle.wait()

    async def run(self) -> None:
        """Write, for as long as the task lives."""
        while True:
            await self.write_next()

    async def write_next(self) -> None:
        """Write the next batch, once there is something in it and the pause after the last one is over."""
        if not self._dirty and not self._later:
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()
        if (left := self._next_at - monotonic()) > 0:
            await asyncio.sleep(left)
        count = await self._write_batch()
        self._next_at = monotonic() + min(PAUSE + SHARE * count, LONGEST_PAUSE)

    async def _write_batch(self) -> int:
        """Write what fills a batch, and return of how many streams."""
        taken = self._take()
        later = [self._later.popleft() for _ in range(min(len(self._later), BATCH))]
        try:
            if taken or later:
                self._hand_out(taken, await self._execute([*(job for _, job in taken), *later]))
        except BaseException as exc:
            # Nothing is lost, as everything may be done again.
            self._dirty |= {stream: None for stream, _ in taken}
            # At the front, where they were: some undo what those before them do.
            self._later.extendleft(reversed(later))
            if not isinstance(exc, StoreUnavailable):
                raise
            # Those that were not in the batch, too: they wait for the same backend.
            for stream in list(self._dirty):
                stream.on_outage(exc)
            await asyncio.sleep(RETRY)
        return len(taken)

    def _take(self) -> list[tuple[Marked, Job]]:
        """Take as many streams as fill a batch, each with what is to be done for it."""
        taken: list[tuple[Marked, Job]] = []
        size = 0
        for stream in list(self._dirty)[:BATCH]:
            # First, so that what the stream records from here on marks it again.
            del self._dirty[stream]
            try:
                job = self._next_job(stream)
            except Exception as exc:  # noqa: BLE001  # it is logged there
                self._put_off(stream, exc)
                continue
            if job is not None:
                taken.append((stream, job))
                if isinstance(stream, LocalStream):
                    size += stream.log.tail - stream.outbox.recorded
                if size >= BATCH_BYTES:
                    break
        return taken

    def _hand_out(self, taken: Sequence[tuple[Marked, Job]], replies: Sequence[Any]) -> None:
        for (stream, _), reply in zip(taken, replies, strict=False):
            try:
                if isinstance(reply, Exception):
                    raise reply
                self._take_reply(stream, reply)
            except Exception as exc:  # noqa: BLE001  # it is logged there
                self._put_off(stream, exc)

    def _put_off(self, stream: Marked, failure: Exception) -> None:
        """Try again with one stream later, while the others go on."""
        if not isinstance(failure, StoreUnavailable):
            fields = stream.key.fields(stream.epoch)
            logger.error("what a stream writes could not be handled", exc_info=failure, extra=fields)
            failure = StoreUnavailable(UNAVAILABLE)
        asyncio.get_running_loop().call_later(RETRY, self.mark, stream)
        stream.on_outage(failure)
