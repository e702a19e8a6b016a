"""The state changes of streams in Redis: which scripts make them, and what follows from each for others.

What a script ends that its own worker does not end needs a terminal event. The event is framed here, by what frames
every other, so a script that lacks it replies for which epoch and offset it has to be, and is run again with it.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ..._core.ids import StreamKey
from ..._core.lifecycle import OnConflict, Verdict
from ..._stream.recording import end_event
from ..._stream.stream import Limits
from ...exceptions import OffsetLost, StoreUnavailable, TooManyStreams, TooManyStreamsOfOwner
from ...models import ResumableStatus
from ..base import Reservation, queued_item
from ..shared.backend import Answer
from ..shared.local import LocalStream
from ..shared.streams import WorkerStreams
from ..shared.writes import END_MESSAGES, KeyState, Page
from .calls import Calls, Epoch
from .link import Call
from .state import read_state
from .worker import RedisWorker

logger = logging.getLogger("fastapi_resumable")


class Transitions:
    """Makes the state changes that requests ask for; a source of the write queue for those that have to wait."""

    def __init__(self, worker: RedisWorker, calls: Calls, streams: WorkerStreams, limits: Limits) -> None:
        self._worker = worker
        self._link = worker.link
        self._calls = calls
        self._streams = streams
        self._limits = limits
        self._orphans: dict[Epoch, list[Any]] = {}
        """Terminal events for epochs that have no producer, and are to stay neither queued nor live."""

    # Requests.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow."""
        key = reservation.key
        calls = [*self._calls.index(key), self._calls.reserve(reservation, on_conflict, now)]
        while True:
            word, *about = (await self._link.run(*calls))[-1]
            if word == b"queued":
                break
            rival, worker = about[0].decode(), about[1].decode()
            if not (worker and await self._worker.lease.dead([worker])):
                return Answer(Verdict(word.decode()), rival)
            await self.reap([(key, worker)])
        reservation.requested_at = now
        if reservation.stop_code is None:
            replaces = bool(int(about[0]))
            self._streams.check_limit(replaces=replaces)
            if self._streams.budget.used >= self._limits.max_total_bytes:
                raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")
            await self._claim(reservation, replaces)
            await self._worker.announce(key.owner, reservation.item)
        return Answer(Verdict.QUEUED)

    async def _claim(self, reservation: Reservation, replaces: bool) -> None:
        owner, most = reservation.key.owner, self._limits.max_streams_per_owner
        if owner is None or most is None:
            return
        call = self._calls.claim(owner, reservation.epoch, most + replaces)
        while True:
            (reply,) = await self._link.run(call)
            if not reply:
                return
            counted = dict(zip(reply[::2], (worker.decode() for worker in reply[1::2]), strict=True))
            dead = await self._worker.lease.dead(counted.values())
            gone = [epoch for epoch, worker in counted.items() if worker in dead]
            if not gone:
                raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
            await self._link.run(*self._calls.free(reservation.key, *gone))

    async def begin(self, reservation: Reservation, stream: LocalStream) -> Answer:
        """Make a request the current epoch."""
        key, call = reservation.key, self._calls.begin(stream)
        before, reply = await self.end([self._calls.peek(key), call], ResumableStatus.CANCELLED, "replaced")
        if reply[0] == b"unknown" and reservation.stop_code is None:
            # Redis has lost the queue.
            again = self._calls.reserve(reservation, "replace", reservation.requested_at)
            _, reply = await self.end([again, call], ResumableStatus.CANCELLED, "replaced")
        if reply[0] != b"begun":
            return Answer(Verdict.STOPPED, code=reply[1].decode() if reply[0] == b"stopped" else "cancelled")
        await self._announce_ended(read_state(key, before), reply[2::2])
        await self.notify_ended(key, reply[1:], "replaced")
        await self._worker.announce(key.owner, stream.item)
        return Answer(Verdict.BEGUN)

    async def release(self, reservation: Reservation) -> None:
        """Make sure that a request stays neither queued nor live."""
        key, epoch = reservation.key, reservation.epoch
        if not reservation.requested_at:
            # It may be queued, although no reply has said so.
            self._worker.queue.post(self._calls.release(Epoch(key, epoch)), *self._calls.free(key, epoch))
            return
        try:
            if reservation.stop_code is None:
                await self.end_epochs([Epoch(key, epoch)])
        except StoreUnavailable:
            self.abandon(Epoch(key, epoch))
        await self.free(key, epoch)
        if reservation.stop_code is not None:
            # What has stopped it has announced that.
            self.abandon(Epoch(key, epoch))
            return
        await self._worker.announce(key.owner, reservation.ended(ResumableStatus.FAILED, time.time()))
        await self.announce_rest(key)

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        before, told = await self.end(
            [self._calls.peek(key), self._calls.stop(key, epoch)], ResumableStatus.CANCELLED, "cancelled"
        )
        if told:
            await self.notify_ended(key, told, "cancelled")
            await self._announce_ended(read_state(key, before), told[1::2])
            await self.announce_rest(key)

    # Ends that the producer does not write.

    async def end(self, calls: Sequence[Call], status: ResumableStatus, code: str) -> list[Any]:
        """Run calls of which some may end a stream; those again, with the terminal event, that ask for it."""
        replies = await self._link.run(*calls)
        while lacking := [index for index, reply in enumerate(replies) if lacks_event(reply)]:
            given = (add_event(calls[index], self.terminal_event(replies[index], status, code)) for index in lacking)
            for index, reply in zip(lacking, await self._link.run(*given), strict=True):
                replies[index] = reply
        return replies

    def terminal_event(self, reply: Sequence[bytes], status: ResumableStatus, code: str) -> list[Any]:
        """What a script is to be given that has replied that it `lacks_event`: for which place the event is, and it."""
        _, epoch, tail, mid = reply
        is_mid_event, message = mid == b"1", END_MESSAGES[code]
        return [
            epoch, tail, end_event(epoch.decode(), self._limits, int(tail), is_mid_event, status, code, message)
        ]  # fmt: skip

    async def end_epochs(self, epochs: Iterable[Epoch]) -> None:
        """End epochs as their worker would have done that has lost them."""
        await self.end([*map(self._calls.release, epochs)], ResumableStatus.INTERRUPTED, "producer_lost")

    def abandon(self, orphan: Epoch) -> None:
        """End an epoch as soon as Redis can be used."""
        self._worker.queue.mark(self, orphan)

    def next_job(self, orphan: Epoch) -> Call:
        """What to do now for an epoch that was abandoned."""
        return add_event(self._calls.release(orphan), self._orphans.pop(orphan, []))

    def take_reply(self, orphan: Epoch, reply: Any) -> None:
        """What came of it."""
        if lacks_event(reply):
            self._orphans[orphan] = self.terminal_event(reply, ResumableStatus.INTERRUPTED, "producer_lost")
            self.abandon(orphan)

    def on_outage(self, orphan: Epoch, failure: StoreUnavailable) -> None:
        """It is tried again."""

    async def reap(self, dead_owners: Iterable[tuple[StreamKey, str]]) -> None:
        """End what belongs to workers that are gone."""
        dead_owners = list(dead_owners)
        calls = [self._calls.reap(key, worker) for key, worker in dead_owners]
        replies = await self.end(calls, ResumableStatus.INTERRUPTED, "producer_lost")
        for (key, worker), ended in zip(dead_owners, replies, strict=True):
            for epoch in ended:
                fields = key.fields(epoch.decode())
                logger.warning("worker %s is gone: its stream %r was ended", worker, key.id, extra=fields)
            if ended:
                await self.free(key, *ended)
                await self.announce_rest(key)

    # What others have to know.

    async def notify_ended(self, key: StreamKey, told: Sequence[bytes], code: str) -> None:
        """Tell workers what a script has ended of theirs: in `told`, each worker is followed by an epoch."""
        await self.free(key, *told[1::2])
        for worker, epoch in zip(told[::2], told[1::2], strict=True):
            self._worker.send(worker.decode(), "stop", epoch.decode(), code)

    async def free(self, key: StreamKey, *epochs: str | bytes) -> None:
        """Count streams against their owner's limit no longer."""
        await self._worker.run_or_post(*self._calls.free(key, *epochs))

    async def _announce_ended(self, before: KeyState, ended: Iterable[bytes]) -> None:
        """Tell those that watch that these epochs of a stream were cancelled."""
        epochs, key, current = {epoch.decode() for epoch in ended}, before.key, before.current
        items = [queued_item(key, each.epoch, each.requested_at) for each in before.queued if each.epoch in epochs]
        if current is not None and current.epoch in epochs:
            items.append(current.item)
        over = {"status": ResumableStatus.CANCELLED, "is_done": True, "completed_at": int(time.time())}
        await self._worker.announce(key.owner, *(item.model_copy(update=over) for item in items))

    async def announce_rest(self, key: StreamKey) -> None:
        """Tell those that watch what a lookup shows, now that something has gone."""
        try:
            (reply,) = await self._link.run(self._calls.peek(key))
        except StoreUnavailable:
            return
        if (item := read_state(key, reply).item) is not None:
            await self._worker.announce(key.owner, item)

    # Looking.

    async def state(self, key: StreamKey) -> KeyState:
        """What there is under a key, after what belonged to dead workers was ended."""
        (state,) = await self._states([key])
        return state

    async def states(self, owner: str | None, ids: Sequence[str]) -> list[KeyState]:
        """The same for some ids and their variants, each once, in the order asked for."""
        asked = list(dict.fromkeys(ids))
        longer = await self._link.run(
            *(Call("ZRANGE", [self._worker.keys.variants(StreamKey(owner, each))], [0, -1]) for each in asked)
        )
        wanted = dict.fromkeys(
            name
            for stream_id, found in zip(asked, longer, strict=True)
            for name in (stream_id, *(member.decode("utf-8", "surrogatepass") for member in found))
        )
        return await self._states([StreamKey(owner, stream_id) for stream_id in wanted])

    async def _states(self, keys: Sequence[StreamKey]) -> list[KeyState]:
        states = await self._look(keys)
        dead = await self._worker.lease.dead(worker for state in states for worker in state.workers)
        lost = [state for state in states if self._is_lost(state)]
        if not dead and not lost:
            return states
        await self.reap((state.key, worker) for state in states for worker in state.workers & dead)
        await self.end_epochs(Epoch(state.key, state.current.epoch) for state in lost if state.current)
        return await self._look(keys)

    async def _look(self, keys: Sequence[StreamKey]) -> list[KeyState]:
        replies = await self._link.run(*map(self._calls.peek, keys))
        return [read_state(key, reply) for key, reply in zip(keys, replies, strict=True)]

    def _is_lost(self, state: KeyState) -> bool:
        # Said to be this worker's, but it is not: Redis is back from an older state, in which it had not ended yet.
        current = state.current
        is_ours = current is not None and not current.is_final and current.worker == self._worker.name
        return is_ours and current is not None and not self._streams.has(current.epoch)

    async def page(self, key: StreamKey, epoch: str, offset: int) -> Page:
        """Bytes of a log from `offset` on, and how the log ended if that is next to them.

        Raises:
            OffsetLost: The bytes there were dropped.
            StoreUnavailable: Redis cannot be used.
        """
        (reply,) = await self._link.run(self._calls.page(key, epoch, offset))
        first, data, *ending = reply
        if first is not None:
            if int(first) > offset:
                raise OffsetLost(int(first))
            data = data[offset - int(first) :]
        return Page(data, (ResumableStatus(ending[0].decode()), ending[1].decode()) if ending else None)


def lacks_event(reply: Any) -> bool:
    """Whether a script has done nothing yet, because it needs a terminal event."""
    return isinstance(reply, list) and reply[:1] == [b"event"]


def add_event(call: Call, event: Sequence[Any]) -> Call:
    """The call with a terminal event."""
    return call._replace(args=[*call.args, *event])
