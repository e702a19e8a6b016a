"""Writes to Redis what is recorded here: the streams' writes as calls, and the replies as what they mean."""

import logging
from collections.abc import Sequence
from time import monotonic
from typing import Any

from ...exceptions import StoreUnavailable
from ...models import ResumableStatus
from ..base import Reservation
from ..shared.local import LocalStream
from ..shared.streams import WorkerStreams
from ..shared.writes import Begin, Begun, Ended, Gap, Missing, Page, Reply, Restore, Written
from .calls import Calls, Epoch
from .link import Call
from .transitions import Transitions, add_event, lacks_event
from .worker import LIVE, RedisWorker

logger = logging.getLogger("fastapi_resumable")


class RedisWriter:
    """What the local streams of a worker need of Redis."""

    def __init__(
        self, worker: RedisWorker, calls: Calls, transitions: Transitions, streams: WorkerStreams, *, degrade: bool
    ) -> None:
        self.degrade = degrade
        self._worker = worker
        self._calls = calls
        self._transitions = transitions
        self._streams = streams
        self._events: dict[str, list[Any]] = {}
        """Terminal events for what a stream replaces that begins late, by its epoch."""
        self._touched = monotonic()

    # What streams ask for.

    def mark(self, stream: LocalStream, *, may_wait: bool = False) -> None:
        """Write soon."""
        self._worker.queue.mark(self, stream, may_wait=may_wait)

    async def slowest_reader(self, stream: LocalStream) -> int | None:
        """Where the slowest reader on another worker is."""
        (slowest,) = await self._worker.link.run(self._calls.wait(stream.key, stream.epoch))
        return None if slowest is None else int(slowest)

    async def page(self, stream: LocalStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        return await self._transitions.page(stream.key, stream.epoch, offset)

    def forget(self, stream: LocalStream) -> None:
        """Ask for no more writes."""
        self._events.pop(stream.epoch, None)
        self._streams.forget(stream)

    def abandon(self, stream: LocalStream) -> None:
        """Make sure that the stream does not stay live in Redis."""
        self._transitions.abandon(Epoch(stream.key, stream.epoch))
        self._worker.tasks.spawn(self._transitions.free(stream.key, stream.epoch), "resumable free")

    async def announce_end(self, stream: LocalStream) -> None:
        """Tell those that watch, and count the stream no longer."""
        await self._transitions.free(stream.key, stream.epoch)
        await self._worker.announce(stream.key.owner, stream.item)

    def begin_later(self, stream: LocalStream, failure: StoreUnavailable) -> None:
        """Begin a stream without Redis, and there when it is back."""
        stream.begin_later(failure)
        self._worker.tasks.spawn(self._worker.announce(stream.key.owner, stream.item), "resumable announce")

    # What the write queue asks for.

    def next_job(self, stream: LocalStream) -> Call | None:
        """What to do now for a stream."""
        match stream.next_write():
            case None:
                return None
            case Begin():
                return add_event(self._calls.begin(stream), self._events.pop(stream.epoch, []))
            case Restore() as how:
                return self._calls.restore(stream, how)
            case write:
                return self._calls.append(stream, write)

    def take_reply(self, stream: LocalStream, reply: Any) -> None:
        """What came of it."""
        if lacks_event(reply):
            self._events[stream.epoch] = self._transitions.terminal_event(reply, ResumableStatus.CANCELLED, "replaced")
            self.mark(stream)
            return
        if reply[0] == b"begun":
            told = self._transitions.notify_ended(stream.key, reply[1:], "replaced")
            self._worker.tasks.spawn(told, "resumable replaced")
        stream.take_reply(_meaning(reply))

    def on_outage(self, stream: LocalStream, failure: StoreUnavailable) -> None:
        """Redis is away; there will be another attempt."""
        stream.on_outage(failure)

    # Streams that something else has ended.

    def end_elsewhere(self, stream: LocalStream, code: str = "cancelled") -> None:
        """Take over that something else has ended a stream, and stop its producer."""
        if self._streams.forget(stream):
            self._worker.tasks.spawn(self._end_elsewhere(stream, code), f"resumable end {stream.key.id}")

    async def _end_elsewhere(self, stream: LocalStream, code: str) -> None:
        try:
            code = await stream.adopt_end(code)
        finally:
            stream.stop_producer("interrupted" if code == "producer_lost" else code)
        # Nothing is left to be read of it here: if no other worker reads it, either, its log goes.
        self._worker.queue.post(self._calls.report(stream.key, stream.epoch, None))
        await self._transitions.free(stream.key, stream.epoch)

    def give_up(self, streams: Sequence[LocalStream]) -> None:
        """End streams that other workers have given up, because this process stood still for so long."""
        for stream in streams:
            # At once, or it would be written anew should Redis have forgotten it.
            self._streams.forget(stream)
        self._worker.tasks.spawn(self._give_up(streams), "resumable lapse")

    async def _give_up(self, streams: Sequence[LocalStream]) -> None:
        try:
            await self._transitions.end_epochs(Epoch(stream.key, stream.epoch) for stream in streams)
        except StoreUnavailable:
            logger.warning("streams that were given up could not be ended in Redis")
        for stream in streams:
            await self._end_elsewhere(stream, "producer_lost")
            await self._transitions.announce_rest(stream.key)

    # What Redis may have forgotten, and must not forget.

    def check_all(self) -> None:
        """Ask whether Redis still has the streams and requests of this worker."""
        for stream in self._streams.local.values():
            stream.check()
        waiting = [each for each in self._streams.queued.values() if each.requested_at and each.stop_code is None]
        if waiting:
            self._worker.tasks.spawn(self._queue_again(waiting), "resumable queue")

    async def _queue_again(self, waiting: Sequence[Reservation]) -> None:
        try:
            await self._worker.link.run(
                *(self._calls.reserve(request, "replace", request.requested_at) for request in waiting)
            )
        except StoreUnavailable:
            return
        for request in waiting:
            if not self._streams.has(request.epoch):
                self._transitions.abandon(Epoch(request.key, request.epoch))

    async def touch(self) -> None:
        """Keep the keys of what is live here from expiring."""
        if monotonic() - self._touched < LIVE / 3:
            return
        self._touched = monotonic()
        calls = [call for stream in self._streams.local.values() for call in self._calls.touch(stream)]
        calls += [self._calls.touch_queue(request.key) for request in self._streams.queued.values()]
        for start in range(0, len(calls), 500):
            await self._worker.link.run(*calls[start : start + 500])


def _meaning(reply: Any) -> Reply:
    match reply[0]:
        case b"ok":
            return Written(int(reply[1]) if len(reply) > 1 and reply[1] is not None else None)
        case b"gap":
            return Gap(int(reply[1]))
        case b"missing" | b"unknown":
            return Missing()
        case b"begun":
            return Begun()
    return Ended()
