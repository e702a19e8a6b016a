"""The lease of a worker: a key that it renews. A worker whose key has expired is dead to all others."""

import asyncio
import logging
import math
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic

from ...exceptions import StoreUnavailable
from .calls import Call, Script
from .keys import Keys
from .link import Link

logger = logging.getLogger("fastapi_resumable")

GRACE = 1.5
"""Seconds after an outage of Redis in which no worker is declared dead: others were cut off, too, and have to renew."""
RETRY = 0.5
"""Seconds before another attempt at a lease that could not be renewed."""

OnLoss = Callable[[], None]
OnOutage = Callable[[StoreUnavailable], None]


class Lease:
    """The lease of this worker, and a look at those of others."""

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
        (existed,) = await self._link.run_now(
            Call(Script.BEAT, [self._keys.worker(self._worker)], [name, int(self._seconds * 1000)])
        )
        if self._is_late:
            self._late_at = monotonic()
        self._renewed = monotonic()
        self._due = self._renewed + self._seconds / 4
        if not existed:
            self._on_expired()

    @property
    def _is_late(self) -> bool:
        # By less than the lease, as others may have renewed theirs a quarter of it earlier.
        return monotonic() - self._renewed > self._seconds * 2 / 3

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
        # What keeps this worker from renewing its lease, such as a Redis that takes no writes, may keep others from it.
        unsure_at = max(self._late_at, self._link.outage.up_since)
        if not others or self._is_late or monotonic() - unsure_at < GRACE:
            return set()
        alive = await self._link.run(*(Call("EXISTS", [self._keys.worker(worker)]) for worker in others))
        return {worker for worker, exists in zip(others, alive, strict=True) if not exists}
