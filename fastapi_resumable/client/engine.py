"""The one loop: makes the requests that the machine asks for, and hands on the bytes that come.

It is written with `await`, and drives synchronous transports too: those never wait, so `run` gets by without an event
loop. httpx2 has the same interface as httpx, so that objects of either do. All that it raises is `ClientError`s, but
for what interrupts it.
"""

import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import ModuleType
from typing import Any, TypeVar

import anyio
import httpx

from .machine import Resumption
from .messages import Ask, Backoff, Head, replay_headers

ResultT = TypeVar("ResultT")
Sleep = Callable[[float], Awaitable[None] | None]

MAX_REFUSAL = 65536
"""Bytes of a refusal's body that are read; the rest says nothing more."""


class Wire:
    """Makes the requests of one stream, one at a time: the first as it was given, those after it with its headers.

    Args:
        send: Makes a request, and returns a response whose body has not been read; or an awaitable of it.
        start: The first request.
        sleep: A function that waits for a number of seconds.
        is_async: Whether `send` is that of an asynchronous client.
        decoded: Whether compressed bodies are to be decoded.
    """

    def __init__(
        self,
        send: Callable[..., Any],
        start: httpx.Request,
        sleep: Sleep | None,
        *,
        is_async: bool,
        decoded: bool = False,
    ) -> None:
        # The two modules share no base class for their errors, so those to catch are looked up in the one that is used.
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
        # A copy, because a client adds headers to a request as it sends it, and those of one attempt may be wrong for
        # the next.
        self._headers = start.headers.copy()
        self._sleep = sleep or (anyio.sleep if is_async else time.sleep)
        self._is_async = is_async
        self._decoded = decoded
        self._stream: Any = None
        """The body of the last answer. A transport puts another one in its place in `response`."""
        self._chunks: Iterator[bytes] | AsyncIterator[bytes] = iter(())

    async def send(self, ask: Ask) -> Head:
        """Make a request; return the head of its answer."""
        request = self._start if ask.method is None else self._request(ask)
        self.response = response = await settle(self._send(request, ask.trusted))
        self._stream = stream = response.stream
        if self._is_async:
            # Below a client there is no decoder between us and the socket: the client decodes what we hand out.
            self._chunks = response.aiter_bytes() if self._decoded else aiter(stream)
        else:
            self._chunks = response.iter_bytes() if self._decoded else iter(stream)
        # A client may have followed redirects, a transport never has; and the response of a transport has no request
        # yet.
        return Head(response.status_code, response.headers, str(response.url if self._decoded else request.url))

    async def read(self) -> bytes | None:
        """The next bytes of the answer's body; `None` at its end."""
        if isinstance(self._chunks, AsyncIterator):
            return await anext(self._chunks, None)
        return next(self._chunks, None)

    async def read_all(self, limit: float) -> bytes:
        """The body of the answer, or somewhat more than `limit` bytes of it."""
        body = bytearray()
        # The check comes first: nothing is read of a stream here (`limit` is 0), as it may be silent for minutes.
        while len(body) < limit and (chunk := await self.read()) is not None:
            body += chunk
        return bytes(body)

    async def close(self) -> None:
        """Close the connection, or give it back."""
        if self._stream is not None:
            await settle(self._stream.aclose() if self._is_async else self._stream.close())

    async def sleep(self, delay: float) -> None:
        """Wait."""
        await settle(self._sleep(delay))

    async def load(self) -> None:
        """Read the body of the first request, so that it can be sent again."""
        await settle(self._start.aread() if self._is_async else self._start.read())

    def beside(self, ask: Ask) -> "Wire":
        """Another wire, whose first request is this one."""
        return Wire(
            lambda request, _trusted: self._send(request, ask.trusted),
            self._request(ask),
            self._sleep,
            is_async=self._is_async,
            decoded=self._decoded,
        )

    def _request(self, ask: Ask) -> httpx.Request:
        headers = replay_headers(self._headers, trusted=ask.trusted)
        return type(self._start)(ask.method or "", ask.url, headers=headers, extensions=self._start.extensions)


class Engine:
    """Follows one stream to its end."""

    def __init__(self, wire: Wire, machine: Resumption) -> None:
        self.machine = machine
        self.wire = wire
        self.head: Head | None = None
        """The head of the last answer."""
        self.is_reading = False
        """Whether there is an answer whose body is being read."""

    async def begin(self, accept: Callable[[Head], bool]) -> bool:
        """Make the first request, once; return whether `accept` takes its answer for a stream to be followed."""
        self.head = head = await self.wire.send(Ask(0))
        self.is_reading = True
        return accept(head) and self.machine.head(head)

    async def open(self, accept: Callable[[Head], bool] = lambda _: True) -> bool:
        """Connect; return whether there is a body to be read. `accept` may keep an answer from the machine."""
        return await self._open(accept, 0) is not None

    async def fetch(self) -> bytes:
        """The whole answer to a request that may be repeated."""
        body = await self._open(lambda _: True, float("inf"))
        await self.close()
        return body or b""

    async def _open(self, accept: Callable[[Head], bool], wanted: float) -> bytes | None:
        """Connect, and read the first `wanted` bytes of the body; `None` if there is none."""
        while (ask := self.machine.ask()) is not None:
            if ask.delay:
                await self.wire.sleep(ask.delay)
            try:
                self.head = head = await self.wire.send(ask)
                self.is_reading = True
                if not accept(head):
                    return None
                # A refusal is read before the machine sees it, so that its error can have the server's words.
                is_body = head.is_success and ask.method != "HEAD"
                body = await self.wire.read_all(wanted if is_body else MAX_REFUSAL)
                if self.machine.head(head, body):
                    return body
                await self.close()
            except self.wire.lost as exc:
                await self.close()
                self.machine.cut(exc)
            except self.wire.errors as exc:
                await self.close()
                raise self.machine.give_up(exc) from exc
            # A cancellation, or an error of the machine. The connection would stay checked out of the client's pool.
            except BaseException:
                await self.close()
                raise
        return None

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        while self.is_reading or await self.open():
            data = await self._read_on()
            if data:
                return data
        return b""

    async def _read_on(self) -> bytes:
        try:
            chunk = await self.wire.read()
        except self.wire.lost as exc:
            await self.close()
            self.machine.cut(exc)
            return b""
        except self.wire.errors as exc:
            await self.close()
            raise self.machine.give_up(exc) from exc
        # A cancellation, a timeout of anyio, or Ctrl-C: it passes through, and only our state is put in order.
        except BaseException:
            # Interrupted in mid-read, so this connection is of no more use; the next read goes on with another one.
            self.is_reading = False
            self.machine.interrupted()
            raise
        if chunk is None:
            await self.close()
            self.machine.end()
            return b""
        self.machine.feed(chunk)
        return chunk

    async def stop(self, backoff: Backoff) -> None:
        """Stop the stream at the server."""
        ask = self.machine.stop()
        # A stop may come from another thread or task while this connection is read, so it has one of its own.
        await Engine(self.wire.beside(ask), Resumption(backoff, ask.url, None)).fetch()

    async def close(self) -> None:
        """Close the connection. The stream itself goes on."""
        if self.is_reading:
            self.is_reading = False
            await self.wire.close()


def flavour(request: httpx.Request) -> ModuleType:
    """The module that a request is of: httpx, or httpx2."""
    # httpx2 need not be installed, so it is not imported here; a request of it shows that it is.
    return sys.modules[type(request).__module__.partition(".")[0]]


async def settle(value: Awaitable[ResultT] | ResultT) -> ResultT:
    """The result of a call, whether it has blocked or is to be awaited."""
    return await value if isinstance(value, Awaitable) else value


def run(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Drive a coroutine whose wire never waits."""
    try:
        # A synchronous wire awaits nothing, so the coroutine runs to its end at the first step.
        coroutine.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    raise RuntimeError("a synchronous wire has waited")
