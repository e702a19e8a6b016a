"""Owns every task of the library: producers, hooks, the shutdown. One manager for each `Resumable`.

Invariant: no task is without an owner, and `shutdown` leaves none behind but those that ignore cancellation.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from .._stream.reader import LAST_DELIVERY, Reader, Reading
from .._stream.stream import Stream
from .._stream.tasks import Tasks
from ..exceptions import ShuttingDown
from ..settings import ResumableSettings
from ..stores.base import Store
from ..telemetry import Telemetry
from .hooks import Hooks
from .servers import TerminationWatch

logger = logging.getLogger("fastapi_resumable")

LAST_MOMENT = 0.5
"""Seconds that a reader has to take the end of its stream when the server has cancelled its request."""

Interrupt = Callable[[], Coroutine[Any, Any, None]]


class Watch(Protocol):
    """A response that watches streams."""

    def leave(self) -> None:
        """End it, once all changes have been delivered."""

    def evict(self) -> None:
        """End it as stalled, even in the middle of a delivery."""


class StreamManager:
    """What all streams of one `Resumable` have in common, and what is live of them."""

    def __init__(self, store: Store, settings: ResumableSettings, telemetry: Telemetry | None = None) -> None:
        self.store = store
        self.settings = settings
        self.telemetry = telemetry or Telemetry()
        self.tasks = Tasks()
        self.hooks = Hooks(self.tasks)
        self.closing = False
        """Whether the server is about to exit; new streams are refused."""
        self._producers: set[Interrupt] = set()
        self._readers: dict[Reader, Callable[[str | None], None] | None] = {}
        """With the callback that counts their leaving, if a telemetry provider is set."""
        self._watches: set[Watch] = set()
        self._shutdown: asyncio.Task[None] | None = None
        self._left: asyncio.Future[None] | None = None
        self._grace_is_over = False
        self.termination = TerminationWatch(
            self.begin_shutdown, lambda: bool(self._producers or self._readers or self._watches)
        )

    # What is live.

    def add_producer(self, interrupt: Interrupt) -> None:
        """Note that there is a producer, which `interrupt` ends if the server cannot wait for it any longer."""
        self._producers.add(interrupt)
        # Not before it counts as live: while nothing does, nothing looks at the server. Where no lifespan runs, as in a
        # mounted application, this is the first call.
        self.termination.start()

    def remove_producer(self, interrupt: Interrupt) -> None:
        """Note that a producer has ended, or will not start."""
        self._producers.discard(interrupt)
        self._note_departure()

    def reader(self, stream: Stream, offset: int, drain_on_cancel: Callable[[], bool] | None = None) -> Reader:
        """Attach a reader at `offset`; `dismiss` it afterwards.

        `drain_on_cancel` is whether to deliver the rest when the reading is cancelled; by default at a shutdown only,
        where the end is near.
        """
        timeout = self.settings.stall_timeout
        drain = drain_on_cancel or self.skip_grace
        reader = Reader(stream, offset, stall_timeout=timeout, drain_on_cancel=drain)
        self._readers[reader] = self.telemetry.reader_attached()
        self.termination.start()
        return reader

    def dismiss(self, reader: Reader, reading: Reading = Reading.LEFT) -> None:
        """Detach a reader, whose reading has come out so; once."""
        if reader not in self._readers:
            return
        reader.stream.detach(reader)
        if (left := self._readers.pop(reader)) is not None:
            lost = None if reader.failure is None else reader.failure.code
            left("stalled" if reading is Reading.STALLED else lost)
        self._note_departure()

    def add_watch(self, watch: Watch) -> None:
        """Note a watch; `remove_watch` afterwards.

        Raises:
            ShuttingDown: The server is about to exit.
        """
        if self.closing:
            raise ShuttingDown
        self._watches.add(watch)
        self.termination.start()

    def remove_watch(self, watch: Watch) -> None:
        """Forget a watch."""
        self._watches.discard(watch)
        self._note_departure()

    # Shutting down.

    def begin_shutdown(self) -> asyncio.Task[None]:
        """Refuse new streams and give live ones their grace; returns at once."""
        if self._shutdown is None:
            self.closing = True
            self._shutdown = self.tasks.spawn(self._shut_down(), name="resumable shutdown")
        return self._shutdown

    async def shutdown(self) -> None:
        """Refuse new streams, wait for live ones up to `shutdown_grace`, interrupt the rest, and end all readings."""
        # Shielded, because servers cancel the lifespan that waits here, and the rest of the shutdown still has to be
        # done.
        await asyncio.shield(self.begin_shutdown())

    async def _shut_down(self) -> None:
        # A watch has no end of its own: it is to tell how the last streams end, and is not waited for before. A server
        # that is about to cancel requests would keep their readers from the terminal event.
        grace = min(self.settings.shutdown_grace, self.termination.server_timeout)
        await self._quiet(grace, lambda: self._grace_is_over or not (self._producers or self._readers))
        # All at the same time, because a shared store writes the ends of many streams together. In tasks, so that one
        # that fails keeps nothing else from its end.
        if self._producers:
            interrupts = list(self._producers)
            await asyncio.wait({self.tasks.spawn(interrupt(), "resumable interrupt") for interrupt in interrupts})
        for watch in list(self._watches):
            watch.leave()
        # What is left then are readers of streams that live elsewhere, and clients that do not take the end.
        await self._quiet(LAST_DELIVERY, lambda: self._grace_is_over or not (self._readers or self._watches))
        if self._grace_is_over:
            await self._quiet(LAST_MOMENT, lambda: not (self._readers or self._watches))
        # A client that has not taken the end by now keeps its response open, so its connection is closed.
        clients: list[Reader | Watch] = [*self._readers, *self._watches]
        for client in clients:
            client.evict()
        # What was interrupted runs its `finally` blocks in this time.
        await self._quiet(self.settings.stop_grace)
        # Before the store is closed, because hooks are what keeps the answers.
        await self.hooks.wait(self.settings.stop_grace)
        await self.store.aclose()

    def skip_grace(self) -> bool:
        """Cut the grace short: the server cancels requests. No-op, and false, if it is not shutting down."""
        self._grace_is_over = self.closing
        self._note_departure()
        return self.closing

    async def _quiet(self, timeout: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait until no producer, no reader and no watch is left, for `timeout` seconds at most."""
        try:
            async with asyncio.timeout(timeout):
                while (self._producers or self._readers or self._watches) and not is_over():
                    # A future for each look, so that a departure in between is never missed: there is no `await` before
                    # it.
                    self._left = asyncio.get_running_loop().create_future()
                    await self._left
        except TimeoutError:
            logger.info("%d streams and %d readers are left", len(self._producers), len(self._readers))

    def _note_departure(self) -> None:
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    def reopen(self) -> None:
        """Take streams again: the application is started anew in the same process."""
        self.closing = self._grace_is_over = False
        self._shutdown = None
