"""The two routes that Vercel's AI SDK asks of a chat's backend: its stream, and stop.

`useChat({resume: true})` asks for `GET {api}/{id}/stream` when its page is loaded. It takes 204 for "nothing is live",
throws on any other status but 2xx, and rebuilds the message from the first part on, so offsets mean nothing to it.

`WorkflowChatTransport` of `@ai-sdk/workflow` asks for the same with `?startIndex=N` once its connection is cut: the
N-th part is the next. It asks until it has had a `finish` part, so a stream without one must end with 204, on which it
throws. Its `id` is the `x-workflow-run-id` of the first response.
"""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from .._core.ids import StreamKey
from .._core.sse import BLANK_LINE, events
from .._run.manager import StreamManager
from .._run.replay import counting_refusals, read_kind, replay
from .._stream.stream import Stream, blocks
from ..exceptions import (
    InvalidOffset,
    InvalidRequest,
    InvalidStreamId,
    OffsetLost,
    StoreUnavailable,
    StreamNotFound,
    StreamPending,
)
from ..models import ResumableChatStop, ResumableChatStopped, ResumableErrorResponse, ResumableStatus
from .admission import Service
from .openapi import OTHER_RESPONSES, error_responses
from .request import read_json
from .responses import AnswerLater, AnswerRoute
from .router import key_of, no_owner

_STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The stream from its first byte, then live, until it ends; with the headers of the recorded "
        "response, like `x-vercel-ai-ui-message-stream`.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"type":"start","messageId":"msg-1"}\nid: mfrggzdfmztwq2lk-69\n\n',
            }
        },
    },
    204: {
        "description": "Nothing is live: the chat is unknown, its answer has ended, or it is somebody else's. With "
        "`startIndex`: there is no such part, and there will be none."
    },
    **error_responses(InvalidStreamId, InvalidOffset, OffsetLost, StreamPending, StoreUnavailable),
    **OTHER_RESPONSES,
}
_STOP_RESPONSES = {**error_responses(InvalidStreamId, InvalidRequest, StoreUnavailable), **OTHER_RESPONSES}
_STOP_RESPONSES[503]["model"] = ResumableErrorResponse
_STOP_BODY: dict[str, Any] = {
    "description": "May be left out: whatever is live is stopped then.",
    "content": {"application/json": {"schema": ResumableChatStop.model_json_schema()}},
}

ChatId = Annotated[
    str, Path(description="The chat's id, which is the stream's; may contain slashes.", examples=["chat-42"])
]
StartIndex = Annotated[
    str | None,
    Query(
        alias="startIndex",
        description="Number of the part to go on with, counted from 0; negative: from the last part so far. Then an "
        "answer that has ended is replayed as well, as long as it is kept.",
        examples=["12"],
    ),
]
_INDEX = re.compile(r"-?[0-9]{1,18}")
_PART = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])data: ?+(?!\[DONE\])")
"""Every event that a client dispatches, because it has its blank line, has one part, except `[DONE]`."""

_EVENTS_PER_TURN = 512
"""How many events are counted before other requests have their turn."""


def build_ai_sdk_router(service: Service) -> APIRouter:
    """Make the AI SDK's routes of one `Resumable`."""
    manager = service.manager
    router = APIRouter(tags=["AI SDK"], route_class=AnswerRoute)
    OwnerId = Annotated[Any, Depends(service.settings.owner or no_owner)]  # noqa: N806  # a type, for the signatures below

    @router.get(
        "/{chat_id:path}/stream",
        summary="Follow a chat's live answer from its start",
        description="What `useChat` asks for with `resume`, and `WorkflowChatTransport` after a cut. A request that is "
        "still queued is waited for. Never starts work.",
        response_class=Response,
        responses=_STREAM_RESPONSES,
    )
    async def follow_chat(request: Request, owner: OwnerId, chat_id: ChatId, start: StartIndex = None) -> Response:
        with counting_refusals(manager, read_kind(start)):
            key = key_of(owner, chat_id)
            location = service.locate(request.scope, key.id)
            timeout = service.settings.pending_timeout
            return AnswerLater(await _follow(manager, key, _parse_index(start), timeout, location))

    @router.post(
        "/{chat_id:path}/stop",
        summary="Stop a chat's answer",
        description="The endpoint is cancelled, and readers get the terminal event. The answer is the same whether "
        "there was something to stop or not.",
        responses=_STOP_RESPONSES,
        openapi_extra={"requestBody": _STOP_BODY},
    )
    async def stop_chat(request: Request, owner: OwnerId, chat_id: ChatId) -> ResumableChatStopped:
        key = key_of(owner, chat_id)
        await manager.store.stop(key, await _read_epoch(request))
        return ResumableChatStopped()

    return router


def _nothing(manager: StreamManager, index: int | None, stream: Stream | None = None) -> Response:
    traceparent = None if stream is None else stream.head.traceparent
    manager.telemetry.read(read_kind(index is not None), "204", traceparent=traceparent)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _parse_index(text: str | None) -> int | None:
    if not text:
        return None
    if not _INDEX.fullmatch(text):
        raise InvalidOffset("`startIndex` is the number of a part: give an integer in decimal digits.")
    return int(text)


async def _follow(
    manager: StreamManager, key: StreamKey, index: int | None, pending_timeout: float, location: str | None
) -> Response:
    """Serve a live stream from its start; or any from its part number `index` on, and say how many there are so far."""
    try:
        stream = await manager.store.find(key, pending_timeout, live=index is None)
    except StreamNotFound:
        return _nothing(manager, index)
    # Asked before the parts are counted, which takes a while: what comes meanwhile must be counted, too.
    is_final = stream.is_final
    if index is None:
        is_live = stream.status is ResumableStatus.IN_PROGRESS
        return await replay(manager, stream, 0, None, location) if is_live else _nothing(manager, index)
    starts = await _find_parts(stream)
    count = len(starts) - 1
    if is_final and index >= count:
        return _nothing(manager, index, stream)
    place = starts[max(0, count + index) if index < 0 else min(index, count)]
    response = await replay(manager, stream, place, None, location, kind="resume")
    response.raw_headers.append((b"x-workflow-stream-tail-index", b"%d" % (count - 1)))
    return response


async def _find_parts(stream: Stream) -> list[int]:
    """The offset that each part begins at, and at the end that of the next one."""
    # The parts of a head that was dropped cannot be counted.
    if stream.earliest > 0:
        raise OffsetLost(stream.earliest)
    starts, offset = [0], 0
    for number, event in enumerate(events(await blocks(stream, 0))):
        offset += len(event)
        if BLANK_LINE.search(event[-4:]) and _PART.search(event):
            starts.append(offset)
        if number % _EVENTS_PER_TURN == 0:
            await asyncio.sleep(0)
    return starts


async def _read_epoch(request: Request) -> str | None:
    rule = 'The body must be absent, or a JSON object like {"activeStreamId": "mfrggzdfmztwq2lk"}'
    advice = "Leave the message out: it is not read."
    stop = await read_json(request, ResumableChatStop, rule, advice, default=b"{}")
    return stop.activeStreamId or None
