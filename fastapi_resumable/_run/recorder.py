"""What an application sees that is recorded: `receive` without a disconnect, and a `send` that writes to the log."""

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Scope, Send

from .._stream.stream import Head, Stream
from ..exceptions import StreamCancelled, StreamReplaced
from ..models import ResumableStatus
from .body import DISCONNECT, RequestBody
from .headers import RawHeaders, recorded
from .manager import StreamManager
from .producer import Producer, StreamStopped


class Recorder:
    """Turns one application's ASGI messages into a stream; or lets them pass, if its answer is no 2xx."""

    def __init__(
        self,
        manager: StreamManager,
        producer: Producer,
        body: RequestBody,
        *,
        head_timeout: float,
        end_delay: float,
        on_begin: Callable[[Stream], None],
        pass_on: Send,
    ) -> None:
        """`on_begin` gets the stream before anything is in it; `pass_on` the messages of any other answer."""
        self._manager = manager
        self.turns = manager.turns
        self.producer = producer
        self._body = body
        self._head_timeout = head_timeout
        self._end_delay = end_delay
        self._on_begin = on_begin
        self._pass_on = pass_on
        self._start: Message | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ending = False
        self.passing = False
        """Whether the application answers by itself, without a stream."""
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done as soon as it is known whether there will be a stream."""

    @property
    def holds_head(self) -> bool:
        """Whether the application has begun to answer, and nothing of it was sent on."""
        return self._start is not None and not self.passing

    @property
    def headers(self) -> RawHeaders:
        """The headers of the answer, as the application sent them."""
        assert self._start is not None
        return list(self._start.get("headers", ()))

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application to its end."""
        try:
            await app(scope, self.receive, self.send)
            self._cancel_timer()
            if self._ending:
                await self._end()
        finally:
            self._cancel_timer()
            self._settle()

    def release(self) -> None:
        """Let go of whoever is told; what an application sends that has outlived its request goes nowhere."""
        self._on_begin, self._pass_on = _ignore, _discard

    async def receive(self) -> Message:
        """The request's body; then, once the stream is stopped, a disconnect."""
        if self.passing:
            return await self._body.receive()
        if self.producer.stop_code is None and self._body.is_exhausted:
            await self.producer.disconnected()
        elif self.producer.stop_code is None:
            message = asyncio.ensure_future(self._body.next())
            stopped = asyncio.ensure_future(self.producer.disconnected())
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
        """
        producer = self.producer
        body = message.get("body")
        if (stream := producer.stream) is None:
            if self.passing:
                await self._pass_on(message)
                return
            if producer.stop_code is not None:
                raise StreamStopped("the stream was stopped before it began")
            if message["type"] == "http.response.start":
                await self._hold(message)
                return
            if body:
                await self._begin()
        # `Producer.write`, short for nearly all chunks: each call less can be measured.
        elif type(body) is bytes and body and stream.offer(body, now := monotonic()):
            previous, producer.last_write = producer.last_write, now
            if now > self.turns.ends:
                await self.turns.give_way(previous, now)
            if message.get("more_body"):
                return
            body = None
        if body:
            await producer.write(bytes(body))
        if not message.get("more_body", False):
            self._ending = True
            if self._end_delay:
                self._set_timer(self._end_delay, self._end)
            else:
                await self._end()

    async def _hold(self, start: Message) -> None:
        """Keep the head back until the first bytes come, so that an early exception can still change it."""
        self._start = start
        if 200 <= start["status"] < 300:
            self._set_timer(self._head_timeout, self._begin)
            return
        self.passing = True
        await self._manager.store.release(self.producer.reservation)
        self._settle()
        await self._pass_on(start)

    async def _begin(self) -> None:
        assert self._start is not None
        self._cancel_timer()
        head = Head(self._start["status"], recorded(self.headers))
        try:
            await self.producer.begin(head, self._on_begin)
        except (StreamCancelled, StreamReplaced) as exc:
            raise StreamStopped("the stream was stopped before it began") from exc
        self._settle()

    async def _end(self) -> None:
        if self.producer.stop_code is None:
            if self.producer.stream is None:
                await self._begin()
            await self.producer.finish(ResumableStatus.COMPLETED)

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)

    def _set_timer(self, delay: float, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(delay, self._spawn, action)

    def _spawn(self, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.producer.stop_code is None:
            self._late = self._manager.spawn(action(), name=f"resumable recorder {self.producer.key.id}")

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _ignore(_stream: Stream) -> None:
    """Stands for whoever was told that the stream has begun."""


async def _discard(_message: Message) -> None:
    """Stands for a client that has its answer."""


def inner_scope(scope: Scope) -> Scope:
    """The scope for an application whose bytes are recorded: no extension that would send them by another way.

    ASGI 2.3, so that Starlette listens for the disconnect that a stop is made of, on every server.
    """
    return {**scope, "extensions": {}, "asgi": {**scope.get("asgi", {}), "spec_version": "2.3"}}
