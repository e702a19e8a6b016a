"""The state changes of streams in Redis: which scripts make them, and what follows from each for others."""

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress

from ..._core.ids import StreamKey
from ..._core.lifecycle import OnConflict, Verdict
from ...exceptions import StoreUnavailable, TooManyStreams, TooManyStreamsOfOwner
from ...models import ResumableStatus, ResumableStreamItem
from ..base import Reservation, queued_item
from ..shared.backend import Answer, SharedBackend
from ..shared.local import LocalStream
from ..shared.outage import RECHECK
from ..shared.writes import KeyState
from .calls import Calls, read_state
from .link import Link, in_parts
from .worker import Lease, Messages

logger = logging.getLogger("fastapi_resumable")

OLD = 5.0
"""Seconds after which it is checked whether a request still waits: nearly all have begun by then."""


class Transitions(SharedBackend):
    """The part of the backend that changes states, as requests ask for it, and looks at them."""

    name: str
    calls: Calls
    link: Link
    lease: Lease
    messages: Messages

    # Requests.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow."""
        key = reservation.key
        # The index first: a variant must not exist without being found under its shorter ids.
        calls = [*self.calls.index(key), self.calls.reserve(reservation, on_conflict, now)]
        while True:
            word, *about = (await self.link.run(*calls))[-1]
            if word == b"queued":
                break
            rival, worker = about[0].decode(), about[1].decode()
            # A rival of a dead worker stands in the way of nothing.
            if not (worker and await self.lease.dead([worker])):
                return Answer(Verdict(word.decode()), rival)
            await self.reap([(key, worker)])
        reservation.requested_at = now
        # A stop may have been faster than the reply, and has announced itself.
        if reservation.stop_code is None:
            replaces = bool(int(about[0]))
            self.check_limit(replaces=replaces)
            if self.budget.used >= self.limits.max_total_bytes:
                raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")
            await self._claim(reservation, replaces)
            await self.messages.announce(key.owner, reservation.item)
        return Answer(Verdict.QUEUED)

    async def _claim(self, reservation: Reservation, replaces: bool) -> None:
        owner, most = reservation.key.owner, self.limits.max_streams_per_owner
        if owner is None or most is None:
            return
        call = self.calls.claim(owner, reservation.epoch, most + replaces)
        while True:
            (reply,) = await self.link.run(call)
            if not reply:
                return
            words = [word.decode() for word in reply]
            counted = dict(zip(words[::2], words[1::2], strict=True))
            dead = await self.lease.dead(counted.values())
            gone = [epoch for epoch, worker in counted.items() if worker in dead or self._is_over(epoch, worker)]
            if not gone:
                raise TooManyStreamsOfOwner(f"You have {most} live streams, which is the limit. Stop one, or wait.")
            # Workers that have died have not given back what they counted, and a stream may have ended while it was
            # counted again.
            await self.link.run(*self.calls.free(reservation.key, *gone))

    async def begin(self, reservation: Reservation, stream: LocalStream) -> Answer:
        """Make a request the current epoch."""
        key, call = reservation.key, self.calls.begin(stream)
        # Peeked at first, because the script drops what it ends, and watchers are to get its items.
        before, reply = await self.link.run(self.calls.peek(key), call)
        if reply[0] == b"unknown" and reservation.stop_code is None:
            # Redis has lost the queue.
            again = self.calls.reserve(reservation, "replace", reservation.requested_at)
            _, reply = await self.link.run(again, call)
        if reply[0] != b"begun":
            return Answer(Verdict.STOPPED, code=reply[1].decode() if reply[0] == b"stopped" else "cancelled")
        await self._announce_ended(read_state(key, before), reply[2::2])
        await self.notify_ended(key, reply[1:], "replaced")
        await self.messages.announce(key.owner, stream.item)
        return Answer(Verdict.BEGUN)

    async def release(self, reservation: Reservation) -> None:
        """Make sure that a request stays neither queued nor live."""
        key, epoch = reservation.key, reservation.epoch
        if not reservation.requested_at or reservation.stop_code is not None:
            # It may be queued, although no reply has said so; or what has stopped it has announced that.
            self.ensure_ended(key, epoch)
            return
        await self.messages.run_now_or_later(self.calls.release(key, epoch))
        await self.free(key, epoch)
        await self.messages.announce(key.owner, reservation.ended(ResumableStatus.FAILED, time.time()))
        await self._announce_rest(key)

    def ensure_ended(self, key: StreamKey, epoch: str) -> None:
        """Make sure that an epoch stays neither queued nor live, as soon as Redis can be reached."""
        self.queue.run_later(self.calls.release(key, epoch), *self.calls.free(key, epoch))

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        before, told = await self.link.run(self.calls.peek(key), self.calls.stop(key, epoch))
        if told:
            await self.notify_ended(key, told, "cancelled")
            await self._announce_ended(read_state(key, before), told[1::2])
            await self._announce_rest(key)

    # What has no producer any more.

    async def reap(self, dead_owners: Iterable[tuple[StreamKey, str]]) -> None:
        """End what belongs to workers that are gone."""
        dead_owners = list(dead_owners)
        calls = (call for key, worker in dead_owners for call in (self.calls.peek(key), self.calls.reap(key, worker)))
        replies = await self.link.run(*calls)
        for (key, worker), before, ended in zip(dead_owners, replies[::2], replies[1::2], strict=True):
            for epoch in ended:
                fields = key.fields(epoch.decode())
                logger.warning("worker %s is gone: its stream %r was ended", worker, key.id, extra=fields)
            if ended:
                await self.free(key, *ended)
                # What was live is there, as interrupted, and is announced with the rest.
                queued = read_state(key, before)._replace(current=None)
                await self._announce_ended(queued, ended, ResumableStatus.FAILED)
                await self._announce_rest(key)

    async def reap_watched(self) -> None:
        """End what dead workers have left of the streams that are watched here, so that the watchers hear of it."""
        dead = await self.lease.dead(self.messages.workers)
        # Before the looks, which put back those that they find not dead, after all.
        self.messages.workers -= dead
        try:
            for owner, ids in self.watchers.watched().items() if dead else ():
                for start in range(0, len(ids), 100):
                    await self.states(owner, ids[start : start + 100])
        except StoreUnavailable:
            self.messages.workers |= dead
            raise

    # What others have to know.

    def check(self, worker: str, key: StreamKey, epoch: str) -> None:
        """Have a worker end what is said to be its own, should it know nothing of it."""
        self.messages.send(worker, "check", epoch, json.dumps(key))

    def note_end(self, stream: LocalStream) -> None:
        """Count a stream no longer, in one go with its end: a client that has seen that may begin another."""
        self.queue.run_later(*self.calls.free(stream.key, stream.epoch))

    async def announce(self, stream: LocalStream) -> None:
        """Tell those that watch; those here before it goes on: an exiting server ends them after its last stream."""
        (owner, stream_id), item, heard = stream.key, stream.item, asyncio.Event()

        def note(told: ResumableStreamItem) -> None:
            if told == item:
                heard.set()

        with ExitStack() as watching:
            if is_watched := bool(self.watchers):
                # Where there is no room for one more watch, they may hear of it later.
                with suppress(TooManyStreams):
                    watching.callback(self.watchers.add(owner, [stream_id], note))
            await self.messages.announce(owner, item)
            if is_watched:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RECHECK):
                        await heard.wait()

    async def notify_ended(self, key: StreamKey, told: Sequence[bytes], code: str) -> None:
        """Tell workers what a script has ended of theirs: in `told`, each worker is followed by an epoch."""
        await self.free(key, *told[1::2])
        for worker, epoch in zip(told[::2], told[1::2], strict=True):
            self.messages.send(worker.decode(), "stop", epoch.decode(), code)

    async def free(self, key: StreamKey, *epochs: str | bytes) -> None:
        """Count streams against their owner's limit no longer."""
        await self.messages.run_now_or_later(*self.calls.free(key, *epochs))

    async def touch(self) -> None:
        """Keep what is live here from expiring, and see to it that it is found and counted."""
        mine: list[LocalStream | Reservation] = [*self.streams.local.values(), *self.streams.queued.values()]
        for part in in_parts(mine):
            await self.link.run(*(call for each in part for call in self.calls.touch(each.key, each.epoch)))
        # What has ended meanwhile may have been given back before it was counted here once more.
        over = (each for each in mine if self._is_over(each.epoch, self.name))
        self.queue.run_later(*(call for each in over for call in self.calls.free(each.key, each.epoch)))

    def _is_over(self, epoch: str, worker: str) -> bool:
        """Whether an epoch belongs to this worker, and is neither queued nor live."""
        stream = self.streams.local.get(epoch)
        is_live = epoch in self.streams.queued or (stream is not None and not stream.closed)
        return worker == self.name and not is_live

    async def _announce_ended(
        self, before: KeyState, ended: Iterable[bytes], status: ResumableStatus = ResumableStatus.CANCELLED
    ) -> None:
        """Tell those that watch that these epochs of a stream have ended so."""
        epochs, key, current = {epoch.decode() for epoch in ended}, before.key, before.current
        items = [queued_item(key, each.epoch, each.requested_at) for each in before.queued if each.epoch in epochs]
        if current is not None and current.epoch in epochs:
            items.append(current.item)
        over = {"status": status, "is_done": True, "completed_at": int(time.time())}
        await self.messages.announce(key.owner, *(item.model_copy(update=over) for item in items))

    async def _announce_rest(self, key: StreamKey) -> None:
        """Tell those that watch what a lookup shows, now that something has gone."""
        try:
            (state,) = await self._look([key])
        except StoreUnavailable:
            return
        if (item := state.item) is not None:
            await self.messages.announce(key.owner, item)

    # Looking.

    async def state(self, key: StreamKey) -> KeyState:
        """What there is under a key, after what belonged to dead workers was ended."""
        looked = await self._look([key])
        (state,) = await self._settle(looked, await self.lease.dead(looked[0].workers))
        return state

    async def states(self, owner: str | None, ids: Sequence[str]) -> list[KeyState]:
        """The same for some ids and their variants, each once, in the order asked for."""
        asked = list(dict.fromkeys(ids))
        # Many ids take many calls, one after the other, each of which has a timeout of its own.
        async with self.link.in_time():
            longer = await self.link.run(*(self.calls.find_variants(StreamKey(owner, each)) for each in asked))
            wanted = dict.fromkeys(
                name for stream_id, found in zip(asked, longer, strict=True) for name in (stream_id, *json.loads(found))
            )
            looked = await self._look([StreamKey(owner, stream_id) for stream_id in wanted])
            workers: set[str] = set()
            for part in in_parts(looked):
                workers.update(*(state.workers for state in part))
                await asyncio.sleep(0)
            # Once for all: thousands of streams have a few workers between them.
            dead = await self.lease.dead(workers)
        states: list[KeyState] = []
        for part in in_parts(looked):
            settled = await self._settle(part, dead)
            states += settled
            if self.watchers:
                # A watch begins with such a look; see `reap_watched`.
                self.messages.workers.update(*(state.workers for state in settled))
            # Where nothing has to be ended, nothing is asked, so nothing else would let others run.
            await asyncio.sleep(0)
        return states

    async def _settle(self, states: Sequence[KeyState], dead: set[str]) -> Sequence[KeyState]:
        """End what nothing produces any more, as what is of `dead` workers; look again if there was any."""
        # Redis may be back from a state in which they had not ended yet.
        lost = [
            self.calls.release(state.key, each.epoch)
            for state in states
            for each in state.live
            if each.worker == self.name and not self.streams.has(each.epoch)
        ]
        for state in states:
            for request in state.queued:
                if time.time() - request.requested_at > OLD:
                    self.check(request.worker, state.key, request.epoch)
        orphans = [(state.key, worker) for state in states for worker in state.workers & dead] if dead else []
        if not orphans and not lost:
            return states
        await self.reap(orphans)
        await self.link.run(*lost)
        return await self._look([state.key for state in states])

    async def _look(self, keys: Sequence[StreamKey]) -> list[KeyState]:
        states: list[KeyState] = []
        for part in in_parts(keys):
            states += map(read_state, part, await self.link.run(*map(self.calls.peek, part)))
        return states
