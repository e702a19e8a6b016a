"""The two routes that Vercel's AI SDK asks of a chat's backend: the live stream from its start, and stop.

`useChat({resume: true})` asks for `GET {api}/{id}/stream` when its page is loaded. It takes 204 for "nothing is live",
throws on any other status but 2xx, and rebuilds the message from the first part on, so offsets mean nothing to it.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import ValidationError

from .._core.ids import StreamKey, require_stream_id
from .._run.manager import StreamManager
from .._run.replay import replay
from ..exceptions import (
    InvalidRequest,
    InvalidStreamId,
    OffsetLost,
    ResumableError,
    StoreUnavailable,
    StreamNotFound,
    StreamPending,
)
from ..models import ResumableChatStop, ResumableChatStopped, ResumableStatus
from . import requests
from .errors import error_responses, http_error
from .identity import IdDependency
from .location import Locator
from .router import OTHER_RESPONSES, nobody

MAX_STOP_BYTES = 16 * 1024 * 1024
"""Room for the message so far, which the AI SDK's guide sends along."""

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
    204: {"description": "Nothing is live: the chat is unknown, its answer has ended, or it is somebody else's."},
    **error_responses(InvalidStreamId, OffsetLost, StreamPending, StoreUnavailable),
    **OTHER_RESPONSES,
}
_STOP_RESPONSES = {**error_responses(InvalidStreamId, InvalidRequest, StoreUnavailable), **OTHER_RESPONSES}

ChatId = Annotated[
    str,
    Path(description="The chat's id, which is the stream's; may contain slashes.", examples=["chat-42"]),
]


def build_ai_sdk_router(
    manager: StreamManager, *, owner: IdDependency | None, pending_timeout: float, locator: Locator
) -> APIRouter:
    """Make the AI SDK's routes of one `Resumable`."""
    router = APIRouter(tags=["AI SDK"])
    OwnerId = Annotated[Any, Depends(owner or nobody)]  # noqa: N806  # a type, for the signatures below

    @router.get(
        "/{chat_id:path}/stream",
        summary="Follow a chat's live answer from its start",
        description="What `useChat` asks for with `resume`. A request that is still queued is waited for. "
        "Never starts work.",
        response_class=Response,
        responses=_STREAM_RESPONSES,
    )
    async def follow_chat(request: Request, owner: OwnerId, chat_id: ChatId) -> Response:
        try:
            key = StreamKey(owner, require_stream_id(chat_id))
            stream = await manager.store.find(key, pending_timeout, live=True)
            if stream.status is ResumableStatus.IN_PROGRESS:
                return await replay(manager, stream, 0, None, locator.within(request.scope)(key.id))
        except StreamNotFound:
            pass
        except ResumableError as exc:
            raise http_error(exc) from exc
        return Response(status_code=204, headers={"Cache-Control": "no-store"})

    @router.post(
        "/{chat_id:path}/stop",
        summary="Stop a chat's answer",
        description="The endpoint is cancelled, and readers get the terminal event. The answer is the same whether "
        "there was something to stop or not.",
        responses=_STOP_RESPONSES,
        openapi_extra={
            "requestBody": {
                "description": "May be left out: whatever is live is stopped then.",
                "content": {"application/json": {"schema": ResumableChatStop.model_json_schema()}},
            }
        },
    )
    async def stop_chat(request: Request, owner: OwnerId, chat_id: ChatId) -> ResumableChatStopped:
        try:
            key = StreamKey(owner, require_stream_id(chat_id))
            await manager.store.stop(key, await _read_epoch(request))
        except ResumableError as exc:
            raise http_error(exc) from exc
        return ResumableChatStopped()

    return router


async def _read_epoch(request: Request) -> str | None:
    body = await requests.read_body(request, MAX_STOP_BYTES, "Leave the message out: it is not read.")
    try:
        return ResumableChatStop.model_validate_json(body, strict=True).activeStreamId or None if body else None
    except ValidationError as exc:
        raise InvalidRequest(
            'The body must be absent, or a JSON object like {"activeStreamId": "mfrggzdfmztwq2lk"}.'
        ) from exc
