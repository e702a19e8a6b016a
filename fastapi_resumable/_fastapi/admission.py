"""How a request is served: it runs and is recorded, runs unrecorded, or is answered from a log. The same for all faces.

This is decided once all dependencies and parameters of the endpoint have accepted the request. Before that, no id is
reserved, and the client learns nothing about the stream.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import anyio
from fastapi import HTTPException, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._core.ids import StreamKey, parse_stream_id
from .._run.body import RequestBody
from .._run.errors import close_generators
from .._run.exchange import Exchange, accepted
from .._run.headers import replay_path
from .._run.manager import StreamManager
from .._run.producer import Producer, reserve
from .._run.recorder import FIND_PRODUCER
from .._run.replay import WATCH_DELAY, counting_refusals, replay
from .._stream.stream import Stream
from ..exceptions import ResumableError, StoreUnavailable, StreamPending
from ..settings import ResumableOptions
from .internals import threaded_generator
from .request import (
    WHITESPACE,
    HeaderId,
    Paths,
    Solvers,
    check_found,
    first_headers,
    header,
    last_event_id,
    path_of,
    prefers_async,
    solve,
)

logger = logging.getLogger("fastapi_resumable")

_IS_ANSWERED = "fastapi_resumable.is_answered"
END_DELAY = 0.05
"""Seconds for which the end of a body that an application sends waits for the application to return.

FastAPI's own event streams end the body in order when their generator raises, and raise only then.
"""
CLIENT_LEFT = 499  # what access logs show of a request whose client has left

_T = TypeVar("_T")


def http_error(error: ResumableError) -> HTTPException:
    """The HTTPException for one of our errors; nothing else turns exceptions into answers."""
    return HTTPException(error.status_code, detail=error.detail, headers=error.headers or None)


@contextmanager
def http_errors() -> Iterator[None]:
    """Within the context, our errors are raised as the `HTTPException`s that FastAPI answers with."""
    try:
        yield
    except ResumableError as exc:
        raise http_error(exc) from exc


class Identity(NamedTuple):
    """The stream that a request names. What went wrong is kept until the request has passed all its other checks."""

    headers: dict[bytes, bytes]
    key: StreamKey = StreamKey(None, "")
    is_chosen: bool = False
    """Whether we chose the id, so that there can be no earlier stream."""
    refusal: Exception | None = None
    """What the dependencies raised, or what is wrong with the id."""


class Service:
    """What the faces and the routes of one `Resumable` share."""

    def __init__(self, manager: StreamManager, settings: ResumableOptions) -> None:
        self.manager = manager
        self.settings = settings
        # Two of them in one application must not be confused.
        token = secrets.token_hex(8)
        self.replay_route = f"resumable_replay_{token}"
        self.scope_key = f"fastapi_resumable.{token}"
        """Under which a request's scope has its admission."""
        self._stream_id = settings.stream_id or header("X-Conversation-Id")
        self._solvers: Solvers = WeakKeyDictionary()
        self._warned: set[str] = set()
        self._paths: Paths = {}

    def warn_once(self, message: str) -> None:
        """Log a warning, the first time."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    def admission_of(self, scope: Scope) -> "Admission | None":
        """The admission of a request that was admitted already."""
        admission: Admission | None = scope.get(self.scope_key)
        return admission if admission is not None and admission.is_for(scope) else None

    async def identify(self, request: Request, receive: Receive) -> Identity | None:
        """Find owner and id, if there is one; never raises. `receive` gives the body to a dependency that reads it."""
        if request.method in ("HEAD", "OPTIONS"):
            # They ask what another method would answer: they must not begin a stream, nor replace one.
            return None
        headers = first_headers(request.scope)
        try:
            if isinstance(self._stream_id, HeaderId):
                found = self._stream_id.decode(headers.get(self._stream_id.raw_name))
            else:
                found = check_found("stream_id", await solve(self._stream_id, request, receive, self._solvers))
            stream_id = parse_stream_id(found)
            if stream_id is None and not self.settings.auto_id:
                # The owner does not matter, as long as the request names no stream.
                return None
            owner = None
            if self.settings.owner is not None:
                owner = check_found("owner", await solve(self.settings.owner, request, receive, self._solvers))
        except Exception as exc:  # noqa: BLE001  # raised by `Admission.decide`, when the request has passed its checks
            return Identity(headers, refusal=exc)
        key = StreamKey(owner, stream_id or secrets.token_urlsafe(16))
        return Identity(headers, key, is_chosen=stream_id is None)

    def locate(self, scope: Scope, stream_id: str) -> str | None:
        """The path of a stream's replay, as the client of this request has to ask for it."""
        path = path_of(self.replay_route, scope, self._paths)
        if path is not None:
            return replay_path(path, stream_id)
        self.warn_once("streams cannot be replayed: add app.include_router(resumable.router) to the application")
        return None


class Admission:
    """The decision about one request that names a stream, and the exchange of one that is recorded."""

    is_of_app = True
    """Whether it is for all that an application does for its request, whatever it makes of the scope."""
    end_delay = END_DELAY
    can_send = True
    """Whether the client can be answered before the application's response has its channel."""
    exchange: Exchange | None = None
    """The exchange of a request that is to run and be recorded."""
    producer: Producer | None = None
    _is_decided = False
    answer: Response | None = None
    """What stands in for the endpoint's answer."""

    def __init__(self, service: Service, scope: Scope, identity: Identity, body: RequestBody, send: Send) -> None:
        self.service = service
        self.scope = scope
        self.identity = identity
        self.generators: list[object] = []
        """Those of an endpoint that uses `yield`, and of the response that FastAPI sends."""
        self._body = body
        self._send = send

    def is_for(self, scope: Scope) -> bool:
        """Whether it is for the request of a scope; not if that was made in process from a copy of ours."""
        ours = self.scope
        return self.is_of_app or (scope["path"] == ours["path"] and scope["method"] == ours["method"])

    async def decide(self) -> Response | None:
        """Decide, once; return the answer that stands in for the endpoint's, or `None` if the endpoint is to run.

        Raises:
            HTTPException: The request is refused.
            Exception: What the dependencies raised that name the stream and its owner.
        """
        if not self._is_decided:
            with http_errors():
                if self.identity.refusal is not None:
                    raise self.identity.refusal
                await self._body.begin(self.service.settings.head_timeout)
                self.answer = await self._admit()
            self._is_decided = True
        return self.answer

    async def _admit(self) -> Response | None:
        service, key, headers = self.service, self.identity.key, self.identity.headers
        manager, settings = service.manager, service.settings
        # Before anything is held, because an application's own routes may raise when they are asked for it.
        location = service.locate(self.scope, key.id)
        last = None if self.identity.is_chosen else last_event_id(self.scope, headers)
        if last:
            with counting_refusals(manager, "resume"):
                stream = await self._unless_client_leaves(manager.store.find(key, settings.pending_timeout))
                if stream is None:
                    return Response(status_code=CLIENT_LEFT)
                return await replay(manager, stream, None, last, location)
        idempotency_key = headers.get(b"idempotency-key")
        text = None if idempotency_key is None else idempotency_key.strip(WHITESPACE).decode("latin-1")
        start = reserve(manager, key, text)
        try:
            # Usually there is nothing to wait for but the store, so no need of tasks.
            may_wait = text is not None or settings.on_conflict == "attach"
            started = await (self._unless_client_leaves(start) if may_wait else start)
        except StoreUnavailable as exc:
            if not exc.degrade:
                raise
            logger.warning("request for stream %r is answered unrecorded: %s", key.id, exc.message, extra=key.fields())
            return None
        except StreamPending as exc:
            manager.telemetry.read("attach", exc.code)
            raise
        return Response(status_code=CLIENT_LEFT) if started is None else await self._take_up(started, location)

    async def _take_up(self, started: Producer | Stream, location: str | None) -> Response | None:
        """Prepare to run the application, or answer with the stream that the request is to follow."""
        manager, is_async = self.service.manager, self._answers_at_once()
        if isinstance(started, Producer):
            self.producer = started
            self.exchange = Exchange(
                started,
                self._body,
                self._send,
                location=location,
                end_delay=self.end_delay,
                respond_async=is_async,
                can_send=self.can_send,
            )
            return None
        if is_async:
            return accepted(started, location)
        return await replay(manager, started, None, None, location, kind="replay" if started.is_final else "attach")

    def _answers_at_once(self) -> bool:
        """Whether the client does not want to wait; of several that record its request, the outer one answers it."""
        is_async = prefers_async(self.scope, self.identity.headers)
        if not is_async or _IS_ANSWERED in self.scope or FIND_PRODUCER in self.scope:
            return False
        self.scope[_IS_ANSWERED] = True
        return True

    async def _unless_client_leaves(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Do what may wait for another request's stream to begin; `None` once the client has left."""
        leaving: asyncio.Task[None] | None = None
        with anyio.CancelScope() as scope:

            def watch() -> None:
                nonlocal leaving
                leaving = asyncio.ensure_future(self._body.disconnected())
                leaving.add_done_callback(lambda _: scope.cancel())

            timer = asyncio.get_running_loop().call_later(WATCH_DELAY, watch)
            try:
                return await work
            finally:
                timer.cancel()
                if leaving is not None:
                    leaving.cancel()
                    with anyio.CancelScope(shield=True):
                        await asyncio.wait({leaving})
        return None

    async def enter(self) -> Response | None:
        """Decide at the endpoint, where FastAPI has solved and validated everything."""
        return await self.decide()

    async def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run an `async def` endpoint."""
        return self.note_response(await call())

    def run_in_thread(self, call: Callable[[], Any]) -> Any:
        """Run a `def` endpoint, from within the thread that FastAPI runs it in."""
        return self.note_response(call())

    def note_response(self, response: Any) -> Any:
        """Return what the endpoint has returned, or FastAPI made of it, and note what generates it."""
        self.generators += getattr(response, "body_iterator", None), threaded_generator(response)
        return response

    async def close_generators(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Close what the endpoint generates before its dependencies are closed; a stop may leave it suspended."""
        is_stopped = self.producer is not None and self.producer.stop_code is not None
        await close_generators(self.generators, error, is_stopped=is_stopped)


def admissions_of(scope: Scope) -> list[Admission]:
    """The admissions of a request, which several `Resumable`s may record: the outermost first."""
    return [value for value in scope.values() if isinstance(value, Admission) and value.is_for(scope)]


async def enter_all(admissions: list[Admission]) -> Response | None:
    """What to answer instead of running the endpoint; if an outer one answers, inner ones have nothing to record."""
    for admission in admissions:
        if (answer := await admission.enter()) is not None:
            return answer
    return None
