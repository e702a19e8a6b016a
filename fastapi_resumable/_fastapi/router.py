"""The routes: replay, stop, lookup and watch, documented in OpenAPI."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError, WithJsonSchema

from .._core.ids import StreamKey, parse_offset, require_stream_id
from .._core.sequence import parse_sequence_number
from .._run.headers import describe
from .._run.manager import StreamManager
from .._run.replay import counting_refusals, read_kind, replay
from .._run.sequence import replay_after
from ..exceptions import (
    InvalidOffset,
    InvalidRequest,
    InvalidStreamId,
    OffsetLost,
    OffsetOutOfRange,
    StoreUnavailable,
    StreamNotFound,
    StreamPending,
    StreamReplaced,
    UnknownEventId,
)
from ..models import ResumableLookup, ResumableStreamItem
from .assets import add_assets
from .errors import Answer, AnswerRoute, error_responses
from .request import IdDependency, Locator, last_event_id, read_body
from .watch import RESPONSES as WATCH_RESPONSES
from .watch import WatchResponse

ITEMS_AT_ONCE = 500
"""How many items of a lookup are written before other tasks run."""
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
                "X-Stream-Epoch": "Which run of the id this is.",
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

# All are text for FastAPI, so that it accepts any value, and wrong values get the library's own errors.
_Place = WithJsonSchema({"type": "integer", "minimum": 0})
PathId = Annotated[str, Path(description="The stream id; it may contain slashes.", examples=["chat-42"])]
QueryId = Annotated[str | None, Query(description="The stream id; for ids that are awkward in a path.")]
Epoch = Annotated[
    str | None, Query(description="The epoch that is meant: any other is refused (replay) or left alone (stop).")
]
From = Annotated[
    str | None, _Place, Query(alias="from", description="Offset in bytes to replay from. Default: the start.")
]
StartingAfter = Annotated[
    str | None,
    _Place,
    Query(
        description="For streams whose events carry a `sequence_number` in their JSON data, as OpenAI's do: only "
        "events with a higher number. Wins over `from`."
    ),
]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="Replay from right after this event. Wins over all others. Polyfills may send it in the query, as "
        "`lastEventId` or `last_event_id`.",
    ),
]

_ITEMS = TypeAdapter(list[ResumableStreamItem])


class ReplayQuery(BaseModel):
    """The place to replay from. One model for all routes: FastAPI examines it once."""

    start: From = None
    starting_after: StartingAfter = None
    epoch: Epoch = None


class ReplayQueryWithId(ReplayQuery):
    """The same where the query has the id as well."""

    conv_id: QueryId = None


class Routes:
    """What the routes do."""

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
        """Answer with a stream, from the place that the client asks for.

        Raises:
            ResumableError: There is no such stream, or no such place in it.
        """
        key = StreamKey(owner, require_stream_id(stream_id))
        event_id = last_event_id(request)
        # A client that reconnects by itself repeats its URL, and says in the header how far it has come since.
        number = None if event_id else parse_sequence_number(starting_after)
        offset = None if event_id or number is not None else parse_offset(start)
        with counting_refusals(self._manager, read_kind(event_id, number is not None, offset)):
            stream = await self._manager.store.find(key, self._pending_timeout)
            if epoch and epoch != stream.epoch:
                raise StreamReplaced
            location = self._locator.within(request.scope)(key.id)
            if number is None:
                response = await replay(self._manager, stream, offset, event_id, location)
            else:
                response = await replay_after(self._manager, stream, number, location)
        if request.method != "HEAD":
            return response
        head = Response(status_code=response.status_code)
        head.raw_headers = [*response.raw_headers, *describe(stream)]
        return head

    async def stop(self, owner: Any, stream_id: str | None, epoch: str | None) -> Response:
        """Stop a stream.

        Raises:
            ResumableError: It is no stream id.
        """
        await self._manager.store.stop(StreamKey(owner, require_stream_id(stream_id)), epoch or None)
        return Response(status_code=204)

    async def lookup(self, request: Request, owner: Any) -> Response:
        """Say which streams there are."""
        wanted = await _read_lookup(request)
        items = await self._manager.store.lookup(owner, wanted.conversation_ids)
        parts = []
        for start in range(0, len(items), ITEMS_AT_ONCE):
            parts.append(_ITEMS.dump_json(items[start : start + ITEMS_AT_ONCE])[1:-1])
            await asyncio.sleep(0)
        return Response(b"[%b]" % b",".join(parts), media_type="application/json")

    async def watch(self, request: Request, owner: Any) -> Response:
        """Send the states of streams, and their changes."""
        wanted = await _read_lookup(request)
        return Answer(WatchResponse(self._manager, owner, wanted.conversation_ids))


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
        route_class=AnswerRoute,
        # Routes are found by name, so the name is unique; what OpenAPI shows is not to change from run to run.
        generate_unique_id_function=_operation_id,
    )
    routes = Routes(manager, pending_timeout, locator)
    _add_stream_routes(router, routes, owner or no_owner, locator.route_name)
    _add_lookup_routes(router, routes, owner or no_owner)
    add_assets(router)
    return router


def _add_stream_routes(router: APIRouter, routes: Routes, dependency: IdDependency, route_name: str) -> None:
    OwnerId = Annotated[Any, Depends(dependency)]  # noqa: N806  # a type, for the signatures below

    async def replay_by_query(
        request: Request,
        owner: OwnerId,
        query: Annotated[ReplayQueryWithId, Query()],
        _last_event_id: LastEventId = None,
    ) -> Response:
        return Answer(
            await routes.replay(request, owner, query.conv_id, query.start, query.starting_after, query.epoch)
        )

    async def replay_by_path(
        request: Request,
        owner: OwnerId,
        conversation_id: PathId,
        query: Annotated[ReplayQuery, Query()],
        _last_event_id: LastEventId = None,
    ) -> Response:
        return Answer(
            await routes.replay(request, owner, conversation_id, query.start, query.starting_after, query.epoch)
        )

    async def stop_by_query(owner: OwnerId, conv_id: QueryId = None, epoch: Epoch = None) -> Response:
        return await routes.stop(owner, conv_id, epoch)

    async def stop_by_path(owner: OwnerId, conversation_id: PathId, epoch: Epoch = None) -> Response:
        return await routes.stop(owner, conversation_id, epoch)

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
            name=route_name if path == "/stream" else "replay_by_path",
            summary="Replay a stream, and follow it to its end",
            description="Every client gets the bytes of the log, in order, from its offset. Never starts work.",
            response_class=Response,
            include_in_schema=documented,
            responses=_REPLAY_RESPONSES if documented else None,
        )
        router.add_api_route(
            path,
            replay_endpoint,
            methods=["HEAD"],
            summary="Describe a stream",
            description="Status and headers of the replay, and `X-Stream-*` headers.",
            response_class=Response,
            include_in_schema=documented,
            responses=_HEAD_RESPONSES if documented else None,
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
            responses=_STOP_RESPONSES if documented else None,
        )


def _add_lookup_routes(router: APIRouter, routes: Routes, dependency: IdDependency) -> None:
    OwnerId = Annotated[Any, Depends(dependency)]  # noqa: N806  # a type, for the signatures below

    @router.post(
        "/streams/lookup",
        summary="Look up streams by id",
        description="Which of these streams there are, and what they are doing. Only ids that are asked for are shown.",
        response_model=list[ResumableStreamItem],
        response_description="The streams that there are, each once.",
        responses={**error_responses(InvalidRequest, StoreUnavailable), **OTHER_RESPONSES},
        openapi_extra=_LOOKUP_BODY,
    )
    async def lookup(request: Request, owner: OwnerId) -> Response:
        return await routes.lookup(request, owner)

    @router.post(
        "/streams/watch",
        summary="Watch streams by id",
        description="What a lookup of these ids shows, and then each change, as server-sent events. Streams that come "
        "later are shown, too. Only ids that are asked for are shown.",
        response_class=Response,
        responses={**WATCH_RESPONSES, **OTHER_RESPONSES},
        openapi_extra=_LOOKUP_BODY,
    )
    async def watch(request: Request, owner: OwnerId) -> Response:
        return await routes.watch(request, owner)


async def _read_lookup(request: Request) -> ResumableLookup:
    body = await read_body(request, MAX_LOOKUP_BYTES, "Ask for fewer ids.")
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
async def no_owner() -> None:
    """The owner of every stream, where there is no `owner`."""
