"""What is used of FastAPI's and Starlette's private state: six things, all here, each with its reason.

1. `Request._receive`: `request.is_disconnected()` in a generator must tell of a stop, not of a client that has left;
   unless that client still owes the body, and what was read of that is in `Request._stream_consumed`.
2. `Request._send`: `Prefer: respond-async` is answered while the endpoint is still at work, and has returned nothing.
3. `scope["fastapi_inner_astack"]`, the stack of the request's dependencies: they are to be closed in a shield when the
   server has cancelled the request, and to see how the stream ended.
4. `Dependant.call` and `.request_param_name`, of the route that runs or will, or of its inclusion: for the
   interceptor. Nothing public comes after the last parameter was validated and before the endpoint runs, which is
   where a resume has to be answered.
5. `scope["fastapi_async_cleanup_scopes"]`: the cancel scope that newer FastAPI keeps open until the dependencies are
   closed. No scope of ours may be open when that one closes, so it is the one that shields them.
6. The argument of `iterate_in_threadpool`: the generator that a `StreamingResponse` runs in threads. What is cut short
   there leaves it suspended, until nothing refers to it any more; by then its dependencies are closed.

`tests/fastapi/test_transparent.py` and `tests/contract` fail when one of them breaks.
"""

import inspect
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Router
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from fastapi.dependencies.models import Dependant

MAX_WRAPPERS = 100
"""How many middleware an application is looked for in."""
_IN_THREADS = iterate_in_threadpool.__code__


def replace_receive(request: Request, receive: Receive) -> None:
    """Let the request listen to another channel."""
    request._receive = receive  # noqa: SLF001  # the first of the list above


def has_read_body(request: Request) -> bool:
    """Whether the body of the request was read: then its client owes nothing any more."""
    return request._stream_consumed  # noqa: SLF001  # the first of the list above


def send_of(request: Request) -> Send:
    """The channel that the request is answered on."""
    return request._send  # noqa: SLF001  # the second of the list above


def dependency_stack(scope: Scope) -> AsyncExitStack:
    """The stack that closes the request's dependencies, once the response was sent."""
    stack: AsyncExitStack = scope["fastapi_inner_astack"]
    return stack


def cleanup_scope(scope: Scope) -> CancelScope | None:
    """The cancel scope in which FastAPI closes the request's dependencies, if it has opened one."""
    found: CancelScope | None = scope.get("fastapi_async_cleanup_scopes", {}).get(dependency_stack(scope))
    return found


def _all_routes(routes: Iterable[Any]) -> Iterator[Any]:
    """Routes, and those of included routers. Since 0.137 each of those has a context for each inclusion."""
    for route in routes:
        yield from route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else (route,)


def application_of(app: Any) -> Starlette | Router | None:
    """The application of Starlette's within what middleware stands around it; `None` if it is another's."""
    for _ in range(MAX_WRAPPERS):
        if app is None or isinstance(app, Starlette | Router):
            return app
        app = getattr(app, "app", None)
    return None


def routes_of(app: Any) -> Sequence[Any] | None:
    """The routes of an application of Starlette's, within what middleware stands around it; `None` for any other."""
    return None if (found := application_of(app)) is None else found.routes


def dependants_at(routes: Sequence[Any] | None, scope: Scope) -> "list[Dependant] | None":
    """The dependencies and the endpoint of the route of FastAPI's that a request is for, also in a mounted application.

    None of them if the application has no endpoint for it, and refuses the request by itself; `None` if it is not known
    what does: a route of another kind serves it.
    """
    if routes is None:
        return None
    for route in _all_routes(routes):
        match, child_scope = route.matches(scope)
        if match is Match.FULL:
            mounted = getattr(route, "starlette_route", None) or route
            return _dependants_of(route) or dependants_at(
                routes_of(getattr(mounted, "app", None)), {**scope, **child_scope}
            )
    return []


def _dependants_of(route: Any) -> "list[Dependant]":
    dependant: Any = getattr(route, "dependant", None)
    return [] if getattr(dependant, "call", None) is None else [dependant]


def running_dependants(scope: Scope) -> "list[Dependant]":
    """The dependencies and the endpoint of the route that serves the request; none if that is no route of FastAPI's.

    Since 0.137 an included route has them once for each inclusion, in a context that stands beside `scope["route"]`. It
    is another's if a dependency has called the application with a copy of the scope: then all that it may be are given.
    """
    route = scope.get("route")
    context = scope.get("fastapi", {}).get("effective_route_context")
    running = [context or route]
    if context is not None and context.original_route is not route:
        routes = getattr(getattr(scope.get("app"), "router", None), "routes", ())
        running = [route, *(each for each in _all_routes(routes) if getattr(each, "original_route", None) is route)]
    return [dependant for each in running for dependant in _dependants_of(each)]


def threaded_generator(response: Response) -> Generator[Any, Any, Any] | None:
    """The generator that a response runs in threads, if it does; before it has run."""
    body: Any = getattr(response, "body_iterator", None)
    if getattr(body, "ag_code", None) is not _IN_THREADS or body.ag_frame is None:
        return None
    iterator = body.ag_frame.f_locals.get("iterator")
    return iterator if inspect.isgenerator(iterator) else None
