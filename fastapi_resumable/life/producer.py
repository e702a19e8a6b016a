"""The background task of one stream, from the reservation of its id to its end.

Invariant: nobody who reads can end it. It ends by itself, is stopped, or is given up on after `stop_grace`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..core.ids import StreamKey
from ..core.models import ResumableStatus
from ..stores.base import Reservation
from ..stores.stream import Head, Stream

if TYPE_CHECKING:
    from .manager import StreamManager

logger = logging.getLogger("fastapi_resumable")

PIECE = 64 * 1024
"""The most that is recorded at once, so that a huge chunk goes through a small log piece by piece."""


class StreamStopped(OSError):
    """Raised where the application sends after its stream was stopped, as servers do after a disconnect."""


class Producer:
    """Runs the application of one request and records what it sends."""

    def __init__(self, manager: "StreamManager", key: StreamKey, epoch: str, idempotency_key: str | None) -> None:
        self._manager = manager
        self.reservation = Reservation(key, epoch, idempotency_key=idempotency_key, on_stop=self.stop)
        self.stream: Stream | None = None
        self.stop_code: str | None = None
        """Why it was stopped: `cancelled`, `replaced` or `interrupted`."""
        self.error: BaseException | None = None
        """What the application raised."""
        self.cancel_request: Callable[[], object] = lambda: None
        """Cancels the request while there is no task yet: it is still in its dependencies or its endpoint."""
        self.listeners = 0
        """How many of the application's tasks wait to be told of a disconnect."""
        self._disconnect: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._done: asyncio.Future[None] | None = None
        self.last_write = 0.0
        """When the application last sent something; seconds of the monotonic clock."""
        self._ping_timer: asyncio.TimerHandle | None = None
        self._beginning = asyncio.Lock()
        self._hooks: asyncio.Task[None] | None = None
        self._winding_up: asyncio.Task[None] | None = None

    @property
    def key(self) -> StreamKey:
        """Owner and id."""
        return self.reservation.key

    # Running.

    def start(self, application: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the application in a task of its own, which no client can cancel."""
        self._done = asyncio.get_running_loop().create_future()
        self._task = self._manager.spawn(self._run(application), name=f"resumable producer {self.key.id}")
        # In a callback, because a task that is cancelled before its first step never enters its coroutine.
        self._task.add_done_callback(lambda _: self._settle())

    async def _run(self, application: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await application()
        except asyncio.CancelledError as exc:
            self.error = exc
            if self.stop_code is None:
                # Not by us: the event loop itself is being torn down.
                await self.finish(ResumableStatus.INTERRUPTED, "interrupted", "The server was shut down.")
                raise
        except Exception as exc:
            self.error = exc
            if isinstance(exc, StreamStopped):
                # The store has ended the stream, and is about to say why.
                self.stop_code = self.stop_code or "cancelled"
            elif self.stream is not None and self.stop_code is None:
                logger.exception("stream %r failed", self.key.id)
                await self.finish(ResumableStatus.FAILED, "producer_failed", "The answer could not be completed.")
            elif self.stop_code is not None:
                logger.warning("stream %r raised while it was being stopped", self.key.id, exc_info=exc)
        else:
            if self._manager.closing:
                # Some responses end by themselves when the server is told to exit.
                await self.finish(ResumableStatus.INTERRUPTED, "interrupted", "The server was shut down.")
            else:
                await self.finish(ResumableStatus.FAILED, "producer_failed", "The answer ended before it was complete.")
        finally:
            await self._manager.store.release(self.reservation)

    def _settle(self) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def done(self) -> None:
        """Wait until the application has ended or was given up on, and the hooks have run."""
        if self._done is not None:
            await asyncio.shield(self._done)
        if self._hooks is not None:
            await asyncio.wait({self._hooks})

    # Recording.

    async def begin(self, head: Head, on_begin: Callable[[Stream], None]) -> None:
        """Make this the current epoch of its id; once. `on_begin` is called before anything can be recorded.

        Raises:
            StreamCancelled: It was stopped while it waited.
            StreamReplaced: A newer request has begun in the meantime.
        """
        async with self._beginning:
            if self.stream is None:
                stream = await self._manager.store.begin(self.reservation, head)
                on_begin(stream)
                self.stream = stream
                self.last_write = monotonic()
                if self._manager.ping and head.is_event_stream:
                    self._arm_ping(self._manager.ping)

    async def write(self, chunk: bytes) -> None:
        """Record a chunk; wait while the slowest attached reader is too far behind.

        Raises:
            StreamStopped: The stream has ended.
        """
        stream = self.stream
        assert stream is not None
        if len(chunk) > PIECE:
            with memoryview(chunk) as view:
                for start in range(0, len(chunk), PIECE):
                    await self.write(bytes(view[start : start + PIECE]))
            return
        while not stream.offer(chunk):
            if stream.closed:
                raise StreamStopped("the stream has ended")
            await stream.wait_for_room(len(chunk))
        await self.take_turn()

    async def take_turn(self) -> None:
        """Note that something was sent; let others run, if generators that never await had the loop for too long."""
        self.last_write = monotonic()
        if self.last_write > self._manager.turn_ends:
            await self._manager.next_turn()

    async def finish(self, status: ResumableStatus, code: str = "", message: str = "") -> None:
        """End the stream, if it has begun and not ended yet."""
        if self.stream is not None and not self.stream.closed:
            await self._manager.store.finish(self.stream, status, code, message)
            self._ended()

    def _ended(self) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        if self.stream is not None and self._hooks is None:
            self._hooks = self._manager.run_hooks(self.stream)

    def _arm_ping(self, delay: float) -> None:
        self._ping_timer = asyncio.get_running_loop().call_later(delay, self._on_ping)

    def _on_ping(self) -> None:
        # One timer a stream, moved on lazily, rather than one that every event sets anew.
        assert self.stream is not None
        remaining = self.last_write + self._manager.ping - monotonic()
        if remaining <= 0:
            self.stream.ping()
            remaining = self._manager.ping
        self._arm_ping(remaining)

    # Stopping.

    def stop(self, code: str) -> None:
        """Make the application see what it would see if its client had left; safe to call at any time, once counts."""
        self._ended()
        if self.stop_code is not None or (self._done is not None and self._done.done()):
            return
        self.stop_code = code
        if self._disconnect is not None and not self._disconnect.done():
            self._disconnect.set_result(None)
        if self._task is None:
            self.cancel_request()
        else:
            self._winding_up = self._manager.spawn(self._wind_up(self._task), name=f"resumable stop {self.key.id}")

    async def _wind_up(self, task: asyncio.Task[None]) -> None:
        if self.listeners:
            # The application has just been told, and may be cleaning up behind a shield, which a cancellation breaks.
            await asyncio.wait({task}, timeout=self._manager.stop_grace)
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
        else:
            task.cancel()
            await asyncio.wait({task}, timeout=self._manager.stop_grace)
        if not task.done():
            logger.warning(
                "the producer of stream %r ignores cancellation and was abandoned after %g s; "
                "let CancelledError through, or check stream.stopped",
                self.key.id,
                self._manager.stop_grace,
            )
            self._settle()

    async def disconnected(self) -> None:
        """Wait until the stream is stopped: what the application sees as `http.disconnect`."""
        if self.stop_code is not None:
            return
        if self._disconnect is None:
            self._disconnect = asyncio.get_running_loop().create_future()
        self.listeners += 1
        try:
            await asyncio.shield(self._disconnect)
        finally:
            self.listeners -= 1
