"""The route class: every endpoint of a router resumable, those that use `yield` included."""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from .resumable import Resumable

_GUARDED = "__fastapi_resumable_guarded__"

Check = ContextVar[list[bool] | None]
"""Set while a request is only checked, not run: gets an entry when its dependencies have let it through."""


def _guard(endpoint: Callable[..., Any], check: Check) -> Callable[..., Any]:
    """Wrap an endpoint so that it is not run while its request is only checked; FastAPI looks through the wrapper."""
    # Older FastAPI makes a route anew, from the wrapped endpoint, for each router that it is included in.
    if getattr(endpoint, _GUARDED, None) is check:
        return endpoint
    # What the endpoint gives instead: of a generator function, a generator that has nothing.
    instead = (
        _Nothing
        if inspect.isasyncgenfunction(endpoint)
        else tuple
        if inspect.isgeneratorfunction(endpoint)
        else Response
    )

    def admitted() -> bool:
        passed = check.get()
        if passed is None:
            return False
        passed.append(True)
        return True

    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            return instead() if admitted() else await endpoint(*args, **kwargs)

        guarded: Callable[..., Any] = guarded_async
    else:

        @functools.wraps(endpoint)
        def guarded_sync(*args: Any, **kwargs: Any) -> Any:
            return instead() if admitted() else endpoint(*args, **kwargs)

        guarded = guarded_sync
    setattr(guarded, _GUARDED, check)
    return guarded


class _Nothing:
    """An asynchronous generator that has nothing."""

    def __aiter__(self) -> "_Nothing":
        return self

    async def __anext__(self) -> Any:
        raise StopAsyncIteration


def route_class(resumable: "Resumable") -> type[APIRoute]:
    """Make a route class whose routes run resumable."""
    check: Check = ContextVar("fastapi_resumable_check", default=None)

    class ResumableRoute(APIRoute):
        """A route whose endpoint runs resumable."""

        def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:
            super().__init__(path, _guard(endpoint, check), **kwargs)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Run the route in the background, if the request names a stream."""
            await resumable.serve(super().handle, scope, receive, send, check=self._check)

        async def _check(self, scope: Scope, receive: Receive, send: Send) -> bool:
            """Solve the route's dependencies without running its endpoint; whether they let the request through."""
            held: list[Message] = []

            async def hold(message: Message) -> None:
                held.append(message)

            passed: list[bool] = []
            token = check.set(passed)
            try:
                await super().handle(dict(scope), receive, hold)
            finally:
                check.reset(token)
            for message in held if not passed else ():
                await send(message)
            return bool(passed)

    return ResumableRoute
