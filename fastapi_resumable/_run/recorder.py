"""What a recorded application is called with: a `receive` without a disconnect, a `send` that writes the log."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Scope

from .._stream.stream import YIELD_EVERY, YIELD_SIZE, Head, WritableStream
from ..exceptions import ShuttingDown, StreamCancelled, StreamReplaced
from ..models import ResumableStatus
from .body import DISCONNECT, RequestBody
from .errors import StreamStopped
from .headers import RawHeaders, end_to_end, replayable
from .producer import Producer

MAX_DROPPED = 32
"""How many messages are dropped after a stop: one in each turn of the event loop, until the cancellation arrives."""
FIND_PRODUCER = "fastapi_resumable.find_producer"
"""Under which a scope has what finds its producer. A route has its scope before it is decided whether there is one."""


class Recorder:
    """Turns one application's ASGI messages into a stream; or passes them on, if its answer is no 2xx."""

    passing = False
    """Whether the application answers by itself, without a stream."""
    headers: RawHeaders = []  # noqa: RUF012  # never changed
    """The headers of the answer, end to end."""
    _start: Message | None = None
    _stream: WritableStream | None = None
    """The stream once something is in it: from then on `send` takes the short way."""
    _writes = 0
    _refused = 0
    _beginning: asyncio.Task[None] | None = None
    """The beginning of a stream whose application has been silent for `head_timeout`."""
    _has_sent_all = False
    """Whether the end waits for the application to return."""
    _timer: asyncio.TimerHandle | None = None
    """For a beginning or an end that does not wait for the application any longer."""

    def __init__(
        self,
        producer: Producer,
        body: RequestBody,
        *,
        on_begin: Callable[[WritableStream], None],
        pass_on: Callable[[Message], Awaitable[None]],
        end_delay: float,
    ) -> None:
        """Record what an application sends.

        Args:
            producer: Its stream.
            body: What it receives.
            on_begin: Gets the stream, before anything is in it.
            pass_on: Gets the messages of an answer that is no stream.
            end_delay: How many seconds the end of the body waits for the application to return, in case it raises.
        """
        self._producer = producer
        self._manager = producer.manager
        self._body = body
        self._on_begin: Callable[[WritableStream], None] | None = on_begin
        self._pass_on: Callable[[Message], Awaitable[None]] | None = pass_on
        self._end_delay = end_delay
        self._writing = asyncio.Lock()
        self.settled = asyncio.Event()
        """Set when it is known whether there will be a stream."""

    @property
    def holds_head(self) -> bool:
        """Whether the application has begun to answer, and nothing of it was sent on."""
        return self._start is not None and not self.passing

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application to its end."""
        try:
            await app(scope, self.receive, self.send)
            if self._has_sent_all:
                # The application has returned, so there is nothing to wait for.
                await self._end()
        finally:
            self._cancel_timer()
            if not self.settled.is_set():
                # However the application ends, the exchange must not wait for a head that will never come.
                if self._beginning is not None:
                    # A stream that is just being begun has to be there, to be ended.
                    with anyio.CancelScope(shield=True):
                        await asyncio.wait({self._beginning})
                self.settled.set()

    def release(self) -> None:
        """Drop what leads to the request; messages of an application that outlives its request are ignored."""
        self._on_begin = self._pass_on = self._stream = None

    async def receive(self) -> Message:
        """The request's body; then, once the stream is stopped, a disconnect."""
        # An application that answers without a stream is served as without us, and hears of its client's leaving.
        if self.passing:
            return await self._body.receive()
        if self._producer.stop_code is None and self._body.is_exhausted:
            await self._producer.disconnected()
        elif self._producer.stop_code is None:
            # Both at once: the application waits for its body, and a stop must reach it there.
            message = asyncio.ensure_future(self._body.next())
            stopped = asyncio.ensure_future(self._producer.disconnected())
            try:
                await asyncio.wait({message, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if message.done() and (received := message.result()) is not None:
                    return received
                await stopped
            finally:
                message.cancel()
                stopped.cancel()
        return DISCONNECT

    async def send(self, message: Message) -> None:
        """Record a message.

        Raises:
            StreamStopped: The stream was stopped, as a server would say that the client has left.
            RuntimeError: The application breaks the rules of ASGI.
        """
        # The short way for nearly every chunk of nearly every stream. Whatever it refuses takes the careful way.
        stream, body = self._stream, message.get("body")
        if stream is None or not body or type(body) is not bytes or not stream.offer(body, now := monotonic()):
            await self._send_with_care(message)
            return
        self._producer.last_write = now
        # A generator that never awaits would keep the event loop from everything else.
        self._writes += 1
        if not self._writes % YIELD_EVERY or len(body) > YIELD_SIZE:
            await asyncio.sleep(0)
        if not message.get("more_body"):
            await self._sent_all()

    async def _send_with_care(self, message: Message) -> None:
        """Handle any message but a chunk that can be recorded at once."""
        producer = self._producer
        if self.passing:
            if self._pass_on is not None:
                await self._pass_on(message)
            return
        if producer.stop_code is not None or self._on_begin is None:
            await self._refuse()
            return
        if message["type"] == "http.response.start":
            await self._hold(message)
        elif message["type"] == "http.response.body":
            if self._start is None:
                raise RuntimeError("The application sent http.response.body before http.response.start.")
            if body := message.get("body"):
                if producer.stream is None:
                    await self._begin()
                if self._stream is None and producer.telemetry is not None:
                    producer.telemetry.first_byte()
                # A copy of a `bytearray` or `memoryview`, which the application may reuse; for `bytes` it is none.
                await self._write(bytes(body))
            if not message.get("more_body"):
                await self._sent_all()

    async def _write(self, chunk: bytes) -> None:
        """Record a chunk of any size; wait while the slowest attached reader is too far behind."""
        stream = self._producer.stream
        assert stream is not None
        # An application may send from several tasks, as sse-starlette does its keep-alives, and nothing may come into
        # the middle of a chunk.
        async with self._writing:
            # So that meanwhile none takes the short way.
            self._stream = None
            size = stream.piece
            for start in range(0, len(chunk), size):
                piece = chunk[start : start + size]
                if start:
                    await asyncio.sleep(0)
                while not stream.offer(piece, monotonic()):
                    if stream.closed:
                        await self._refuse()
                        return
                    await stream.wait_for_room(len(piece))
            self._producer.last_write = monotonic()
            if self._on_begin is not None:
                self._stream = stream

    async def _refuse(self) -> None:
        """Handle a message after a stop.

        The first ones are dropped silently and at once, so that a generator which is just being sent from gets to its
        own next `await`, and is cancelled there: then it closes itself, before what it uses is closed.
        """
        if self._start is not None and self._refused < MAX_DROPPED:
            self._refused += 1
            return
        for _ in range(5):
            # The cancellation, if it can come through here.
            await asyncio.sleep(0)
        raise StreamStopped("the stream was stopped" + ("" if self._producer.stream else " before it began"))

    async def _hold(self, start: Message) -> None:
        """Keep the head back until the first bytes come, so that an early exception can still change it."""
        if self._start is not None:
            await self._producer.fail("The answer ended before it was complete.")
            raise RuntimeError("The application sent http.response.start twice.")
        self._start = start
        if 200 <= start["status"] < 300:
            self.headers = end_to_end(start.get("headers", ()))
            self._start_timer(self._manager.settings.head_timeout, self._begin_late)
            return
        self.passing = True
        # Before the head is sent: a client that has its error may ask again at once, and is not to find its own request
        # queued.
        await self._manager.store.release(self._producer.reservation)
        self.settled.set()
        await self._send_with_care(start)

    async def _begin(self) -> None:
        assert self._start is not None
        if self._on_begin is None:
            raise StreamStopped("the request is over")
        if not self._has_sent_all:
            # Else the timer is that of the end.
            self._cancel_timer()
        telemetry = self._producer.telemetry
        traceparent = None if telemetry is None else telemetry.open_span()
        head = Head(self._start["status"], replayable(self.headers), traceparent)
        try:
            await self._producer.begin(head, self._on_begin)
        except (ShuttingDown, StreamCancelled, StreamReplaced) as exc:
            raise StreamStopped("the stream was stopped before it began") from exc
        self.settled.set()

    async def _sent_all(self) -> None:
        if self._end_delay:
            # A framework that ends the body because the generator was cancelled is about to be cancelled here, too.
            await asyncio.sleep(0)
            self._has_sent_all = True
            self._start_timer(self._end_delay, self._end_late)
        else:
            await self._end()

    async def _end(self) -> None:
        if self._producer.stop_code is None:
            if self._producer.stream is None:
                await self._begin()
            await self._producer.end(ResumableStatus.COMPLETED)

    def _start_timer(self, delay: float, action: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(delay, action)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin_late(self) -> None:
        self._timer = None
        self._beginning = self._spawn(self._begin)

    def _end_late(self) -> None:
        self._timer = None
        self._spawn(self._end)

    def _spawn(self, action: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None] | None:
        async def act() -> None:
            # A stop that comes in between is no error; the application learns of it when it sends the next part.
            with suppress(StreamStopped):
                try:
                    await action()
                except Exception as exc:  # noqa: BLE001  # raised in the request
                    # Its client must not wait until the application, which may be silent for long, comes upon the same.
                    self._producer.abort(exc)

        if self._producer.stop_code is not None:
            return None
        return self._manager.tasks.spawn(act(), name=f"resumable recorder {self._producer.key.id}")


def inner_scope(scope: Scope, find_producer: Callable[[], Producer | None]) -> Scope:
    """The scope for an application whose bytes are recorded: no extension that would send them by another way.

    ASGI 2.4, in which `send` raises an `OSError` once the client has gone: so Starlette needs no task that listens for
    the disconnect, and a stop is a cancellation.
    """
    asgi = {**scope.get("asgi", {}), "spec_version": "2.4"}
    return {**scope, "extensions": {}, "asgi": asgi, FIND_PRODUCER: find_producer}


def find_outer(scope: Scope) -> Callable[[], Producer | None]:
    """What returns the producer of another `Resumable` that records what this request sends, once there is one."""
    find: Callable[[], Producer | None] = scope.get(FIND_PRODUCER, lambda: None)
    return find
