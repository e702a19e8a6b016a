"""Follows in Redis what other workers record, for those that read it here."""

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from time import monotonic, time
from typing import Any

from ...exceptions import OffsetLost, StoreUnavailable, StreamReplaced
from ...models import ResumableStatus
from ..shared.remote import RemoteStream
from ..shared.streams import WorkerStreams
from ..shared.writes import Page
from .calls import Calls
from .keys import log_key
from .link import Call
from .listener import Entry
from .transitions import Transitions
from .worker import RedisWorker


class RedisReader:
    """What the remote streams of a worker need of Redis."""

    def __init__(
        self, worker: RedisWorker, calls: Calls, transitions: Transitions, streams: WorkerStreams, lease: float
    ) -> None:
        self._worker = worker
        self._calls = calls
        self._transitions = transitions
        self._streams = streams
        self._lease = lease
        self._reported = 0.0

    # What streams ask for.

    def _log(self, stream: RemoteStream) -> str:
        return log_key(self._worker.keys.stream(stream.key), stream.epoch)

    def follow(self, stream: RemoteStream) -> None:
        """Read what is added to a stream."""
        self._streams.followed[stream.epoch] = stream
        self._check(stream)
        last = f"{stream.log.tail}-0"
        take, fields = partial(self._take, stream), stream.key.fields(stream.epoch)
        self._worker.listener.follow(self._log(stream), last, take, stream.fail, fields)

    def _check(self, stream: RemoteStream) -> None:
        """Have the worker of a stream end it, should it know nothing of it."""
        self._worker.send(stream.worker, "check", stream.epoch, json.dumps(stream.key))

    def _take(self, stream: RemoteStream, entries: Sequence[Entry]) -> None:
        for entry_id, fields in entries:
            end = int(entry_id.partition("-")[0])
            if b"s" in fields:
                stream.finish(end, ResumableStatus(fields[b"s"].decode()), time())
            else:
                stream.take(end - len(fields[b"d"]), fields[b"d"])

    def unfollow(self, stream: RemoteStream) -> None:
        """Stop reading."""
        if self._streams.followed.get(stream.epoch) is stream:
            del self._streams.followed[stream.epoch]
            self._worker.listener.unfollow(self._log(stream))

    def report(self, stream: RemoteStream) -> None:
        """Tell the producer's worker how far the readers are."""
        # By way of the queue, so that a report never overtakes another.
        self._worker.queue.mark(self, stream)

    async def page(self, stream: RemoteStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        return await self._transitions.page(stream.key, stream.epoch, offset)

    # What the write queue asks for.

    def next_job(self, stream: RemoteStream) -> Call:
        """The report, as it is now."""
        return self._calls.report(stream.key, stream.epoch, stream.slowest)

    def take_reply(self, stream: RemoteStream, reply: Any) -> None:
        """Pass it on to the producer, if that waits for it."""
        if reply == [b"gone"]:
            # Replaced, and freed, in the moment between finding it and saying so.
            stream.fail(StreamReplaced())
        elif reply:
            self._worker.send(reply[0].decode(), "room", reply[1].decode())

    def on_outage(self, stream: RemoteStream, failure: StoreUnavailable) -> None:
        """The producer's worker learns of it as soon as it can."""

    # What is looked at every second.

    async def look(self) -> None:
        """See whether the producers of what is read here are alive, and keep the reports from expiring."""
        if followed := list(self._streams.followed.values()):
            await self._look_at(followed)
        if monotonic() - self._reported > self._lease:
            self._reported = monotonic()
            for stream in list(self._streams.views.values()):
                stream.report_again()

    async def _look_at(self, followed: Sequence[RemoteStream]) -> None:
        dead = await self._worker.lease.dead(stream.worker for stream in followed)
        orphaned = [stream for stream in followed if stream.worker in dead]
        if orphaned:
            try:
                await self._transitions.reap((stream.key, stream.worker) for stream in orphaned)
            except StoreUnavailable as exc:
                for stream in orphaned:
                    stream.fail(exc)
                raise
        for stream in followed:
            if stream.missing_since is not None or stream.worker in dead:
                await self._look_for(stream)

    def note_return(self) -> None:
        """Redis may have forgotten what is read here: look for each."""
        for stream in self._streams.followed.values():
            stream.missing_since = stream.missing_since or asyncio.get_running_loop().time()

    async def _look_for(self, stream: RemoteStream) -> None:
        """Whether Redis still has a stream, after an outage that it may not have survived."""
        state = await self._transitions.state(stream.key)
        current = state.current if state.current is not None and state.current.epoch == stream.epoch else None
        try:
            ending = (await self.page(stream, stream.log.tail)).ending
        except OffsetLost:
            ending = None
        now = asyncio.get_running_loop().time()
        if ending is not None or current is not None:
            stream.missing_since = None
            if current is not None and current.is_final and current.tail < stream.log.tail:
                stream.fail(StoreUnavailable("The store has lost a part of the stream, and its producer is gone."))
            elif ending is None:
                self._check(stream)
        elif stream.missing_since is None:
            stream.missing_since = now
        elif now - stream.missing_since > self._lease:
            stream.fail(StoreUnavailable("The store has lost the stream, and its producer is gone."))
