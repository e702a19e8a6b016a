"""One worker's session in Redis: its lease, its inbox, the changes that it receives, and the tasks that handle them.

It knows nothing of streams: what it hears goes to its handlers. Whatever one of its tasks raises, the task goes on.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..._stream.tasks import Tasks
from ...exceptions import StoreUnavailable
from ...models import ResumableStreamItem
from ..shared.queue import WriteQueue
from ..watchers import Notify, Watchers
from .keys import Keys
from .lease import Lease
from .link import UNAVAILABLE, Call, Client, Link, count_bytes
from .listener import Entry, Listener
from .scripts import POST

logger = logging.getLogger("fastapi_resumable")

LIVE = 3600.0
"""Seconds for which keys of live streams are kept without being renewed: a crash leaves nothing behind for longer."""
CHANGES = 10_000
"""How many changes of state are remembered."""
LOOK = 1.0
"""Seconds between the handlers' looks."""


class Handlers(Protocol):
    """What is done with what a worker hears."""

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


class RedisWorker:
    """What a worker has of Redis on one event loop, whatever it streams."""

    def __init__(self, client: Client, keys: Keys, handlers: Handlers, *, lease: float, timeout: float) -> None:
        self.keys = keys
        self.tasks = Tasks()
        self.link = Link(client, timeout, on_up=self._on_up)
        self.lease = Lease(self.link, keys, lease, on_lapse=handlers.on_lapse, on_loss=handlers.on_return)
        self.name = self.lease.worker
        self.queue = WriteQueue(self.link.run_batch, count_bytes)
        self.listener = Listener(self.link, self.tasks, wake=self._wake_listener, on_outage=handlers.on_outage)
        self._handlers = handlers
        self._inbox = keys.inbox(self.name)
        self._watchers = Watchers()
        self._starting: asyncio.Task[StoreUnavailable | None] | None = None
        self._is_started = False

    # Tasks.

    async def start(self) -> None:
        """Take a lease and begin to listen; once, and all that ask meanwhile wait for the same attempt.

        Raises:
            StoreUnavailable: Redis cannot be used.
        """
        if self._starting is None:
            self._starting = self.tasks.spawn(self._start(), "resumable start")
        failure = await asyncio.shield(self._starting)
        if failure is not None:
            raise failure

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
            (self.queue.run, "appender"),
            (self._look, "look-out"),
        ):
            self.tasks.keep_running(work, f"resumable {name}", self.link.note_failure)
        self._follow_inbox()
        self._is_started = True
        return None

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
        if worker == self.name:
            self._handlers.on_message(message, epoch, about)
        else:
            self.queue.post(_post(self.keys.inbox(worker), "m", message, "e", epoch, "c", about))

    def _wake_listener(self) -> None:
        self.queue.post(_post(self._inbox, "m", "wake"))

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
        await self.run_or_post(
            *(_post(self.keys.changes, "o", json.dumps(owner), "i", item.model_dump_json()) for item in items)
        )

    async def run_or_post(self, *calls: Call) -> None:
        """Run calls whose replies do not matter, now or when Redis is back."""
        try:
            await self.link.run(*calls)
        except StoreUnavailable:
            self.queue.post(*calls)

    async def subscribe(
        self, owner: str | None, ids: Sequence[str], notify: Notify, *, is_urgent: bool = False
    ) -> Callable[[], None]:
        """Call `notify` with changes, from everywhere, until what is returned is called. All are urgent here."""
        await self.start()
        if not self._watchers:
            await self._follow_changes()
        remove = self._watchers.add(owner, ids, notify)

        def unsubscribe() -> None:
            remove()
            if not self._watchers:
                self.listener.unfollow(self.keys.changes)

        return unsubscribe

    async def _follow_changes(self, *, again: bool = False) -> None:
        (last,) = await self.link.run(Call("XREVRANGE", [self.keys.changes], ["+", "-", "COUNT", 1]))
        if bool(self._watchers) is again:
            last_id = last[0][0].decode() if last else "0-0"
            self.listener.follow(self.keys.changes, last_id, self._take_changes, self._changes_failed)

    def _changes_failed(self, _failure: StoreUnavailable) -> None:
        self.tasks.keep_running(lambda: self._follow_changes(again=True), "resumable changes", self.link.note_failure)

    def _take_changes(self, entries: list[Entry]) -> None:
        for _, fields in entries:
            self._watchers.notify(json.loads(fields[b"o"]), ResumableStreamItem.model_validate_json(fields[b"i"]))


def _post(key: str, *fields: Any) -> Call:
    return Call(POST, [key], [int(LIVE * 1000), CHANGES, *fields])
