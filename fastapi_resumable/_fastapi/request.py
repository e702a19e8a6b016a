"""What a request says: what a dependency finds in it, how it would like to be answered, and its body."""

import asyncio
import json
from collections.abc import MutableMapping
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode

from fastapi import Depends, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import NoMatchFound
from starlette.types import ASGIApp, Message, Receive, Scope

from .._core.sse import BOM
from ..exceptions import InvalidRequest, InvalidStreamId
from ..settings import IdDependency
from .internals import has_read_body

_ModelT = TypeVar("_ModelT", bound=BaseModel)

_FOUND = "fastapi_resumable.found"
WHITESPACE = b" \t"
"""What may stand around the value of a header (RFC 9110 §5.5); httptools leaves it at the end."""
MAX_JSON_BYTES = 4 * 1024 * 1024
"""How large the bodies are that our own routes take."""
MAX_JSON_COST = 400_000
"""How long they may take to parse, as that holds up the event loop: an escape in a string counts 1, a value 20."""
_FORMS = ("application/x-www-form-urlencoded", "multipart/")
MAX_FIELDS = 1000
"""How many fields Starlette reads of a form by default."""
MAX_FIELDS_SIZE = 65_536
"""How many characters of a form a dependency gets that looks for the stream id in it."""
_SAFE = "/:@!$&'()*+,;=~%"


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers of a request by their names, in lower case; of several with one name, the first."""
    return dict(reversed(list(scope["headers"])))


# Which stream, and whose.


def check_found(name: str, value: Any) -> str | None:
    """What a dependency of the user's has found; the same rule wherever an owner or an id is needed.

    Raises:
        TypeError: It is neither `str` nor `None`: the application is wrong, so its server answers 500, and logs this.
    """
    if not isinstance(value, str | None):
        what = type(value).__name__
        raise TypeError(f"the dependency {name} must return str or None, not {what}: return str() of its value")
    return value


class HeaderId:
    """A dependency that reads a header's raw bytes as UTF-8."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.raw_name = name.lower().encode("ascii")

    async def __call__(self, request: Request) -> str | None:
        return self.decode(first_headers(request.scope).get(self.raw_name))

    def decode(self, value: bytes | None) -> str | None:
        try:
            return None if value is None else str(value.strip(WHITESPACE), "utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidStreamId(f"The header {self._name} is not valid UTF-8.") from exc


def header(name: str) -> IdDependency:
    """A dependency that takes the id (or the owner) from a request header, read as UTF-8."""
    return HeaderId(name)


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
        # `True` is an `int` in Python, and no id.
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return value if isinstance(value, str) else None

    return read_body_field


Solvers = MutableMapping[Any, dict[tuple[IdDependency, tuple[str, ...]], ASGIApp]]


async def solve(dependency: IdDependency, request: Request, receive: Receive, solvers: Solvers) -> Any:
    """Have FastAPI solve a dependency; `receive` gives the body, for one that looks there.

    It is solved on a route of our own rather than as part of the user's endpoint: so the endpoint's entry in OpenAPI
    and the shape of its body stay as they are, and what the dependency holds is given back at once.
    """
    # An app's dependency overrides apply, so each app has routes of its own; and so has each set of path parameters, as
    # FastAPI tells path from query parameters by the names in the path.
    app, names = request.scope.get("app"), tuple(request.path_params)
    routes = solvers.setdefault(app, {}) if app is not None else {}
    if (solver := routes.get((dependency, names))) is None:
        solver = routes[dependency, names] = _make_solver(dependency, app, names)
    # A copy, in which the route of our own leaves its traces: `route`, `path_params`, the stacks of FastAPI.
    scope = dict(request.scope)
    await solver(scope, receive, _discard)
    return scope[_FOUND]


def _make_solver(dependency: IdDependency, app: Any, path_names: tuple[str, ...]) -> ASGIApp:
    async def endpoint(request: Request, value: Annotated[Any, Depends(dependency)]) -> Response:
        request.scope[_FOUND] = value
        return Response()

    route = APIRoute(
        "/" + "/".join(f"{{{name}}}" for name in path_names),
        endpoint,
        methods=["GET"],
        dependency_overrides_provider=app if hasattr(app, "dependency_overrides") else None,
    )
    # FastAPI closes uploaded files there; every app of its own begins with one. What the dependency raises is to come
    # here, and not to the application's handlers.
    return ExceptionMiddleware(AsyncExitStackMiddleware(route.app), handlers={Exception: _raise, HTTPException: _raise})


async def _raise(_request: Request, error: Exception) -> Response:
    raise error


async def _discard(_message: Message) -> None:
    return None


# What else the client wants.


def last_event_id(scope: Scope, headers: dict[bytes, bytes]) -> str | None:
    """`Last-Event-ID` (WHATWG HTML §9.2.4), which is UTF-8 on the wire; bytes that are not are kept as surrogates.

    Polyfills of `EventSource` send it in the query, to spare a preflight; only where there is no such header.
    """
    value = headers.get(b"last-event-id")
    if value is not None:
        return str(value.strip(WHITESPACE), "utf-8", "surrogateescape") or None
    if b"vent" not in scope["query_string"]:
        return None
    query = Request(scope).query_params
    return query.get("lastEventId") or query.get("last_event_id") or None


def prefers_async(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether the client would rather not wait for the answer: `Prefer: respond-async` (RFC 7240 §4.1)."""
    if b"prefer" not in headers or scope["method"] == "GET":
        return False
    preferences = b",".join(value for name, value in scope["headers"] if name == b"prefer").split(b",")
    return any(preference.partition(b";")[0].strip().lower() == b"respond-async" for preference in preferences)


async def read_json(request: Request, model: type[_ModelT], rule: str, advice: str, *, default: bytes = b"") -> _ModelT:
    """Read a JSON body of one of our own routes, or take `default` for none, without holding up the event loop.

    Raises:
        InvalidRequest: It is too large, with `advice`; or it is not a `model`, with `rule`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise InvalidRequest(f"The body is larger than {MAX_JSON_BYTES} bytes. {advice}")
    cost = 0
    for mark, weight in ((b"[", 20), (b"{", 20), (b",", 20), (b"\\", 1)):
        cost += weight * body.count(mark)
        # To count in a large body takes some milliseconds.
        await asyncio.sleep(0)
    if cost > MAX_JSON_COST:
        raise InvalidRequest(f"The body has too many values or escapes. {advice}")
    try:
        return model.model_validate_json(bytes(body.removeprefix(BOM)) or default, strict=True)
    except ValidationError as exc:
        error = exc.errors()[0]
        reason = ": ".join([*map(str, error["loc"]), error["msg"]])
        raise InvalidRequest(f"{rule} ({reason}).") from exc


def short_fields(fields: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """The fields of a form that are no files and have room in what takes no time to write and to read again."""
    found, room = [], MAX_FIELDS_SIZE
    for name, value in fields[:MAX_FIELDS]:
        if isinstance(value, str) and (size := len(name) + len(value)) <= room:
            found.append((name, value))
            room -= size
    return found


def body_again(request: Request) -> tuple[Request, Receive]:
    """What a dependency gets that looks for the stream id in the body: a request, and a `receive` that gives the body.

    A form keeps no copy of its bytes. If one was read, the dependency gets its fields, but no files and long texts.
    """
    is_form = has_read_body(request) and request.headers.get("content-type", "").lower().startswith(_FORMS)

    async def receive() -> Message:
        body = b""
        # What was read piece by piece is not kept at all.
        with suppress(RuntimeError):
            if is_form:
                fields = short_fields((await request.form()).multi_items())
                body = urlencode(fields, errors="replace").encode("ascii")
            else:
                body = await request.body()
        return {"type": "http.request", "body": body, "more_body": False}

    if not is_form:
        return request, receive
    others = [header for header in request.scope["headers"] if header[0] != b"content-type"]
    headers = [*others, (b"content-type", _FORMS[0].encode("ascii"))]
    return Request({**request.scope, "headers": headers}), receive


# The way back.

Paths = dict[int, tuple[Any, str]]
"""Where a route is in an application: it stays there, and looking for it takes long. By identity, as routers have no
hash; the application is kept with it, so that no other gets its identity."""


def path_of(route_name: str, scope: Scope, known: Paths) -> str | None:
    """The path of a route for the client of a request, under whatever prefix, mount and root path it was included."""
    root_path = scope.get("root_path", "")
    # It is in the outermost application, or in one mounted there that serves the request.
    for provider, root in (
        (scope.get("router"), scope.get("app_root_path", root_path)),
        (scope.get("app"), root_path),
    ):
        if provider is not None and (path := _path_in(provider, route_name, scope, known)) is not None:
            return quote(root.rstrip("/"), safe=_SAFE) + path if root else path
    return None


def _path_in(provider: Any, route_name: str, scope: Scope, known: Paths) -> str | None:
    if (found := known.get(id(provider))) is not None:
        return found[1]
    given = {
        name: quote(value, safe="") if isinstance(value, str) else value
        for name, value in scope.get("path_params", {}).items()
    }
    # The router may have parameters in its prefix, like `/{tenant}`. They are the first of all paths below that.
    for count in range(len(given) + 1):
        # The latter is of a route of the application's own, which knows no URLs.
        with suppress(NoMatchFound, NotImplementedError):
            url_path = provider.url_path_for(route_name, **dict(islice(given.items(), count)))
            path = quote(str(url_path), safe=_SAFE)
            if not count:
                known[id(provider)] = provider, path
            return path
    return None
