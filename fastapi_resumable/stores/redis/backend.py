"""The streams of a worker on Redis: it writes what is recorded here, and follows what others record."""

import asyncio
import json
import logging
import math
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from ..._core.ids import StreamKey
from ..._stream.stream import Limits
from ...exceptions import StoreUnavailable, StreamCancelled, StreamReplaced
from ...models import ResumableStatus
from ..base import Notify, Reservation
from ..shared.local import LocalStream
from ..shared.queue import MOST_LATER
from ..shared.remote import RemoteStream
from ..shared.writes import END_MESSAGES, Begin, Page, Restore
from .calls import LIVE, Call, Calls, Script, post, read_page, read_written
from .keys import Keys
from .link import Client, Link
from .listener import Fields, Listener
from .transitions import Transitions
from .worker import Lease, Messages

logger = logging.getLogger("fastapi_resumable")

LOOK = 1.0
"""Seconds between looks at what others have to do with the streams here."""
AGAIN = 64
"""How many ends that Redis has refused are tried again at each look."""


class RedisBackend(Transitions):
    """What a `RedisStore` has on one event loop."""

    def __init__(
        self, client: Client, keys: Keys, limits: Limits, *, lease: float, timeout: float, degrade: bool, owns: bool
    ) -> None:
        """`owns`: whether to close the client at the end."""
        super().__init__(limits, degrade=degrade)
        self.name = secrets.token_hex(8)
        self.calls = Calls(keys, self.name, limits, lease)
        self.link = Link(client, self.calls, timeout, on_up=self._on_return)
        self.outage = self.link.outage
        self.lease = Lease(self.name, self.link, keys, lease, self._on_return, self._on_lapse, self.on_outage)
        wake = partial(self.queue.run_later, post(keys.inbox(self.name), "m", "wake"))
        self.listener = Listener(self.link, self.tasks, wake=wake, on_outage=self.on_outage)
        self.messages = Messages(self.name, keys, self.link, self.queue, self.listener, self.watchers)
        self._seconds = lease
        self._client = client if owns else None
        self._reported = self._touched = monotonic()
        self._refused: deque[Call] = deque(maxlen=MOST_LATER)
        """Ends that Redis has refused, as while an operator has taken a right away."""

    # Starting and ending.

    async def register(self) -> None:
        """Take a lease, and begin to listen."""
        await self.lease.renew()
        # It has nothing yet that could have expired with a lease.
        self._touched = monotonic()
        for work, name in (
            (self.lease.keep, "lease"),
            (self.lease.watch, "lapse"),
            (self._look_out, "look-out"),
        ):
            self.tasks.keep_running(work, f"resumable {name}", self.link.note_failure)
        self.keep_writing(self.link.note_failure)
        self.messages.listen(self._on_message)

    async def leave(self) -> None:
        """Give the lease back."""
        await self.lease.give_back()

    async def aclose(self) -> None:
        """Write what is left, and give back the lease and the connections."""
        await super().aclose()
        self.link.is_closed = True
        if self._client is not None:
            await self._client.aclose()

    # What streams ask for.

    async def page(self, stream: LocalStream | RemoteStream, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        (reply,) = await self.link.run(self.calls.page(stream, offset))
        return read_page(reply, offset)

    async def slowest_reader(self, stream: LocalStream) -> float:
        """Where the slowest reader on another worker is."""
        (slowest,) = await self.link.run(self.calls.wait(stream))
        return math.inf if slowest is None else int(slowest)

    def follow(self, stream: RemoteStream) -> None:
        """Read what is added to a stream."""
        super().follow(stream)
        self.check(stream.worker, stream.key, stream.epoch)
        # Offsets are entry ids, so the read begins right after what is here.
        take, fields = partial(self._take, stream), stream.key.fields(stream.epoch)
        self.listener.follow(self.calls.log(stream), f"{stream.log.tail}-0", take, stream.fail, fields)

    def _take(self, stream: RemoteStream, entry_id: str, fields: Fields) -> None:
        end = int(entry_id.partition("-")[0])
        if b"s" in fields:
            stream.finish(end, ResumableStatus(fields[b"s"].decode()), float(fields[b"t"]))
        else:
            stream.take(end - len(fields[b"d"]), fields[b"d"])

    def unfollow(self, stream: RemoteStream) -> None:
        """Stop reading."""
        if self.streams.followed.get(stream.epoch) is stream:
            super().unfollow(stream)
            self.listener.unfollow(self.calls.log(stream))

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""
        return await self.messages.subscribe(owner, ids, notify)

    # What the write queue asks for.

    def next_job(self, stream: LocalStream | RemoteStream) -> Call | None:
        """The call to make for a stream now."""
        if isinstance(stream, RemoteStream):
            return self.calls.report(stream, stream.slowest)
        match stream.outbox.next_write():
            case None:
                return None
            case Begin():
                return self.calls.begin(stream)
            case Restore() as how:
                return self.calls.restore(stream, how)
            case write:
                return self.calls.append(stream, write)

    async def write(self, calls: Sequence[Call]) -> list[Any]:
        """Make some calls; return the reply to each."""
        if any(call.command is Script.RESTORE for call in calls):
            # Redis may have lost the lease, too: others would take this worker for dead, and end what it puts back.
            await self.lease.renew()
        replies = await self.link.run_batch(calls)
        for call, reply in zip(calls, replies, strict=True):
            # Nothing else here knows of the stream any more, so for others it would stay live.
            if call.command is Script.RELEASE and isinstance(reply, StoreUnavailable):
                self._refused.append(call)
        return replies

    def take_reply(self, stream: LocalStream | RemoteStream, reply: Any) -> None:
        """Note what came of it."""
        if isinstance(stream, RemoteStream):
            self._take_report(stream, *reply)
            return
        if reply[0] == b"begun":
            # It has begun late, after an outage, and what it has replaced meanwhile has to hear of that.
            self.tasks.spawn(self.notify_ended(stream.key, reply[1:], "replaced"), "resumable replaced")
        stream.take_reply(read_written(reply))

    def _take_report(self, stream: RemoteStream, word: bytes, about: bytes | int = 0) -> None:
        """Note what Redis says of a stream to those that read it here."""
        was_doubtful, stream.is_doubtful = stream.is_doubtful, word == b"lost"
        missing, stream.missing_since = stream.missing_since, None
        match word:
            case b"live":
                if was_doubtful:
                    self.check(stream.worker, stream.key, stream.epoch)
                if about:
                    self.messages.send(stream.worker, "room", stream.epoch)
            case b"dropped":
                stream.take(int(about), b"")
            case b"over":
                if int(about) < stream.log.tail:
                    stream.fail(StoreUnavailable("The store has lost a part of the stream, and its producer is gone."))
            case b"gone":
                # Its log was dropped in the moment between finding it and saying so.
                is_stopped = about == b"cancelled"
                stream.fail(StreamCancelled(message=END_MESSAGES["cancelled"]) if is_stopped else StreamReplaced())
            case b"lost":
                # Its producer may put it back, and has the time of a lease for that.
                stream.missing_since = missing or monotonic()
                if monotonic() - stream.missing_since > self._seconds:
                    stream.fail(StoreUnavailable("The store has lost the stream, and its producer is gone."))

    # Streams that something else has ended.

    async def adopt_end(self, stream: LocalStream, code: str) -> None:
        """Have a stream end as Redis says, and stop its producer."""
        await super().adopt_end(stream, code)
        # It may have begun in Redis after it was stopped there: late, when that was forgotten.
        self.ensure_ended(stream.key, stream.epoch)
        # Nothing is left to be read of it here: if no other worker reads it, either, its log goes.
        self.queue.run_later(self.calls.report(stream, None))

    def _on_lapse(self) -> None:
        """End what others have given up, because this process stood still for so long."""
        for epoch in list(self.streams.queued):
            self.on_ended(epoch, "interrupted")
        streams = list(self.streams.local.values())
        for stream in streams:
            # At once: it would be written anew should Redis have forgotten it, and Redis may be away.
            self.forget(stream)
            stream.refuse()
            stream.stop_producer("interrupted")
        self.tasks.spawn(self._give_up(streams), "resumable lapse")

    async def _give_up(self, streams: Sequence[LocalStream]) -> None:
        try:
            await self.link.run(*(self.calls.release(stream.key, stream.epoch) for stream in streams))
            for stream in streams:
                await self._announce_rest(stream.key)
        except StoreUnavailable:
            logger.warning("streams that were given up could not be ended in Redis")
        for stream in streams:
            # Side by side, as each waits for a Redis that is away.
            self.tasks.spawn(self.adopt_end(stream, "producer_lost"), f"resumable end {stream.key.id}")

    # What the worker hears.

    def _on_message(self, message: str, epoch: str, about: str) -> None:
        """Do what a worker has told this one."""
        if message == "room" and epoch in self.streams.local:
            self.streams.local[epoch].note_room()
        elif message == "check" and not self.streams.has(epoch):
            self.ensure_ended(StreamKey(*json.loads(about)), epoch)
        elif message == "stop":
            self.on_ended(epoch, about)

    def _on_return(self) -> None:
        """Ask whether Redis still has everything."""
        self.lease.renew_now()
        self._touched = -math.inf
        self.check_streams()
        waiting = [each for each in self.streams.queued.values() if each.requested_at and each.stop_code is None]
        if waiting:
            self.tasks.spawn(self._queue_again(waiting), "resumable queue")
        for followed in self.streams.followed.values():
            followed.is_doubtful = True

    async def _queue_again(self, waiting: Sequence[Reservation]) -> None:
        # Each was admitted by its own rule before; Redis has only forgotten it.
        again = (self.calls.reserve(request, "replace", request.requested_at) for request in waiting)
        try:
            await self.link.run(*again)
        except StoreUnavailable:
            return
        for request in waiting:
            # It was released while the call was under way, which has queued it again.
            if not self.streams.has(request.epoch):
                self.ensure_ended(request.key, request.epoch)

    # What is done every second.

    async def _look_out(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            # A few at a time, as they may be refused again.
            self.queue.run_later(*(self._refused.popleft() for _ in range(min(AGAIN, len(self._refused)))))
            with suppress(StoreUnavailable):
                await self._look_around()

    async def _look_around(self) -> None:
        """See whether the producers of what is read here are alive, and keep from expiring what must not."""
        await self._look_at(list(self.streams.followed.values()))
        if monotonic() - self._reported > self._seconds:
            self._reported = monotonic()
            self.report_again()
        if monotonic() - self._touched > LIVE / 3:
            # Before the calls: a failure is noticed elsewhere, and must not make this run again each second.
            self._touched = monotonic()
            await self.touch()
        if self.watchers:
            await self.reap_watched()

    async def _look_at(self, followed: Sequence[RemoteStream]) -> None:
        dead = await self.lease.dead(stream.worker for stream in followed)
        orphaned = [stream for stream in followed if stream.worker in dead]
        try:
            await self.reap((stream.key, stream.worker) for stream in orphaned)
        except StoreUnavailable as exc:
            for stream in orphaned:
                # Nothing more would come: the reader is to end, and can come back.
                stream.fail(exc)
            raise
        for stream in followed:
            if stream.is_doubtful or stream.worker in dead:
                stream.is_doubtful = True
                stream.report()
