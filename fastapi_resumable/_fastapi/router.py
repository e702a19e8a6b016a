"""The routes: replay, stop, lookup and watch, documented in OpenAPI."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from .._core.ids import StreamKey, parse_offset, require_stream_id
from .._core.search import parse_sequence_number
from .._core.sse import PING
from .._run.headers import describe
from .._run.manager import StreamManager
from .._run.replay import break_off, counting_refusals, end_of_body, read_kind, replay
from .._run.sequence import replay_after
from .._run.watch import encode
from .._stream.reader import Reading
from ..exceptions import InvalidRequest, StreamReplaced
from ..models import ResumableLookup, ResumableStreamItem
from . import openapi
from .admission import Service
from .assets import add_assets
from .errors import Answer, AnswerRoute
from .openapi import Epoch, LastEventId, PathId, QueryId, ReplayQuery, ReplayQueryWithId
from .request import IdDependency, last_event_id, read_body

ITEMS_AT_ONCE = 500
"""How many items of a lookup are written before other tasks run."""
MAX_LOOKUP_BYTES = 4 * 1024 * 1024

_BY_QUERY = "/stream"
_BY_PATH = "/stream/{conversation_id:path}"
_BY_ANY_PATH = "/stream/{conversation_id}"
"""A path parameter of Starlette's takes no line feed, a plain one does: so that such an id is refused by us."""

_ITEMS = TypeAdapter(list[ResumableStreamItem])


class Routes:
    """What the routes do."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._manager = service.manager

    async def replay(self, request: Request, owner: Any, stream_id: str | None, query: ReplayQuery) -> Response:
        """Answer with a stream, from the place that the client asks for.

        Raises:
            ResumableError: There is no such stream, or no such place in it.
        """
        key = StreamKey(owner, require_stream_id(stream_id))
        event_id = last_event_id(request)
        # A client that reconnects by itself repeats its URL, and says in the header how far it has come since.
        number = None if event_id else parse_sequence_number(query.starting_after)
        offset = None if event_id or number is not None else parse_offset(query.start)
        with counting_refusals(self._manager, read_kind(event_id, number is not None, offset)):
            stream = await self._manager.store.find(key, self._service.settings.pending_timeout)
            if query.epoch and query.epoch != stream.epoch:
                raise StreamReplaced
            location = self._service.locator.path(request.scope, key.id)
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
            ResumableError: The id is not a valid stream id.
        """
        await self._manager.store.stop(StreamKey(owner, require_stream_id(stream_id)), epoch or None)
        return Response(status_code=204)

    async def lookup(self, request: Request, owner: Any) -> Response:
        """Send the items of the streams that exist."""
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


class _Router(APIRouter):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for one of the routes; those that cannot be are not compared with a dozen of them."""
        path: str = scope["path"]
        return super().matches(scope) if "/stream" in path or path.endswith((".js", ".map")) else (Match.NONE, {})


def build_router(service: Service, routes: Routes, lifespan: Callable[[Any], Any]) -> APIRouter:
    """Make the router of one `Resumable`."""
    router = _Router(
        prefix=service.settings.prefix,
        tags=["resumable streams"],
        lifespan=lifespan,
        route_class=AnswerRoute,
        # Routes are found by name, so the name is unique; what OpenAPI shows is not to change from run to run.
        generate_unique_id_function=_operation_id,
    )
    owner = service.settings.owner or no_owner
    _add_replay_routes(router, routes, owner, service.locator.route_name)
    _add_stop_routes(router, routes, owner)
    _add_lookup_routes(router, routes, owner)
    add_assets(router)
    return router


def _add_replay_routes(router: APIRouter, routes: Routes, dependency: IdDependency, route_name: str) -> None:
    OwnerId = Annotated[Any, Depends(dependency)]  # noqa: N806  # a type, for the signatures below

    @router.get(_BY_QUERY, name=route_name, **openapi.REPLAY)
    @router.head(_BY_QUERY, **openapi.DESCRIBE)
    async def replay_by_query(
        request: Request,
        owner: OwnerId,
        query: Annotated[ReplayQueryWithId, Query()],
        _last_event_id: LastEventId = None,
    ) -> Response:
        return Answer(await routes.replay(request, owner, query.conv_id, query))

    @router.get(_BY_PATH, name="replay_by_path", **openapi.REPLAY)
    @router.head(_BY_PATH, **openapi.DESCRIBE)
    @router.get(_BY_ANY_PATH, name="replay_by_path", include_in_schema=False, response_class=Response)
    @router.head(_BY_ANY_PATH, include_in_schema=False, response_class=Response)
    async def replay_by_path(
        request: Request,
        owner: OwnerId,
        conversation_id: PathId,
        query: Annotated[ReplayQuery, Query()],
        _last_event_id: LastEventId = None,
    ) -> Response:
        return Answer(await routes.replay(request, owner, conversation_id, query))


def _add_stop_routes(router: APIRouter, routes: Routes, dependency: IdDependency) -> None:
    OwnerId = Annotated[Any, Depends(dependency)]  # noqa: N806  # a type, for the signatures below

    @router.delete(_BY_QUERY, **openapi.STOP)
    async def stop_by_query(owner: OwnerId, conv_id: QueryId = None, epoch: Epoch = None) -> Response:
        return await routes.stop(owner, conv_id, epoch)

    @router.delete(_BY_PATH, **openapi.STOP)
    @router.delete(_BY_ANY_PATH, include_in_schema=False, response_class=Response, status_code=204)
    async def stop_by_path(owner: OwnerId, conversation_id: PathId, epoch: Epoch = None) -> Response:
        return await routes.stop(owner, conversation_id, epoch)


def _add_lookup_routes(router: APIRouter, routes: Routes, dependency: IdDependency) -> None:
    OwnerId = Annotated[Any, Depends(dependency)]  # noqa: N806  # a type, for the signatures below

    @router.post("/streams/lookup", **openapi.LOOKUP)
    async def lookup(request: Request, owner: OwnerId) -> Response:
        return await routes.lookup(request, owner)

    @router.post("/streams/watch", **openapi.WATCH)
    async def watch(request: Request, owner: OwnerId) -> Response:
        return await routes.watch(request, owner)


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
