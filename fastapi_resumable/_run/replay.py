"""Serving a log: the one way in which any client, the first one included, gets the bytes of a stream."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .._core.search import SequenceFilter, search_sequence
from .._core.sse import PING
from .._core.terminal import terminal_event
from .._stream.reader import Reader, Reading
from .._stream.stream import Stream, blocks, ends_in_order, find_position, is_exhausted, run_search
from ..exceptions import InvalidOffset, OffsetLost, ResumableError, StoreUnavailable, StreamCancelled
from ..telemetry import StreamTelemetry
from .body import client_gone
from .breaking import break_off, end_of_body
from .headers import RawHeaders, guard, identify
from .manager import StreamManager

Departure = Callable[[], Coroutine[Any, Any, None]]
"""Waits until a client has gone."""

WATCH_DELAY = 0.01
"""Seconds after which a client is watched for its leaving; most answers are over by then, and need no task for that."""


async def serve(
    reader: Reader, manager: StreamManager, headers: RawHeaders, scope: Scope, send: Send, disconnected: Departure
) -> Reading:
    """Send the stream from the reader's place to its end, or until the client has gone; return how it came out.

    Raises:
        StreamBroken: The client stalled, or the stream did not complete and its media type has no event to say so.
    """
    watch: asyncio.Task[None] | None = None

    def begin_watch() -> None:
        nonlocal watch
        watch = manager.tasks.spawn(disconnected(), name="resumable disconnect")
        watch.add_done_callback(lambda _: reader.leave())

    stream, reading = reader.stream, Reading.LEFT
    start = {"type": "http.response.start", "status": stream.head.status_code, "headers": headers}
    timer = asyncio.get_running_loop().call_later(WATCH_DELAY, begin_watch)
    try:
        reading = await reader.run(_as_coroutine(send), start, lambda how: _end(reader, how, manager, scope, send))
        if reading is Reading.STALLED:
            cause = "the server exits" if manager.closing else "its client took nothing for too long"
            why = f"a response of stream {stream.key.id!r} breaks off: {cause}"
            await break_off(why, manager, scope, send, at_once=True)
    except OSError:
        # What a server of ASGI 2.4 raises from `send` once the client has gone.
        return Reading.CUT
    finally:
        manager.dismiss(reader, reading)
        timer.cancel()
        if watch is not None:
            # It reads from the request's channel, which other code may read only once this task has ended.
            watch.cancel()
            await asyncio.wait({watch})
    return reading


async def _end(reader: Reader, reading: Reading, manager: StreamManager, scope: Scope, send: Send) -> None:
    """End a response as its reading ended."""
    # If the client has gone, an end would reach nothing.
    if reading is Reading.LEFT or reader.has_sent_end:
        return
    stream, failure = reader.stream, reader.failure
    # A client that loses its place because the store is away can come back for the rest. So it is cut off, and gets no
    # byte that is not in the log, by which it would miscount its place.
    if stream.head.is_event_stream and failure is not None and not isinstance(failure, StoreUnavailable):
        # In the default form, whatever `terminal_event` says: this end is the reader's own, and is not recorded.
        status = "cancelled" if isinstance(failure, StreamCancelled) else "failed"
        event = terminal_event("sse", status, failure.code, failure.message)
        await send({"type": "http.response.body", "body": event, "more_body": True})
    elif failure is not None:
        await break_off(f"a client of stream {stream.key.id!r} lost its place", manager, scope, send)
        return
    elif not ends_in_order(stream):
        await break_off(f"stream {stream.key.id!r} ended as {stream.status}", manager, scope, send)
        return
    await send(end_of_body())


def reporting_failure(send: Send, telemetry: StreamTelemetry) -> Send:
    """Let FastAPI count a request as failed whose stream had failed before its head was sent.

    FastAPI takes the status of that head for how the request came out. A middleware may send it late, so it is
    corrected after each message.
    """

    async def sent(message: Message) -> None:
        await send(message)
        telemetry.fail_request()

    return sent


def _as_coroutine(send: Send) -> Callable[[Message], Coroutine[Any, Any, None]]:
    """A server's `send` may return any awaitable; a reader sends by coroutines."""
    code = getattr(send, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_COROUTINE:
        return send  # type: ignore[return-value]  # it is one

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
        self,
        manager: StreamManager,
        stream: Stream,
        offset: int,
        location: str | None,
        *,
        kind: str = "",
        starting_after: int | None = None,
    ) -> None:
        """Of a live stream that has yet to come to the event `starting_after`, only what follows that is sent."""
        self._manager = manager
        self._stream = stream
        self._offset = offset
        self._kind = kind or read_kind(offset)
        self._starting_after = starting_after
        super().__init__(status_code=stream.head.status_code)
        self.raw_headers = guard(identify(stream.head.headers, stream, location))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the log."""
        self._manager.telemetry.read(self._kind, traceparent=self._stream.head.traceparent)
        reader = self._manager.reader(self._stream, self._offset)
        if self._starting_after is not None:
            send = _without_past_events(send, SequenceFilter(self._starting_after))
        await serve(reader, self._manager, list(self.raw_headers), scope, send, partial(client_gone, receive))
        # Those of the dependencies of a request that is answered so.
        if self.background is not None:
            await self.background()


def _without_past_events(send: Send, wanted: SequenceFilter) -> Send:
    async def send_wanted(message: Message) -> None:
        if not wanted.passed and message["type"] == "http.response.body":
            body = await run_search(wanted.feed(message["body"]))
            if message["more_body"]:
                # A client that has nothing to receive gets a keep-alive.
                body = body or PING
            else:
                body += await run_search(wanted.finish())
            message = {**message, "body": body}
        await send(message)

    return send_wanted


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


async def replay_after(manager: StreamManager, stream: Stream, number: int, location: str | None) -> Response:
    """Answer a request for the events whose `sequence_number` is higher than `number`: OpenAI's way to resume.

    Raises:
        InvalidOffset: The stream is not an event stream.
        OffsetLost: Some of those events were dropped.
    """
    if not stream.head.is_event_stream:
        raise InvalidOffset("`starting_after` counts events, and this is not an event stream. Resume with from=.")
    # Asked first: what comes while the log is being searched has to be looked at, too.
    is_live, start = not stream.is_final, stream.earliest
    place = await run_search(search_sequence(await blocks(stream, start), number))
    # The head was dropped, and nothing shows that the events right after `number` were not in it.
    if start > 0 and place.offset is None and place.following != number + 1:
        raise OffsetLost(start)
    offset = start + (place.offset or 0)
    has_past_events = place.following is None and is_live
    return ReplayResponse(manager, stream, offset, location, starting_after=number if has_past_events else None)
