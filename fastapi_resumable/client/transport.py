"""Transports that resume streams below clients that cannot, such as the OpenAI SDK.

The body that they hand out is one, however many connections it takes. What cannot be resumed passes through untouched.
"""

import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any, Literal
from uuid import uuid4

import anyio
import httpx

from ..exceptions import ClientError
from .engine import Engine, Sleep, flavour, run
from .machine import Resumption
from .messages import Backoff, first_offset, is_replay, replay_url
from .streams import ResumableStream

logger = logging.getLogger("fastapi_resumable")

OnClose = Literal["detach", "stop"]
"""What it means that a response is closed before its end."""

STOP_TIMEOUT = 10.0
_DONE = b"data: [DONE]"


def fresh_stream_id(request: httpx.Request) -> str | None:
    """A random id for a request that asks for a stream; `None` for any other.

    A request asks for one by `"stream": true` in its JSON body, as the APIs of language models have it, or by
    `Accept: text/event-stream`.
    """
    if request.method != "POST":
        return None
    # `EventSource` and most SDKs ask so, whatever their body holds.
    if "text/event-stream" in request.headers.get("accept", ""):
        return str(uuid4())
    try:
        body = json.loads(request.content)
    except (ValueError, RuntimeError):
        # No JSON, or nested too deeply for it; or not read yet, so no JSON either.
        return None
    # Only `true` counts: a caller that asks for a whole answer gets it as it would without this transport.
    return str(uuid4()) if isinstance(body, dict) and body.get("stream") is True else None


class ResumableTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport that resumes streams below an `httpx.Client` or `httpx.AsyncClient`, and below what uses it.

    `OpenAI(http_client=httpx.Client(transport=ResumableTransport()))`

    `response.extensions["resumable"]` of an answer that can be resumed has its `id`, `epoch`, `offset` and `state`.

    Args:
        transport: Makes the requests; by default the `HTTPTransport()` or `AsyncHTTPTransport()` of httpx, or of httpx2
            if the client is of that.
        stream_id: Names the stream of a request that has no `X-Conversation-Id`: a function of the request to an id, or
            `None` if it is not to be resumable. Default: a fresh id for each request that asks for a stream.
        on_close: What to do if a response is closed before its end, as when a caller leaves its loop:
            `detach` lets the stream go on at the server, `stop` stops it. After `data: [DONE]`, neither is done.
        read_timeout: Seconds without a byte after which the connection of an event stream counts as lost.
        backoff: How long to wait before the next attempt, and how often to try.
        sleep: A function that waits for a number of seconds, or returns an awaitable that does.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
        *,
        stream_id: Callable[[httpx.Request], str | None] | None = fresh_stream_id,
        on_close: OnClose = "detach",
        read_timeout: float | None = 45.0,
        backoff: Backoff | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        if on_close not in ("detach", "stop"):
            raise ValueError(f"on_close must be 'detach' or 'stop', not {on_close!r}.")
        self._transport: Any = transport
        self._stream_id = stream_id
        self._on_close: OnClose = on_close
        self._read_timeout = read_timeout
        self._backoff = backoff or Backoff()
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request, and make sure that its body is read to the end."""
        # Made with the first request, because it is that request which shows whether the client is of httpx or of
        # httpx2.
        self._transport = transport = self._transport or flavour(request).HTTPTransport()
        return run(self._handle(request, transport.handle_request, is_async=False))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request, and make sure that its body is read to the end."""
        self._transport = transport = self._transport or flavour(request).AsyncHTTPTransport()
        return await self._handle(request, transport.handle_async_request, is_async=True)

    def close(self) -> None:
        """Close the transport that makes the requests."""
        if self._transport is not None:
            self._transport.close()

    async def aclose(self) -> None:
        """Close the transport that makes the requests."""
        if self._transport is not None:
            await self._transport.aclose()

    async def _handle(self, request: httpx.Request, send: Callable[..., Any], *, is_async: bool) -> httpx.Response:
        """Make the request; if the answer is a stream that can be resumed, put our body in the place of its own."""
        # A transport has no auth of its own to leave out: the credentials are in the headers, which `next_headers`
        # filters.
        machine = Resumption(self._backoff, str(request.url), first_offset(request))
        engine = Engine(lambda request, _trusted: send(request), request, machine, self._sleep, is_async=is_async)
        # Only a request with a name and a key may be sent twice. Any other is sent once, and only its body is resumed.
        if machine.knows_offset and self._name(request):
            await engine.load()
            try:
                is_stream = await engine.open(lambda head: self._accepts(request, engine, head))
            except ClientError as exc:
                raise as_transport_error(exc, engine.module) from exc
        else:
            is_stream = await engine.begin(lambda head: self._accepts(request, engine, head))
        response: httpx.Response = engine.response
        if is_stream:
            response.stream = stream = _body_type(engine.module)(engine, self._backoff, self._on_close)
            response.extensions = {**response.extensions, "resumable": stream}
        return response

    def _name(self, request: httpx.Request) -> bool:
        """Whether a request names its stream, so that it may be repeated; it is given a name if it should have one."""
        if "x-conversation-id" not in request.headers:
            stream_id = self._stream_id(request) if self._stream_id is not None else None
            if stream_id is None:
                return False
            request.headers["X-Conversation-Id"] = stream_id
        # Without it, a repeated request would replace the run that the first one has begun.
        request.headers.setdefault("Idempotency-Key", str(uuid4()))
        # Compressed, the bytes that come would not be those of the log.
        request.headers["Accept-Encoding"] = "identity"
        return True

    def _accepts(self, request: httpx.Request, engine: Engine, head: httpx.Response) -> bool:
        """Whether an answer is a stream that can be resumed."""
        url = replay_url(head)
        if (
            not head.is_success
            or request.method == "HEAD"
            or not engine.machine.knows_offset
            # The body of a 202 is a lookup item, which its caller wants as it is.
            or "preference-applied" in head.headers
            or url is None
            # A `from` may be the application's own, or a proxy may have led the request to the replay by another path.
            or (engine.machine.offset and not is_replay(request.url, url))
        ):
            return False
        if self._read_timeout is not None and "text/event-stream" in head.headers.get("content-type", ""):
            # There are keep-alives from now on.
            engine.timeout["read"] = min(engine.timeout.get("read") or math.inf, self._read_timeout)
        return True


class AsyncResumableTransport(ResumableTransport):
    """The same class, by the name that goes with `httpx.AsyncClient`."""


class _Body(ResumableStream):
    """The body of a response, over as many connections as it takes."""

    def __init__(self, engine: Engine, backoff: Backoff, on_close: OnClose) -> None:
        # This back-off is that of the stop alone. A caller is waiting for `close`, so it does not try for long.
        super().__init__(engine, replace(backoff, retries=2, server_maximum=1.0), engine.response)
        self._on_close = on_close
        self._tail = b""
        self._done = False

    def __iter__(self) -> Iterator[bytes]:
        while data := run(self._read()):
            yield data

    def close(self) -> None:
        run(self._close())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._read():
            yield data

    async def aclose(self) -> None:
        # Also when the caller has been cancelled; but not without a bound.
        with anyio.move_on_after(STOP_TIMEOUT, shield=True):
            await self._close()

    async def _read(self) -> bytes:
        try:
            data = await self._engine.read()
        except ClientError as exc:
            raise as_transport_error(exc, self._engine.module) from exc
        self._offset = self._machine.offset
        # OpenAI's SDKs close the response at `[DONE]`, without reading on. The marker may come in two chunks.
        if not self._done:
            self._done = _DONE in self._tail + data
            self._tail = data[1 - len(_DONE) :]
        return data

    async def _close(self) -> None:
        # Taken before `detach`, after which the machine is over in any case.
        is_early = not self._machine.is_over and not self._done
        self._machine.detach()
        await self._engine.close()
        if is_early and self._on_close == "stop":
            try:
                await self._engine.stop(self._backoff)
            except ClientError as exc:
                fields = {"stream_id": self.id, "epoch": self.epoch}
                logger.warning(
                    "A response was closed early, but its stream could not be stopped: %s", exc, extra=fields
                )


@cache
def _body_type(module: ModuleType) -> type[Any]:
    """A body that httpx, or httpx2, takes for one of its own."""
    # Both clients check the type of a body, and httpx2 has its own classes. One for each module, so it is cached.
    return type(_Body.__name__, (_Body, module.SyncByteStream, module.AsyncByteStream), {})


def as_transport_error(exc: ClientError, module: ModuleType) -> Exception:
    """What a caller that knows nothing of resuming expects: the last error of the transport, or one like it."""
    cause = exc.__cause__
    # The OpenAI SDK and others retry, or wrap, the errors of httpx alone.
    error: Exception = cause if isinstance(cause, module.TransportError) else module.ReadError(str(exc))
    return error
