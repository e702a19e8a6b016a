"""`Resumable`, which an application makes one of: it wires store, manager, router and faces together."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import cached_property, partial
from typing import Any, TypeVar, cast

from fastapi import APIRouter, Request
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._run.hooks import Hook
from .._run.manager import StreamManager
from .._stream.stream import Limits
from ..settings import ResumableOptions, takes
from ..stores import MeasuredStore, open_store
from ..stores.base import Store
from ..stores.memory import MemoryStore
from ..telemetry import Telemetry
from .admission import Service, http_errors
from .ai_sdk import build_ai_sdk_router
from .application import serve
from .endpoint import ResumableStream, decorate, handle_of
from .internals import application_of, routes_of
from .openapi import ReplayQuery
from .route import route_class
from .router import build_router, replay_stream, stop_stream

_HookT = TypeVar("_HookT", bound=Hook)
_EndpointT = TypeVar("_EndpointT", bound=Callable[..., Any])


class Resumable:
    """Makes streaming endpoints survive disconnects.

    Include `router`, and put `stream`, `Depends(resumable)`, `route_class` or `ResumableMiddleware` where streams
    begin. What is not given comes from the environment (`FASTAPI_RESUMABLE_<NAME>`), or has the default shown.

    Args:
        store: Where streams live: a store or its URL (`sqlite:///...`, `redis://...`). Default: `MemoryStore()`.
        prefix: Path of the router's routes. Default `/v1`.
        stream_id: A FastAPI dependency that returns the id by which a request names its stream, or `None` if the
            request is not to be resumable. Default: the header `X-Conversation-Id`.
        owner: A FastAPI dependency that returns the current user. Streams are kept by owner and id.
        on_conflict: What a request does if its id has a live stream: `replace` it, `attach` to it, or `reject`.
        event_ids: Whether server-sent events get an `id:` line to resume from. Default true.
        ping: Seconds without a byte from the application after which a keep-alive is recorded; 0: never. Default 15.
        max_stream_bytes: How many bytes of a stream are kept: always the newest ones. Default 4 MiB.
        max_total_bytes: How many bytes of all streams are kept; finished ones expire early to keep it. Default 1 GiB.
        max_streams: How many streams may be live at a time. Default 10,000.
        max_streams_per_owner: The same for one owner. Default: no limit.
        retention: Seconds for which a finished stream can be replayed. Default 300.
        head_timeout: Seconds for which the head of a response is held back until its first bytes come. Default 1.
        pending_timeout: Seconds for which a reader waits for a stream that is queued. Default 2.
        stall_timeout: Seconds after which a reader that takes no bytes is disconnected. Default 30.
        stop_grace: Seconds after which a producer that ignores being stopped is abandoned. Default 5.
        shutdown_grace: Seconds that live streams have to finish when the server shuts down. Default 10.
        auto_id: Whether a request that names no stream gets a random id. Default false.
        terminal_event: How a stream that did not complete says so: `sse`, `openai`, `ai-sdk`, `ag-ui`, `anthropic`,
            or a function of status, code and message to bytes or `None`. Default `sse`.
        trace_stream_ids: Whether the spans of OpenTelemetry carry the stream id. Default true.

    Raises:
        ValueError: A setting is wrong; the message says which, and what it must be.
    """

    @takes(ResumableOptions)
    def __init__(self, **given: Any) -> None:
        # A store that is `None` may still come from the environment.
        self.settings = ResumableOptions.load(
            {key: value for key, value in given.items() if value is not None or key != "store"}
        )
        store = self.settings.store
        self.store: Store = open_store(store or "memory") if store is None or isinstance(store, str) else store
        self.store.configure(
            Limits(**{limit.name: getattr(self.settings, limit.name) for limit in fields(Limits) if limit.init})
        )
        telemetry = Telemetry(self.store, stream_ids=self.settings.trace_stream_ids)
        self.manager = StreamManager(
            # In this process, a call takes less time than it takes to measure it.
            self.store if isinstance(self.store, MemoryStore) else cast(Store, MeasuredStore(self.store, telemetry)),
            self.settings,
            telemetry,
        )
        self._service = Service(self.manager, self.settings)
        self.route_class: type[APIRoute] = route_class(self._service)
        """Makes every endpoint of a router resumable: `APIRouter(route_class=resumable.route_class)`."""

    # FastAPI takes tens of milliseconds to examine the routes of a router, so that one is made when it is asked for.

    @cached_property
    def router(self) -> APIRouter:
        """Replay, stop, lookup and watch: `app.include_router(resumable.router)`."""
        return build_router(self._service, self._lifespan)

    @cached_property
    def ai_sdk_router(self) -> APIRouter:
        """What the AI SDK asks for: `app.include_router(resumable.ai_sdk_router, prefix="/api/chat")`."""
        return build_ai_sdk_router(self._service)

    # The faces.

    def stream(self, endpoint: _EndpointT) -> _EndpointT:
        """Make an endpoint that returns a response resumable. Called directly, it behaves as if it were undecorated.

        Raises:
            TypeError: The endpoint uses `yield`; the message names the route class that serves those.
        """
        # A parameter of its own for each `Resumable`, because an endpoint may be one of several.
        parameter = self._service.scope_key.replace(".", "_stream_")
        return decorate(endpoint, self, parameter)  # type: ignore[return-value]  # the same to call

    async def __call__(self, request: HTTPConnection) -> ResumableStream:
        """The dependency: `stream: Annotated[ResumableStream, Depends(resumable)]`."""
        return await handle_of(request, self._service)

    async def serve(
        self,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Run any ASGI application, and record its response if the request names a stream.

        Args:
            app: The application.
            scope: The request.
            receive: The request's body and disconnect.
            send: The response.
            headers: Request headers for the application, if not those of the request.

        Raises:
            HTTPException: The request is refused.
            Exception: What `app` raised before it began to answer.
        """
        await serve(self._service, app, scope, receive, send, headers, {}, routes_of(app))

    # For routes of the application's own.

    async def replay(self, request: Request, stream_id: str, *, owner: str | None = None) -> Response:
        """Answer the request of another route with a stream, by its query and headers, as the router's replay does.

        Raises:
            HTTPException: There is no such stream, or no such place in it.
        """
        given = request.query_params
        # By the names of the fields: not every pydantic takes the alias of FastAPI's `Query` for its own.
        query = ReplayQuery.model_construct(
            start=given.get("from"), starting_after=given.get("starting_after"), epoch=given.get("epoch")
        )
        with http_errors():
            return await replay_stream(self._service, request, owner, stream_id, query)

    async def stop(self, stream_id: str, *, owner: str | None = None, epoch: str | None = None) -> None:
        """Stop a stream, as the router's `DELETE` does: no-op if there is none.

        Raises:
            HTTPException: The id is not a valid stream id.
        """
        with http_errors():
            await stop_stream(self._service, owner, stream_id, epoch)

    # Hooks and the end.

    def on_finish(self, hook: _HookT) -> _HookT:
        """Register a function that gets every stream once it has ended, as a `FinishedStream`.

        It may be `async` or not, runs in the background, and its exceptions are logged.
        """
        self.manager.hooks.add(hook)
        return hook

    async def shutdown(self) -> None:
        """Refuse new streams, give live ones `shutdown_grace` seconds, then interrupt them, and end all responses.

        The library calls it on SIGTERM and SIGINT. Call it yourself if the server is stopped in another way.
        """
        await self.manager.shutdown()

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        # A test client may run the lifespan of one application several times.
        self.manager.reopen()
        self.manager.termination.start()
        try:
            yield
        finally:
            await self.manager.shutdown()
            self.manager.termination.stop()
            # A server sends no request after this; a test client may, without another start.
            self.manager.reopen()


class ResumableMiddleware:
    """Makes the given paths of an application resumable, also if the application is not FastAPI's.

    The dependencies of a FastAPI endpoint run before anything is answered from a log. Any other application cannot
    check the user before that: set `owner` then, so that only the user who started a stream can read or replace it.

    Args:
        app: The application.
        resumable: The `Resumable` that keeps the streams; include its router as well.
        paths: Paths as in a route, like `/v1/chat/completions` or `/runs/{run_id}/events`, below the root path.

    Raises:
        ValueError: A path does not start with a slash.
    """

    def __init__(self, app: ASGIApp, *, resumable: Resumable, paths: Sequence[str]) -> None:
        if isinstance(paths, str) or not all(path.startswith("/") for path in paths):
            raise ValueError(f"paths must be a list of paths that start with '/', like ['/v1/chat'], not {paths!r}.")
        self.app = app
        self._resumable = resumable
        # Starlette's own compiler, so that paths and their parameters mean here what they mean in a route.
        self._paths = [compile_path(path) for path in paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application in the background, if the request is for one of the paths and names a stream."""
        path_params = self._match(scope) if scope["type"] == "http" else None
        if path_params is None:
            await self.app(scope, receive, _without_doubles(send) if scope["type"] == "http" else send)
            return
        if "app" not in scope and isinstance(app := application_of(self.app), Starlette):
            # It stands around the whole application, whose replay route, exception handlers and overrides count.
            # They are put where the application puts them: what stands around looks for its route in the same scope.
            scope["app"], scope["root_path"] = app, getattr(app, "root_path", "") or scope.get("root_path", "")
        handlers = {
            HTTPException: http_exception_handler,
            RequestValidationError: request_validation_exception_handler,
            **getattr(scope.get("app"), "exception_handlers", {}),
        }
        # The application's own handlers are inside it, where they cannot see what is raised here.
        handlers = {key: handler for key, handler in handlers.items() if key not in (500, Exception)}
        await ExceptionMiddleware(partial(self._serve, path_params), handlers=handlers)(scope, receive, send)

    async def _serve(self, path_params: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        # The log holds the application's own bytes; a compression inside it would be recorded.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        service = self._resumable._service  # noqa: SLF001  # of this module
        routes = routes_of(self.app)
        if routes is None:
            routes = routes_of(scope.get("app"))
        await serve(service, self.app, scope, receive, send, headers, path_params, routes)

    def _match(self, scope: Scope) -> dict[str, Any] | None:
        """The path parameters of a request for one of the paths; `None` if it is for none."""
        # By ASGI, `path` includes the root path; one of a slash alone stands for none.
        path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        for pattern, _, convertors in self._paths:
            if (found := pattern.fullmatch(path)) is not None:
                return {name: convertors[name].convert(value) for name, value in found.groupdict().items()}
        return None


def _without_doubles(send: Send) -> Send:
    """For replays: middleware inside the face adds its headers again to a record that has them from the first time."""

    # Not `async`, so that a message of any other response costs no coroutine.
    def send_once(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            headers = [tuple(header) for header in message.get("headers", ())]
            if any(name == b"x-stream-epoch" for name, _ in headers):
                message = {**message, "headers": list(dict.fromkeys(headers))}
        return send(message)

    return send_once
