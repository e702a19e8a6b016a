"""The routes: replay, stop, lookup and watch, documented in OpenAPI."""

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from ..asgi.headers import describe
from ..asgi.replay import replay
from ..asgi.sequence import replay_after
from ..core.errors import (
    InvalidOffset,
    InvalidRequest,
    InvalidStreamId,
    OffsetLost,
    OffsetOutOfRange,
    ResumableError,
    StoreUnavailable,
    StreamNotFound,
    StreamPending,
    StreamReplaced,
    UnknownEventId,
)
from ..core.ids import StreamKey, parse_offset, require_stream_id
from ..core.models import ResumableLookup, ResumableStreamItem
from ..core.sequence import parse_sequence_number
from ..life.manager import StreamManager
from . import requests
from .assets import add_assets
from .errors import error_responses, http_error
from .identity import IdDependency
from .location import Locator
from .watch import RESPONSES as WATCH_RESPONSES
from .watch import WatchResponse

MAX_LOOKUP_BYTES = 4 * 1024 * 1024

OTHER_RESPONSES: dict[int | str, dict[str, Any]] = {
    # Declared so that FastAPI documents no 422, which our routes do not send.
    "4XX": {"description": "What a dependency of the application answers, like 401."},
}
_REPLAY_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The recorded bytes from the offset on, then live ones until the stream ends. "
        "Media type, status and headers are those of the recorded response.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'data: {"text":"Hello"}\nid: mfrggzdfmztwq2lk-53\n\n',
            },
            "*/*": {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in {
                "X-Conversation-Id": "The stream id.",
                "X-Stream-Epoch": "Which incarnation of the id this is.",
                "Content-Location": "The URL of the replay.",
            }.items()
        },
    },
    204: {"description": "Asked by `Last-Event-ID`: the stream has ended, and the client has had all of it."},
    **error_responses(
        InvalidStreamId,
        InvalidOffset,
        OffsetLost,
        UnknownEventId,
        StreamNotFound,
        StreamReplaced,
        OffsetOutOfRange,
        StreamPending,
        StoreUnavailable,
    ),
    **OTHER_RESPONSES,
}
_HEAD_RESPONSES = {
    status: {key: value for key, value in response.items() if key not in ("content", "model")}
    for status, response in _REPLAY_RESPONSES.items()
}
_STOP_RESPONSES: dict[int | str, dict[str, Any]] = {
    204: {"description": "The stream is gone, or never was: the answer does not tell."},
    **error_responses(InvalidStreamId, StoreUnavailable),
    **OTHER_RESPONSES,
}

_LOOKUP_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ResumableLookup.model_json_schema()}},
    }
}

ConversationId = Annotated[str, Path(description="The stream id; it may contain slashes.", examples=["chat-42"])]
QueryId = Annotated[
    str | None, Query(alias="conv_id", description="The stream id; for ids that do not go well in a path.")
]
From = Annotated[
    str | None,
    Query(
        alias="from",
        description="Offset in bytes to replay from. Default: the start.",
        json_schema_extra={"anyOf": None, "type": "integer", "minimum": 0},
    ),
]
StartingAfter = Annotated[
    str | None,
    Query(
        description="For streams whose events carry a `sequence_number` in their JSON data, as OpenAI's do: only "
        "events with a higher number. Wins over `from`.",
        json_schema_extra={"anyOf": None, "type": "integer", "minimum": 0},
    ),
]
Epoch = Annotated[
    str | None, Query(description="The epoch that is meant: any other is refused (replay) or left alone (stop).")
]
LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="Replay from right after this event. Wins over all others."),
]


class Routes:
    """The endpoints' common ground."""

    def __init__(self, manager: StreamManager, pending_timeout: float, locator: Locator) -> None:
        self._manager = manager
        self._pending_timeout = pending_timeout
        self._locator = locator

    async def replay(
        self,
        request: Request,
        owner: Any,
        stream_id: str | None,
        start: str | None,
        starting_after: str | None,
        epoch: str | None,
    ) -> Response:
        """Answer with a stream, from the place that the client asks for."""
        try:
            key = StreamKey(owner, require_stream_id(stream_id))
            last_event_id = requests.last_event_id(request)
            # A client that reconnects by itself repeats its URL, and says in the header how far it has come since.
            number = None if last_event_id else parse_sequence_number(starting_after)
            offset = None if last_event_id or number is not None else parse_offset(start)
            stream = await self._manager.store.find(key, self._pending_timeout)
            if epoch and epoch != stream.epoch:
                raise StreamReplaced
            location = self._locator.within(request.scope)(key.id)
            if number is None:
                response = await replay(self._manager, stream, offset, last_event_id, location)
            else:
                response = await replay_after(self._manager, stream, number, location)
            if request.method != "HEAD":
                return response
        except ResumableError as exc:
            raise http_error(exc) from exc
        head = Response(status_code=response.status_code)
        head.raw_headers = [*response.raw_headers, *describe(stream)]
        return head

    async def stop(self, owner: Any, stream_id: str | None, epoch: str | None) -> Response:
        """Stop a stream."""
        try:
            await self._manager.store.stop(StreamKey(owner, require_stream_id(stream_id)), epoch or None)
        except ResumableError as exc:
            raise http_error(exc) from exc
        return Response(status_code=204)

    async def lookup(self, request: Request, owner: Any) -> list[ResumableStreamItem]:
        """Say which streams there are."""
        try:
            wanted = await _read_lookup(request)
            return await self._manager.store.lookup(owner, wanted.conversation_ids)
        except ResumableError as exc:
            raise http_error(exc) from exc

    async def watch(self, request: Request, owner: Any) -> Response:
        """Tell what becomes of streams."""
        try:
            wanted = await _read_lookup(request)
        except ResumableError as exc:
            raise http_error(exc) from exc
        return WatchResponse(self._manager, owner, wanted.conversation_ids)


def build_router(
    manager: StreamManager,
    *,
    prefix: str,
    owner: IdDependency | None,
    pending_timeout: float,
    locator: Locator,
    lifespan: Callable[[Any], Any],
) -> APIRouter:
    """Make the router of one `Resumable`."""
    router = APIRouter(
        prefix=prefix,
        tags=["resumable streams"],
        lifespan=lifespan,
        # Routes are found by name, so the name is unique; what OpenAPI shows is not to change from run to run.
        generate_unique_id_function=_operation_id,
    )
    routes = Routes(manager, pending_timeout, locator)
    OwnerId = Annotated[Any, Depends(owner or nobody)]  # noqa: N806  # a type, for the signatures below
    last_event_id = Depends(_document_last_event_id)

    async def replay_by_query(
        request: Request,
        owner: OwnerId,
        *,
        conv_id: QueryId = None,
        start: From = None,
        starting_after: StartingAfter = None,
        epoch: Epoch = None,
    ) -> Response:
        return await routes.replay(request, owner, conv_id, start, starting_after, epoch)

    async def replay_by_path(
        request: Request,
        owner: OwnerId,
        conversation_id: ConversationId,
        *,
        start: From = None,
        starting_after: StartingAfter = None,
        epoch: Epoch = None,
    ) -> Response:
        return await routes.replay(request, owner, conversation_id, start, starting_after, epoch)

    async def stop_by_query(owner: OwnerId, conv_id: QueryId = None, epoch: Epoch = None) -> Response:
        return await routes.stop(owner, conv_id, epoch)

    async def stop_by_path(owner: OwnerId, conversation_id: ConversationId, epoch: Epoch = None) -> Response:
        return await routes.stop(owner, conversation_id, epoch)

    async def lookup(request: Request, owner: OwnerId) -> list[ResumableStreamItem]:
        return await routes.lookup(request, owner)

    async def watch(request: Request, owner: OwnerId) -> Response:
        return await routes.watch(request, owner)

    for path, replay_endpoint, stop_endpoint in (
        ("/stream", replay_by_query, stop_by_query),
        ("/stream/{conversation_id:path}", replay_by_path, stop_by_path),
        # A path parameter of Starlette's takes no line feed, a plain one does: so that such an id is refused by us.
        ("/stream/{conversation_id}", replay_by_path, stop_by_path),
    ):
        documented = path != "/stream/{conversation_id}"
        router.add_api_route(
            path,
            replay_endpoint,
            methods=["GET"],
            name=locator.route_name if path == "/stream" else "replay_by_path",
            summary="Replay a stream, and follow it to its end",
            description="Every client gets the bytes of the log, in order, from its offset. Never starts work.",
            dependencies=[last_event_id],
            response_class=Response,
            include_in_schema=documented,
            responses=_REPLAY_RESPONSES,
        )
        router.add_api_route(
            path,
            replay_endpoint,
            methods=["HEAD"],
            summary="Describe a stream",
            description="Status and headers of the replay, and `X-Stream-*` headers.",
            dependencies=[last_event_id],
            response_class=Response,
            include_in_schema=documented,
            responses=_HEAD_RESPONSES,
        )
        router.add_api_route(
            path,
            stop_endpoint,
            methods=["DELETE"],
            status_code=204,
            summary="Stop a stream",
            description="The endpoint is cancelled, readers get the terminal event, and the stream is gone.",
            response_class=Response,
            include_in_schema=documented,
            responses=_STOP_RESPONSES,
        )
    router.add_api_route(
        "/streams/lookup",
        lookup,
        methods=["POST"],
        summary="Look up streams by id",
        description="Which of these streams there are, and what they are doing. Only ids that are asked for are shown.",
        response_model=list[ResumableStreamItem],
        response_description="The streams that there are, each once.",
        responses={**error_responses(InvalidRequest, StoreUnavailable), **OTHER_RESPONSES},
        openapi_extra=_LOOKUP_BODY,
    )
    router.add_api_route(
        "/streams/watch",
        watch,
        methods=["POST"],
        summary="Watch streams by id",
        description="What a lookup of these ids shows, and then each change, as server-sent events. Streams that come "
        "later are told of, too. Only ids that are asked for are shown.",
        response_class=Response,
        responses={**WATCH_RESPONSES, **OTHER_RESPONSES},
        openapi_extra=_LOOKUP_BODY,
    )
    add_assets(router)
    return router


async def _document_last_event_id(_value: LastEventId = None) -> None:
    """Shows the header in OpenAPI; it is read from the raw request, as UTF-8."""


async def _read_lookup(request: Request) -> ResumableLookup:
    body = await requests.read_body(request, MAX_LOOKUP_BYTES, "Ask for fewer ids.")
    try:
        return ResumableLookup.model_validate(json.loads(body), strict=True)
    except (ValueError, RecursionError) as exc:
        reason = ""
        if isinstance(exc, ValidationError):
            error = exc.errors()[0]
            reason = f" ({'.'.join(map(str, error['loc']))}: {error['msg']})" if error["loc"] else f" ({error['msg']})"
        raise InvalidRequest(
            f'The body must be JSON like {{"conversation_ids": ["a", "b"]}}, with at most 1,000 ids{reason}.'
        ) from exc


def _operation_id(route: APIRoute) -> str:
    method = next(iter(route.methods or {"GET"})).lower()
    path = route.path_format.replace("{", "").replace("}", "").replace(":path", "")
    return f"{method}_{path.strip('/').replace('/', '_').replace('-', '_')}"


# Not `def`: FastAPI runs those in threads.
async def nobody() -> None:
    """The owner of everybody's streams, where there is no `owner`."""
