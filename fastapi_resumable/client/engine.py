"""The one loop: makes the requests that the machine asks for, and hands on the bytes that come.

It is written with `await`, and drives synchronous transports too: those never wait, so `run` gets by without an event
loop. httpx2 has the same interface as httpx, so that objects of either do.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import ModuleType
from typing import Any, TypeVar

import httpx

from .errors import ConnectionLost, RequestRefused
from .machine import NOT_NOW, Resumption
from .messages import Ask, Backoff, Head, replay_headers, retry_after

ResultT = TypeVar("ResultT")
Sleep = Callable[[float], Awaitable[None] | None]

MAX_REFUSAL = 65536
"""Bytes of a refusal's body that are read; the rest says nothing more."""


class Reply:
    """An answer whose body has not been read."""

    def __init__(
        self,
        head: Head,
        chunks: Iterator[bytes] | AsyncIterator[bytes],
        close: Callable[[], Awaitable[None] | None],
    ) -> None:
        self.head = head
        self._chunks = chunks
        self._close = close

    async def read(self) -> bytes | None:
        """The next bytes of the body; `None` at its end."""
        if isinstance(self._chunks, AsyncIterator):
            return await anext(self._chunks, None)
        return next(self._chunks, None)

    async def read_all(self, limit: float = float("inf")) -> bytes:
        """The whole body, or somewhat more than `limit` bytes of it."""
        body = bytearray()
        while len(body) < limit and (chunk := await self.read()) is not None:
            body += chunk
        return bytes(body)

    async def close(self) -> None:
        """Close the connection, or give it back."""
        await settle(self._close())


class Wire:
    """Makes the requests of one stream: the first as it was given, those that follow it with its headers.

    Args:
        send: Makes a request, and returns a response whose body has not been read; or an awaitable of it.
        start: The first request.
        sleep: Waits for so many seconds.
        is_async: Whether `send` is that of an asynchronous client.
        decoded: Whether compressed bodies are to be decoded.
    """

    def __init__(
        self, send: Callable[..., Any], start: httpx.Request, sleep: Sleep, *, is_async: bool, decoded: bool = False
    ) -> None:
        self.module = module = flavour(start)
        self.lost = (module.TimeoutException, module.NetworkError, module.ProxyError, module.RemoteProtocolError)
        """What is raised when a connection is lost, or there is none."""
        # The last two are the socket's, for a port or a host that is none.
        self.errors = (module.HTTPError, module.InvalidURL, OverflowError, UnicodeError)
        """What else may be raised: another attempt would not mend it."""
        self.timeout: dict[str, Any] = dict(start.extensions.get("timeout", {}))
        # A transport looks at it as it reads, so what is set when the stream has begun counts, too.
        start.extensions = {**start.extensions, "timeout": self.timeout}
        self.response: Any = None
        """The last answer."""
        self._send = send
        self._start = start
        self._headers = start.headers.copy()
        self._sleep = sleep
        self._is_async = is_async
        self._decoded = decoded

    async def send(self, ask: Ask) -> Reply:
        """Make a request."""
        request = self._start
        if ask.method is not None:
            headers = replay_headers(self._headers, trusted=ask.trusted)
            request = type(request)(ask.method, ask.url, headers=headers, extensions=request.extensions)
        self.response = response = await settle(self._send(request, ask.trusted))
        stream = response.stream
        if self._is_async:
            chunks, close = (response.aiter_bytes() if self._decoded else aiter(stream)), stream.aclose
        else:
            chunks, close = (response.iter_bytes() if self._decoded else iter(stream)), stream.close
        return Reply(head_of(response, response.url if self._decoded else request.url), chunks, close)

    async def sleep(self, delay: float) -> None:
        """Wait."""
        await settle(self._sleep(delay))

    async def load(self) -> None:
        """Read the body of the first request, so that it can be sent again."""
        await settle(self._start.aread() if self._is_async else self._start.read())


class Engine:
    """Follows one stream to its end."""

    def __init__(self, wire: Wire, machine: Resumption) -> None:
        self.machine = machine
        self.reply: Reply | None = None
        self._wire = wire

    async def open(self, accept: Callable[[Head], bool] = lambda _: True) -> bool:
        """Connect; return whether there is a body to be read. `accept` may keep an answer from the machine.

        Raises:
            ClientError: There is no way to the stream.
        """
        while (ask := self.machine.ask()) is not None:
            if ask.delay:
                await self._wire.sleep(ask.delay)
            try:
                self.reply = reply = await self._wire.send(ask)
                head = reply.head
                if not accept(head):
                    return False
                body = b"" if head.is_success and ask.method != "HEAD" else await reply.read_all(MAX_REFUSAL)
                if self.machine.head(head, body):
                    return True
                await self.close()
            except self._wire.lost as exc:
                await self.close()
                self.machine.cut(exc)
            except self._wire.errors as exc:
                await self.close()
                raise self.machine.give_up(exc) from exc
            except BaseException:
                await self.close()
                raise
        return False

    async def read(self) -> bytes:
        """The next bytes; none at the end.

        Raises:
            ClientError: The stream has come to a bad end, or cannot be reached any more.
        """
        while self.reply is not None or await self.open():
            data = await self._read_on()
            if data:
                return data
        return b""

    async def _read_on(self) -> bytes:
        reply = self.reply
        assert reply is not None
        try:
            chunk = await reply.read()
        except self._wire.lost as exc:
            await self.close()
            self.machine.cut(exc)
            return b""
        except self._wire.errors as exc:
            await self.close()
            raise self.machine.give_up(exc) from exc
        except BaseException:
            # Interrupted in mid-read, so this connection is of no more use; the next read goes on with another one.
            self.reply = None
            self.machine.interrupted()
            raise
        if chunk is None:
            await self.close()
            self.machine.end()
            return b""
        self.machine.feed(chunk)
        return chunk

    async def close(self) -> None:
        """Close the connection. The stream itself goes on."""
        reply, self.reply = self.reply, None
        if reply is not None:
            await reply.close()


async def call(wire: Wire, ask: Ask, backoff: Backoff) -> bytes:
    """Make a request that may be repeated, until it is answered.

    Raises:
        RequestRefused: The answer is final.
        ConnectionLost: There is no answer.
    """
    failures = 0
    while True:
        wait = 0.0
        error: Exception
        try:
            reply = await wire.send(ask)
            try:
                body = await reply.read_all(float("inf") if reply.head.is_success else MAX_REFUSAL)
            finally:
                await reply.close()
            if reply.head.is_success:
                return body
            error = RequestRefused.read(reply.head.status_code, body)
            if reply.head.status_code not in NOT_NOW:
                raise error
            wait = retry_after(reply.head.headers)
        except wire.lost as exc:
            error = exc
        except wire.errors as exc:
            raise ConnectionLost(f"The request cannot be made, or its answer not be read: {exc}") from exc
        failures += 1
        if backoff.exhausted(failures):
            raise ConnectionLost(f"Gave up after {failures} attempts in a row: {error}") from error
        await wire.sleep(backoff.delay(failures, wait))


def flavour(request: httpx.Request) -> ModuleType:
    """The module that a request is of: httpx, or httpx2."""
    return sys.modules[type(request).__module__.partition(".")[0]]


def head_of(response: Any, url: httpx.URL) -> Head:
    """The head of an answer to a request for `url`."""
    headers = response.headers
    # Where nothing says how the answer came, it came by no network at all.
    by_close = response.extensions.get("http_version", b"") in (b"HTTP/1.0", b"HTTP/1.1") and not (
        "content-length" in headers or "transfer-encoding" in headers or response.status_code == 204
    )
    return Head(response.status_code, headers, str(url), delimited=not by_close)


async def settle(value: Awaitable[ResultT] | ResultT) -> ResultT:
    """The result of a call, whether it has blocked or is to be awaited."""
    return await value if isinstance(value, Awaitable) else value


def run(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Drive a coroutine whose wire never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    raise RuntimeError("a synchronous wire has waited")
