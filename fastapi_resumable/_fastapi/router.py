"""The routes: replay, stop, lookup and watch, documented in OpenAPI; and the JavaScript client that uses them."""

import asyncio
import hashlib
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.routing import Match
from starlette.types import Scope

from .._core.ids import StreamKey, parse_count, require_stream_id
from .._run.headers import describe
from .._run.manager import StreamManager
from .._run.replay import counting_refusals, read_kind, replay, replay_after
from .._run.watch import WatchResponse
from ..exceptions import StreamReplaced
from ..models import ResumableLookup, ResumableStreamItem
from . import openapi
from .admission import Service
from .openapi import Epoch, LastEventId, PathId, QueryId, ReplayQuery, ReplayQueryWithId
from .request import check_found, first_headers, last_event_id, read_json
from .responses import AnswerLater, AnswerRoute

ITEMS_AT_ONCE = 500
"""How many items of a lookup are written before other tasks run."""

_BY_QUERY = "/stream"
_BY_PATH = "/stream/{conversation_id:path}"

_ITEMS = TypeAdapter(list[ResumableStreamItem])


def key_of(owner: Any, stream_id: str | None) -> StreamKey:
    """What a stream is kept under.

    Raises:
        TypeError: The owner is no `str`.
        InvalidStreamId: There is no id, or it is a bad one.
    """
    return StreamKey(check_found("owner", owner), require_stream_id(stream_id))


async def replay_stream(
    service: Service, request: Request, owner: Any, stream_id: str | None, query: ReplayQuery
) -> Response:
    """Answer with a stream, from the place that the client asks for.

    Raises:
        ResumableError: There is no such stream, or no such place in it.
    """
    key, manager = key_of(owner, stream_id), service.manager
    event_id = last_event_id(request.scope, first_headers(request.scope))
    # A client that reconnects by itself repeats its URL, and says in the header how far it has come since.
    number = None if event_id else parse_count("starting_after", query.starting_after)
    offset = None if event_id or number is not None else parse_count("from", query.start)
    with counting_refusals(manager, read_kind(event_id, number is not None, offset)):
        stream = await manager.store.find(key, service.settings.pending_timeout)
        # Before the position is looked at: an offset of another epoch means nothing here.
        if query.epoch and query.epoch != stream.epoch:
            raise StreamReplaced
        location = service.locate(request.scope, key.id)
        if number is None:
            response = await replay(manager, stream, offset, event_id, location)
        else:
            response = await replay_after(manager, stream, number, location)
    if request.method != "HEAD":
        return response
    head = Response(status_code=response.status_code)
    head.raw_headers = [*response.raw_headers, *describe(stream)]
    return head


async def stop_stream(service: Service, owner: Any, stream_id: str | None, epoch: str | None) -> Response:
    """Stop a stream.

    Raises:
        ResumableError: The id is not a valid stream id.
    """
    await service.manager.store.stop(key_of(owner, stream_id), epoch or None)
    return Response(status_code=204)


class _Router(APIRouter):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for one of the routes; those that cannot be are not compared with a dozen of them."""
        path: str = scope["path"]
        return super().matches(scope) if "/stream" in path or path.endswith((".js", ".map")) else (Match.NONE, {})


def build_router(service: Service, lifespan: Callable[[Any], Any]) -> APIRouter:
    """Make the router of one `Resumable`."""
    router = _Router(
        prefix=service.settings.prefix,
        tags=["resumable streams"],
        lifespan=lifespan,
        route_class=AnswerRoute,
        # Routes are found by name, so the name is unique; what OpenAPI shows is not to change from run to run.
        generate_unique_id_function=_operation_id,
    )
    OwnerId = Annotated[Any, Depends(service.settings.owner or no_owner)]  # noqa: N806  # a type, for the signatures below

    @router.get(_BY_QUERY, name=service.replay_route, **openapi.REPLAY)
    @router.head(_BY_QUERY, **openapi.DESCRIBE)
    async def replay_by_query(
        request: Request,
        owner: OwnerId,
        query: Annotated[ReplayQueryWithId, Query()],
        _last_event_id: LastEventId = None,
    ) -> Response:
        return AnswerLater(await replay_stream(service, request, owner, query.conv_id, query))

    @router.get(_BY_PATH, name="replay_by_path", **openapi.REPLAY)
    @router.head(_BY_PATH, **openapi.DESCRIBE)
    async def replay_by_path(
        request: Request,
        owner: OwnerId,
        conversation_id: PathId,
        query: Annotated[ReplayQuery, Query()],
        _last_event_id: LastEventId = None,
    ) -> Response:
        return AnswerLater(await replay_stream(service, request, owner, conversation_id, query))

    _add_stop_routes(router, service, OwnerId)
    _add_lookup_routes(router, service.manager, OwnerId)
    _add_assets(router)
    return router


def _add_stop_routes(router: APIRouter, service: Service, OwnerId: Any) -> None:  # noqa: N803  # a type
    @router.delete(_BY_QUERY, **openapi.STOP)
    async def stop_by_query(owner: OwnerId, conv_id: QueryId = None, epoch: Epoch = None) -> Response:
        return await stop_stream(service, owner, conv_id, epoch)

    @router.delete(_BY_PATH, **openapi.STOP)
    async def stop_by_path(owner: OwnerId, conversation_id: PathId, epoch: Epoch = None) -> Response:
        return await stop_stream(service, owner, conversation_id, epoch)


def _add_lookup_routes(router: APIRouter, manager: StreamManager, OwnerId: Any) -> None:  # noqa: N803  # a type
    @router.post("/streams/lookup", **openapi.LOOKUP)
    async def lookup(request: Request, owner: OwnerId) -> Response:
        wanted = await _read_lookup(request)
        items = await manager.store.lookup(check_found("owner", owner), wanted.conversation_ids)
        parts = []
        for start in range(0, len(items), ITEMS_AT_ONCE):
            parts.append(_ITEMS.dump_json(items[start : start + ITEMS_AT_ONCE])[1:-1])
            # Writing the items of a thousand streams takes some milliseconds.
            await asyncio.sleep(0)
        return Response(b"[%b]" % b",".join(parts), media_type="application/json")

    @router.post("/streams/watch", **openapi.WATCH)
    async def watch(request: Request, owner: OwnerId) -> Response:
        wanted = await _read_lookup(request)
        return AnswerLater(WatchResponse(manager, check_found("owner", owner), wanted.conversation_ids))


async def _read_lookup(request: Request) -> ResumableLookup:
    rule = 'The body must be JSON like {"conversation_ids": ["a", "b"]}, with at most 1,000 ids'
    return await read_json(request, ResumableLookup, rule, "Ask for fewer ids.")


def _operation_id(route: APIRoute) -> str:
    method = next(iter(route.methods or {"GET"})).lower()
    path = route.path_format.replace("{", "").replace("}", "").replace(":path", "")
    return f"{method}_{path.strip('/').replace('/', '_').replace('-', '_')}"


# Not `def`: FastAPI runs those in threads.
async def no_owner() -> None:
    """The owner of every stream, where there is no `owner`."""


# The JavaScript client. `resumable.js` leads to `resumable.<hash>.js`, which browsers keep for good. The module knows
# by the hash in its URL that it was served here, and takes the URL's folder for the prefix of the routes.


@cache
def _asset(name: str) -> tuple[bytes, str]:
    content = resources.files("fastapi_resumable").joinpath("static", name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


def _add_assets(router: APIRouter) -> None:
    """Serve the client under the router's prefix, without authentication: a script tag sends no headers of the page."""
    for stem in ("resumable", "ag-ui"):
        for suffix, send in ((".js", _lead_to_module), (".{digest}.js", _send_module), (".js.map", _send_source_map)):
            router.add_route(f"{router.prefix}/{stem}{suffix}", partial(send, stem), include_in_schema=False)


async def _lead_to_module(stem: str, _request: Request) -> Response:
    # Relative to the URL that was asked for, so right under every prefix, mount and root path.
    url = f"{stem}.{_asset(f'{stem}.js')[1]}.js"
    return RedirectResponse(url, headers={"Cache-Control": "no-cache"})


async def _send_module(stem: str, request: Request) -> Response:
    content, digest = _asset(f"{stem}.js")
    # Another hash is another version's, during a deployment: ours will do, but is not to be kept under that name.
    is_ours = request.path_params["digest"] == digest
    caching = "public, max-age=31536000, immutable" if is_ours else "no-cache"
    return Response(content, media_type="text/javascript", headers={"Cache-Control": caching})


async def _send_source_map(stem: str, _request: Request) -> Response:
    content, _ = _asset(f"{stem}.js.map")
    return Response(content, media_type="application/json", headers={"Cache-Control": "no-cache"})
