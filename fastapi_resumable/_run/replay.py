"""Serving a log: the one way in which any client, the first one included, gets the bytes of a stream."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .._core.terminal import terminal_event
from .._stream.position import find_position, is_exhausted
from .._stream.reader import Reader, Reading
from .._stream.stream import Stream
from ..exceptions import OffsetLost, ResumableError
from ..models import ResumableStatus
from .headers import RawHeaders, guard, identify
from .manager import StreamManager
from .servers import takes_cancellation, takes_return, transport_of

WATCH_DELAY = 0.01
"""Seconds after which a client is watched for its leaving; most answers are over by then, and need no task for that."""


class StreamBroken(Exception):
    """Raised to make the server close the connection uncleanly, so that the client can tell that more was to come."""


class QuietlyBroken(asyncio.CancelledError):
    """The same where the server takes a cancellation for it, and reports no error."""


class BrokenBody(dict[str, Any]):
    """A part of a body that breaks off the response where a middleware looks into it.

    `BaseHTTPMiddleware` ends every body in order, whatever the application raises. It looks in the server's own task.
    """

    def __init__(self, why: str) -> None:
        super().__init__(type="http.response.body", body=b"", more_body=True)
        self._why = why

    def get(self, _key: str, _default: Any = None) -> Any:
        """Break off.

        Raises:
            StreamBroken: The server has to close the connection.
            QuietlyBroken: The same.
        """
        raise _broken(self._why)


def _broken(why: str) -> BaseException:
    return QuietlyBroken(why) if takes_cancellation() else StreamBroken(why)


def end_of_body() -> Message:
    """The message that ends a response in order; a new one each time, because middleware changes what it passes on."""
    return {"type": "http.response.body", "body": b"", "more_body": False}


async def break_off(why: str, manager: StreamManager, scope: Scope, send: Send, *, at_once: bool = False) -> None:
    """Close a response's connection uncleanly; `at_once` if its client takes nothing.

    Raises:
        StreamBroken: The server has to do it.
        QuietlyBroken: The same.
    """
    transport = transport_of(scope, manager.termination.servers)
    if transport is None:
        if takes_return():
            return
        if not at_once and not takes_cancellation():
            await send(BrokenBody(why))
        raise _broken(why)
    if at_once:
        transport.abort()
    else:
        transport.close()
    # It does not reach the client any more, but middleware and telemetry learn that this is no failure.
    await send(end_of_body())


class Serving:
    """One response that gets its bytes from a log."""

    def __init__(self, reader: Reader, manager: StreamManager, headers: RawHeaders, scope: Scope, send: Send) -> None:
        self._reader = reader
        self._stream = reader.stream
        self._manager = manager
        self._scope = scope
        # A server's `send` may return any awaitable; a reader is delivered to by coroutines.
        code = getattr(send, "__code__", None)
        self._send = send if code is not None and code.co_flags & inspect.CO_COROUTINE else _as_coroutine(send)
        self._start: Message = {
            "type": "http.response.start",
            "status": self._stream.head.status_code,
            "headers": headers,
        }
        self._watch: asyncio.Task[None] | None = None

    async def run(self, disconnected: Callable[[], Coroutine[Any, Any, None]]) -> Reading:
        """Send the stream from the reader's place to its end, or until the client has gone; return how it came out.

        Raises:
            StreamBroken: The response must not end cleanly: the client stalled, or the stream did not complete and its
                media type has no event to say so.
        """
        reader, reading = self._reader, Reading.LEFT
        self._disconnected = disconnected
        timers = self._manager.around.timers
        timers.start(WATCH_DELAY, self._begin_watch)
        try:
            if (rest := self._rest()) is None:
                reading = await reader.run(self._begin, self._deliver, self._end)
            else:
                reading = await reader.supervise(self._send_all(rest))
            # A request that is cancelled has a server that closes the connection by itself.
            if reading is Reading.STALLED and reader.cancelled is None:
                cause = "the server exits" if self._manager.closing else "its client took nothing for too long"
                why = f"a response of stream {self._stream.key.id!r} breaks off: {cause}"
                await break_off(why, self._manager, self._scope, self._send, at_once=True)
            if reader.cancelled is not None:
                raise reader.cancelled
        except OSError:
            # What a server of ASGI 2.4 raises from `send` once the client has gone.
            return Reading.CUT
        finally:
            self._manager.dismiss(reader, self._dropped(reading))
            timers.cancel(WATCH_DELAY, self._begin_watch)
            if self._watch is not None:
                # It reads from the request's channel, which other code may read only once this task has ended.
                self._watch.cancel()
                await asyncio.wait({self._watch})
        return reading

    def _begin_watch(self) -> None:
        self._watch = self._manager.spawn(self._disconnected(), name="resumable disconnect")
        self._watch.add_done_callback(lambda _: self._reader.leave())

    def _dropped(self, reading: Reading) -> str | None:
        """Why the server has cut the client off, if it has."""
        failure = self._reader.failure
        if reading is Reading.LOST and failure is not None:
            return failure.code
        return "stalled" if reading is Reading.STALLED else None

    def _rest(self) -> bytes | None:
        """All that there is to send, if that is one block, and nothing more will come, nor an unclean end.

        So it is with the replay of most answers, which needs neither a watch nor a message for its end.
        """
        stream = self._stream
        if not stream.is_final or not (stream.status is ResumableStatus.COMPLETED or stream.head.is_event_stream):
            return None
        try:
            data = stream.read(self._reader)
        except OffsetLost:
            return None
        return data if self._reader.offset + len(data) == stream.tail else None

    async def _send_all(self, rest: bytes) -> Reading:
        await self._send(self._start)
        # The body and its end in one message: that is one write to the socket in place of two.
        await self._send({"type": "http.response.body", "body": rest, "more_body": False})
        return Reading.FINISHED

    async def _begin(self) -> None:
        await self._send(self._start)

    def _deliver(self, data: bytes) -> Coroutine[Any, Any, None]:
        return self._send({"type": "http.response.body", "body": data, "more_body": True})  # type: ignore[return-value]  # see `__init__`

    async def _end(self, reading: Reading) -> None:
        stream, failure = self._stream, self._reader.failure
        # The client has gone, so an end would reach nothing.
        if reading is Reading.LEFT:
            return
        if stream.head.is_event_stream and failure is not None:
            # In the default form, whatever `terminal_event` says: this end is the reader's own, and is not recorded.
            await self._deliver(terminal_event("sse", "failed", failure.code, failure.message))
        elif failure is not None:
            why = f"a client of stream {stream.key.id!r} lost its place"
            await break_off(why, self._manager, self._scope, self._send)
            return
        elif stream.status is not ResumableStatus.COMPLETED and not stream.head.is_event_stream:
            why = f"stream {stream.key.id!r} ended as {stream.status}"
            await break_off(why, self._manager, self._scope, self._send)
            return
        await self._send(end_of_body())


def _as_coroutine(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send(message)

    return sent


def read_kind(*place: object) -> str:
    """What a read is counted as: `resume` if its client names a place in the stream, else `replay`."""
    return "resume" if any(place) else "replay"


@contextmanager
def counting_refusals(manager: StreamManager, kind: str) -> Iterator[None]:
    """Count a read that is refused: there is no such stream, or no such place in it."""
    try:
        yield
    except ResumableError as exc:
        manager.telemetry.read(kind, exc.code)
        raise


class ReplayResponse(Response):
    """A response that replays a stream from an offset and follows it to its end."""

    def __init__(
        self, manager: StreamManager, stream: Stream, offset: int, location: str | None, *, kind: str = ""
    ) -> None:
        self._manager = manager
        self._stream = stream
        self._offset = offset
        self._kind = kind or read_kind(offset)
        super().__init__(status_code=stream.head.status_code)
        self.raw_headers = guard(identify(stream.head.headers, stream, location))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the log."""

        async def disconnected() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        self._manager.telemetry.read(self._kind, traceparent=self._stream.head.traceparent)
        reader = self._manager.reader(self._stream, self._offset)
        await Serving(reader, self._manager, list(self.raw_headers), scope, send).run(disconnected)


async def replay(
    manager: StreamManager,
    stream: Stream,
    offset: int | None,
    last_event_id: str | None,
    location: str | None,
    *,
    kind: str = "",
) -> Response:
    """Answer a request for a stream from where its client left off; 204 if it has had everything, and asks by event id.

    Raises:
        ResumableError: The position is unknown, or no longer kept; see `find_position`.
    """
    position = await find_position(stream, offset, last_event_id)
    if last_event_id and await is_exhausted(stream, position):
        manager.telemetry.read("resume", "204", traceparent=stream.head.traceparent)
        response = Response(status_code=204)
        response.raw_headers = identify((), stream, location)
        return response
    return ReplayResponse(manager, stream, position, location, kind=kind)
