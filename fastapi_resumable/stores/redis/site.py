"""What a worker has to do with Redis on one event loop: its connections, its tasks, and the streams it has in hand.

Invariant: what is in Redis may change at any time by somebody else's hand; what is held here is only ever a view of it.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from ..._core.ids import StreamKey, variants
from ..._core.sse import EventFramer
from ..._core.terminal import write_terminal_event
from ..._stream.stream import Budget, Limits
from ..._stream.tasks import Tasks
from ...exceptions import OffsetLost, StoreUnavailable
from ...models import ResumableStatus, ResumableStreamItem
from ..base import Reservation, queued_item
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import END_MESSAGES, Page
from ..watchers import Notify, Watchers
from .appender import Appender
from .follower import Entry, Follower
from .keys import Keys, log_key, readers_key
from .lease import Lease
from .link import UNAVAILABLE, Call, Client, Link
from .scripts import INDEX, PAGE, PEEK, POST, REAP, RELEASE, REPORT, RESERVE, TOUCH
from .state import UNUSED_EPOCH, State, cut_event, dump_head

logger = logging.getLogger("fastapi_resumable")

LIVE = 3600.0
"""Seconds for which keys of live streams are kept without being renewed: a crash leaves nothing behind for longer."""
PAGE_SIZE = 256 * 1024
CHANGES = 10_000
"""How many changes of state are remembered."""
LOOK = 1.0
"""Seconds between looks at whether the producers of followed streams are alive."""


class Site:
    """Everything of a `RedisStore` that belongs to one event loop."""

    def __init__(
        self, client: Client, keys: Keys, limits: Limits, *, lease: float, timeout: float, degrade: bool
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.keys = keys
        self.limits = limits
        self.degrade = degrade
        self.budget = Budget()
        self.ttl = int((LIVE + limits.retention) * 1000)
        self.retention = max(1, int(limits.retention * 1000))
        self.link = Link(client, timeout)
        self.link.on_up = self._on_up
        self.appender = Appender(self.link)
        self.lease = Lease(self.link, keys, lease, on_lapse=self._on_lapse, on_loss=self._check_all)
        self.worker = self.lease.worker
        self.tasks = Tasks()
        self.spawn = self.tasks.spawn
        self.follower = Follower(self.link, self.tasks, wake=self._wake_follower, on_outage=self._on_outage)
        self.reservations: dict[str, Reservation] = {}
        self.streams: dict[str, LocalStream] = {}
        """What is queued and what is recorded here, by epoch."""
        self.pending_reserves: dict[str, Reservation] = {}
        """Requests that may be queued already: news of them can be here before the reply is."""
        self.stopped: set[str] = set()
        """Requests that were stopped while they were queued here, and are not released yet."""
        self.views: WeakValueDictionary[str, RemoteStream] = WeakValueDictionary()
        """Streams of other workers, by epoch, while anybody here has them in hand: one view for all."""
        self.followed: dict[str, RemoteStream] = {}
        """Those that have readers."""
        self.patience = int(lease * 2000)
        """Milliseconds for which a worker's readers hold a producer without being heard of again."""
        self._lease_seconds = lease
        self._watchers = Watchers()
        self._starting: asyncio.Task[StoreUnavailable | None] | None = None
        self._is_started = False
        self._touched = time.monotonic()

    # Tasks.

    async def start(self) -> None:
        """Take a lease and begin to listen; once, and all who ask meanwhile wait for the same attempt.

        Raises:
            StoreUnavailable: Redis cannot be used.
        """
        failure = await asyncio.shield(self.start_soon())
        if failure is not None:
            raise failure

    def start_soon(self) -> asyncio.Task[StoreUnavailable | None]:
        """The same without waiting for it."""
        if self._starting is None:
            self._starting = self.spawn(self._start(), "resumable start")
        return self._starting

    async def _start(self) -> StoreUnavailable | None:
        try:
            await self.lease.take()
        except Exception as exc:
            self._starting = None
            if isinstance(exc, StoreUnavailable):
                return exc
            logger.exception("the worker could not register in Redis")
            return StoreUnavailable(UNAVAILABLE)
        for work, name in (
            (self.lease.keep, "lease"),
            (self.lease.watch, "lapse"),
            (self.appender.run, "appender"),
            (self._look_around, "look-out"),
        ):
            self.tasks.keep_running(work, f"resumable {name}", self.link.note_down)
        self._follow_inbox()
        self._is_started = True
        return None

    def _follow_inbox(self) -> None:
        self.follower.follow(self.keys.inbox(self.worker), "0-0", self._take_messages, self._replace_inbox)

    def _replace_inbox(self, _failure: StoreUnavailable) -> None:
        self.tasks.keep_running(self._clear_inbox, "resumable inbox", self.link.note_down)

    async def _clear_inbox(self) -> None:
        """Something else lies under the key of this worker's inbox: remove it, and listen again."""
        await self.link.run(Call("UNLINK", [self.keys.inbox(self.worker)]))
        self._follow_inbox()

    async def aclose(self) -> None:
        """Give back the lease and the connections."""
        if self._is_started:
            try:
                async with asyncio.timeout(self.link.attempt):
                    await self.appender.flushed()
                    await self.lease.give_back()
            except (TimeoutError, StoreUnavailable):
                logger.warning("Redis did not take everything before the end")
            except Exception:
                logger.exception("Redis did not take everything before the end")
        self.link.is_closed = True
        for stream in list(self.streams.values()):
            # For those who have it in hand all the same.
            stream.on_outage(StoreUnavailable("The store is closed."))
        await self.tasks.aclose()

    # Talking to other workers.

    def post(self, key: str, keep: float, *fields: Any) -> None:
        """Add a message to a stream of messages, soon."""
        self.appender.post(Call(POST, [key], [int(keep * 1000), CHANGES, *fields]))

    def send_message(self, worker: str, message: str, epoch: str, code: str = "") -> None:
        """Tell the worker of an epoch something, this one included."""
        if worker == self.worker:
            self.handle_message(message, epoch, code)
        else:
            self.post(self.keys.inbox(worker), LIVE, "m", message, "e", epoch, "c", code)

    def has(self, epoch: str) -> bool:
        """Whether a stream is in hand here, and may be live."""
        return epoch in self.streams or epoch in self.reservations

    def check(self, stream: RemoteStream) -> None:
        """Have the worker of a stream end it, should it know nothing of it."""
        self.send_message(stream.worker, "check", stream.epoch, self.keys.stream(stream.key))

    def _wake_follower(self) -> None:
        self.post(self.keys.inbox(self.worker), LIVE, "m", "wake")

    def _take_messages(self, entries: list[Entry]) -> None:
        for _, fields in entries:
            try:
                self.handle_message(
                    fields[b"m"].decode(), fields.get(b"e", b"").decode(), fields.get(b"c", b"").decode()
                )
            except Exception:
                logger.exception("a message of another worker makes no sense")

    def handle_message(self, message: str, epoch: str, code: str) -> None:
        """Do what another worker has told this one."""
        if message == "room" and epoch in self.streams:
            self.streams[epoch].note_room()
        elif message == "check" and not self.has(epoch):
            self.abandon(code, epoch)
        elif message == "stop":
            reservation = self.reservations.pop(epoch, None) or self.pending_reserves.pop(epoch, None)
            if reservation is not None:
                self.stopped.add(epoch)
                reservation.stop(code)
            elif (stream := self.streams.get(epoch)) is not None:
                self.end_elsewhere(stream, code)

    async def announce(self, key: StreamKey, *items: ResumableStreamItem) -> None:
        """Tell everybody who watches; before anything else is done, so that news come in the order of what happened."""
        owner = json.dumps(key.owner)
        keep = int(LIVE * 1000)
        calls = [
            Call(POST, [self.keys.changes], [keep, CHANGES, "o", owner, "i", item.model_dump_json()]) for item in items
        ]
        if calls:
            try:
                await self.link.run(*calls)
            except StoreUnavailable:
                self.appender.post(*calls)

    async def announce_end(self, before: State, ended: Iterable[bytes]) -> None:
        """Tell everybody who watches that these epochs of a stream were cancelled."""
        epochs = {epoch.decode() for epoch in ended}
        items = [
            queued_item(before.key, each.epoch, each.requested_at) for each in before.queued if each.epoch in epochs
        ]
        if before.epoch in epochs:
            items.append(before.item)
        over = {"status": ResumableStatus.CANCELLED, "is_done": True, "completed_at": int(self.now())}
        await self.announce(before.key, *(item.model_copy(update=over) for item in items))

    async def announce_rest(self, key: StreamKey) -> None:
        """Tell everybody who watches what a lookup shows, now that something has gone."""
        try:
            (reply,) = await self.link.run(Call(PEEK, [self.keys.stream(key)]))
        except StoreUnavailable:
            return
        if not (state := State(key, reply)).is_empty:
            await self.announce(key, state.item)

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Tell `notify` of changes, from everywhere, until what is returned is called."""
        await self.start()
        if not self._watchers:
            last = await self._last_change()
            if not self._watchers:
                self._follow_changes(last)
        remove = self._watchers.add(owner, ids, notify)

        def unsubscribe() -> None:
            remove()
            if not self._watchers:
                self.follower.unfollow(self.keys.changes)

        return unsubscribe

    async def _last_change(self) -> str:
        (last,) = await self.link.run(Call("XREVRANGE", [self.keys.changes], ["+", "-", "COUNT", 1]))
        return last[0][0].decode() if last else "0-0"

    def _follow_changes(self, last: str) -> None:
        self.follower.follow(self.keys.changes, last, self._take_changes, self._changes_failed)

    def _changes_failed(self, _failure: StoreUnavailable) -> None:
        self.tasks.keep_running(self._follow_changes_again, "resumable changes", self.link.note_down)

    async def _follow_changes_again(self) -> None:
        last = await self._last_change()
        if self._watchers:
            self._follow_changes(last)

    def _take_changes(self, entries: list[Entry]) -> None:
        for _, fields in entries:
            self._watchers.tell(json.loads(fields[b"o"]), ResumableStreamItem.model_validate_json(fields[b"i"]))

    # Looking.

    async def peek(self, *keys: StreamKey) -> list[State]:
        """What Redis holds by these names, after what belonged to dead workers was ended."""
        replies = await self.link.run(*(Call(PEEK, [self.keys.stream(key)]) for key in keys))
        states = [State(key, reply) for key, reply in zip(keys, replies, strict=True)]
        dead = await self.lease.dead(worker for state in states for worker in state.workers)
        # Said to be ours, but it is not: Redis is back from an older state, in which it had not ended yet.
        ours = (state for state in states if state.is_live and state.worker == self.worker)
        lost = [state for state in ours if not self.has(state.epoch)]
        if not dead and not lost:
            return states
        dead_owners = [(state.key, worker) for state in states for worker in state.workers & dead]
        await self.reap_dead(dead_owners)
        calls = [self.release(self.keys.stream(state.key), state.epoch) for state in lost]
        await self.end(calls, ResumableStatus.INTERRUPTED, "producer_lost")
        replies = await self.link.run(*(Call(PEEK, [self.keys.stream(key)]) for key in keys))
        return [State(key, reply) for key, reply in zip(keys, replies, strict=True)]

    async def reap_dead(self, dead_owners: Iterable[tuple[StreamKey, str]]) -> None:
        """End what belongs to workers that are gone."""
        dead_owners = list(dead_owners)
        calls = [
            Call(REAP, [self.keys.stream(key)], [worker, self.ttl, self.now(), self.retention])
            for key, worker in dead_owners
        ]
        replies = await self.end(calls, ResumableStatus.INTERRUPTED, "producer_lost")
        for (key, worker), ended in zip(dead_owners, replies, strict=True):
            if ended:
                logger.warning("worker %s is gone: its stream %r was ended", worker, key.id, extra=key.fields())
                await self.free(key, *ended)
                await self.announce_rest(key)

    async def page(self, name: str, epoch: str, offset: int) -> Page:
        """Bytes of a log from `offset` on, and how the log ended if that is next to them.

        Raises:
            OffsetLost: The bytes there were dropped.
            StoreUnavailable: Redis cannot be used.
        """
        (reply,) = await self.link.run(Call(PAGE, [name, log_key(name, epoch)], [offset, PAGE_SIZE]))
        first, data, *ending = reply
        if first is not None:
            if int(first) > offset:
                raise OffsetLost(int(first))
            data = data[offset - int(first) :]
        return Page(data, (ResumableStatus(ending[0].decode()), ending[1].decode()) if ending else None)

    async def end(self, calls: Sequence[Call], status: ResumableStatus, code: str) -> list[Any]:
        """Run scripts that may end streams; give those that have to the terminal event, in a second go."""
        replies = await self.link.run(*calls)
        lacking = [index for index, reply in enumerate(replies) if reply == [b"event"]]
        if lacking:
            event = self.terminal(status, code)
            given = (calls[index]._replace(args=[*calls[index].args, *event]) for index in lacking)
            for index, reply in zip(lacking, await self.link.run(*given), strict=True):
                replies[index] = reply
        return replies

    def terminal(self, status: ResumableStatus, code: str) -> list[bytes | int]:
        """The terminal event as scripts take it: they alone know the epoch and the offset."""
        event, failure = write_terminal_event(self.limits.terminal_event, status.value, code, END_MESSAGES[code])
        if failure is not None:
            logger.error("terminal_event failed; the stream ends with the default one", exc_info=failure)
        if not event:
            return [b""]
        if not self.limits.event_ids:
            return [event]
        framer = EventFramer(UNUSED_EPOCH, len(event))
        stamped = framer.feed(event, 0)
        return cut_event(stamped + framer.finish(len(stamped)), UNUSED_EPOCH)

    async def tell_ended(self, key: StreamKey, told: Sequence[bytes], code: str) -> None:
        """Tell the workers of what a script has ended; `told` are workers and epochs by turns."""
        await self.free(key, *told[1::2])
        for worker, epoch in zip(told[::2], told[1::2], strict=True):
            self.send_message(worker.decode(), "stop", epoch.decode(), code)

    def describe(self, stream: LocalStream) -> list[Any]:
        """What is written of a stream when it begins."""
        return [
            dump_head(stream.head),
            int(stream.head.is_event_stream),
            stream.started_at,
            stream.idempotency_key or "",
        ]

    @staticmethod
    def now() -> float:
        """Unix seconds."""
        return time.time()

    # Streams that are recorded here.

    def forget(self, stream: LocalStream) -> None:
        """Redis has all of a stream, or is to have no more."""
        if self.streams.pop(stream.epoch, None) is not None:
            stream.leave_store()

    async def free(self, key: StreamKey, *epochs: str | bytes) -> None:
        """Count streams against their owner's limit no longer."""
        calls = self._free(key, *epochs)
        try:
            await self.link.run(*calls)
        except StoreUnavailable:
            self.appender.post(*calls)

    def _free(self, key: StreamKey, *epochs: str | bytes) -> list[Call]:
        if not epochs or key.owner is None or self.limits.max_streams_per_owner is None:
            return []
        return [Call("HDEL", [self.keys.owner(key.owner)], epochs)]

    def end_elsewhere(self, stream: LocalStream, code: str = "cancelled") -> None:
        """Take over that somebody else has ended a stream, and stop its producer."""
        if stream.epoch in self.streams:
            self.forget(stream)
            self.spawn(self._end_elsewhere(stream, code), f"resumable end {stream.key.id}")

    async def _end_elsewhere(self, stream: LocalStream, code: str) -> None:
        try:
            code = await stream.adopt_end(code)
        finally:
            stream.stop_producer("interrupted" if code == "producer_lost" else code)
        # Nothing is left to be read of it here: if nobody else reads it, either, its log goes.
        name = self.keys.stream(stream.key)
        self.appender.post(Call(REPORT, [name, readers_key(name, stream.epoch)], [self.worker, "", self.patience]))
        await self.free(stream.key, stream.epoch)

    def abandon(self, name: str, epoch: str) -> None:
        """See to it that a stream that has no producer here does not stay live, once Redis can be reached."""
        self.appender.post(self.release(name, epoch, *self.terminal(ResumableStatus.INTERRUPTED, "producer_lost")))

    def cancel_reservation(self, key: StreamKey, epoch: str) -> None:
        """See to it that a request that is over does not stay queued, once Redis can be reached."""
        self.appender.post(self.release(self.keys.stream(key), epoch, b""), *self._free(key, epoch))

    def release(self, name: str, epoch: str, *event: Any) -> Call:
        """The call that ends an epoch, be it queued or live; not by its worker, which may have the next one by then."""
        return Call(RELEASE, [name], [epoch, self.ttl, self.now(), self.retention, *event])

    def _on_lapse(self) -> None:
        """This process stood still for so long that others have given up its streams."""
        for epoch in list(self.reservations):
            self.handle_message("stop", epoch, "interrupted")
        lapsed = list(self.streams.values())
        for stream in lapsed:
            # At once, or it would be written anew should Redis have forgotten it.
            self.forget(stream)
        self.spawn(self._end_lapsed(lapsed), "resumable lapse")

    async def _end_lapsed(self, lapsed: list[LocalStream]) -> None:
        calls = [self.release(self.keys.stream(stream.key), stream.epoch) for stream in lapsed]
        try:
            await self.end(calls, ResumableStatus.INTERRUPTED, "producer_lost")
        except StoreUnavailable:
            logger.warning("streams that were given up could not be ended in Redis")
        for stream in lapsed:
            await self._end_elsewhere(stream, "producer_lost")
            await self.announce_rest(stream.key)

    def _check_all(self) -> None:
        for stream in self.streams.values():
            stream.check()
        if self.reservations:
            self.spawn(self._queue_again(list(self.reservations.values())), "resumable queue")

    async def _queue_again(self, reservations: list[Reservation]) -> None:
        try:
            await self.link.run(*(self.queue(reservation, "replace") for reservation in reservations))
        except StoreUnavailable:
            return
        for reservation in reservations:
            if not self.has(reservation.epoch):
                self.cancel_reservation(reservation.key, reservation.epoch)

    def queue(self, reservation: Reservation, rule: str) -> Call:
        """The call that queues a request, unless it is queued or has begun."""
        idem, requested = reservation.idempotency_key or "", reservation.requested_at
        name = self.keys.stream(reservation.key)
        return Call(RESERVE, [name], [reservation.epoch, self.worker, idem, rule, requested, self.ttl])

    # Streams that are followed from here.

    def follow(self, stream: RemoteStream) -> None:
        """Read what is added to a stream."""
        self.followed[stream.epoch] = stream
        self.check(stream)
        self.follower.follow(
            log_key(self.keys.stream(stream.key), stream.epoch),
            f"{stream.log.tail}-0",
            partial(self._take, stream),
            stream.fail,
        )

    def _take(self, stream: RemoteStream, entries: list[Entry]) -> None:
        for entry_id, fields in entries:
            end = int(entry_id.partition("-")[0])
            if b"s" in fields:
                stream.finish(end, ResumableStatus(fields[b"s"].decode()), self.now())
            else:
                stream.take(end - len(fields[b"d"]), fields[b"d"])

    def unfollow(self, stream: RemoteStream) -> None:
        """Stop reading."""
        if self.followed.get(stream.epoch) is stream:
            del self.followed[stream.epoch]
            self.follower.unfollow(log_key(self.keys.stream(stream.key), stream.epoch))

    async def _look_around(self) -> None:
        """See who is gone, and keep alive what is ours."""
        reported = 0.0
        while True:
            await asyncio.sleep(LOOK)
            followed = list(self.followed.values())
            try:
                if followed:
                    await self._look_at(followed)
                if self.loop.time() - reported > self._lease_seconds:
                    reported = self.loop.time()
                    for stream in list(self.views.values()):
                        stream.report_again()
                if time.monotonic() - self._touched > LIVE / 3:
                    self._touched = time.monotonic()
                    await self._touch()
            except StoreUnavailable:
                continue

    async def _look_at(self, followed: list[RemoteStream]) -> None:
        dead = await self.lease.dead(stream.worker for stream in followed)
        if dead:
            try:
                await self.reap_dead((stream.key, stream.worker) for stream in followed if stream.worker in dead)
            except StoreUnavailable as exc:
                for stream in followed:
                    if stream.worker in dead:
                        stream.fail(exc)
                raise
        for stream in followed:
            if stream.missing_since is not None or stream.worker in dead:
                await self._look_for(stream)

    async def _look_for(self, stream: RemoteStream) -> None:
        """Whether Redis still has a stream, after an outage that it may not have survived."""
        (state,) = await self.peek(stream.key)
        _, ending = await self._page_or_nothing(stream)
        if ending is not None or state.epoch == stream.epoch:
            stream.missing_since = None
            if state.epoch == stream.epoch and state.is_final and state.tail < stream.log.tail:
                stream.fail(StoreUnavailable("Redis has lost a part of the stream, and its producer is gone."))
            elif ending is None:
                self.check(stream)
        elif stream.missing_since is None:
            stream.missing_since = self.loop.time()
        elif self.loop.time() - stream.missing_since > self._lease_seconds:
            stream.fail(StoreUnavailable("Redis has lost the stream, and its producer is gone."))

    async def _page_or_nothing(self, stream: RemoteStream) -> Page:
        try:
            return await self.page(self.keys.stream(stream.key), stream.epoch, stream.log.tail)
        except OffsetLost:
            return Page(b"")

    async def _touch(self) -> None:
        """Keep the keys of what is live here from expiring."""
        calls = [
            Call(TOUCH, [name := self.keys.stream(stream.key), log_key(name, stream.epoch)], [self.ttl])
            for stream in self.streams.values()
        ]
        calls += [Call(TOUCH, [self.keys.stream(queued.key)], [self.ttl]) for queued in self.reservations.values()]
        for stream in self.streams.values():
            calls += self.index(stream.key)
            if stream.key.owner is not None:
                calls.append(Call("PEXPIRE", [self.keys.owner(stream.key.owner)], [self.ttl]))
        for start in range(0, len(calls), 500):
            await self.link.run(*calls[start : start + 500])

    def index(self, key: StreamKey) -> list[Call]:
        """Calls that note a stream under its shorter ids."""
        return [
            Call(INDEX, [self.keys.variants(StreamKey(key.owner, shorter))], [key.id, self.ttl])
            for shorter in variants(key.id)
        ]

    # Outages.

    def _on_up(self) -> None:
        self.lease.renew_now()
        self._check_all()
        for stream in self.followed.values():
            stream.missing_since = stream.missing_since or self.loop.time()

    def _on_outage(self, failure: StoreUnavailable) -> None:
        for stream in list(self.followed.values()):
            stream.fail(failure)
