"""The routes: replay, stop, lookup and watch, documented in OpenAPI."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from .._core.ids import StreamKey, parse_offset, require_stream_id
from .._core.sequence import parse_sequence_number
from .._run.headers import describe
from .._run.manager import StreamManager
from .._run.replay import replay
from .._run.sequence import replay_after
from ..exceptions import (
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
from ..models import ResumableLookup, ResumableStreamItem
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


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter, as OpenAPI has it. FastAPI is not to read it: none can be wrong for it, and that takes its time."""
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": {**schema, "title": name.replace("_", " ").title()},
        "description": schema["description"],
    }


_TEXT_OR_NONE = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_PATH_ID = _parameter(
    "conversation_id",
    "path",
    {"type": "string", "description": "The stream id; it may contain slashes.", "examples": ["chat-42"]},
)
_QUERY_ID = _parameter(
    "conv_id",
    "query",
    {**_TEXT_OR_NONE, "description": "The stream id; for ids that do not go well in a path."},
)
_EPOCH = _parameter(
    "epoch",
    "query",
    {
        **_TEXT_OR_NONE,
        "description": "The epoch that is meant: any other is refused (replay) or left alone (stop).",
    },
)
_REPLAY_PARAMETERS = [
    _parameter(
        "from",
        "query",
        {
            "description": "Offset in bytes to replay from. Default: the start.",
            "type": "integer",
            "minimum": 0,
        },
    ),
    _parameter(
        "starting_after",
        "query",
        {
            "description": "For streams whose events carry a `sequence_number` in their JSON data, as OpenAI's do: "
            "only events with a higher number. Wins over `from`.",
            "type": "integer",
            "minimum": 0,
        },
    ),
    _EPOCH,
    _parameter(
        "Last-Event-ID",
        "header",
        {**_TEXT_OR_NONE, "description": "Replay from right after this event. Wins over all others."},
    ),
]

_ITEMS = TypeAdapter(list[ResumableStreamItem])

Endpoint = Callable[[Request, Any], Awaitable[Response]]
"""Answers a request; gets the owner, too."""


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

    async def replay_as_asked(self, request: Request, owner: Any) -> Response:
        """Answer with the stream that the path or the query names."""
        query = request.query_params
        return await self.replay(
            request, owner, _stream_id(request), query.get("from"), query.get("starting_after"), query.get("epoch")
        )

    async def stop_as_asked(self, request: Request, owner: Any) -> Response:
        """Stop the stream that the path or the query names."""
        return await self.stop(owner, _stream_id(request), request.query_params.get("epoch"))

    async def lookup(self, request: Request, owner: Any) -> Response:
        """Say which streams there are."""
        try:
            wanted = await _read_lookup(request)
            items = await self._manager.store.lookup(owner, wanted.conversation_ids)
        except ResumableError as exc:
            raise http_error(exc) from exc
        return Response(_ITEMS.dump_json(items), media_type="application/json")

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

    def endpoint(answer: Endpoint) -> Callable[..., Awaitable[Response]]:
        async def answer_anybody(request: Request) -> Response:
            return await answer(request, None)

        async def answer_owner(request: Request, owner: Annotated[Any, Depends(owner)]) -> Response:
            return await answer(request, owner)

        return answer_anybody if owner is None else answer_owner

    replay_endpoint, stop_endpoint = endpoint(routes.replay_as_asked), endpoint(routes.stop_as_asked)
    for path, id_parameter in (
        ("/stream", _QUERY_ID),
        ("/stream/{conversation_id:path}", _PATH_ID),
        # A path parameter of Starlette's takes no line feed, a plain one does: so that such an id is refused by us.
        ("/stream/{conversation_id}", _PATH_ID),
    ):
        documented = path != "/stream/{conversation_id}"
        router.add_api_route(
            path,
            replay_endpoint,
            methods=["GET"],
            name=locator.route_name if path == "/stream" else "replay_by_path",
            summary="Replay a stream, and follow it to its end",
            description="Every client gets the bytes of the log, in order, from its offset. Never starts work.",
            response_class=Response,
            include_in_schema=documented,
            responses=_REPLAY_RESPONSES,
            openapi_extra={"parameters": [id_parameter, *_REPLAY_PARAMETERS]},
        )
        router.add_api_route(
            path,
            replay_endpoint,
            methods=["HEAD"],
            summary="Describe a stream",
            description="Status and headers of the replay, and `X-Stream-*` headers.",
            response_class=Response,
            include_in_schema=documented,
            responses=_HEAD_RESPONSES,
            openapi_extra={"parameters": [id_parameter, *_REPLAY_PARAMETERS]},
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
            openapi_extra={"parameters": [id_parameter, _EPOCH]},
        )
    router.add_api_route(
        "/streams/lookup",
        endpoint(routes.lookup),
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
        endpoint(routes.watch),
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


def _stream_id(request: Request) -> str | None:
    given = request.path_params
    return given["conversation_id"] if "conversation_id" in given else request.query_params.get("conv_id")


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
