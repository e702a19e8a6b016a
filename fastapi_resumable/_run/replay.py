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
from .manager import LAST_DELIVERY, StreamManager
from .servers import takes_cancellation, transport_of

WATCH_DELAY = 0.01
"""Seconds after which a client is watched for its leaving; most answers are over by then, and need no task for that."""


class StreamBroken(Exception):
    """Raised to make the server close the connection uncleanly, so that the client can tell that more was to come."""


class QuietlyBroken(asyncio.CancelledError):
    """The same where the server takes a cancellation for it, and reports no error."""


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
        raise QuietlyBroken(why) if takes_cancellation() else StreamBroken(why)
    if at_once:
        transport.abort()
    else:
        transport.close()
    # It does not reach the client any more, but middleware and telemetry learn that this is no failure.
    await send(end_of_body())


async def serve(
    reader: Reader,
    manager: StreamManager,
    headers: RawHeaders,
    scope: Scope,
    send: Send,
    disconnected: Callable[[], Coroutine[Any, Any, None]],
) -> Reading:
    """Send a stream from the reader's place to its end, or until the client has gone; return how it came out.

    Raises:
        StreamBroken: The response must not end cleanly: the client stalled, or the stream did not complete and its
            media type has no event to say so.
    """
    watch: asyncio.Task[None] | None = None

    def begin_watch() -> None:
        nonlocal watch
        watch = manager.spawn(disconnected(), name="resumable disconnect")
        watch.add_done_callback(lambda _: reader.leave())

    timer = asyncio.get_running_loop().call_later(WATCH_DELAY, begin_watch)

    async def start() -> None:
        await send({"type": "http.response.start", "status": reader.stream.head.status_code, "headers": headers})

    if not inspect.iscoroutinefunction(send):
        send = _as_coroutine(send)

    def deliver(data: bytes) -> Coroutine[Any, Any, None]:
        return send({"type": "http.response.body", "body": data, "more_body": True})  # type: ignore[return-value]  # it is a coroutine function

    reading = Reading.LEFT
    try:
        reading = await reader.run(start, deliver)
        # A middleware that has cancelled the request takes no more of it, and does not say so.
        patience = None if reader.cancelled is None else LAST_DELIVERY
        ending = await reader.hand_over(_end(reading, reader, manager, scope, send), patience)
        if ending is Reading.STALLED and reader.cancelled is None:
            await _end(ending, reader, manager, scope, send)
        if reader.cancelled is not None:
            raise reader.cancelled
    except OSError:
        # What a server of ASGI 2.4 raises from `send` once the client has gone.
        return Reading.CUT
    finally:
        manager.dismiss(reader, _dropped(reading, reader))
        timer.cancel()
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})
    return reading


def _dropped(reading: Reading, reader: Reader) -> str | None:
    """Why the server has cut a reader off, if it has."""
    if reading is Reading.LOST and reader.failure is not None:
        return reader.failure.code
    return "stalled" if reading is Reading.STALLED else None


def _as_coroutine(send: Send) -> Send:
    """A server's `send` may return any awaitable; a reader is delivered to by coroutines."""

    async def sent(message: Message) -> None:
        await send(message)

    return sent


def _rest(reader: Reader) -> bytes | None:
    """All that there is to deliver, if that is one block and nothing more will come, nor an unclean end."""
    stream = reader.stream
    if not stream.is_final or not (stream.status is ResumableStatus.COMPLETED or stream.head.is_event_stream):
        return None
    try:
        data = stream.read(reader)
    except OffsetLost:
        return None
    return data if reader.offset + len(data) == stream.tail else None


async def _serve_rest(
    rest: bytes, reader: Reader, manager: StreamManager, headers: RawHeaders, scope: Scope, send: Send
) -> None:
    """`serve`, short for the replay of most answers: there is nothing to follow, so no need to watch the client."""

    async def deliver() -> None:
        await send({"type": "http.response.start", "status": reader.stream.head.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": rest, "more_body": False})

    reading = Reading.LEFT
    try:
        reading = await reader.hand_over(deliver())
        if reading is Reading.STALLED:
            await _end(reading, reader, manager, scope, send)
    except OSError:
        # The client has gone, as in `serve`.
        return
    finally:
        manager.dismiss(reader, _dropped(reading, reader))


async def _end(reading: Reading, reader: Reader, manager: StreamManager, scope: Scope, send: Send) -> None:
    stream = reader.stream
    if reading is Reading.LEFT:
        return
    if reading is Reading.STALLED:
        why = f"the client of stream {stream.key.id!r} took nothing for too long"
        await break_off(why, manager, scope, send, at_once=True)
    elif reading is Reading.LOST and stream.head.is_event_stream:
        assert reader.failure is not None
        event = terminal_event("sse", "failed", reader.failure.code, reader.failure.message)
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await send(end_of_body())
    elif reading is Reading.LOST:
        await break_off(f"a client of stream {stream.key.id!r} lost its place", manager, scope, send)
    elif stream.status is not ResumableStatus.COMPLETED and not stream.head.is_event_stream:
        await break_off(f"stream {stream.key.id!r} ended as {stream.status}", manager, scope, send)
    else:
        await send(end_of_body())


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
        headers = list(self.raw_headers)
        rest = _rest(reader)
        if rest is None:
            await serve(reader, self._manager, headers, scope, send, disconnected)
        else:
            await _serve_rest(rest, reader, self._manager, headers, scope, send)


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
