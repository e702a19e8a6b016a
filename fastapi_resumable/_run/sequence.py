"""Serving a log from the event after a `sequence_number` on: OpenAI's way to resume."""

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .._core.search import SequenceFilter, search_sequence
from .._core.sse import PING
from .._stream.position import run_search
from .._stream.stream import Stream
from ..exceptions import InvalidOffset, OffsetLost
from .manager import StreamManager
from .replay import ReplayResponse


class _FilteredReplay(ReplayResponse):
    """A replay of a live stream that has yet to come to the number after which the client wants its events."""

    def __init__(
        self, manager: StreamManager, stream: Stream, offset: int, location: str | None, *, number: int
    ) -> None:
        super().__init__(manager, stream, offset, location)
        self._number = number

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the log but for the events that the client has had."""
        wanted = SequenceFilter(self._number)

        async def pass_on(message: Message) -> None:
            if not wanted.passed and message["type"] == "http.response.body":
                body = await run_search(wanted.feed(message["body"]))
                if message["more_body"]:
                    # A client that has nothing to receive gets a keep-alive.
                    body = body or PING
                else:
                    body += await run_search(wanted.finish())
                message = {**message, "body": body}
            await send(message)

        await super().__call__(scope, receive, pass_on)


async def replay_after(manager: StreamManager, stream: Stream, number: int, location: str | None) -> Response:
    """Answer a request for the events of a stream whose `sequence_number` is higher than `number`.

    Raises:
        InvalidOffset: The stream is not an event stream.
        OffsetLost: Some of those events were dropped.
    """
    if not stream.head.is_event_stream:
        raise InvalidOffset("`starting_after` counts events, and this is not an event stream. Resume with from=.")
    # Asked first: what comes while the log is being searched has to be looked at, too.
    is_live, start = not stream.is_final, stream.earliest
    place = await run_search(search_sequence(list(await stream.blocks(start)), number))
    # The head was dropped, and nothing shows that the events right after `number` were not in it.
    if start > 0 and place.offset is None and place.following != number + 1:
        raise OffsetLost(start)
    offset = start + (place.offset or 0)
    if place.following is None and is_live:
        return _FilteredReplay(manager, stream, offset, location, number=number)
    return ReplayResponse(manager, stream, offset, location)
