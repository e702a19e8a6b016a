"""The push twin of the lookup: an event stream of the states of streams."""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._core.sse import PING
from .._run.manager import StreamManager
from .._run.replay import break_off, end_of_body
from .._stream.reader import Reading
from ..exceptions import InvalidRequest, ShuttingDown, StoreUnavailable
from ..models import ResumableStatus, ResumableStreamItem
from .errors import error_responses


def encode(item: ResumableStreamItem) -> bytes:
    """Write an item as a server-sent event. It has no id: a client that comes back gets the current state first."""
    return b"event: stream.%s\ndata: %s\n\n" % (item.status.encode("ascii"), item.model_dump_json().encode("utf-8"))


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One event for each stream that there is, then one for each change: a stream that begins, or "
        "ends, or comes to be. The response has no end of its own; when it ends, ask again.",
        "content": {
            "text/event-stream": {
                # OpenAPI 3.2's way to describe the items of a stream, which FastAPI's own event streams use, too.
                "itemSchema": {
                    "type": "object",
                    "required": ["event", "data"],
                    "properties": {
                        "event": {"type": "string", "enum": [f"stream.{status}" for status in ResumableStatus]},
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"$ref": "#/components/schemas/ResumableStreamItem"},
                        },
                    },
                },
                "example": encode(
                    ResumableStreamItem(**ResumableStreamItem.model_json_schema()["examples"][0])
                ).decode(),
            },
        },
    },
    **error_responses(InvalidRequest, ShuttingDown, StoreUnavailable),
}


class WatchResponse(Response):
    """The states of some of the owner's streams and their changes, until the client leaves or the server exits."""

    def __init__(self, manager: StreamManager, owner: str | None, ids: Sequence[str]) -> None:
        self._manager = manager
        self._owner = owner
        self._ids = ids
        super().__init__()
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store, no-transform"),
            (b"x-accel-buffering", b"no"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch.

        Raises:
            ResumableError: The store has no answer, or the server is about to exit.
            StreamBroken: The client took nothing for too long.
        """

        async def disconnected() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def start() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def deliver(items: Sequence[ResumableStreamItem]) -> None:
            body = b"".join(map(encode, items)) or PING
            await send({"type": "http.response.body", "body": body, "more_body": True})

        watch = self._manager.watch(self._owner, self._ids)
        departure = asyncio.ensure_future(disconnected())
        departure.add_done_callback(lambda _: watch.leave())
        try:
            if await watch.run(start, deliver) is Reading.STALLED:
                why = "the client of a watch took nothing for too long"
                await break_off(why, self._manager, scope, send, at_once=True)
            else:
                await send(end_of_body())
        except OSError:
            # What a server of ASGI 2.4 raises from `send` once the client has gone.
            return
        finally:
            self._manager.unwatch(watch)
            departure.cancel()
            await asyncio.wait({departure})
