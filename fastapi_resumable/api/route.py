"""The route class: every endpoint of a router resumable, those that use `yield` included."""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from .resumable import Resumable

_GUARDED = "__fastapi_resumable_guarded__"


class _Admitted(BaseException):
    """Raised in the place of the endpoint, once its dependencies have let the request through.

    No `Exception`, so that no dependency takes it for a failure of the endpoint.
    """


def _guard(endpoint: Callable[..., Any], checking: ContextVar[bool]) -> Callable[..., Any]:
    """Wrap an endpoint so that it is not run while its request is only checked."""
    # Older FastAPI makes a route anew, from the wrapped endpoint, for each router that it is included in.
    if getattr(endpoint, _GUARDED, None) is checking:
        return endpoint

    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            if checking.get():
                raise _Admitted
            return await endpoint(*args, **kwargs)

        guarded: Callable[..., Any] = guarded_async
    else:

        @functools.wraps(endpoint)
        def guarded_sync(*args: Any, **kwargs: Any) -> Any:
            # Of a generator function this makes the generator; FastAPI looks through the wrapper to tell.
            if checking.get():
                raise _Admitted
            return endpoint(*args, **kwargs)

        guarded = guarded_sync
    setattr(guarded, _GUARDED, checking)
    return guarded


def route_class(resumable: "Resumable") -> type[APIRoute]:
    """Make a route class whose routes run resumable."""
    # Set while a request is only checked, not run.
    checking: ContextVar[bool] = ContextVar("fastapi_resumable_checking", default=False)

    class ResumableRoute(APIRoute):
        """A route whose endpoint runs resumable."""

        def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:
            super().__init__(path, _guard(endpoint, checking), **kwargs)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Run the route in the background, if the request names a stream."""
            await resumable.serve(super().handle, scope, receive, send, check=self._check)

        async def _check(self, scope: Scope, receive: Receive, send: Send) -> bool:
            """Solve the route's dependencies without running its endpoint; whether they let the request through."""
            held: list[Message] = []

            async def hold(message: Message) -> None:
                held.append(message)

            token = checking.set(True)
            try:
                await super().handle(dict(scope), receive, hold)
            except _Admitted:
                return True
            finally:
                checking.reset(token)
            for message in held:
                await send(message)
            return False

    return ResumableRoute
