"""The background task of one stream, from the reservation of its id to its end.

Invariant: nobody who reads can end it. It ends by itself, is stopped, or is given up on after `stop_grace`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._core.ids import StreamKey
from .._stream.stream import PIECE, Head, Stream
from ..models import ResumableStatus
from ..stores.base import Reservation

if TYPE_CHECKING:
    from .manager import StreamManager

logger = logging.getLogger("fastapi_resumable")


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
        self._listeners: set[asyncio.Future[None]] = set()
        """Of the application's tasks that wait to be told of a disconnect."""
        self._is_told = False
        self._task: asyncio.Task[None] | None = None
        self._done: asyncio.Future[None] | None = None
        self.last_write = 0.0
        """When the application last sent something; seconds of the monotonic clock."""
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
        self._manager.pings.discard(self)
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
                    self._manager.pings.add(self)

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
        while not stream.offer(chunk, monotonic()):
            if stream.closed:
                raise StreamStopped("the stream has ended")
            await stream.wait_for_room(len(chunk))
        await self.take_turn()

    async def take_turn(self) -> None:
        """Note that something was sent; wait, if generators that never await have had the loop for too long."""
        previous, self.last_write = self.last_write, monotonic()
        if self.last_write > self._manager.turns.ends:
            await self._manager.turns.give_way(previous, self.last_write)

    async def finish(self, status: ResumableStatus, code: str = "", message: str = "") -> None:
        """End the stream, if it has begun and not ended yet."""
        if self.stream is not None and not self.stream.closed:
            await self._manager.store.finish(self.stream, status, code, message)
            self._ended()

    def _ended(self) -> None:
        self._manager.pings.discard(self)
        if self.stream is not None and self._hooks is None:
            self._hooks = self._manager.run_hooks(self.stream)

    def look(self, now: float) -> float | None:
        """Record a keep-alive if the application has been silent for long enough."""
        # Moved on lazily, rather than by every event.
        due = self.last_write + self._manager.ping
        if due > now:
            return due
        assert self.stream is not None
        self.stream.ping()
        return None

    # Stopping.

    def stop(self, code: str) -> None:
        """Make the application see what it would see if its client had left; safe to call at any time, once counts."""
        self._ended()
        if self.stop_code is not None or (self._done is not None and self._done.done()):
            return
        self.stop_code = code
        told = self._tell_listeners()
        if self._task is None:
            self.cancel_request()
        else:
            self._winding_up = self._manager.spawn(
                self._wind_up(self._task, told), name=f"resumable stop {self.key.id}"
            )

    async def _wind_up(self, task: asyncio.Task[None], told: bool) -> None:
        if told:
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

    def dismiss_listeners(self) -> None:
        """The application has sent all: there is nobody any more whose leaving could matter to it."""
        self._is_told = True
        self._tell_listeners()

    def _tell_listeners(self) -> bool:
        """Whether there is anybody who listens."""
        for listener in self._listeners:
            if not listener.done():
                listener.set_result(None)
        return bool(self._listeners)

    async def disconnected(self) -> None:
        """Wait until the stream is stopped, or was sent in full: what the application sees as `http.disconnect`."""
        if self.stop_code is not None or self._is_told:
            return
        listener: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listeners.add(listener)
        try:
            await listener
        finally:
            self._listeners.discard(listener)
