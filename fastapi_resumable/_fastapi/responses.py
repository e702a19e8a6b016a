"""Responses that are recorded, and those that are sent in place of an endpoint's or after its dependencies."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import anyio
import anyio.from_thread
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import empty_send
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from .._run.body import RequestBody
from .._run.errors import close_generator
from .._run.exchange import Exchange
from .._run.replay import ReplayResponse
from ..stores.base import stop_error
from . import internals
from .admission import Admission, Identity, Service, admissions_of, http_error, http_errors

logger = logging.getLogger("fastapi_resumable")

_ANSWER = "fastapi_resumable.answer"


def log_failure(exchange: Exchange, error: Exception) -> None:
    """Log what went wrong when the client had been answered 202 already; a stop is no failure."""
    producer = exchange.producer
    if producer.stop_code is None:
        logger.error("stream %r failed before it began", producer.key.id, exc_info=error, extra=producer.fields)


# Recorded responses.


async def run_recorded(exchange: Exchange, app: ASGIApp, scope: Scope, _receive: Receive, send: Send) -> None:
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


async def run_to_the_end(exchange: Exchange, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await run_recorded(exchange, app, scope, receive, send)
    if exchange.cancelled is not None:
        raise exchange.cancelled


class RecordedResponse(Response):
    """Mixed into the class of a user's response: sent through a log."""

    _exchanges: Sequence[Exchange]
    """One for each `Resumable` that has it recorded. The first is the innermost: it came to the endpoint last."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the user's response in the background, and answer from the log.

        Raises:
            Exception: What the user's response raised before the stream had begun.
        """
        app: ASGIApp = self._run
        for exchange in self._exchanges:
            app = partial(run_recorded, exchange, app)
        inner, outer = self._exchanges[0], self._exchanges[-1]
        try:
            await app(scope, receive, send)
        finally:
            _close_dependencies(scope, inner.failure if inner.has_begun else None, outer.cancelled)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        threaded = internals.threaded_generator(self)
        try:
            await super().__call__(scope, receive, send)
        finally:
            await close_generator(getattr(self, "body_iterator", None))
            if threaded is not None:
                await close_generator(threaded)


def record(response: Response, exchange: Exchange) -> Response:
    """Return a copy of a response that is recorded, as the same object may be returned for several requests."""
    exchanges: Sequence[Exchange] = getattr(response, "_exchanges", ())
    if exchange in exchanges:
        return response
    cls = type(response) if exchanges else _recorded_class(type(response))  # type: ignore[arg-type]  # a class has a hash
    exchange.has_response = True
    recorded: Response = cls.__new__(cls)
    # Not by attributes: a response class of the user's may have a `__setattr__` of its own.
    recorded.__dict__.update(
        response.__dict__, _exchanges=sorted((*exchanges, exchange), key=lambda each: -each.producer.created)
    )
    return recorded


@lru_cache(maxsize=256)
def _recorded_class(cls: Any) -> Any:
    """A subclass of a response's class that is recorded; so it is still an instance of what it was."""
    # With the names of the user's class, because logs and traces show them.
    return type(cls.__name__, (RecordedResponse, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


class Answered(Response):
    """Sends nothing: the client has its answer. The request's dependencies see what went wrong afterwards."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self._failure = failure

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        """Send nothing. As in FastAPI, there are no background tasks after an endpoint that raised."""
        _close_dependencies(scope, self._failure, None)
        if self.background is not None and self._failure is None:
            await self.background()


def _close_dependencies(scope: Scope, failure: BaseException | None, cancelled: BaseException | None) -> None:
    """Make sure that the request's dependencies close undisturbed, and see how the stream ended.

    Args:
        scope: The request.
        failure: The exception of the stream, shown only to the dependencies, because the log has reported it already.
        cancelled: A cancellation of the request, put off until nothing hangs on the request any more.
    """
    if failure is None and cancelled is None:
        return
    stack = internals.dependency_stack(scope)
    shield = internals.cleanup_scope(scope)
    if shield is not None:
        shield.shield = True
    # Taken off the stack, so that they are closed by what is put there instead.
    dependencies = stack.pop_all()

    async def close(_type: Any, error: BaseException | None, _traceback: Any) -> bool:
        seen = error or failure
        is_handled = False
        try:
            with anyio.CancelScope(shield=True) if shield is None else nullcontext():
                details = (type(seen), seen, seen.__traceback__) if seen is not None else (None, None, None)
                is_handled = bool(await dependencies.__aexit__(*details))
        except Exception as exc:
            # The failure is in the log already, and the dependency has only let it through.
            if exc is not failure:
                raise
        # Raised last, when nothing hangs on the request any more.
        if cancelled is not None:
            raise cancelled
        return is_handled

    stack.push_async_exit(close)


# The admission of a request whose response is recorded.


class EndpointAdmission(Admission):
    """Admits one request to its endpoint, and has the response recorded that the endpoint returns."""

    is_of_app = False
    end_delay = 0.0
    is_unrendered = False
    """Whether the handle was given what FastAPI has yet to render."""
    _holds = False

    def __init__(self, service: Service, request: Request, identity: Identity) -> None:
        super().__init__(service, request.scope, identity, RequestBody(request.receive), internals.send_of(request))
        # That of a request which the application has made without it, as its own class of requests may be, only raises.
        self.can_send = self._send is not empty_send
        self._request = request

    async def enter(self) -> Response | None:
        """Decide, and hold the id until the request ends."""
        # Not before all dependencies are solved: one of them may have read the body.
        if not self._is_decided and not internals.has_read_body(self._request):
            self._body.expect(self.scope)
        answer = await self.decide()
        if self.exchange is not None and not self._holds:
            self._holds = True
            if self.service.admission_of(self.scope) is not self:
                # The request was cancelled, which does not end a thread that waits here for it.
                await self.exchange.release()
                raise asyncio.CancelledError
            internals.dependency_stack(self.scope).push_async_callback(self.exchange.release)
            # So that `request.is_disconnected()` tells of a stop, and not of a client that has left.
            internals.replace_receive(self._request, self.exchange.recorder.receive)
        return answer

    async def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run the endpoint so that a stop cancels it, and have its result recorded."""
        if (exchange := self.exchange) is None:
            return await call()
        producer = exchange.producer
        try:
            with anyio.CancelScope() as scope:
                producer.cancel_request = scope.cancel
                result = await call()
            if scope.cancelled_caught:
                raise http_error(stop_error(producer.stop_code))
        except Exception as exc:  # noqa: BLE001  # raised again, unless the client has its answer
            return _failed(exchange, exc)
        return await self._finish(exchange, result)

    def run_in_thread(self, call: Callable[[], Any]) -> Any:
        """The same, but nothing can cancel it."""
        if (exchange := self.exchange) is None:
            return call()
        try:
            result = call()
        except Exception as exc:  # noqa: BLE001  # raised again, unless the client has its answer
            return _failed(exchange, exc)
        return anyio.from_thread.run(self._finish, exchange, result)

    async def _finish(self, exchange: Exchange, result: Any) -> Any:
        """What FastAPI gets in place of the endpoint's result."""
        if exchange.has_response:
            # This, or one that sends it, as a decorator of the application's may have made.
            return result
        if isinstance(result, ReplayResponse) and any(result is each.answer for each in admissions_of(self.scope)):
            # Another `Resumable` has answered, within this one. A replay of the endpoint's own is not recorded.
            return record(result, exchange)
        await exchange.release()
        if self.is_unrendered:
            path = getattr(self.scope.get("route"), "path", "a route")
            self.service.warn_once(
                f"the endpoint of {path} returned a {type(result).__name__}, which FastAPI has yet to "
                "render: it is not recorded. Return a Response, or put the endpoint on a router made with "
                "APIRouter(route_class=resumable.route_class)."
            )
        return Answered() if exchange.answered else result


def _failed(exchange: Exchange, error: Exception) -> Response:
    """Raise what went wrong, unless the client has been answered 202 already."""
    if not exchange.answered:
        raise error
    log_failure(exchange, error)
    return Answered(error)


# The answers of our own routes.


class AnswerLater(Response):
    """Has a response sent when the request's dependencies are closed; on an `AnswerRoute` only.

    So what `owner` or a router's dependencies hold (a database session, say) is given back before the first byte is
    read, rather than kept for as long as a client follows a stream.
    """

    def __init__(self, response: Response) -> None:
        super().__init__()
        self._response = response

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        """Leave the response to the route, with the background tasks of the dependencies, which FastAPI puts here."""
        self._response.background = self.background
        scope[_ANSWER] = self._response


class AnswerRoute(APIRoute):
    """The class of our own routes: sends what is to be answered later, and turns our errors into answers."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for this route; a line feed in an id counts as any other control character.

        Starlette's patterns pass over one at the end, so that another stream would be found, and match none before it.
        """
        if "\n" in scope["path"]:
            scope = {**scope, "path": scope["path"].replace("\n", "\0")}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        with http_errors():
            await super().handle(scope, receive, send)
            # Out of the scope, because it leads back to the request.
            answer: Response | None = scope.pop(_ANSWER, None)
            if answer is not None:
                await answer(scope, receive, send)
