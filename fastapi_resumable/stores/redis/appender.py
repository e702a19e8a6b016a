"""Writes to Redis what the streams of this worker have recorded.

One pipeline is under way at a time, and what comes in meanwhile goes into the next: so a slow Redis delays a stream by
its latency, and not by its latency for each event. What several streams write goes in one call; and fast streams wait a
moment before each, the longer the more of them there are, so that it takes many events along.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from ..._stream.pulse import PULSE
from ...exceptions import StoreUnavailable
from .link import Call, Link
from .scripts import APPEND

BATCH = 512
"""How many streams are written in one pipeline."""
TOGETHER = 64
"""How many streams are written by one call, during which Redis does nothing else."""
BATCH_BYTES = 1024 * 1024
"""How many bytes fill a pipeline, which has to be through within one attempt."""
RETRY = 0.5
"""Seconds between attempts, once the store counts as gone."""
PAUSE = 0.025
"""The most seconds for which a fast stream collects what it writes next."""
SHARE = 0.0004
"""What each fast stream adds to that: a few of them need not wait for long."""


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
        self._waiting: dict[Pending, None] = {}
        self._pause = PULSE
        self._posts: deque[Call] = deque(maxlen=10_000)
        self._wake: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    def mark(self, stream: Pending, *, may_wait: bool = False) -> None:
        """Note that `stream` has something to write; if it `may_wait`, with what else comes in the next moment."""
        if not may_wait:
            self._dirty[stream] = None
            self._wake_up()
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(self._pause, self._beat)
        self._waiting[stream] = None

    def _beat(self) -> None:
        self._pause = min(PAUSE, PULSE + SHARE * len(self._waiting))
        self._dirty |= self._waiting
        self._waiting = {}
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def post(self, *calls: Call) -> None:
        """Run calls whose replies do not matter, soon. When the store is gone for long, the oldest are dropped."""
        self._posts.extend(calls)
        self._wake_up()

    async def flushed(self) -> None:
        """Write what is left, and wait for that."""
        self._beat()
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
            appends: list[tuple[Pending, Call]] = []
            others: list[tuple[Pending, Call]] = []
            size = 0
            for stream in list(self._dirty)[:BATCH]:
                del self._dirty[stream]
                if (call := stream.next_call()) is not None:
                    (appends if call.command is APPEND else others).append((stream, call))
                    size += sum(len(word) for word in call.args if isinstance(word, bytes))
                    if size >= BATCH_BYTES:
                        break
            posts = [self._posts.popleft() for _ in range(min(len(self._posts), BATCH))]
            if not appends and not others and not posts:
                continue
            # In a Cluster, a script is for streams of one slot.
            each = 1 if self._link.is_cluster else TOGETHER
            groups = [appends[start : start + each] for start in range(0, len(appends), each)]
            try:
                replies = await self._link.run_now(
                    *(_join([call for _, call in group]) for group in groups), *(call for _, call in others), *posts
                )
            except StoreUnavailable as exc:
                self._dirty |= dict.fromkeys(stream for stream, _ in appends + others)
                for stream in list(self._dirty):
                    stream.on_outage(exc)
                self._posts.extendleft(reversed(posts))
                await asyncio.sleep(RETRY)
                continue
            written = [reply for replies_of_group in replies[: len(groups)] for reply in replies_of_group]
            for (stream, _), reply in zip(appends + others, written + replies[len(groups) :], strict=False):
                stream.take_reply(reply)


def _join(calls: Sequence[Call]) -> Call:
    return Call(APPEND, [key for call in calls for key in call.keys], [word for call in calls for word in call.args])
