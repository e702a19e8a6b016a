"""The handle that an endpoint gets, `stream(response)`, and what it makes of a response: one that is recorded."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import anyio.from_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._run.exchange import Exchange, close_generator, stopped_while_queued
from . import internals
from .admission import Admission, log_failure, run_recorded
from .errors import http_error

if TYPE_CHECKING:
    from starlette.responses import Response as _Base
else:
    _Base = object

ResponseT = TypeVar("ResponseT", bound=Response)


class ResumableStream:
    """A request's stream, as an endpoint sees it. Falsy if the request names no stream."""

    def __init__(self, admission: Admission | None = None) -> None:
        self._admission = admission if admission is not None and admission.names_a_stream else None

    @property
    def id(self) -> str | None:
        """The stream id, or `None` if the request names none."""
        key = self._admission.identity.key if self._admission is not None else None
        return None if key is None else key.id

    @property
    def epoch(self) -> str | None:
        """The epoch that this request begins; `None` in dependencies, which are solved before it does."""
        producer = self._admission.producer if self._admission is not None else None
        return None if producer is None else producer.reservation.epoch

    @property
    def stopped(self) -> bool:
        """Whether the stream was stopped. Safe to ask from any thread: a sync generator cannot be cancelled."""
        producer = self._admission.producer if self._admission is not None else None
        return producer is not None and producer.stop_code is not None

    def __bool__(self) -> bool:
        return self._admission is not None

    def __call__(self, response: ResponseT) -> ResponseT:
        """Make `response` resumable. Without a stream id, it is returned unchanged."""
        return response if self._admission is None else cast("ResponseT", self._admission.record(response))


class EndpointAdmission(Admission):
    """Admits one request to its endpoint, and has the response recorded that the endpoint returns."""

    _holds = False

    async def enter(self) -> Response | None:
        """Decide, and hold the id until the request ends."""
        answer = await self.decide()
        if self.exchange is not None and not self._holds:
            self._holds = True
            internals.dependency_stack(self.request.scope).push_async_callback(self.exchange.release)
            # So that `request.is_disconnected()` tells of a stop, and not of a client that has left.
            internals.replace_receive(self.request, self.exchange.recorder.receive)
        return answer

    async def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run an `async def` endpoint; a stop cancels it."""
        answer = await self.enter()
        if answer is not None:
            return answer
        if self.producer is None:
            return await call()
        try:
            with anyio.CancelScope() as scope:
                self.producer.cancel_request = scope.cancel
                result = await call()
            if scope.cancelled_caught:
                raise http_error(stopped_while_queued(self.producer.stop_code or "cancelled"))
        except Exception as exc:  # noqa: BLE001  # raised again, unless the client has its answer
            return self._too_late(exc)
        return await self._finish(result)

    def run_in_thread(self, call: Callable[[], Any]) -> Any:
        """Run a `def` endpoint, which nothing can cancel."""
        answer = anyio.from_thread.run(self.enter)
        if answer is not None:
            return answer
        if self.producer is None:
            return call()
        try:
            result = call()
        except Exception as exc:  # noqa: BLE001  # raised again, unless the client has its answer
            return self._too_late(exc)
        return anyio.from_thread.run(self._finish, result)

    def _too_late(self, error: Exception) -> Response:
        """What is left to do if the endpoint fails: nothing, if the client has been answered 202 already."""
        if self.exchange is None or not self.exchange.answered:
            raise error
        log_failure(self.exchange, error)
        return _Answered(error)

    async def _finish(self, result: Any) -> Any:
        """What FastAPI gets in place of the endpoint's result."""
        if self.records_result and isinstance(result, Response):
            result = self.record(result)
        if isinstance(result, RecordedResponse):
            return result
        assert self.exchange is not None
        await self.exchange.release()
        if self.records_result:
            self.service.warn_once(
                f"the endpoint of {self.request.url.path} returned a {type(result).__name__}, which FastAPI has yet to "
                "render: it is not recorded. Return a Response, or put the endpoint on a router made with "
                "APIRouter(route_class=resumable.route_class)."
            )
        return _Answered(None) if self.exchange.answered else result

    def record(self, response: Response) -> Response:
        """Return a response like this one that runs in the background and is answered from the log."""
        if self.exchange is None or isinstance(response, RecordedResponse):
            return response
        recorded = _copy(response, _recorded_class(type(response)))  # type: ignore[arg-type]  # a class has a hash
        recorded.__dict__["_exchange"] = self.exchange
        return recorded


class RecordedResponse(_Base):
    """Mixed into the class of a user's response: sent through a log."""

    _exchange: Exchange

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Run the user's response in the background, and answer from the log.

        Raises:
            Exception: What the user's response raised before the stream had begun.
        """
        exchange = self._exchange
        try:
            await run_recorded(exchange, self._run, scope, send)
        finally:
            _close_dependencies(scope, exchange.failure if exchange.has_begun else None, exchange.cancelled)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await close_generator(getattr(self, "body_iterator", None))


class _Answered(Response):
    """Sends nothing: the client has its answer. The request's dependencies see what went wrong afterwards."""

    def __init__(self, failure: Exception | None) -> None:
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
    dependencies = stack.pop_all()

    async def close(_type: Any, error: BaseException | None, _traceback: Any) -> bool:
        seen = error or failure
        is_handled = False
        try:
            with anyio.CancelScope(shield=True) if shield is None else nullcontext():
                details = (type(seen), seen, seen.__traceback__) if seen is not None else (None, None, None)
                is_handled = bool(await dependencies.__aexit__(*details))
        except Exception as exc:
            if exc is not failure:
                raise
        if cancelled is not None:
            raise cancelled
        return is_handled

    stack.push_async_exit(close)


@lru_cache(maxsize=256)
def _recorded_class(cls: type[Response]) -> type[Response]:
    """A subclass of a response's class that is recorded; so it is still an instance of what it was."""
    return type(cls.__name__, (RecordedResponse, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _copy(response: Response, cls: type[Response]) -> Response:
    # A copy, because the same object may be returned for several requests.
    copied = cls.__new__(cls)
    copied.__dict__.update(response.__dict__)
    return copied
