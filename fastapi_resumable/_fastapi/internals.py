"""What is used of FastAPI's and Starlette's private state: five things, all here, each with its reason.

1. `Request._receive`: `request.is_disconnected()` in a generator must tell of a stop, not of a client that has left;
   unless that client still owes the body, and what was read of that is in `Request._stream_consumed`.
2. `Request._send`: `Prefer: respond-async` is answered while the endpoint is still at work, and has returned nothing.
3. `scope["fastapi_inner_astack"]`, the stack of the request's dependencies: they are to be closed in a shield when the
   server has cancelled the request, and to see how the stream ended.
4. `Dependant.call` and `.request_param_name`, of the route that runs, or of its inclusion that runs: for the
   interceptor. Nothing public comes after the last parameter was validated and before the endpoint runs, which is
   where a resume has to be answered.
5. `scope["fastapi_async_cleanup_scopes"]`: the cancel scope that newer FastAPI keeps open until the dependencies are
   closed. No scope of ours may be open when that one closes, so it is the one that shields them.

`tests/fastapi/test_transparent.py` and `tests/contract` fail when one of them breaks.
"""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from fastapi.dependencies.models import Dependant


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


def running_dependants(scope: Scope) -> "Iterator[Dependant]":
    """The dependencies and the endpoint of the route that serves the request; none if that is no route of FastAPI's.

    Since 0.137 an included route has them once for each inclusion, in a context that stands beside `scope["route"]`. It
    is another's if a dependency has called the application with a copy of the scope: then all that it may be are given.
    """
    route = scope.get("route")
    context = scope.get("fastapi", {}).get("effective_route_context")
    running = [context or route]
    if context is not None and context.original_route is not route:
        routes = getattr(getattr(scope.get("app"), "router", None), "routes", ())
        included = (
            router.effective_route_contexts() for router in routes if hasattr(router, "effective_route_contexts")
        )
        running = [route, *(each for each in chain(*included) if each.original_route is route)]
    for each in running:
        dependant: Any = getattr(each, "dependant", None)
        if getattr(dependant, "call", None) is not None:
            yield dependant
