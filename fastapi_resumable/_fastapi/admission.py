"""How a request is served: it runs and is recorded, runs unrecorded, or is answered from a log. The same for all faces.

This is decided once all dependencies and parameters of the endpoint have accepted the request. Before that, no id is
reserved, and the client learns nothing about the stream.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.from_thread
from fastapi import Request
from starlette.responses import Response
from starlette.types import Send

from .._run.body import RequestBody
from .._run.exchange import Exchange, accepted
from .._run.manager import StreamManager
from .._run.producer import Producer
from .._run.replay import counting_refusals, replay
from ..exceptions import StoreUnavailable
from .errors import http_errors
from .request import Identifier, Identity, Locator, last_event_id, prefers_async
from .settings import ResumableSettings

logger = logging.getLogger("fastapi_resumable")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Service:
    """What the faces of one `Resumable` share."""

    manager: StreamManager
    settings: ResumableSettings
    identifier: Identifier
    locator: Locator
    scope_key: str
    """Under which a request's scope has its admission: two `Resumable` in one application must not be confused."""
    warned: set[str] = field(default_factory=set)

    def warn_once(self, message: str) -> None:
        """Log a warning, the first time."""
        if message not in self.warned and len(self.warned) < 100:
            self.warned.add(message)
            logger.warning(message)


class ClientGone(Exception):
    """The client left while its request waited for a stream to begin."""


class Admission:
    """The decision about one request, and the exchange of one that is recorded."""

    def __init__(
        self, service: Service, request: Request, identity: Identity, body: RequestBody, send: Send, *, end_delay: float
    ) -> None:
        self.service = service
        self.request = request
        self.identity = identity
        self.exchange: Exchange | None = None
        """The exchange of a request that is to run and be recorded."""
        self.producer: Producer | None = None
        self.generator: AsyncIterator[Any] | Iterator[Any] | None = None
        """That of an endpoint that uses `yield`, once it has begun."""
        self.records_result = False
        """Whether what the endpoint returns is recorded, rather than only what it hands to its handle."""
        self._body = body
        self._send = send
        self._end_delay = end_delay
        self._is_decided = False
        self._answer: Response | None = None

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
        locate = service.locator.within(request.scope)
        last = None if self.identity.is_chosen else last_event_id(request)
        if last:
            with counting_refusals(service.manager, "resume"):
                find = service.manager.store.find(key, service.settings.pending_timeout)
                stream = await self._unless_client_leaves(find)
                return await replay(service.manager, stream, None, last, locate(key.id))
        idempotency_key = request.headers.get("idempotency-key")
        start = service.manager.start(key, idempotency_key)
        try:
            if idempotency_key is not None or service.settings.on_conflict == "attach":
                started = await self._unless_client_leaves(start)
            else:
                # Nothing to wait for but the store, so no need of tasks.
                started = await start
        except StoreUnavailable as exc:
            if not exc.degrade:
                raise
            logger.warning("request for stream %r is answered unrecorded: %s", key.id, exc.message, extra=key.fields())
            return None
        if not isinstance(started, Producer):
            if prefers_async(request):
                return accepted(started.item, locate(key.id))
            kind = "replay" if started.is_final else "attach"
            return await replay(service.manager, started, None, None, locate(key.id), kind=kind)
        self.producer = started
        self.exchange = Exchange(
            service.manager,
            started,
            self._body,
            self._send,
            locate=locate,
            end_delay=self._end_delay,
            respond_async=prefers_async(request),
        )
        return None

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
                await self._give_back(working.result())
            raise
        finally:
            working.cancel()
            leaving.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({working, leaving})

    async def _give_back(self, started: Any) -> None:
        if isinstance(started, Producer):
            with anyio.CancelScope(shield=True):
                await self.service.manager.release(started)

    async def release(self) -> None:
        """Give the id back, if it is held. No-op if the stream has begun."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            with anyio.CancelScope(shield=True):
                await exchange.release()

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


__all__ = ["Admission", "Service"]
