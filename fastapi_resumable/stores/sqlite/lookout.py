"""What a worker does at regular intervals: see which workers have died, keep reports fresh, and clean up."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ...exceptions import StoreUnavailable
from ..shared.remote import RemoteStream
from .transactions import Transactions
from .writer import WriterThread

LOOK = 0.25
"""Seconds between looks at whether the workers are alive whose streams are read or watched here."""
CLEAN_UP = 5.0
"""Seconds between clean-ups while there is something to clean up."""
REPORT = 5.0
"""Seconds between reports of where the readers here are."""


class LookOut:
    """Sleeps while there is nothing to look out for."""

    def __init__(
        self,
        writer: WriterThread,
        followed: dict[str, RemoteStream],
        *,
        is_watching: Callable[[], bool],
        bury_dead: Callable[[], Awaitable[object]],
    ) -> None:
        self._writer = writer
        self._followed = followed
        self._is_watching = is_watching
        self._bury_dead = bury_dead
        self._clean_up_at: float | None = None
        self._wake = asyncio.Event()
        self._looked_at = self._reported_at = 0.0

    def wake(self) -> None:
        """Something has changed in what there is to look out for."""
        self._wake.set()

    def plan_clean_up(self, at: float | None) -> None:
        """Clean up at a time; not sooner than `CLEAN_UP` from now."""
        if at is not None:
            at = max(at, time.time() + CLEAN_UP)
            self._clean_up_at = at if self._clean_up_at is None else min(at, self._clean_up_at)
            self._wake.set()

    async def run(self) -> None:
        """Look out."""
        while True:
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            try:
                await self._look(time.time())
            except StoreUnavailable:
                await asyncio.sleep(LOOK)

    async def _look(self, now: float) -> None:
        if self._is_watching() and now - self._looked_at >= LOOK:
            self._looked_at = now
            self._fail_missing()
            await self._bury_dead()
        if self._followed and now - self._reported_at >= REPORT:
            self._reported_at = now
            for stream in list(self._followed.values()):
                stream.report()
        if self._clean_up_at is not None and now >= self._clean_up_at:
            self._clean_up_at = None
            self.plan_clean_up(await self._writer.run(Transactions.clean_up))

    def _pause(self) -> float | None:
        """How long there is nothing to do."""
        if self._is_watching():
            return LOOK
        return None if self._clean_up_at is None else max(LOOK, self._clean_up_at - time.time())

    def _fail_missing(self) -> None:
        """Send the readers of streams away that the file has lost, and that no worker has put back."""
        now = asyncio.get_running_loop().time()
        for stream in list(self._followed.values()):
            if stream.missing_since is not None and now - stream.missing_since > self._writer.file.timeout:
                stream.fail(StoreUnavailable("The store has lost the stream. Start it again."))
