"""How requests are made with httpx: by a user's own client, or by a transport; synchronous or not.

httpx2 has the same interface as httpx, so that objects of either do.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypedDict

import httpx

from .follower import Reply
from .machine import Ask, Head


class RequestOptions(TypedDict, total=False):
    """What belongs to every request of a stream, and is not the client's already."""

    cookies: Any
    extensions: Any
    timeout: Any


class SendOptions(TypedDict, total=False):
    """How every request of a stream is sent."""

    auth: Any
    follow_redirects: Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, and what those that follow it are to have of it."""

    request: httpx.Request
    headers: httpx.Headers
    options: RequestOptions
    sending: SendOptions


def flavour(thing: object) -> ModuleType:
    """The module that a client, request or response is of: httpx, or httpx2."""
    packages = [base.__module__.partition(".")[0] for base in type(thing).__mro__]
    return sys.modules["httpx2"] if "httpx2" in packages else httpx


def cut_errors(module: ModuleType) -> tuple[type[Exception], ...]:
    """What is raised when a connection is lost, or there is none."""
    return (module.TimeoutException, module.NetworkError, module.ProxyError, module.RemoteProtocolError)


def head_of(response: httpx.Response, url: httpx.URL) -> Head:
    """The head of an answer to a request for `url`."""
    headers = response.headers
    # Where nobody says how the answer came, it came by no network at all.
    by_close = response.extensions.get("http_version", b"") in (b"HTTP/1.0", b"HTTP/1.1") and not (
        "content-length" in headers or "transfer-encoding" in headers or response.status_code == 204
    )
    return Head(response.status_code, headers, str(url), delimited=not by_close)


# Headers of the request that begins a stream which say nothing about a replay of it.
_OF_THE_BODY = ("content-encoding", "content-length", "content-type", "transfer-encoding", "expect")
_OF_THE_START = ("host", "idempotency-key", "last-event-id", "prefer")


def replay_headers(headers: httpx.Headers, more: Mapping[str, str]) -> httpx.Headers:
    """The headers of the request that began a stream, for one that goes on with it."""
    result = headers.copy()
    for name in (*_OF_THE_BODY, *_OF_THE_START):
        result.pop(name, None)
    result.update(more)
    return result


class SyncReply:
    """An answer to a synchronous client."""

    def __init__(self, head: Head, chunks: Iterator[bytes], close: Callable[[], None]) -> None:
        self.head = head
        self._chunks = chunks
        self._close = close

    async def read(self) -> bytes | None:
        """The next bytes of the body; `None` at its end."""
        return next(self._chunks, None)

    async def read_all(self) -> bytes:
        """The whole body."""
        return b"".join(self._chunks)

    async def close(self) -> None:
        """Let go of it."""
        self._close()


class AsyncReply:
    """An answer to an asynchronous client."""

    def __init__(self, head: Head, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self.head = head
        self._chunks = chunks
        self._close = close

    async def read(self) -> bytes | None:
        """The next bytes of the body; `None` at its end."""
        return await anext(self._chunks, None)

    async def read_all(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self._chunks])

    async def close(self) -> None:
        """Let go of it."""
        await self._close()


class _ClientWire:
    """Makes requests with a user's own client."""

    def __init__(self, http: httpx.Client | httpx.AsyncClient, prepared: Prepared) -> None:
        self.errors = cut_errors(flavour(http))
        self._build = http.build_request
        self._prepared = prepared

    def request(self, ask: Ask) -> httpx.Request:
        prepared = self._prepared
        if ask.method is None:
            return prepared.request
        headers = replay_headers(prepared.headers, ask.headers)
        return self._build(ask.method, ask.url, headers=headers, **prepared.options)


class SyncClientWire(_ClientWire):
    """The same, synchronously."""

    def __init__(self, http: httpx.Client, sleep: Callable[[float], None], prepared: Prepared) -> None:
        super().__init__(http, prepared)
        self._http = http
        self._sleep = sleep

    async def send(self, ask: Ask) -> Reply:
        """Make a request."""
        request = self.request(ask)
        # So that it can be sent again.
        request.read()
        response = self._http.send(request, stream=True, **self._prepared.sending)
        return SyncReply(head_of(response, response.url), response.iter_bytes(), response.close)

    async def sleep(self, delay: float) -> None:
        """Wait."""
        self._sleep(delay)


class AsyncClientWire(_ClientWire):
    """The same, asynchronously."""

    def __init__(self, http: httpx.AsyncClient, sleep: Callable[[float], Awaitable[None]], prepared: Prepared) -> None:
        super().__init__(http, prepared)
        self._http = http
        self._sleep = sleep

    async def send(self, ask: Ask) -> Reply:
        """Make a request."""
        request = self.request(ask)
        await request.aread()
        response = await self._http.send(request, stream=True, **self._prepared.sending)
        return AsyncReply(head_of(response, response.url), response.aiter_bytes(), response.aclose)

    async def sleep(self, delay: float) -> None:
        """Wait."""
        await self._sleep(delay)


class TransportWire(ABC):
    """Makes requests with a transport, in the place of the one that it was given."""

    def __init__(self, start: httpx.Request) -> None:
        self._start = start
        self.timeout: dict[str, Any] = dict(start.extensions.get("timeout", {}))
        # The transport looks at it as it reads, so what is set when the stream has begun counts, too.
        start.extensions = {**start.extensions, "timeout": self.timeout}
        self.errors = cut_errors(flavour(start))
        self.response: httpx.Response | None = None

    @abstractmethod
    async def send(self, ask: Ask) -> Reply:
        """Make a request."""

    @abstractmethod
    async def sleep(self, delay: float) -> None:
        """Wait."""

    def request(self, ask: Ask) -> httpx.Request:
        """The request to be made."""
        start = self._start
        if ask.method is None:
            return start
        headers = replay_headers(start.headers, ask.headers)
        return type(start)(ask.method, ask.url, headers=headers, extensions=start.extensions)


class SyncTransportWire(TransportWire):
    """The same, synchronously."""

    def __init__(self, transport: httpx.BaseTransport, sleep: Callable[[float], None], start: httpx.Request) -> None:
        super().__init__(start)
        self._transport = transport
        self._sleep = sleep

    async def send(self, ask: Ask) -> Reply:
        """Make a request."""
        request = self.request(ask)
        self.response = response = self._transport.handle_request(request)
        stream = response.stream
        assert isinstance(stream, httpx.SyncByteStream | flavour(request).SyncByteStream)
        return SyncReply(head_of(response, request.url), iter(stream), stream.close)

    async def sleep(self, delay: float) -> None:
        """Wait."""
        self._sleep(delay)


class AsyncTransportWire(TransportWire):
    """The same, asynchronously."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport, sleep: Callable[[float], Awaitable[None]], start: httpx.Request
    ) -> None:
        super().__init__(start)
        self._transport = transport
        self._sleep = sleep

    async def send(self, ask: Ask) -> Reply:
        """Make a request."""
        request = self.request(ask)
        self.response = response = await self._transport.handle_async_request(request)
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream | flavour(request).AsyncByteStream)
        return AsyncReply(head_of(response, request.url), aiter(stream), stream.aclose)

    async def sleep(self, delay: float) -> None:
        """Wait."""
        await self._sleep(delay)
