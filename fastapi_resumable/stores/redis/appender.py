"""Writes to Redis what the streams of this worker have recorded.

One pipeline is under way at a time, and what comes in meanwhile goes into the next: so a slow Redis delays a stream by
its latency, and not by its latency for each event. What several streams write goes in one call; and fast streams wait a
moment before each, the longer the more of them there are, so that it takes many events along.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from ..._stream.fanout import FLUSH_INTERVAL
from ...exceptions import StoreUnavailable
from .link import UNAVAILABLE, Call, Link
from .scripts import APPEND

logger = logging.getLogger("fastapi_resumable")

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
        self._alone: set[Pending] = set()
        """Streams that are written alone, as Redis has refused a call in which they were among others."""
        self._pause = FLUSH_INTERVAL
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
        self._pause = min(PAUSE, FLUSH_INTERVAL + SHARE * len(self._waiting))
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
        """Write, for as long as the task lives."""
        while True:
            if not self._dirty and not self._posts:
                if self._idle is not None and not self._idle.done():
                    self._idle.set_result(None)
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            streams = self._next_streams()
            posts = [self._posts.popleft() for _ in range(min(len(self._posts), BATCH))]
            try:
                await self._write(streams, posts)
            except Exception as exc:
                # Nothing is lost, as everything may be sent again.
                self._dirty |= dict.fromkeys(stream for stream, _ in streams)
                self._posts.extendleft(reversed(posts))
                if not isinstance(exc, StoreUnavailable):
                    raise
                for stream in list(self._dirty):
                    self._note_outage(stream, exc)
                await asyncio.sleep(RETRY)

    def _next_streams(self) -> list[tuple[Pending, Call]]:
        """Take as many streams as fill a pipeline, each with what is to be run for it."""
        taken: list[tuple[Pending, Call]] = []
        size = 0
        for stream in list(self._dirty)[:BATCH]:
            del self._dirty[stream]
            try:
                call = stream.next_call()
            except Exception as exc:
                logger.exception("what a stream has to write cannot be told")
                self._put_off(stream, StoreUnavailable(UNAVAILABLE), exc)
                continue
            if call is not None:
                taken.append((stream, call))
                size += sum(len(word) for word in call.args if isinstance(word, bytes))
                if size >= BATCH_BYTES:
                    break
            else:
                self._alone.discard(stream)
        return taken

    async def _write(self, streams: list[tuple[Pending, Call]], posts: list[Call]) -> None:
        """Run the calls of `streams`, those that may go together in one, and hand out the replies."""
        # In a Cluster, a script is for streams of one slot.
        each = 1 if self._link.is_cluster else TOGETHER
        appends = [pair for pair in streams if pair[1].command is APPEND and pair[0] not in self._alone]
        groups = [appends[start : start + each] for start in range(0, len(appends), each)]
        groups += [[pair] for pair in streams if pair[1].command is not APPEND or pair[0] in self._alone]
        calls = [_join([call for _, call in group]) for group in groups]
        if not calls and not posts:
            return
        replies = await self._link.try_each(*calls, *posts)
        for group, call, reply in zip(groups, calls, replies, strict=False):
            if isinstance(reply, StoreUnavailable):
                self._take_refusal([stream for stream, _ in group], reply)
            elif call.command is APPEND:
                for (stream, _), its_reply in zip(group, reply, strict=True):
                    self._hand_out(stream, its_reply)
            else:
                self._hand_out(group[0][0], reply)

    def _hand_out(self, stream: Pending, reply: Any) -> None:
        self._alone.discard(stream)
        try:
            stream.take_reply(reply)
        except Exception as exc:
            logger.exception("a reply of Redis makes no sense")
            self._put_off(stream, StoreUnavailable(UNAVAILABLE), exc)

    def _take_refusal(self, streams: Sequence[Pending], refusal: StoreUnavailable) -> None:
        """Redis refuses a call: find out which stream's fault it is, and go on with the others."""
        if len(streams) > 1:
            self._alone |= set(streams)
            self._dirty |= dict.fromkeys(streams)
        else:
            self._put_off(streams[0], refusal, refusal.__cause__)

    def _put_off(self, stream: Pending, failure: StoreUnavailable, cause: BaseException | None) -> None:
        """Try again with one stream later, while the others go on."""
        failure.__cause__ = cause
        self._note_outage(stream, failure)
        asyncio.get_running_loop().call_later(RETRY, self.mark, stream)

    def _note_outage(self, stream: Pending, failure: StoreUnavailable) -> None:
        try:
            stream.on_outage(failure)
        except Exception:
            logger.exception("a stream could not take note of an outage")


def _join(calls: Sequence[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]
    return Call(APPEND, [key for call in calls for key in call.keys], [word for call in calls for word in call.args])
