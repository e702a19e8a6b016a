"""Running one request's application in the background, and answering the request from the log.

The request itself goes on until the application has ended, whatever happens to the client: so what hangs on the request
(dependencies with `yield`, uploaded files, the resources of middleware) lives as long as the producer needs it.
"""

import asyncio
from collections.abc import Callable

import anyio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope, Send

from ..core.errors import ResumableError, ShuttingDown, StreamCancelled, StreamReplaced
from ..core.models import ResumableStreamItem, Status
from ..life.manager import StreamManager
from ..life.producer import Producer, StreamStopped
from ..stores.stream import Head, Stream
from .body import DISCONNECT, RequestBody
from .headers import end_to_end, identify, recorded
from .replay import serve

Locate = Callable[[str], str | None]
"""Gives the replay URL of a stream id, if there is one."""


class Recorder:
    """One resumable request: what its application sends goes into the log, what its client gets comes out of it."""

    def __init__(
        self,
        manager: StreamManager,
        producer: Producer,
        body: RequestBody,
        send: Send,
        *,
        locate: Locate,
        head_timeout: float,
        pending_timeout: float,
        respond_async: bool = False,
        on_run: Callable[[], object] = lambda: None,
    ) -> None:
        self._manager = manager
        self._producer = producer
        self._body = body
        self._send = send
        self._locate = locate
        self._head_timeout = head_timeout
        self._pending_timeout = pending_timeout
        self._respond_async = respond_async
        self._on_run = on_run
        self.cancelled: asyncio.CancelledError | None = None
        """A cancellation of the request that came while it ran, for the caller to raise when nothing hangs on it."""
        self._start: Message | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._passing = False
        # Done as soon as it is known how the request is answered: from a log, or (`None`) by the application itself.
        self._begun: asyncio.Future[Stream | None] | None = None

    @property
    def holds_head(self) -> bool:
        """Whether `app` has begun to answer, and nothing of it was sent on."""
        return self._start is not None and not self._passing

    @property
    def failure(self) -> BaseException | None:
        """What the application raised, unless it was being stopped."""
        return self._producer.error if self._producer.stop_code is None else None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Answer the request with what `app` sends; return when both the client and `app` are done.

        Raises:
            Exception: What `app` raised before the stream had begun; later failures are in the log.
            ResumableError: The stream was stopped before it began.
        """
        if self._producer.stop_code is not None:
            raise stopped_while_queued(self._producer.stop_code)
        self._on_run()
        self._begun = asyncio.get_running_loop().create_future()
        self._producer.start(lambda: self._run_app(app, scope))
        failure: BaseException | None = None
        try:
            stream = await self._first_answer(self._begun)
            if stream is not None:
                await self._answer(stream)
        except asyncio.CancelledError as exc:
            self._note_cancellation(exc)
        except Exception as exc:  # noqa: BLE001  # raised again below, once nothing hangs on the request any more
            failure = exc
        await self._outlast()
        if failure is not None:
            raise failure
        producer = self._producer
        if producer.stream is None:
            if producer.stop_code is not None and not self._passing:
                raise stopped_while_queued(producer.stop_code)
            if producer.error is not None:
                raise producer.error

    async def _outlast(self) -> None:
        """Wait for the application to end, through any cancellation of the request."""
        done = asyncio.ensure_future(self._producer.done())
        with anyio.CancelScope(shield=True):
            while not done.done():
                try:
                    await asyncio.wait({done})
                except asyncio.CancelledError as exc:
                    self._note_cancellation(exc)
        await self._manager.release(self._producer)

    def _note_cancellation(self, exc: asyncio.CancelledError) -> None:
        self.cancelled = exc
        if self._manager.closing:
            # The server has run out of patience before the grace was over.
            self._manager.interrupt_soon(self._producer)

    # What the client gets.

    async def _first_answer(self, begun: asyncio.Future[Stream | None]) -> Stream | None:
        if self._respond_async:
            await asyncio.wait({begun}, timeout=self._pending_timeout)
            if not begun.done():
                await self._accept(self._producer.reservation.item)
                return None
        return await asyncio.shield(begun)

    async def _answer(self, stream: Stream) -> None:
        if self._respond_async:
            await self._accept(stream.item)
            return
        assert self._start is not None
        location = self._locate(stream.key.id)
        headers = identify(end_to_end(self._start["headers"]), stream, location)
        reader = self._manager.reader(stream, 0)
        await serve(reader, self._manager, headers, self._send, self._body.disconnected)

    async def _accept(self, item: ResumableStreamItem) -> None:
        await accepted(item, self._locate(item.conversation_id))({"type": "http"}, self._body.receive, self._send)

    # What the application sees.

    async def _run_app(self, app: ASGIApp, scope: Scope) -> None:
        begun = self._begun
        assert begun is not None
        try:
            await app(scope, self.receive, self._record)
        finally:
            if self._head_timer is not None:
                self._head_timer.cancel()
            if not begun.done():
                begun.set_result(None)

    async def receive(self) -> Message:
        """`receive` as the application gets it: the body, and a disconnect when the stream is stopped."""
        if self._passing:
            return await self._body.receive()
        if self._producer.stop_code is None:
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

    async def _record(self, message: Message) -> None:
        """`send` as the application gets it."""
        if self._producer.stream is not None:
            await self._record_body(message)
        elif self._passing:
            await self._send(message)
        elif self._producer.stop_code is not None:
            raise StreamStopped("the stream was stopped before it began")
        elif message["type"] == "http.response.start":
            await self._hold(message)
        elif message.get("body") or not message.get("more_body", False):
            await self._begin()
            await self._record_body(message)

    async def _hold(self, start: Message) -> None:
        """Keep the head back until the first bytes come, so that an early exception can still change it."""
        self._start = {**start, "headers": list(start.get("headers", []))}
        if not 200 <= start["status"] < 300:
            self._passing = True
            await self._manager.store.release(self._producer.reservation)
            assert self._begun is not None
            if not self._begun.done():
                self._begun.set_result(None)
            await self._send(start)
            return
        self._head_timer = asyncio.get_running_loop().call_later(
            self._head_timeout, lambda: self._manager.spawn(self._begin_late(), name="resumable head")
        )

    async def _begin_late(self) -> None:
        if self._producer.stop_code is None:
            try:
                await self._begin()
            except StreamStopped:
                return

    async def _begin(self) -> None:
        assert self._start is not None
        assert self._begun is not None
        if self._head_timer is not None:
            self._head_timer.cancel()
        try:
            stream = await self._producer.begin(Head(self._start["status"], recorded(self._start["headers"])))
        except (StreamCancelled, StreamReplaced) as exc:
            raise StreamStopped("the stream was stopped before it began") from exc
        if not self._begun.done():
            self._begun.set_result(stream)

    async def _record_body(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            return
        body = message.get("body", b"")
        if body:
            await self._producer.write(body if type(body) is bytes else bytes(body))
        if not message.get("more_body", False):
            await self._producer.finish(Status.COMPLETED)


def stopped_while_queued(code: str) -> ResumableError:
    """What a request is answered whose stream was stopped before it began."""
    if code == "replaced":
        return StreamReplaced()
    return ShuttingDown() if code == "interrupted" else StreamCancelled()


def accepted(item: ResumableStreamItem, location: str | None) -> Response:
    """The answer to `Prefer: respond-async` (RFC 7240 §4.1): where the stream will be, and what it is now."""
    response = Response(item.model_dump_json(), status_code=202, media_type="application/json")
    response.raw_headers += [
        (b"preference-applied", b"respond-async"),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-conversation-id", item.conversation_id.encode("utf-8")),
        (b"x-stream-epoch", item.epoch.encode("ascii")),
    ]
    if location is not None:
        url = location.encode("ascii")
        response.raw_headers += [(b"location", url), (b"content-location", url)]
    return response


def inner_scope(scope: Scope) -> Scope:
    """The scope for an application whose bytes are recorded: no extension that would send them by another way.

    ASGI 2.3, so that Starlette listens for the disconnect that a stop is made of, on every server.
    """
    return {**scope, "extensions": {}, "asgi": {**scope.get("asgi", {}), "spec_version": "2.3"}}
