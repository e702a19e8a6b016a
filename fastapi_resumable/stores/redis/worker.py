"""One worker's session in Redis: its lease, its inbox, the changes that it receives, and the tasks that handle them.

It knows nothing of streams: what it hears goes to its handlers. Whatever one of its tasks raises, the task goes on.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

from ..._stream.tasks import Tasks
from ...exceptions import StoreUnavailable
from ...models import ResumableStreamItem
from ..shared.queue import Source, WriteQueue
from ..watchers import Notify, Watchers
from .calls import LIVE, Call, Calls, Script
from .keys import Keys
from .link import Client, Link, count_bytes
from .listener import Entry, Listener

logger = logging.getLogger("fastapi_resumable")

CHANGES = 10_000
"""How many changes of state are remembered."""
LOOK = 1.0
"""Seconds between the handlers' looks."""
GRACE = 1.5
"""Seconds after an outage of Redis in which no worker is declared dead: others were cut off, too, and have to renew."""


class Handlers(Source[Call], Protocol):
    """What is done with what a worker hears, and with the replies to what streams write."""

    def on_message(self, message: str, epoch: str, about: str) -> None:
        """A worker, this one included, says something of an epoch."""

    def on_return(self) -> None:
        """Redis can be used again, or has forgotten this worker: it may have forgotten more."""

    def on_outage(self, failure: StoreUnavailable) -> None:
        """Nothing could be read for too long."""

    def on_lapse(self) -> None:
        """This process stood still for so long that others have given up its streams."""

    async def look(self) -> None:
        """Do what is due every second."""


class Lease:
    """The lease of this worker, and a look at those of others.

    Each worker renews a key that expires, and a worker whose key has expired is dead to all others.
    """

    def __init__(self, worker: str, link: Link, keys: Keys, seconds: float, handlers: Handlers) -> None:
        self._worker = worker
        self._link = link
        self._keys = keys
        self._seconds = seconds
        self._handlers = handlers
        self._awake = 0.0
        self._renewed = 0.0
        self._now = asyncio.Event()

    async def take(self) -> None:
        """Take the lease for the first time."""
        await self._beat()
        self._awake = monotonic()

    def renew_now(self) -> None:
        """Renew the lease at once, rather than when it is time."""
        self._now.set()

    async def keep(self) -> None:
        """Renew the lease, again and again."""
        while True:
            try:
                # As long as is left since the last time, should this have been interrupted.
                async with asyncio.timeout(self._renewed + self._seconds / 4 - monotonic()):
                    await self._now.wait()
            except TimeoutError:
                pass
            # Before the call, so that a wish that comes during it is not lost.
            self._now.clear()
            try:
                existed = await self._beat()
            except StoreUnavailable:
                self._renewed = monotonic()
                continue
            # Its key had expired, so others may have ended what is here.
            if not existed:
                self._handlers.on_return()

    async def watch(self) -> None:
        """Notice when this process stood still, whatever Redis does meanwhile."""
        while True:
            await asyncio.sleep(self._seconds / 4)
            # By this process' own clock: whether Redis could be reached meanwhile does not matter here.
            if monotonic() - self._awake > self._seconds:
                logger.error(
                    "this process stood still for more than its lease of %g s: its streams were given up", self._seconds
                )
                self._handlers.on_lapse()
            self._awake = monotonic()

    async def _beat(self) -> bool:
        name = f"{os.getpid()}@{socket.gethostname()}"
        (existed,) = await self._link.run_now(
            Call(Script.BEAT, [self._keys.worker(self._worker)], [name, int(self._seconds * 1000)])
        )
        self._renewed = monotonic()
        return bool(existed)

    async def give_back(self) -> None:
        """Say that this worker is gone."""
        await self._link.run(
            Call("DEL", [self._keys.worker(self._worker)]), Call("DEL", [self._keys.inbox(self._worker)])
        )

    async def dead(self, workers: Iterable[str]) -> set[str]:
        """Those of `workers` that have let their lease expire."""
        others = [worker for worker in set(workers) if worker != self._worker]
        if not others or monotonic() - self._link.outage.up_since < GRACE:
            return set()
        alive = await self._link.run(*(Call("EXISTS", [self._keys.worker(worker)]) for worker in others))
        return {worker for worker, exists in zip(others, alive, strict=True) if not exists}


class RedisWorker:
    """What a worker has of Redis on one event loop, whatever it streams."""

    def __init__(
        self, name: str, client: Client, keys: Keys, calls: Calls, handlers: Handlers, *, lease: float, timeout: float
    ) -> None:
        self.name = name
        self.tasks = Tasks()
        self.link = Link(client, calls, timeout, on_up=self._on_up)
        self.lease = Lease(name, self.link, keys, lease, handlers)
        self.queue: WriteQueue[Call] = WriteQueue(handlers, self.link.run_batch, count_bytes)
        self.listener = Listener(self.link, self.tasks, wake=self._wake_listener, on_outage=handlers.on_outage)
        self._keys = keys
        self._handlers = handlers
        self._inbox = keys.inbox(self.name)
        self._watchers = Watchers()
        self._is_started = False

    # Tasks.

    async def register(self) -> None:
        """Take a lease and begin to listen."""
        await self.lease.take()
        for work, name in (
            (self.lease.keep, "lease"),
            (self.lease.watch, "lapse"),
            (self.queue.run, "appender"),
            (self._look, "look-out"),
        ):
            self.tasks.keep_running(work, f"resumable {name}", self.link.note_failure)
        self._follow_inbox()
        self._is_started = True

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._handlers.look()
            except StoreUnavailable:
                continue

    def _on_up(self) -> None:
        self.lease.renew_now()
        self._handlers.on_return()

    async def aclose(self) -> None:
        """Write what is left, and give back the lease; `end_tasks` afterwards."""
        if self._is_started:
            try:
                # The process is about to exit and must not wait for a Redis that is gone.
                async with asyncio.timeout(self.link.outage.attempt):
                    await self.queue.flush()
                    await self.lease.give_back()
            except (TimeoutError, StoreUnavailable):
                logger.warning("the worker ended before Redis had acknowledged everything")
            except Exception:
                logger.exception("the worker ended before Redis had acknowledged everything")
        self.link.is_closed = True
        self.queue.close()

    # Messages of other workers.

    def send(self, worker: str, message: str, epoch: str, about: str = "") -> None:
        """Tell a worker something of an epoch, soon."""
        # Not by way of Redis, which may be away.
        if worker == self.name:
            self._handlers.on_message(message, epoch, about)
        else:
            self.queue.run_later(_post(self._keys.inbox(worker), "m", message, "e", epoch, "c", about))

    def _wake_listener(self) -> None:
        self.queue.run_later(_post(self._inbox, "m", "wake"))

    def _follow_inbox(self) -> None:
        self.listener.follow(self._inbox, "0-0", self._take_messages, self._replace_inbox)

    def _replace_inbox(self, _failure: StoreUnavailable) -> None:
        self.tasks.keep_running(self._clear_inbox, "resumable inbox", self.link.note_failure)

    async def _clear_inbox(self) -> None:
        """Something else lies under the key of this worker's inbox: remove it, and listen again."""
        await self.link.run(Call("UNLINK", [self._inbox]))
        self._follow_inbox()

    def _take_messages(self, entries: list[Entry]) -> None:
        for _, fields in entries:
            try:
                message, epoch, about = (fields.get(name, b"").decode() for name in (b"m", b"e", b"c"))
                self._handlers.on_message(message, epoch, about)
            except Exception:
                logger.exception("a message of another worker could not be handled")

    # Changes, for those that watch.

    async def announce(self, owner: str | None, *items: ResumableStreamItem) -> None:
        """Tell all workers of changes, at once, so that they come in the order of what happened."""
        await self.run_now_or_later(
            *(_post(self._keys.changes, "o", json.dumps(owner), "i", item.model_dump_json()) for item in items)
        )

    async def run_now_or_later(self, *calls: Call) -> None:
        """Run calls whose replies do not matter, now or when Redis is back."""
        try:
            await self.link.run(*calls)
        except StoreUnavailable:
            self.queue.run_later(*calls)

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with changes, from everywhere, until what is returned is called."""
        # Changes are read only while something here watches: they are those of all workers.
        if not self._watchers:
            await self._follow_changes()
        remove = self._watchers.add(owner, ids, notify)

        def unsubscribe() -> None:
            remove()
            if not self._watchers:
                self.listener.unfollow(self._keys.changes)

        return unsubscribe

    async def _follow_changes(self, *, again: bool = False) -> None:
        # Not `$`: a change between this call and the first read would be missed.
        (last,) = await self.link.run(Call("XREVRANGE", [self._keys.changes], ["+", "-", "COUNT", 1]))
        # The `await` may have let others in, which follow already, or have left.
        if bool(self._watchers) is again:
            last_id = last[0][0].decode() if last else "0-0"
            self.listener.follow(self._keys.changes, last_id, self._take_changes, self._changes_failed)

    def _changes_failed(self, _failure: StoreUnavailable) -> None:
        self.tasks.keep_running(lambda: self._follow_changes(again=True), "resumable changes", self.link.note_failure)

    def _take_changes(self, entries: list[Entry]) -> None:
        for _, fields in entries:
            self._watchers.notify(json.loads(fields[b"o"]), ResumableStreamItem.model_validate_json(fields[b"i"]))


def _post(key: str, *fields: Any) -> Call:
    return Call(Script.POST, [key], [int(LIVE * 1000), CHANGES, *fields])
