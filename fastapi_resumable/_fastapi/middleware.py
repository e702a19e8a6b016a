"""The face for applications whose endpoints one does not own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from .resumable import Resumable


class ResumableMiddleware:
    """Makes the given paths of an application resumable, whatever serves them.

    A resume is answered here, before the application: it cannot check who asks. Set `owner`, so that a stream can be
    read only by whoever started it.

    Args:
        app: The application.
        resumable: What the streams are kept in; its router is to be included too.
        paths: Paths as in a route, like `/v1/chat/completions` or `/runs/{run_id}/events`, below the root path.

    Raises:
        ValueError: A path does not start with a slash.
    """

    def __init__(self, app: ASGIApp, *, resumable: "Resumable", paths: Sequence[str]) -> None:
        if isinstance(paths, str) or not all(path.startswith("/") for path in paths):
            raise ValueError(f"paths must be a list of paths that start with '/', like ['/v1/chat'], not {paths!r}.")
        self._app = app
        self._resumable = resumable
        self._paths = [compile_path(path)[0] for path in paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application in the background, if the request is for one of the paths and names a stream."""
        if scope["type"] != "http" or scope["method"] in ("HEAD", "OPTIONS") or not self._matches(scope):
            await self._app(scope, receive, send)
            return
        handlers = {
            HTTPException: http_exception_handler,
            RequestValidationError: request_validation_exception_handler,
            **getattr(scope.get("app"), "exception_handlers", {}),
        }
        # The application's own handlers are inside it, where they cannot see what is raised here.
        handlers = {key: handler for key, handler in handlers.items() if key not in (500, Exception)}
        await ExceptionMiddleware(self._serve, handlers=handlers)(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The log holds the application's own bytes; a compression inside it would be recorded.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self._resumable.serve(self._app, scope, receive, send, headers=headers)

    def _matches(self, scope: Scope) -> bool:
        path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        return any(pattern.fullmatch(path) for pattern in self._paths)
