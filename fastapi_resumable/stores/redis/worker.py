"""What a worker has in Redis beside its streams: a lease, which says that it lives, and messages of other workers."""

import asyncio
import json
import logging
import math
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic

from ...exceptions import StoreUnavailable
from ...models import ResumableStreamItem
from ..base import Notify, Watchers
from ..shared.queue import WriteQueue
from .calls import Call, post
from .keys import Keys
from .link import Link
from .listener import Fields, Listener, OnOutage

logger = logging.getLogger("fastapi_resumable")

GRACE = 1.5
"""Seconds after an outage of Redis in which no worker is declared dead: others were cut off, too, and have to renew."""
RETRY = 0.5
"""Seconds before another attempt at a lease that could not be renewed."""

OnLoss = Callable[[], None]
OnMessage = Callable[[str, str, str], None]
"""Called with a message, the epoch that it is of, and what else it says."""


class Lease:
    """The lease of this worker, a key that it renews, and a look at those of others: without one, a worker is dead."""

    def __init__(
        self,
        worker: str,
        link: Link,
        keys: Keys,
        seconds: float,
        on_expired: OnLoss,
        on_lapse: OnLoss,
        on_outage: OnOutage,
    ) -> None:
        """Set it up.

        `on_expired` is called after its key had expired in Redis, `on_lapse` after this process stood still for that
        long, and `on_outage` while Redis does not take the renewal: it may answer whatever only reads.
        """
        self._worker = worker
        self._link = link
        self._keys = keys
        self._seconds = seconds
        self._on_expired = on_expired
        self._on_lapse = on_lapse
        self._on_outage = on_outage
        self._renewed = self._late_at = -math.inf
        self._until: dict[str, float] = {}
        """Until when the leases of others last, as they were seen."""
        self._due = 0.0
        self._now = asyncio.Event()

    def renew_now(self) -> None:
        """Renew the lease at once, rather than when it is time."""
        self._now.set()

    async def keep(self) -> None:
        """Renew the lease, again and again."""
        while True:
            with suppress(TimeoutError):
                # As long as is left since the last time, should this have been interrupted.
                async with asyncio.timeout(self._due - monotonic()):
                    await self._now.wait()
            # Before the call, so that a wish that comes during it is not lost.
            self._now.clear()
            try:
                await self.renew()
            except StoreUnavailable as exc:
                self._due = monotonic() + RETRY
                self._on_outage(exc)

    async def renew(self) -> None:
        """Take the lease, or renew it."""
        name = f"{os.getpid()}@{socket.gethostname()}"
        words = [name, "PX", int(self._seconds * 1000), "GET"]
        (before,) = await self._link.run_now(Call("SET", [self._keys.worker(self._worker)], words))
        if self._is_late:
            self._late_at = monotonic()
        self._renewed = monotonic()
        self._due = self._renewed + self._seconds / 4
        if before is None:
            self._on_expired()
            # Not again at once, whatever that wishes: a Redis that keeps losing the key would be asked without a pause.
            self._now.clear()

    @property
    def _is_late(self) -> bool:
        # By less than the lease, as others may have renewed theirs a quarter of it earlier.
        return monotonic() - self._renewed > self._seconds * 2 / 3

    @property
    def _is_unsure(self) -> bool:
        # What keeps this worker from renewing its lease, such as a Redis that takes no writes, may keep others from it.
        return self._is_late or monotonic() - max(self._late_at, self._link.outage.up_since) < GRACE

    async def watch(self) -> None:
        """Notice when this process stood still, whatever Redis does meanwhile."""
        awake_at = monotonic()
        while True:
            await asyncio.sleep(self._seconds / 4)
            # By this process' own clock: whether Redis could be reached meanwhile does not matter here.
            if monotonic() - awake_at > self._seconds:
                logger.error(
                    "this process stood still for more than its lease of %g s: its streams were given up", self._seconds
                )
                self._on_lapse()
            awake_at = monotonic()

    async def give_back(self) -> None:
        """Say that this worker is gone."""
        await self._link.run(
            Call("DEL", [self._keys.worker(self._worker)]), Call("DEL", [self._keys.inbox(self._worker)])
        )

    async def dead(self, workers: Iterable[str]) -> set[str]:
        """Those of `workers` that have let their lease expire."""
        others = [worker for worker in set(workers) if worker != self._worker]
        if not others or self._is_unsure:
            return set()
        asked = monotonic()
        left = await self._link.run(*(Call("PTTL", [self._keys.worker(worker)]) for worker in others))
        now = monotonic()
        if now - asked > GRACE:
            # Asked again and again: a part of a Cluster may have been away while another one answered.
            self._late_at = now
        gone = {worker for worker, milliseconds in zip(others, left, strict=True) if milliseconds == -2}
        # A lease that has gone before its time was lost by Redis, and its worker has yet to renew it.
        self._until = {worker: until for worker, until in self._until.items() if until > now}
        dead = gone - self._until.keys()
        self._until |= {
            worker: now + milliseconds / 1000
            for worker, milliseconds in zip(others, left, strict=True)
            if worker not in gone
        }
        # Once more, as Redis may have gone and come back, without the leases, while it was asked.
        return set() if self._is_unsure else dead


class Messages:
    """The inbox of this worker, those of others, and the changes that all of them announce."""

    def __init__(
        self, worker: str, keys: Keys, link: Link, queue: WriteQueue[Call], listener: Listener, watchers: Watchers
    ) -> None:
        self._worker = worker
        self._keys = keys
        self._link = link
        self._queue = queue
        self._listener = listener
        self._watchers = watchers
        self.workers: set[str] = set()
        """Workers whose streams are watched here."""

    async def run_now_or_later(self, *calls: Call) -> None:
        """Run calls whose replies do not matter, now or when Redis is back."""
        try:
            await self._link.run(*calls)
        except StoreUnavailable:
            self._queue.run_later(*calls)

    # Messages.

    def listen(self, on_message: OnMessage) -> None:
        """Begin to receive messages."""
        self._on_message = on_message
        self._follow_inbox()

    def _follow_inbox(self) -> None:
        self._listener.follow(self._keys.inbox(self._worker), "0-0", self._take_message, self._replace_inbox)

    def _replace_inbox(self, _failure: StoreUnavailable) -> None:
        self._listener.tasks.keep_running(self._clear_inbox, "resumable inbox", self._link.note_failure)

    async def _clear_inbox(self) -> None:
        """Something else lies under the key of this worker's inbox: remove it, and listen again."""
        await self._link.run(Call("UNLINK", [self._keys.inbox(self._worker)]))
        self._follow_inbox()

    def _take_message(self, _entry_id: str, fields: Fields) -> None:
        self._on_message(*(fields.get(name, b"").decode() for name in (b"m", b"e", b"c")))

    def send(self, worker: str, message: str, epoch: str, about: str = "") -> None:
        """Tell a worker something of an epoch, soon."""
        # Not by way of Redis, which may be away.
        if worker == self._worker:
            self._on_message(message, epoch, about)
        else:
            self._queue.run_later(post(self._keys.inbox(worker), "m", message, "e", epoch, "c", about))

    # Changes.

    async def announce(self, owner: str | None, *items: ResumableStreamItem) -> None:
        """Tell all workers of changes, at once, so that they come in the order of what happened."""
        await self.run_now_or_later(
            *(
                post(self._keys.changes, "w", self._worker, "o", json.dumps(owner), "i", item.model_dump_json())
                for item in items
            )
        )

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with changes, from everywhere, until what is returned is called."""
        # Changes are read only while something here watches: they are those of all workers.
        if not self._watchers:
            await self._follow_changes()
        return self._watchers.add(owner, ids, notify)

    async def _follow_changes(self, *, again: bool = False) -> None:
        # Not `$`: a change between this call and the first read would be missed.
        (last,) = await self._link.run(Call("XREVRANGE", [self._keys.changes], ["+", "-", "COUNT", 1]))
        # The `await` may have let others in, which follow already, or have left.
        if bool(self._watchers) is again:
            last_id = last[0][0].decode() if last else "0-0"
            self._listener.follow(self._keys.changes, last_id, self._take_change, self._changes_failed)

    def _changes_failed(self, _failure: StoreUnavailable) -> None:
        self._listener.tasks.keep_running(
            lambda: self._follow_changes(again=True), "resumable changes", self._link.note_failure
        )

    def _take_change(self, _entry_id: str, fields: Fields) -> None:
        if not self._watchers:
            self._listener.unfollow(self._keys.changes)
        item = ResumableStreamItem.model_validate_json(fields[b"i"])
        # A worker of an earlier version does not name itself.
        if self._watchers.notify(json.loads(fields[b"o"]), item) and not item.is_done and b"w" in fields:
            self.workers.add(fields[b"w"].decode())
