"""What a request contains: the stream it names, its owner, the place to resume from, and the path of its replay."""

import json
import logging
import secrets
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote
from weakref import WeakKeyDictionary

from fastapi import Depends, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import NoMatchFound
from starlette.types import ASGIApp, Message, Receive, Scope

from .._core.ids import StreamKey, parse_stream_id
from .._run.headers import replay_path
from ..exceptions import InvalidRequest, InvalidStreamId

logger = logging.getLogger("fastapi_resumable")

IdDependency = Callable[..., Any]
"""A FastAPI dependency that returns (or yields) `str | None`."""

_FOUND = "fastapi_resumable.identity"
_SAFE = "/:@!$&'()*+,;=~%"


def raw_header(scope: Scope, wanted: bytes) -> bytes | None:
    """The value of the first header of that name, in lower case."""
    return dict(reversed(list(scope["headers"]))).get(wanted)


# Which stream, and whose.


class _Header:
    """A header's value, read from the raw bytes as UTF-8."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._raw_name = name.lower().encode("ascii")

    async def __call__(self, request: Request) -> str | None:
        return self.read(request)

    def is_in(self, request: Request) -> bool:
        """Whether there is such a header."""
        return raw_header(request.scope, self._raw_name) is not None

    def read(self, request: Request) -> str | None:
        """Return the header's value."""
        value = raw_header(request.scope, self._raw_name)
        try:
            return None if value is None else str(value, "utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidStreamId(f"The header {self.name} is not valid UTF-8.") from exc


def header(name: str) -> IdDependency:
    """A dependency that takes the id (or the owner) from a request header, read as UTF-8."""
    return _Header(name)


def body_field(name: str) -> IdDependency:
    """A dependency that takes the id from a field of a JSON body; numbers count as their decimal form.

    A body that is no JSON object, or has no such field, names no stream; refusing it is left to the endpoint.
    """

    async def read_body_field(request: Request) -> str | None:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            return None
        value = body.get(name) if isinstance(body, dict) else None
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return value if isinstance(value, str) else None

    return read_body_field


class Identity(NamedTuple):
    """What `Identifier` found. What went wrong is kept until the request has passed all its other checks."""

    key: StreamKey | None = None
    """Owner and id; `None` if the request names no stream."""
    is_chosen: bool = False
    """Whether we chose the id, so that there can be no earlier stream."""
    refusal: Exception | None = None
    """What the dependencies raised, or what is wrong with the id."""

    @property
    def names_a_stream(self) -> bool:
        """Whether there is anything to decide about the request."""
        return self.key is not None or self.refusal is not None


NO_IDENTITY = Identity()


class Identifier:
    """Finds owner and stream id of a request.

    The dependencies are solved by FastAPI, on a route of our own rather than as part of the user's endpoint: so the
    endpoint's entry in OpenAPI and the shape of its body stay as they are, and what the dependencies hold is given
    back at once.
    """

    def __init__(self, stream_id: IdDependency, owner: IdDependency | None, *, auto_id: bool) -> None:
        self._stream_id = stream_id
        self._owner = owner
        self._auto_id = auto_id
        # An app's dependency overrides apply, so each app has routes of its own; and so has each set of path
        # parameters, as FastAPI tells path from query parameters by the names in the path.
        self._routes: WeakKeyDictionary[Any, dict[tuple[IdDependency, tuple[str, ...]], ASGIApp]] = WeakKeyDictionary()

    def may_name_a_stream(self, request: Request) -> bool:
        """Whether the request must be looked at: known at once of the most that name no stream."""
        return self._auto_id or not isinstance(self._stream_id, _Header) or self._stream_id.is_in(request)

    async def identify(self, request: Request, receive: Receive) -> Identity:
        """Find owner and id; never raises. `receive` gives the body, for a dependency that looks for the id there."""
        if request.method in ("HEAD", "OPTIONS"):
            # They ask what another method would answer: they must not begin a stream, nor replace one.
            return NO_IDENTITY
        try:
            if isinstance(self._stream_id, _Header):
                stream_id = parse_stream_id(self._stream_id.read(request))
            else:
                stream_id = parse_stream_id(await self._solve("stream_id", self._stream_id, request, receive))
            is_chosen = stream_id is None
            if stream_id is None:
                if not self._auto_id:
                    # The owner does not matter, as long as the request names no stream.
                    return NO_IDENTITY
                stream_id = secrets.token_urlsafe(16)
            owner = None if self._owner is None else await self._solve("owner", self._owner, request, receive)
        except Exception as exc:  # noqa: BLE001  # raised by `Admission.decide`, when the request has passed its checks
            return Identity(refusal=exc)
        return Identity(StreamKey(owner, stream_id), is_chosen)

    async def _solve(self, name: str, dependency: IdDependency, request: Request, receive: Receive) -> str | None:
        scope = dict(request.scope)
        await self._route(dependency, request.scope.get("app"), tuple(request.path_params))(scope, receive, _discard)
        value = scope[_FOUND]
        if not isinstance(value, str | None):
            raise TypeError(f"the dependency {name} must return str or None, not {type(value).__name__}")
        return value

    def _route(self, dependency: IdDependency, app: Any, path_names: tuple[str, ...]) -> ASGIApp:
        routes = self._routes.setdefault(app, {}) if app is not None else {}
        key = dependency, path_names
        if key not in routes:
            route = APIRoute(
                "/" + "/".join(f"{{{name}}}" for name in path_names),
                _endpoint(dependency),
                methods=["GET"],
                dependency_overrides_provider=app if hasattr(app, "dependency_overrides") else None,
            )
            # FastAPI closes uploaded files there; every app of its own begins with one. What the dependency raises is
            # to come here, and not to the application's handlers.
            handlers = {Exception: _raise, HTTPException: _raise}
            routes[key] = ExceptionMiddleware(AsyncExitStackMiddleware(route.app), handlers=handlers)
        return routes[key]


def _endpoint(dependency: IdDependency) -> Callable[..., Any]:
    async def identify(request: Request, value: Annotated[Any, Depends(dependency)]) -> Response:
        request.scope[_FOUND] = value
        return Response()

    return identify


async def _raise(_request: Request, error: Exception) -> Response:
    raise error


async def _discard(_message: Message) -> None:
    return None


# What else the client wants.


def last_event_id(request: Request) -> str | None:
    """`Last-Event-ID` (WHATWG HTML §9.2.4), which is UTF-8 on the wire; bytes that are not are kept as surrogates.

    Polyfills of `EventSource` send it in the query, to spare a preflight; only where there is no such header.
    """
    value = raw_header(request.scope, b"last-event-id")
    if value is not None:
        return str(value, "utf-8", "surrogateescape") or None
    if b"vent" not in request.scope["query_string"]:
        return None
    query = request.query_params
    return query.get("lastEventId") or query.get("last_event_id") or None


def prefers_async(request: Request) -> bool:
    """Whether the client would rather not wait for the answer: `Prefer: respond-async` (RFC 7240 §4.1)."""
    if request.method == "GET" or raw_header(request.scope, b"prefer") is None:
        return False
    preferences = b",".join(value for name, value in request.scope["headers"] if name == b"prefer").split(b",")
    return any(preference.partition(b";")[0].strip().lower() == b"respond-async" for preference in preferences)


async def read_body(request: Request, limit: int, advice: str) -> bytes:
    """Read the body.

    Raises:
        InvalidRequest: It is larger than `limit`; the message ends with `advice`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise InvalidRequest(f"The body is larger than {limit} bytes. {advice}")
    return bytes(body)


def body_again(request: Request) -> Receive:
    """A `receive` that gives the request's body once more, to a dependency that looks for the stream id in it."""

    async def receive() -> Message:
        try:
            body = await request.body()
        except RuntimeError:
            # It was read as a form, which keeps no copy.
            body = b""
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


# The way back.


class Locator:
    """Finds the replay route by name, under whatever prefix, mount and root path the router was included."""

    def __init__(self, route_name: str) -> None:
        self.route_name = route_name
        self._warned = False
        # Where the route is in an application: it stays there, and looking for it takes long. By identity, as routers
        # have no hash; the application is kept with it, so that no other gets its identity.
        self._paths: dict[int, tuple[Any, str]] = {}

    def path(self, scope: Scope, stream_id: str) -> str | None:
        """The path of a stream's replay, as the client of this request has to ask for it."""
        root_path = scope.get("root_path", "")
        # The router is in the outermost application, or in one mounted there that serves the request.
        for provider, root in (
            (scope.get("router"), scope.get("app_root_path", root_path)),
            (scope.get("app"), root_path),
        ):
            if provider is not None and (path := self._path_in(provider)) is not None:
                return replay_path(quote(root.rstrip("/"), safe=_SAFE) + path if root else path, stream_id)
        if not self._warned:
            self._warned = True
            logger.warning("streams cannot be replayed: add app.include_router(resumable.router) to the application")
        return None

    def _path_in(self, provider: Any) -> str | None:
        if id(provider) not in self._paths:
            try:
                path = str(provider.url_path_for(self.route_name))
            except NoMatchFound:
                return None
            self._paths[id(provider)] = provider, quote(path, safe=_SAFE)
        return self._paths[id(provider)][1]
