"""`Resumable`: what an application makes one of. It wires the store, the manager, the router and the faces together."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .._core.terminal import TerminalEvent
from .._run.body import RequestBody
from .._run.hooks import Hook
from .._run.manager import StreamManager
from .._stream.stream import Limits
from ..stores.base import OnConflict, Store
from ..stores.measured import MeasuredStore
from ..stores.memory import MemoryStore
from ..stores.opening import open_store
from ..telemetry import Telemetry
from . import door, internals
from .admission import Admission, Service
from .ai_sdk import build_ai_sdk_router
from .decorator import decorate
from .errors import http_errors
from .handle import EndpointAdmission, ResumableStream
from .request import IdDependency, Identifier, Locator, body_again, header
from .route import route_class, serve
from .router import Routes, build_router
from .settings import load_settings

_HookT = TypeVar("_HookT", bound=Hook)
_EndpointT = TypeVar("_EndpointT", bound=Callable[..., Any])


UNSET: Any = object()
"""Not given: from the environment, or the default."""


class Resumable:
    """Makes streaming endpoints survive disconnects.

    Include `router`, and put `stream`, `Depends(resumable)`, `route_class` or `ResumableMiddleware` where streams
    begin. What is not given is taken from the environment (`FASTAPI_RESUMABLE_<NAME>`), or has the default shown.

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

    def __init__(
        self,
        *,
        store: Store | str | None = None,
        prefix: str = UNSET,
        stream_id: IdDependency | None = None,
        owner: IdDependency | None = None,
        on_conflict: OnConflict = UNSET,
        event_ids: bool | Literal["first"] = UNSET,
        ping: float = UNSET,
        max_stream_bytes: int = UNSET,
        max_total_bytes: int = UNSET,
        max_streams: int = UNSET,
        max_streams_per_owner: int | None = UNSET,
        retention: float = UNSET,
        head_timeout: float = UNSET,
        pending_timeout: float = UNSET,
        stall_timeout: float = UNSET,
        stop_grace: float = UNSET,
        shutdown_grace: float = UNSET,
        auto_id: bool = UNSET,
        terminal_event: TerminalEvent = UNSET,
        trace_stream_ids: bool = UNSET,
    ) -> None:
        given = {
            "store": store if isinstance(store, str) else UNSET,
            "prefix": prefix,
            "on_conflict": on_conflict,
            "event_ids": event_ids,
            "ping": ping,
            "max_stream_bytes": max_stream_bytes,
            "max_total_bytes": max_total_bytes,
            "max_streams": max_streams,
            "max_streams_per_owner": max_streams_per_owner,
            "retention": retention,
            "head_timeout": head_timeout,
            "pending_timeout": pending_timeout,
            "stall_timeout": stall_timeout,
            "stop_grace": stop_grace,
            "shutdown_grace": shutdown_grace,
            "auto_id": auto_id,
            "terminal_event": terminal_event,
            "trace_stream_ids": trace_stream_ids,
        }
        self.settings = load_settings({name: value for name, value in given.items() if value is not UNSET})
        for name, dependency in (("stream_id", stream_id), ("owner", owner)):
            if dependency is not None and not callable(dependency):
                raise ValueError(
                    f"{name} must be a FastAPI dependency: a function that returns str or None, not {dependency!r}."
                )
        if store is None or isinstance(store, str):
            store = open_store(self.settings.store)
        elif not isinstance(store, Store):
            raise ValueError(
                f"store must be a store, like MemoryStore(), or its URL, like sqlite:///streams.db, not {store!r}."
            )
        self.store: Store = store
        self.store.configure(
            Limits(
                max_stream_bytes=self.settings.max_stream_bytes,
                max_total_bytes=self.settings.max_total_bytes,
                max_streams=self.settings.max_streams,
                max_streams_per_owner=self.settings.max_streams_per_owner,
                retention=self.settings.retention,
                event_ids=self.settings.event_ids,
                terminal_event=self.settings.terminal_event,
            )
        )
        telemetry = Telemetry(store, stream_ids=self.settings.trace_stream_ids)
        self.manager = StreamManager(
            # In this process, a call takes less time than it takes to measure it.
            self.store if isinstance(store, MemoryStore) else cast(Store, MeasuredStore(store, telemetry)),
            self.settings,
            telemetry,
        )
        # Two of them in one application must not be confused.
        token = secrets.token_hex(8)
        self._locator = locator = Locator(f"resumable_replay_{token}")
        self._owner = owner
        self._service = Service(
            self.manager,
            self.settings,
            Identifier(stream_id or header("X-Conversation-Id"), owner, auto_id=self.settings.auto_id),
            locator,
            scope_key=f"fastapi_resumable.{token}",
        )
        self._routes = Routes(self.manager, self.settings.pending_timeout, locator)
        self.route_class: type[APIRoute] = route_class(self._service)
        """Makes every endpoint of a router resumable: `APIRouter(route_class=resumable.route_class)`."""

    # FastAPI takes tens of milliseconds to examine the routes of a router, so that one is made when it is asked for.

    @cached_property
    def router(self) -> APIRouter:
        """Replay, stop, lookup and watch: `app.include_router(resumable.router)`."""
        return build_router(
            self.manager,
            prefix=self.settings.prefix,
            owner=self._owner,
            pending_timeout=self.settings.pending_timeout,
            locator=self._locator,
            lifespan=self._lifespan,
        )

    @cached_property
    def ai_sdk_router(self) -> APIRouter:
        """What the AI SDK asks for: `app.include_router(resumable.ai_sdk_router, prefix="/api/chat")`."""
        return build_ai_sdk_router(
            self.manager,
            owner=self._owner,
            pending_timeout=self.settings.pending_timeout,
            locator=self._locator,
        )

    # The faces.

    def stream(self, endpoint: _EndpointT) -> _EndpointT:
        """Decorate an endpoint that returns a response, to make it resumable. Called directly it is as it was.

        Raises:
            TypeError: The endpoint uses `yield`; the message names the route class that serves those.
        """
        return decorate(endpoint, self._admission)  # type: ignore[return-value]  # the same to call

    async def __call__(self, request: Request) -> ResumableStream:
        """The dependency: `stream: Annotated[ResumableStream, Depends(resumable)]`."""
        admission = await self._admission(request)
        if isinstance(admission, EndpointAdmission) and admission.names_a_stream:
            # A resume is answered there, in place of the endpoint.
            door.put_up(request.scope, self._service.scope_key)
        return ResumableStream(admission)

    async def _admission(self, request: Request) -> Admission:
        """The admission of a request, one for all that ask for it."""
        key = self._service.scope_key
        admission: Admission | None = request.scope.get(key)
        if admission is None:
            receive = body_again(request)
            identity = await self._service.identifier.identify(request, receive)
            body = RequestBody(request.receive, owed=False)
            send = internals.send_of(request)
            admission = EndpointAdmission(self._service, request, identity, body, send, end_delay=0.0)
            request.scope[key] = admission
            # So that the request is freed when it is over: nothing leads from it back to itself.
            internals.dependency_stack(request.scope).callback(request.scope.pop, key, None)
        return admission

    async def serve(
        self,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Run any ASGI application resumable; as it is, if the request names no stream.

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
        await serve(self._service, app, scope, receive, send, headers)

    def warn_without_owner(self) -> None:
        """Say, once, what the middleware cannot check."""
        if self._owner is None:
            self._service.warn_once(
                "ResumableMiddleware answers a resume before the application can check who asks: without `owner`, "
                "anyone who knows a stream id can read that stream, and replace it. "
                "Set Resumable(owner=...) to a dependency that returns who asks."
            )

    # For routes of the application's own.

    async def replay(self, request: Request, stream_id: str, *, owner: str | None = None) -> Response:
        """Answer the request of another route with a stream, by its query and headers, as the router's replay does.

        Raises:
            HTTPException: There is no such stream, or no such place in it.
        """
        query = request.query_params
        with http_errors():
            return await self._routes.replay(
                request, owner, stream_id, query.get("from"), query.get("starting_after"), query.get("epoch")
            )

    async def stop(self, stream_id: str, *, owner: str | None = None, epoch: str | None = None) -> None:
        """Stop a stream, as the router's `DELETE` does: no-op if there is none.

        Raises:
            HTTPException: It is no stream id.
        """
        with http_errors():
            await self._routes.stop(owner, stream_id, epoch)

    # Hooks and the end.

    def on_finish(self, hook: _HookT) -> _HookT:
        """Register a function that gets every stream once it has ended, as a `FinishedStream`.

        It may be `async` or not, runs beside everything else, and what it raises is logged.
        """
        self.manager.hooks.add(hook)
        return hook

    async def shutdown(self) -> None:
        """Refuse new streams, give live ones `shutdown_grace` seconds, then interrupt them; no reader is left.

        Called on SIGTERM and SIGINT by itself. Call it where the server is stopped in another way.
        """
        await self.manager.shutdown()

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        self.manager.reopen()
        self.manager.termination.start()
        try:
            yield
        finally:
            await self.manager.shutdown()
            self.manager.termination.stop()
            # A server sends no request after this; a test client may, without another start.
            self.manager.reopen()
