"""What is sent: a recorded response, an answer in its place, and errors, in the format of FastAPI's."""

import logging
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import HTTPException, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .._run.exchange import Exchange, close_generator
from ..exceptions import ResumableError
from . import internals

if TYPE_CHECKING:
    from starlette.responses import Response as _Base
else:
    _Base = object

logger = logging.getLogger("fastapi_resumable")

_ANSWER = "fastapi_resumable.answer"


# The one place that turns exceptions into answers.


def http_error(error: ResumableError) -> HTTPException:
    """The HTTPException for one of our errors."""
    return HTTPException(error.status_code, detail=error.detail, headers=error.headers or None)


class http_errors:  # noqa: N801  # called like a function
    """Within the context, our errors are raised as the `HTTPException`s that FastAPI answers with."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ResumableError):
            raise http_error(error) from error


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


class RecordedResponse(_Base):
    """Mixed into the class of a user's response: sent through a log."""

    _exchanges: tuple[Exchange, ...]
    """One for each `Resumable` that has it recorded, the innermost first."""

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
        try:
            await super().__call__(scope, receive, send)
        finally:
            await close_generator(getattr(self, "body_iterator", None))


def record(response: Response, exchange: Exchange) -> Response:
    """Return a copy of a response that is recorded, as the same object may be returned for several requests."""
    exchanges: tuple[Exchange, ...] = getattr(response, "_exchanges", ())
    if exchange in exchanges:
        return response
    cls = type(response) if exchanges else _recorded_class(type(response))  # type: ignore[arg-type]  # a class has a hash
    recorded: Response = cls.__new__(cls)
    # Not by attributes: a response class of the user's may have a `__setattr__` of its own.
    recorded.__dict__.update(response.__dict__, _exchanges=(*exchanges, exchange))
    return recorded


def is_recorded(result: Any, exchange: Exchange) -> bool:
    """Whether what an endpoint has returned is a response that is recorded by this exchange."""
    return isinstance(result, RecordedResponse) and exchange in result._exchanges  # noqa: SLF001  # of this module


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
        """Send nothing."""
        _close_dependencies(scope, self._failure, None)


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


# The answers of our own routes.


def answer_later(request: Request, response: Response) -> Response:
    """Have a response sent when the request's dependencies are closed; on an `AnswerRoute` only.

    So what `owner` or a router's dependencies hold (a database session, say) is given back before the first byte is
    read, rather than kept for as long as a client follows a stream.
    """
    request.scope[_ANSWER] = response
    return Answered()


class AnswerRoute(APIRoute):
    """The class of our own routes: sends what is to be answered later, and turns our errors into answers."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        with http_errors():
            await super().handle(scope, receive, send)
            # Out of the scope, because it leads back to the request.
            answer: Response | None = scope.pop(_ANSWER, None)
            if answer is not None:
                await answer(scope, receive, send)
