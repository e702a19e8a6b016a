"""Writes to Redis what the streams of this worker have recorded.

One pipeline is under way at a time, and what comes in meanwhile goes into the next: so a slow Redis delays a stream by
its latency, and not by its latency for each event.
"""

import asyncio
from collections import deque
from typing import Any, Protocol

from ...core.errors import StoreUnavailable
from .link import Call, Link

BATCH = 512
"""How many streams are written in one pipeline."""
BATCH_BYTES = 1024 * 1024
"""How many bytes fill a pipeline, which has to be through within one attempt."""
RETRY = 0.5
"""Seconds between attempts, once the store counts as gone."""


class Pending(Protocol):
    """Something that has bytes to write."""

    def next_call(self) -> Call | None:
        """What to run for it now."""

    def take_reply(self, reply: Any) -> None:
        """What came of it."""

    def on_outage(self, failure: StoreUnavailable) -> None:
        """The store is gone; there will be another attempt."""


class Appender:
    """The queue of streams that have something to write, and of messages to others."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._dirty: dict[Pending, None] = {}
        self._posts: deque[Call] = deque(maxlen=10_000)
        self._wake: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    def mark(self, stream: Pending) -> None:
        """Note that `stream` has something to write."""
        self._dirty[stream] = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def post(self, *calls: Call) -> None:
        """Run calls whose replies do not matter, soon. When the store is gone for long, the oldest are dropped."""
        self._posts.extend(calls)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def flushed(self) -> None:
        """Wait until nothing is left to write."""
        if self._wake is None or self._wake.done() or self._dirty or self._posts:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    async def run(self) -> None:
        """Write, for ever."""
        while True:
            if not self._dirty and not self._posts:
                if self._idle is not None and not self._idle.done():
                    self._idle.set_result(None)
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            pending, size = [], 0
            for stream in list(self._dirty)[:BATCH]:
                del self._dirty[stream]
                if (call := stream.next_call()) is not None:
                    pending.append((stream, call))
                    size += sum(len(word) for word in call.args if isinstance(word, bytes))
                    if size >= BATCH_BYTES:
                        break
            posts = [self._posts.popleft() for _ in range(min(len(self._posts), BATCH))]
            if not pending and not posts:
                continue
            try:
                replies = await self._link.run_now(*(call for _, call in pending), *posts)
            except StoreUnavailable as exc:
                self._dirty |= dict.fromkeys(stream for stream, _ in pending)
                for stream in list(self._dirty):
                    stream.on_outage(exc)
                self._posts.extendleft(reversed(posts))
                await asyncio.sleep(RETRY)
            else:
                for (stream, _), reply in zip(pending, replies, strict=False):
                    stream.take_reply(reply)
