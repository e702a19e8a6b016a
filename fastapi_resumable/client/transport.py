"""Transports that resume: for clients that know nothing of it, such as the OpenAI SDK.

The body that they hand out is one, however many connections it takes. What cannot be resumed passes through untouched.
"""

import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any, Literal
from uuid import uuid4

import anyio
import httpx

from .backoff import Backoff
from .errors import ClientError
from .follower import Follower, call, run
from .machine import Ask, Head, Resumption, first_offset, replay_url
from .wires import AsyncTransportWire, SyncTransportWire, TransportWire, flavour

logger = logging.getLogger("fastapi_resumable")

OnClose = Literal["detach", "stop"]
"""What it means that a response is closed before its end."""
StreamId = Callable[[httpx.Request], str | None]

STOP_TIMEOUT = 10.0
_DONE = b"data: [DONE]"


def fresh_stream_id(request: httpx.Request) -> str | None:
    """A random id for a request that asks for a stream; `None` for any other.

    A request asks for one by `"stream": true` in its JSON body, as the APIs of language models have it, or by
    `Accept: text/event-stream`.
    """
    if request.method != "POST":
        return None
    if "text/event-stream" in request.headers.get("accept", ""):
        return str(uuid4())
    try:
        body = json.loads(request.content)
    except (ValueError, RuntimeError):
        # No JSON; or not read yet, so no JSON either.
        return None
    return str(uuid4()) if isinstance(body, dict) and body.get("stream") is True else None


class _Settings:
    """What both transports have in common."""

    def __init__(
        self, *, stream_id: StreamId | None, on_close: OnClose, read_timeout: float | None, backoff: Backoff | None
    ) -> None:
        if on_close not in ("detach", "stop"):
            raise ValueError(f"on_close must be 'detach' or 'stop', not {on_close!r}.")
        self._stream_id = stream_id
        self._on_close: OnClose = on_close
        self._read_timeout = read_timeout
        self._backoff = backoff or Backoff()

    def _named(self, request: httpx.Request) -> bool:
        """Whether a request names its stream, so that it may be repeated; it is given a name if it should have one."""
        if "last-event-id" in request.headers:
            return False
        if "x-conversation-id" not in request.headers:
            stream_id = self._stream_id(request) if self._stream_id is not None else None
            if stream_id is None:
                return False
            request.headers["X-Conversation-Id"] = stream_id
        request.headers.setdefault("Idempotency-Key", str(uuid4()))
        # Compressed, the bytes that come would not be those of the log.
        request.headers["Accept-Encoding"] = "identity"
        return True

    async def _follow(self, request: httpx.Request, wire: TransportWire, *, named: bool) -> "_Body | None":
        """Make the request; return its body if it is a stream that can be resumed."""
        machine = Resumption(self._backoff, first_offset(str(request.url), request.headers))
        follower = Follower(wire, machine)
        accept = self._accept(request, wire)
        module = flavour(request)
        if named:
            try:
                accepted = await follower.open(accept)
            except ClientError as exc:
                raise as_transport_error(exc, module) from exc
        else:
            follower.reply = await wire.send(Ask(0))
            accepted = accept(follower.reply.head) and machine.head(follower.reply.head)
        return _Body(follower, wire, module, self._on_close, self._backoff) if accepted else None

    def _accept(self, request: httpx.Request, wire: TransportWire) -> Callable[[Head], bool]:
        """Whether an answer is a stream that can be resumed."""

        def accept(head: Head) -> bool:
            if (
                not head.is_success
                or request.method == "HEAD"
                or "last-event-id" in request.headers
                or "preference-applied" in head.headers
                or replay_url(head) is None
            ):
                return False
            if self._read_timeout is not None and "text/event-stream" in head.headers.get("content-type", ""):
                # There are keep-alives from now on.
                wire.timeout["read"] = min(wire.timeout.get("read") or math.inf, self._read_timeout)
            return True

        return accept


class ResumableTransport(_Settings, httpx.BaseTransport):
    """A transport for `httpx.Client` that resumes streams below whoever uses the client.

    `OpenAI(http_client=httpx.Client(transport=ResumableTransport()))`

    Args:
        transport: Makes the requests; by default an `httpx.HTTPTransport()`.
        stream_id: Names the stream of a request that has no `X-Conversation-Id`: a function of the request to an id, or
            `None` if it is not to be resumable. Default: a fresh id for each request that asks for a stream.
        on_close: What it means that a response is closed before its end, as it is when a caller leaves its loop:
            `detach` lets the stream go on at the server, `stop` stops it. After `data: [DONE]` it means neither.
        read_timeout: Seconds without a byte after which the connection of an event stream counts as lost.
        backoff: How long to wait before the next attempt, and how often to try.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport | None = None,
        *,
        stream_id: StreamId | None = fresh_stream_id,
        on_close: OnClose = "detach",
        read_timeout: float | None = 45.0,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(stream_id=stream_id, on_close=on_close, read_timeout=read_timeout, backoff=backoff)
        self._transport = transport if transport is not None else httpx.HTTPTransport()
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request, and see to it that the answer's body comes to its end."""
        named = self._named(request)
        if named:
            request.read()
        wire = SyncTransportWire(self._transport, self._sleep, request)
        body = run(self._follow(request, wire, named=named))
        assert wire.response is not None
        if body is not None:
            module = flavour(request)
            wire.response.stream = _of_module(_SyncBody, module.SyncByteStream)(body)
        return wire.response

    def close(self) -> None:
        """Close the transport that makes the requests."""
        self._transport.close()


class AsyncResumableTransport(_Settings, httpx.AsyncBaseTransport):
    """The same for `httpx.AsyncClient`.

    Args:
        transport: Makes the requests; by default an `httpx.AsyncHTTPTransport()`.
        stream_id: See `ResumableTransport`, as the others.
        on_close: What it means that a response is closed before its end.
        read_timeout: Seconds without a byte after which the connection of an event stream counts as lost.
        backoff: How long to wait before the next attempt, and how often to try.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        stream_id: StreamId | None = fresh_stream_id,
        on_close: OnClose = "detach",
        read_timeout: float | None = 45.0,
        backoff: Backoff | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        super().__init__(stream_id=stream_id, on_close=on_close, read_timeout=read_timeout, backoff=backoff)
        self._transport = transport if transport is not None else httpx.AsyncHTTPTransport()
        self._sleep = sleep

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request, and see to it that the answer's body comes to its end."""
        named = self._named(request)
        if named:
            await request.aread()
        wire = AsyncTransportWire(self._transport, self._sleep, request)
        body = await self._follow(request, wire, named=named)
        assert wire.response is not None
        if body is not None:
            module = flavour(request)
            wire.response.stream = _of_module(_AsyncBody, module.AsyncByteStream)(body)
        return wire.response

    async def aclose(self) -> None:
        """Close the transport that makes the requests."""
        await self._transport.aclose()


class _Body:
    """The body of a stream, over as many connections as it takes."""

    def __init__(
        self, follower: Follower, wire: TransportWire, module: ModuleType, on_close: OnClose, backoff: Backoff
    ) -> None:
        self._follower = follower
        self._wire = wire
        self._module = module
        self._on_close = on_close
        self._backoff = replace(backoff, retries=2)
        self._tail = b""
        self._done = False

    async def read(self) -> bytes:
        """The next bytes; none at the end. Errors are those that httpx has."""
        try:
            data = b"".join(item.value for item in await self._follower.read())
        except ClientError as exc:
            raise as_transport_error(exc, self._module) from exc
        if not self._done:
            self._done = _DONE in self._tail + data
            self._tail = data[1 - len(_DONE) :]
        return data

    async def close(self) -> None:
        """Detach from the stream, or stop it."""
        machine = self._follower.machine
        left = not machine.is_over and not self._done
        machine.detach()
        await self._follower.close()
        if left and self._on_close == "stop":
            try:
                await call(self._wire, machine.stop(), self._backoff)
            except ClientError as exc:
                logger.warning("a stream was left, but could not be stopped: %s", exc)


class _SyncBody:
    def __init__(self, body: _Body) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        while data := run(self._body.read()):
            yield data

    def close(self) -> None:
        run(self._body.close())


class _AsyncBody:
    def __init__(self, body: _Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._body.read():
            yield data

    async def aclose(self) -> None:
        # Also when the caller has been cancelled; but not for ever.
        with anyio.move_on_after(STOP_TIMEOUT, shield=True):
            await self._body.close()


@cache
def _of_module(body: type[Any], base: type[Any]) -> type[Any]:
    """A body that httpx, or httpx2, takes for one of its own."""
    return type(body.__name__, (body, base), {})


def as_transport_error(exc: ClientError, module: ModuleType) -> Exception:
    """What a caller that knows nothing of resuming expects: the last error of the transport, or one like it."""
    cause = exc.__cause__
    error: Exception = cause if isinstance(cause, module.TransportError) else module.ReadError(str(exc))
    return error
