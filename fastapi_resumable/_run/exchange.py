"""One resumable request: its application runs in the background, and the client is answered from the log.

The request itself goes on until the application has ended, whatever happens to the client: so what hangs on the request
(dependencies with `yield`, uploaded files, the resources of middleware) lives as long as the producer needs it.
"""

import asyncio
import logging
from contextlib import AbstractContextManager, nullcontext, suppress

import anyio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope, Send

from .._stream.reader import Reader, Reading
from .._stream.stream import Stream
from ..stores.base import Reservation, stop_error
from .body import RequestBody
from .breaking import QuietlyBroken, end_of_body
from .errors import unwrap
from .headers import identify
from .manager import LAST_MOMENT
from .producer import Producer
from .recorder import Recorder, find_outer, inner_scope
from .replay import reporting_failure, serve

logger = logging.getLogger("fastapi_resumable")

GONE_TIMEOUT = 0.5
"""Seconds in which the server has to report a disconnect, after a `send` to the client has failed."""


class Exchange:
    """A request and its answer, around a recorder."""

    cancelled: asyncio.CancelledError | None = None
    """A cancellation of the request while it ran, for the caller to raise when nothing hangs on it any more."""
    has_begun = False
    """Whether there is a stream; what comes after that is in its log."""
    has_response = False
    """Whether a response of the endpoint's was made to be recorded."""
    answered = False
    """Whether a client that did not want to wait has its 202."""
    _reader: Reader | None = None
    _reading: Reading | None = None
    """How the client's reading of the stream came out."""
    _ending: asyncio.Task[None] | None = None

    def __init__(
        self,
        producer: Producer,
        body: RequestBody,
        send: Send,
        *,
        location: str | None,
        end_delay: float,
        respond_async: bool,
        can_send: bool,
    ) -> None:
        """Set up the exchange.

        With `respond_async` the client is answered 202 at the beginning, or after `pending_timeout`, if it can be
        sent to by then. The end of the body waits `end_delay` seconds for its application to return or to raise.
        """
        self._manager = manager = producer.manager
        self.producer = producer
        self._body = body
        self._send = send
        self._accept_timeout = manager.settings.pending_timeout if can_send else None
        self._location = location
        self.recorder = Recorder(
            producer, body, on_begin=self._read_from_start, pass_on=self._pass_on, end_delay=end_delay
        )
        self._accepting = (
            manager.tasks.spawn(self._accept(), name=f"resumable 202 {producer.key.id}") if respond_async else None
        )

    @property
    def failure(self) -> Exception | None:
        """What the application raised, unless it was being stopped."""
        error = self.producer.error
        if error is None or isinstance(error, Exception):
            return error
        # Raised in the request as it is, a cancellation of the generator's own would pass for one of the request.
        failure = RuntimeError(f"The application raised {type(error).__name__}.")
        failure.__cause__ = error
        return failure

    async def run(self, app: ASGIApp, scope: Scope, send: Send) -> None:
        """Answer the request with what `app` sends; return when both the client and `app` are done.

        Raises:
            Exception: What `app` raised before the stream had begun; later failures are in the log.
            ResumableError: The stream was stopped before it began.
        """
        producer, recorder = self.producer, self.recorder
        if producer.stop_code is not None:
            # Another worker has stopped it before this one had the store's answer.
            await self.release()
            raise stop_error(producer.stop_code)
        self._start(app, scope, send)
        failure: BaseException | None = None
        try:
            await self._answer(scope)
        except QuietlyBroken as exc:
            failure = exc
        except asyncio.CancelledError as exc:
            # The request is cancelled, by a middleware or a server that exits. The producer goes on, and the request
            # waits for it.
            self._note_cancellation(exc)
        except GeneratorExit:
            # Nothing can be awaited any more: the event loop is gone.
            raise
        except BaseException as exc:  # noqa: BLE001  # raised again below, once nothing hangs on the request any more
            failure = exc
        await self._wait_until_over()
        # Nothing leads back here, so that what hangs on the request is freed with it, and not at some collection.
        # (`producer.telemetry` has the scope, which leads to the producer.) The traceback of a failure does lead back,
        # and whatever keeps that must not keep the log.
        recorder.release()
        producer.telemetry = producer.stream = None
        if failure is None:
            failure = self._refusal()
        if failure is not None:
            raise failure

    def _refusal(self) -> BaseException | None:
        """What the caller of a stream that never began gets instead of it."""
        if self.has_begun:
            return None
        if self.producer.stop_code is not None and not self.recorder.passing:
            return stop_error(self.producer.stop_code)
        return self.failure and (unwrap(self.failure) if self.recorder.holds_head else self.failure)

    def _start(self, app: ASGIApp, scope: Scope, send: Send) -> None:
        producer, recorder, telemetry = self.producer, self.recorder, self._manager.telemetry
        self._send, self._find_outer = send, find_outer(scope)
        inner = inner_scope(scope, lambda: producer)
        producer.telemetry = telemetry.stream(producer.key.id, producer.reservation.epoch, inner, producer.created)
        producer.start(lambda: recorder.run(app, inner))

    async def _wait_until_over(self) -> None:
        """Stay until the application has ended, even if the request is cancelled; then give back what is held."""
        if self._reader is not None:
            # A request that is cancelled just as its stream begins has a reader that never runs: the producer must not
            # wait for it.
            self._manager.dismiss(self._reader)
            self._reader = None
        self._stop_with_outer()
        # A loop, because a request can be cancelled more than once while it waits.
        while not self.producer.is_over:
            try:
                with self._shield():
                    await self.producer.done()
            except asyncio.CancelledError as exc:
                self._note_cancellation(exc)
        with self._shield():
            # Only now: the end of a response lets middleware and servers tear down what the application still needs.
            if self._reading in (Reading.LEFT, Reading.CUT):
                await self._close_response()
            await self.release()

    def _shield(self) -> AbstractContextManager[object]:
        # A cancellation through a task group comes again at each `await`. A scope costs something, so only then.
        return nullcontext() if self.cancelled is None else anyio.CancelScope(shield=True)

    async def release(self) -> None:
        """Give back what the exchange holds, whether it has run or not; a second time, there is nothing left."""
        if self._accepting is not None:
            self._accepting.cancel()
        await self.producer.release()

    def _note_cancellation(self, exc: asyncio.CancelledError) -> None:
        self.cancelled = exc
        self._outlive_cancellation()

    def _outlive_cancellation(self) -> bool:
        """Go on although the request is cancelled, with a bound: servers cancel requests when they shut down."""
        self._stop_with_outer()
        if not self._manager.skip_grace() and self._ending is None:
            # Some servers do so without a word to the application, and wait for the request then.
            name = f"resumable interrupt {self.producer.key.id}"
            self._ending = self._manager.tasks.spawn(self._interrupt_late(self._reader), name=name)
        return True

    async def _interrupt_late(self, reader: Reader | None) -> None:
        """Give the stream its grace, all of it, and interrupt it then."""
        settings = self._manager.settings
        try:
            async with asyncio.timeout(settings.shutdown_grace + settings.stop_grace):
                await self.producer.done()
        except TimeoutError:
            await self.producer.interrupt()
            if reader is not None:
                await asyncio.sleep(LAST_MOMENT)
                reader.evict()

    def _stop_with_outer(self) -> None:
        """A stop of a stream that records this request, too, is one of this stream, unlike a client's leaving."""
        outer = self._find_outer()
        if outer is not None and outer.stop_code in ("cancelled", "replaced") and self._ending is None:
            key, epoch = self.producer.key, self.producer.reservation.epoch
            stopping = self._manager.store.stop(key, epoch)
            self._ending = self._manager.tasks.spawn(stopping, name=f"resumable stop {key.id}")

    # What the client gets.

    def _read_from_start(self, stream: Stream) -> None:
        """Attach the reader at the very beginning, so that nothing is dropped before the client has had it."""
        self.has_begun = True
        # A client that was answered 202, or a request that is cancelled, will not read: a reader would only hold the
        # producer back.
        if self._accepting is None and self.cancelled is None:
            self._reader = self._manager.reader(stream, 0, self._outlive_cancellation)
            self._manager.telemetry.read("first")

    async def _pass_on(self, message: Message) -> None:
        """Send a message of an answer that is no stream."""
        if not self.answered:
            await self._send(message)

    async def _answer(self, scope: Scope) -> None:
        if self._accepting is not None:
            # `wait` rather than `await`: a cancellation of the request must not cancel the answer that is being sent.
            await asyncio.wait({self._accepting})
            return
        await self.recorder.settled.wait()
        if self._reader is not None:
            stream = self._reader.stream
            headers = identify(self.recorder.headers, stream, self._location)
            # Another `Resumable` that records this request as well is the client.
            outer = self._find_outer()
            disconnected = self._body.disconnected if outer is None else outer.disconnected
            telemetry = self.producer.telemetry
            send = self._send if telemetry is None else reporting_failure(self._send, telemetry)
            self._reading = await serve(self._reader, self._manager, headers, scope, send, disconnected)
            if self._reading in (Reading.LEFT, Reading.CUT) and telemetry is not None:
                telemetry.client_left()

    async def _close_response(self) -> None:
        """Complete the response: middleware and telemetry take a request without an end for a failure."""
        if self._reading is Reading.CUT:
            # A client that is still connected would take it for the end of the stream.
            try:
                async with asyncio.timeout(GONE_TIMEOUT):
                    await self._body.disconnected()
            except TimeoutError:
                return
            except asyncio.CancelledError as exc:
                self._note_cancellation(exc)
                return
        try:
            await self._send(end_of_body())
        except Exception:  # a server may refuse it; the client has gone, so it makes no difference
            what = "the server refused the end of a response whose client has left"
            logger.debug(what, exc_info=True, extra=self.producer.fields)

    async def _accept(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._accept_timeout):
                await self.recorder.settled.wait()
        stream = self.producer.stream
        # The application has answered without a stream, and that answer is passed on.
        if stream is None and self.recorder.settled.is_set():
            return
        self.answered = True
        response = accepted(stream or self.producer.reservation, self._location)
        # A server of ASGI 2.4 raises this once the client has gone, which does not matter to the stream.
        with suppress(OSError):
            await response({"type": "http"}, self._body.receive, self._send)


def accepted(stream: Stream | Reservation, location: str | None) -> Response:
    """The answer to `Prefer: respond-async` (RFC 7240 §4.1): where the stream will be, and what it is now."""
    response = Response(stream.item.model_dump_json(), status_code=202, media_type="application/json")
    response.raw_headers = identify(response.raw_headers, stream, location)
    response.headers["preference-applied"] = "respond-async"
    if location is not None:
        response.headers["location"] = location
    return response
