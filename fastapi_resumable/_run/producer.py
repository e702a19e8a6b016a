"""The background task of one stream, from the reservation of its id to its end.

Invariant: no reader can end it. It ends by itself, is stopped, or is given up on after `stop_grace`; and however its
task ends, `_conclude` ends the stream.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from time import monotonic, perf_counter
from typing import Any

import anyio

from .._core.ids import EPOCH_BYTES, StreamKey, format_epoch
from .._stream.stream import Head, Stream, WritableStream
from ..exceptions import ShuttingDown
from ..models import ResumableStatus
from ..stores.base import Reservation
from ..telemetry import StreamTelemetry
from .errors import close_remains, is_disconnect
from .hooks import FinishedStream
from .manager import StreamManager

logger = logging.getLogger("fastapi_resumable")

STOP_TURNS = 16
"""Turns of the event loop from a stop to the cancellation: what is due by then is sent, through middleware, too."""
HOOK_PATIENCE = 0.1
"""Seconds for which a request that is over waits for its hooks: an event loop that is closed next cancels them."""


async def reserve(manager: StreamManager, key: StreamKey, idempotency_key: str | None) -> "Producer | Stream":
    """Reserve an id for a new stream; or return the stream that the request is to follow instead.

    Raises:
        StreamExists: The id is taken, and the rule is `reject`.
        TooManyStreams: A limit is reached.
        ShuttingDown: No new streams are taken.
    """
    producer = Producer(manager, key, idempotency_key)
    stream = await manager.store.reserve(producer.reservation, manager.settings.on_conflict)
    if stream is not None:
        return stream
    # The shutdown may have begun while the store waited for another request.
    if manager.closing:
        await manager.store.release(producer.reservation)
        raise ShuttingDown
    manager.add_producer(producer.interrupt)
    return producer


class Producer:
    """Runs the application of one request and says how its stream ends."""

    stream: WritableStream | None = None
    telemetry: StreamTelemetry | None = None
    """What is measured of the stream, where a provider is set."""
    stop_code: str | None = None
    """Why it was stopped: `cancelled`, `replaced` or `interrupted`."""
    error: BaseException | None = None
    """What the application raised, unless it was being stopped."""
    last_write = 0.0
    """When the application last sent something; seconds of the monotonic clock."""
    _task: asyncio.Task[None] | None = None
    _listeners = 0
    """How many tasks of the application wait for a disconnect."""
    _hooks: asyncio.Task[None] | None = None
    _is_finished = False
    _idle_timer: asyncio.TimerHandle | None = None

    def __init__(self, manager: StreamManager, key: StreamKey, idempotency_key: str | None) -> None:
        self.manager = manager
        self.key = key
        epoch = format_epoch(secrets.token_bytes(EPOCH_BYTES))
        self.reservation = Reservation(key, epoch, idempotency_key=idempotency_key, on_stop=self.stop)
        self.reservation.pending_timeout = manager.settings.pending_timeout
        self.created = perf_counter()
        self.cancel_request: Callable[[], object] = _noop
        """Cancels the request while there is no task yet: it is still in its dependencies or its endpoint."""
        self._over = asyncio.Event()
        self._stopped = asyncio.Event()
        self._beginning = asyncio.Lock()

    @property
    def fields(self) -> dict[str, str | None]:
        """What a log record about the stream carries."""
        return self.key.fields(self.reservation.epoch)

    # Running.

    def start(self, application: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the application in a task of its own, which no client can cancel."""
        self._scope = anyio.CancelScope()
        self._task = self.manager.tasks.spawn(self._run(application), name=f"resumable producer {self.key.id}")
        # In a callback, because a task that is cancelled before its first step never enters its coroutine.
        self._task.add_done_callback(self._settle)

    async def _run(self, application: Callable[[], Coroutine[Any, Any, None]]) -> None:
        error: BaseException | None = None
        try:
            with self._scope:
                try:
                    await application()
                except BaseException as exc:
                    error = exc
                    raise
        except BaseException as exc:  # noqa: BLE001  # whatever it is, it ends the stream
            # anyio refuses to leave the scope after a `GeneratorExit` of a generator in a thread: that is no reason.
            error = error or exc
        error = self.error or error
        if error is not None or self.stop_code is not None or self.stream is None or not self.stream.closed:
            await self._conclude(error)
        # In a callback as well, but that comes a turn of the event loop later.
        self._settle()

    async def _conclude(self, error: BaseException | None) -> None:
        """End the stream if its application has ended in any way but by completing it."""
        task = asyncio.current_task()
        is_torn_down = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
        try:
            is_refused = self.stream is not None and self.stream.closed and error is not None and is_disconnect(error)
            if self.stop_code is None and is_refused and not is_torn_down:
                # The store has ended the stream, and is about to say why. Starlette raises a disconnect for that.
                self.stop_code = "cancelled"
            if self.stop_code is not None:
                if error is not None and not is_disconnect(error):
                    what = "stream %r raised while it was being stopped"
                    logger.warning(what, self.key.id, exc_info=error, extra=self.fields)
            elif is_torn_down or (error is None and self.manager.closing):
                # The event loop is being closed; or the response is one that ends by itself when the server exits.
                await self.end(ResumableStatus.INTERRUPTED, "interrupted", "The server was shut down.")
            else:
                self.error = error
                why = "" if error else ": the application returned before it had ended its response"
                try:
                    if self.stream is not None:
                        logger.error("stream %r failed%s", self.key.id, why, exc_info=error, extra=self.fields)
                finally:
                    # Even if a handler of the application's raises, one that sends log records elsewhere, say.
                    await self.fail(
                        "The answer could not be completed." if error else "The answer ended before it was complete."
                    )
        finally:
            if self.stop_code is not None:
                # Before what hangs on the request is closed, which its generators use.
                await close_remains(error)
        if is_torn_down and error is not None:
            raise error

    def _settle(self, _task: object = None) -> None:
        if not self.is_over:
            self._over.set()
            self._cancel_idle_timer()

    @property
    def is_over(self) -> bool:
        """Whether the application has ended, or was given up on."""
        return self._over.is_set()

    async def done(self) -> None:
        """Wait until the application has ended or was given up on; and a moment for the hooks."""
        await self._over.wait()
        if self._hooks is not None:
            # `wait`, so that neither a hook's error nor a cancellation of the request ends in the other.
            await asyncio.wait({self._hooks}, timeout=HOOK_PATIENCE)

    async def release(self) -> None:
        """Give back what is held, when the application has ended or will not run."""
        self.manager.remove_producer(self.interrupt)
        if self.stream is None:
            await self.manager.store.release(self.reservation)
        # There is nothing left to stop, and nothing that leads back to the producer: it is freed with its request.
        self.reservation.on_stop = _noop

    # Beginning and ending.

    async def begin(self, head: Head, on_begin: Callable[[WritableStream], None]) -> None:
        """Make this the current epoch of its id; once. `on_begin` is called before anything can be recorded.

        Raises:
            StreamCancelled: It was stopped while it waited.
            StreamReplaced: A newer request has begun in the meantime.
            ShuttingDown: Its worker was taken for dead meanwhile.
        """
        async with self._beginning:
            if self.stream is None:
                stream = await self.manager.store.begin(self.reservation, head)
                on_begin(stream)
                # After `on_begin`: the reader is attached by then, so the first byte cannot be dropped before it.
                self.stream = stream
                self.last_write = monotonic()
                if self.telemetry is not None:
                    self.telemetry.begun()
                if self.manager.settings.ping and head.is_event_stream:
                    self._on_idle()

    async def end(self, status: ResumableStatus, code: str = "", message: str = "") -> None:
        """End the stream, if it has begun and not ended yet."""
        stream = self.stream
        if stream is not None and not stream.closed:
            # Before the store shows the end: then clients go, and the request's span is closed.
            self._measure_end(status)
            await self.manager.store.finish(stream, status, code, message)
            self._on_end(stream)

    async def fail(self, message: str) -> None:
        """End the stream because its application has not completed it."""
        await self.end(ResumableStatus.FAILED, "producer_failed", message)

    def _measure_end(self, outcome: str) -> None:
        if self.telemetry is not None:
            self.telemetry.ended(outcome, self.error, 0 if self.stream is None else self.stream.tail)

    def _on_end(self, stream: WritableStream | None) -> None:
        """Run the hooks, once, for a stream that its producer or the store has ended."""
        self._cancel_idle_timer()
        if stream is not None and not self._is_finished:
            self._is_finished = True
            if self.manager.hooks:
                self._hooks = self.manager.hooks.run(FinishedStream(stream))

    def _on_idle(self) -> None:
        """Record a keep-alive if the application has been silent for long enough, and look again later."""
        now, ping = monotonic(), self.manager.settings.ping
        due = self.last_write + ping
        if due <= now:
            assert self.stream is not None
            self.stream.ping()
            due = now + ping
        self._idle_timer = asyncio.get_running_loop().call_later(due - now, self._on_idle)

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    # Stopping.

    def stop(self, code: str) -> None:
        """Make the application see what it would see if its client had left; safe to call at any time, once counts."""
        self._measure_end(code)
        self._on_end(self.stream)
        if self.stop_code is not None or self.is_over:
            return
        self.stop_code = code
        # Taken before the event is set, which lets the listeners go.
        listens = self._listeners > 0
        self._stopped.set()
        if self._task is None:
            self.cancel_request()
        else:
            self.manager.tasks.spawn(self._wind_up(self._task, listens), name=f"resumable stop {self.key.id}")

    async def interrupt(self) -> None:
        """End the stream because the server cannot wait for it any longer."""
        await self.end(ResumableStatus.INTERRUPTED, "interrupted", "The server was shut down.")
        self.stop("interrupted")

    def abort(self, error: BaseException) -> None:
        """Have the request fail with `error`: its stream cannot be begun, or ended."""
        self.error = error
        self._scope.cancel()

    async def _wind_up(self, task: asyncio.Task[None], listens: bool) -> None:
        # An application that sends, or is about to, goes on to its own next `await` first: a generator that is
        # cancelled there closes itself, while one that waits for its caller would be left to the garbage collector.
        for _ in range(STOP_TURNS):
            await asyncio.sleep(0)
        grace = self.manager.settings.stop_grace
        if listens:
            # The application has just received the disconnect; a cancellation would interrupt its cleaning up.
            await asyncio.wait({task}, timeout=grace)
            # For one that ignores the disconnect: it has had its grace, and only has to run its `finally`.
            grace = 0.1
        self._scope.cancel()
        await asyncio.wait({task}, timeout=grace)
        if not task.done():
            # First, as a handler of the application's may raise.
            self._settle()
            logger.warning(
                "the producer of stream %r ignores cancellation and was abandoned after %g s; "
                "let CancelledError through, or check stream.stopped",
                self.key.id,
                self.manager.settings.stop_grace,
                extra=self.fields,
            )

    async def disconnected(self) -> None:
        """Wait until the stream is stopped: what the application sees as `http.disconnect`."""
        self._listeners += 1
        try:
            await self._stopped.wait()
        finally:
            self._listeners -= 1


def _noop(_code: str = "") -> None:
    """There is nothing to stop, yet or any more; and no reference that keeps a producer alive."""
