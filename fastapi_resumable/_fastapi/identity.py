"""How a request names its stream and its owner: any FastAPI dependency that returns `str | None`.

The dependencies are solved by a FastAPI route of our own rather than as part of the user's endpoint, so that the
endpoint's entry in OpenAPI stays as it is.
"""

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any
from weakref import WeakKeyDictionary

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from .._core.ids import parse_stream_id
from ..exceptions import InvalidStreamId

IdDependency = Callable[..., Any]
"""A FastAPI dependency that returns (or yields) `str | None`."""

_FOUND = "fastapi_resumable.identity"


class _Header:
    """A header's value, read from the raw bytes as UTF-8."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._raw_name = name.lower().encode("ascii")

    async def __call__(self, request: Request) -> str | None:
        return self.read(request)

    def read(self, request: Request) -> str | None:
        """Return the header's value."""
        for name, value in request.scope["headers"]:
            if name == self._raw_name:
                try:
                    return str(value, "utf-8")
                except UnicodeDecodeError as exc:
                    raise InvalidStreamId(f"The header {self.name} is not valid UTF-8.") from exc
        return None


def header(name: str) -> IdDependency:
    """A dependency that takes the id (or the owner) from a request header, read as UTF-8."""
    return _Header(name)


def body_field(name: str) -> IdDependency:
    """A dependency that takes the id from a field of a JSON body; numbers count as their decimal form.

    A body that is no JSON object, or has no such field, names no stream: the endpoint is to complain, not we.
    """

    async def read_body_field(request: Request) -> str | None:
        try:
            body = json.loads(await request.body())
        except ValueError:
            return None
        value = body.get(name) if isinstance(body, dict) else None
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return value if isinstance(value, str) else None

    return read_body_field


class Identifier:
    """Finds owner and stream id of a request."""

    def __init__(self, stream_id: IdDependency, owner: IdDependency | None, *, auto_id: bool) -> None:
        self._stream_id = stream_id
        self._owner = owner
        self._auto_id = auto_id
        # An app's dependency overrides apply, so each app has routes of its own; and so has each set of path
        # parameters, as FastAPI tells path from query parameters by the names in the path.
        self._routes: WeakKeyDictionary[Any, dict[tuple[IdDependency, tuple[str, ...]], APIRoute]] = WeakKeyDictionary()

    async def __call__(self, request: Request, receive: Receive) -> tuple[str | None, str | None]:
        """Return owner and stream id.

        Raises:
            InvalidStreamId: The id is a bad one.
            HTTPException: From the dependencies themselves.
        """
        if isinstance(self._stream_id, _Header):
            stream_id = parse_stream_id(self._stream_id.read(request))
        else:
            stream_id = parse_stream_id(await self._solve("stream_id", self._stream_id, request, receive))
        if self._owner is None or (stream_id is None and not self._auto_id):
            # Who asks is nobody's business, as long as the request is not for us.
            return None, stream_id
        return await self._solve("owner", self._owner, request, receive), stream_id

    async def _solve(self, name: str, dependency: IdDependency, request: Request, receive: Receive) -> str | None:
        route = self._route(dependency, request.scope.get("app"), tuple(request.path_params))
        # No exception handlers: what a dependency raises is for the caller to let through.
        scope = {**request.scope, "starlette.exception_handlers": ({}, {})}
        async with AsyncExitStack() as files:
            scope["fastapi_middleware_astack"] = files
            await route.app(scope, receive, _discard)
        value = scope[_FOUND]
        if not isinstance(value, str | None):
            raise TypeError(f"the dependency {name} must return str or None, not {type(value).__name__}")
        return value

    def _route(self, dependency: IdDependency, app: Any, path_names: tuple[str, ...]) -> APIRoute:
        routes = self._routes.setdefault(app, {}) if app is not None else {}
        key = dependency, path_names
        if key not in routes:
            routes[key] = APIRoute(
                "/" + "/".join(f"{{{name}}}" for name in path_names),
                _endpoint(dependency),
                methods=["GET"],
                dependency_overrides_provider=app if hasattr(app, "dependency_overrides") else None,
            )
        return routes[key]


def _endpoint(dependency: IdDependency) -> Callable[..., Any]:
    async def identify(request: Request, value: Annotated[Any, Depends(dependency)]) -> Response:
        request.scope[_FOUND] = value
        return Response()

    return identify


async def _discard(_message: Message) -> None:
    return None


__all__ = ["IdDependency", "Identifier", "body_field", "header"]
