"""How a request is served: it runs and is recorded, runs unrecorded, or is answered from a log. The same for all faces.

This is decided once all dependencies and parameters of the endpoint have accepted the request. Before that, no id is
reserved, and the client learns nothing about the stream.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import anyio
import anyio.from_thread
from fastapi import Request
from pydantic import Field
from starlette.responses import Response
from starlette.types import ASGIApp, Scope, Send

from .._core.ids import StreamKey
from .._run.body import RequestBody
from .._run.exchange import Exchange, accepted
from .._run.manager import StreamManager
from .._run.producer import Producer
from .._run.replay import counting_refusals, replay
from .._stream.stream import Stream
from ..exceptions import StoreUnavailable, StreamPending
from ..settings import ResumableSettings, StoreUrl
from ..stores.base import Store
from .errors import http_errors
from .request import IdDependency, Identifier, Identity, Locator, header, last_event_id, prefers_async, raw_header

logger = logging.getLogger("fastapi_resumable")

MAX_WARNINGS = 100

_T = TypeVar("_T")
_A_DEPENDENCY = "must be a FastAPI dependency: a function that returns str or None"


class ResumableOptions(ResumableSettings):
    """What `Resumable` takes: its settings, and what can be set in code alone."""

    store: Store | StoreUrl | None = Field(  # type: ignore[assignment]  # wider: the object, too
        default=None,
        repr=False,  # it may hold a password
        description="must be a store, like MemoryStore(), 'memory', a file like 'sqlite:///streams.db', or the URL of "
        "a Redis, like 'redis://localhost:6379/0'",
    )
    stream_id: IdDependency | None = Field(default=None, description=_A_DEPENDENCY)
    owner: IdDependency | None = Field(default=None, description=_A_DEPENDENCY)


class Service:
    """What the faces and the routes of one `Resumable` share."""

    def __init__(self, manager: StreamManager, settings: ResumableOptions) -> None:
        self.manager = manager
        self.settings = settings
        stream_id = settings.stream_id or header("X-Conversation-Id")
        self.identifier = Identifier(stream_id, settings.owner, auto_id=settings.auto_id)
        # Two of them in one application must not be confused.
        token = secrets.token_hex(8)
        self.locator = Locator(f"resumable_replay_{token}")
        self.scope_key = f"fastapi_resumable.{token}"
        """Under which a request's scope has its admission."""
        self._warned: set[str] = set()

    def warn_once(self, message: str) -> None:
        """Log a warning, the first time."""
        if message not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(message)
            logger.warning(message)


class ClientGone(Exception):
    """The client left while its request waited for a stream to begin."""


class Admission:
    """The decision about one request, and the exchange of one that is recorded."""

    end_delay = 0.0
    """Seconds for which the end of the body waits for its application to return, in case it raises instead."""
    exchange: Exchange | None = None
    """The exchange of a request that is to run and be recorded."""
    producer: Producer | None = None
    generator: AsyncIterator[Any] | Iterator[Any] | None = None
    """That of an endpoint that uses `yield`, once it has begun."""
    records_result = False
    """Whether what the endpoint returns is recorded, rather than only what it hands to its handle."""
    _is_decided = False
    _answer: Response | None = None

    def __init__(self, service: Service, request: Request, identity: Identity, body: RequestBody, send: Send) -> None:
        self.service = service
        self.request = request
        self.identity = identity
        self._body = body
        self._send = send

    @property
    def names_a_stream(self) -> bool:
        """Whether there is anything to decide."""
        return self.identity.names_a_stream

    async def decide(self) -> Response | None:
        """Decide, once; return the answer that stands in for the endpoint's, or `None` if the endpoint is to run.

        Raises:
            HTTPException: The request is refused.
            Exception: What the dependencies raised that name the stream and its owner.
        """
        if self._is_decided or not self.names_a_stream:
            return self._answer
        with http_errors():
            if self.identity.refusal is not None:
                raise self.identity.refusal
            try:
                self._answer = await self._admit()
            except ClientGone:
                self._answer = Response(status_code=499)
        self._is_decided = True
        return self._answer

    async def _admit(self) -> Response | None:
        service, request = self.service, self.request
        key = self.identity.key
        assert key is not None
        # Where no lifespan runs, as in a mounted application, this is our first call on the event loop.
        service.manager.termination.start()
        location = service.locator.path(request.scope, key.id)
        last = None if self.identity.is_chosen else last_event_id(request)
        if last:
            with counting_refusals(service.manager, "resume"):
                find = service.manager.store.find(key, service.settings.pending_timeout)
                stream = await self._unless_client_leaves(find)
                return await replay(service.manager, stream, None, last, location)
        try:
            started = await self._start(key)
        except StoreUnavailable as exc:
            if not exc.degrade:
                raise
            logger.warning("request for stream %r is answered unrecorded: %s", key.id, exc.message, extra=key.fields())
            return None
        except StreamPending as exc:
            service.manager.telemetry.read("attach", exc.code)
            raise
        if not isinstance(started, Producer):
            if prefers_async(request):
                return accepted(started.item, location)
            kind = "replay" if started.is_final else "attach"
            return await replay(service.manager, started, None, None, location, kind=kind)
        self.producer = started
        self.exchange = Exchange(
            service.manager,
            started,
            self._body,
            self._send,
            location=location,
            end_delay=self.end_delay,
            respond_async=prefers_async(request),
        )
        return None

    async def _start(self, key: StreamKey) -> Producer | Stream:
        settings = self.service.settings
        idempotency_key = raw_header(self.request.scope, b"idempotency-key")
        text = None if idempotency_key is None else idempotency_key.decode("latin-1")
        start = self.service.manager.start(key, text)
        if idempotency_key is None and settings.on_conflict != "attach":
            # There is nothing to wait for but the store, so no need of tasks.
            return await start
        return await self._unless_client_leaves(start)

    async def _unless_client_leaves(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do what may wait for another request's stream to begin, for as long as the client is there."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(self._body.disconnected())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGone
            return working.result()
        except asyncio.CancelledError:
            if working.done() and not working.cancelled() and working.exception() is None:
                started = working.result()
                if isinstance(started, Producer):
                    with anyio.CancelScope(shield=True):
                        await self.service.manager.release(started)
            raise
        finally:
            working.cancel()
            leaving.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({working, leaving})

    # Called at the endpoint, where FastAPI has solved and validated everything.

    async def enter(self) -> Response | None:
        """What to answer instead of running the endpoint; `None`: run it."""
        return await self.decide()

    async def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run an `async def` endpoint, or return what stands in for its result."""
        answer = await self.enter()
        return await call() if answer is None else answer

    def run_in_thread(self, call: Callable[[], Any]) -> Any:
        """The same for a `def` endpoint, from within the thread that FastAPI runs it in."""
        answer = anyio.from_thread.run(self.enter)
        return call() if answer is None else answer

    def record(self, response: Response) -> Response:
        """Have a response recorded, if that is done by response."""
        return response


async def run_recorded(exchange: Exchange, app: ASGIApp, scope: Scope, send: Send) -> None:
    """Run an application whose request was admitted.

    Raises:
        HTTPException: The stream was stopped before it began.
        Exception: What the application raised before the stream had begun.
    """
    try:
        with http_errors():
            await exchange.run(app, scope, send)
    except Exception as exc:
        if not exchange.answered:
            raise
        log_failure(exchange, exc)


def log_failure(exchange: Exchange, error: Exception) -> None:
    """Log what went wrong when the client had been answered 202 already."""
    producer = exchange.producer
    fields = producer.key.fields(producer.reservation.epoch)
    logger.error("stream %r failed before it began", producer.key.id, exc_info=error, extra=fields)
