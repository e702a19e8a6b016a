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
from .messages import Ask, Backoff, merge_cookies, next_headers

ResultT = TypeVar("ResultT")
NAP = 0.1
"""Seconds after which a client that waits looks whether its stream was stopped."""
Sleep = Callable[[float], Awaitable[None] | None]

MAX_REFUSAL = 65536
"""Bytes of a refusal's body that are read; the rest says nothing more."""


class Engine:
    """Follows one stream to its end, a request at a time: the first as it was given, those after it with its headers.

    Args:
        send: Makes a request, and returns a response whose body has not been read; or an awaitable of it.
        start: The first request.
        machine: Says what comes next.
        sleep: A function that waits for a number of seconds.
        is_async: Whether `send` is that of an asynchronous client.
        decoded: Whether compressed bodies are to be decoded.
    """

    def __init__(
        self,
        send: Callable[..., Any],
        start: httpx.Request,
        machine: Resumption,
        sleep: Sleep | None,
        *,
        is_async: bool,
        decoded: bool = False,
    ) -> None:
        # The two modules share no base class for their errors, so those to catch are looked up in the one that is used.
        self.module = module = flavour(start)
        # A connection is lost, or there is none.
        self._lost = (module.TimeoutException, module.NetworkError, module.ProxyError, module.RemoteProtocolError)
        # Another attempt would mend none of the others. The last two are the socket's, for an impossible port or host.
        self._errors = (module.HTTPError, module.InvalidURL, OverflowError, UnicodeError)
        self.timeout: dict[str, Any] = dict(start.extensions.get("timeout", {}))
        # A transport looks at it as it reads, so what is set when the stream has begun counts, too.
        start.extensions = {**start.extensions, "timeout": self.timeout}
        self.machine = machine
        self.response: Any = None
        """The last answer."""
        self.is_reading = False
        """Whether its body is being read."""
        self._send = send
        self._start = start
        # A copy, because a client adds headers to a request as it sends it, and those of one attempt may be wrong for
        # the next.
        self._headers = start.headers.copy()
        # A load balancer may set one by which it finds the worker that has the stream.
        self._cookies = module.Cookies()
        self._sleep = sleep
        self._is_async = is_async
        self._decoded = decoded
        # The body of the last answer. A transport puts another one in its place in `response`.
        self._stream: Any = None
        self._chunks: Iterator[bytes] | AsyncIterator[bytes] = iter(())

    async def load(self) -> None:
        """Read the body of the first request, so that it can be sent again."""
        await settle(self._start.aread() if self._is_async else self._start.read())

    async def begin(self, accept: Callable[[httpx.Response], bool]) -> bool:
        """Make the first request, once; return whether `accept` takes its answer for a stream to be followed."""
        head = await self._ask(Ask(0))
        return accept(head) and self.machine.head(head)

    async def open(self, accept: Callable[[httpx.Response], bool] = lambda _: True) -> bool:
        """Connect; return whether there is a body to be read. `accept` may keep an answer from the machine."""
        return await self._open(accept, 0) is not None

    async def fetch(self) -> bytes:
        """The whole answer to a request that may be repeated."""
        await self.load()
        body = await self._open(lambda _: True, float("inf"))
        await self.close()
        return body or b""

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        while self.is_reading or await self.open():
            data = await self._read_on()
            if data:
                return data
        return b""

    async def stop(self, backoff: Backoff) -> None:
        """Stop the stream at the server."""
        ask = self.machine.stop()
        # A stop may come from another thread or task while this connection is read, so it has one of its own.
        stopping = Engine(
            lambda request, _trusted: self._send(request, ask.trusted),
            self._request(ask),
            Resumption(backoff, ask.url, None),
            self._sleep,
            is_async=self._is_async,
            decoded=self._decoded,
        )
        await stopping.fetch()
        self.machine.is_stopped = True

    async def close(self) -> None:
        """Close the connection, or give it back. The stream itself goes on."""
        if self.is_reading:
            self.is_reading = False
            await settle(self._stream.aclose() if self._is_async else self._stream.close())

    def _request(self, ask: Ask) -> httpx.Request:
        headers = next_headers(self._headers, trusted=ask.trusted, replay=True)
        request = type(self._start)(ask.method or "", ask.url, headers=headers, extensions=self._start.extensions)
        if ask.trusted:
            # httpx adds none to a request that has some.
            given = request.headers.pop("cookie", "")
            self._cookies.set_cookie_header(request)
            if cookies := merge_cookies(given, request.headers.get("cookie", "")):
                request.headers["cookie"] = cookies
        return request

    async def _ask(self, ask: Ask) -> httpx.Response:
        """Make a request; return its answer, of which only the head has come."""
        request = self._start if ask.method is None else self._request(ask)
        try:
            response = await settle(self._send(request, ask.trusted))
        except self.module.HTTPStatusError as exc:
            # A client may have a hook that calls `raise_for_status`; which answers are final is for the machine to say.
            response = exc.response
        self.response = response
        self._stream, self.is_reading = response.stream, True
        if not self._decoded:
            response.request = request
        self._cookies.extract_cookies(response)
        if response.is_closed and not response.is_stream_consumed:
            # Such a hook may have left the body unread.
            self._chunks = iter(())
        elif self._is_async:
            # Below a client there is no decoder between us and the socket: the client decodes what we hand out.
            self._chunks = response.aiter_bytes() if self._decoded else aiter(self._stream)
        else:
            self._chunks = response.iter_bytes() if self._decoded else iter(self._stream)
        return response  # type: ignore[no-any-return]

    async def _next_chunk(self) -> bytes | None:
        if isinstance(self._chunks, AsyncIterator):
            return await anext(self._chunks, None)
        return next(self._chunks, None)

    async def _open(self, accept: Callable[[httpx.Response], bool], wanted: float) -> bytes | None:
        """Connect, and read the first `wanted` bytes of the body; `None` if there is none."""
        while (ask := self.machine.ask()) is not None:
            if ask.delay:
                await self._pause(ask.delay)
                # It may have been stopped meanwhile.
                continue
            try:
                head = await self._ask(ask)
                if not accept(head):
                    return None
                # A refusal is read before the machine sees it, so that its error can have the server's words.
                limit = wanted if head.is_success and ask.method != "HEAD" else MAX_REFUSAL
                body = bytearray()
                # The check comes first: of a stream nothing is read here (`wanted` is 0), as it may be silent for
                # minutes.
                while len(body) < limit and (chunk := await self._next_chunk()) is not None:
                    body += chunk
                if self.machine.head(head, bytes(body)):
                    return bytes(body)
                await self.close()
            except self._errors as exc:
                await self._fail(exc)
            # A cancellation, or an error of the machine. The connection would stay checked out of the client's pool.
            except BaseException:
                await self.close()
                raise
        return None

    async def _pause(self, delay: float) -> None:
        """Wait before the next attempt."""
        if self._sleep is not None:
            await settle(self._sleep(delay))
            return
        # A server may ask for a minute, and another thread or task stop the stream meanwhile. Not by an event: Ctrl-C
        # does not end the wait for one everywhere.
        while delay > 0 and not self.machine.is_stopped:
            await settle((anyio.sleep if self._is_async else time.sleep)(min(delay, NAP)))
            delay -= NAP

    async def _read_on(self) -> bytes:
        try:
            chunk = await self._next_chunk()
        except self._errors as exc:
            await self._fail(exc)
            return b""
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

    async def _fail(self, error: Exception) -> None:
        await self.close()
        if not isinstance(error, self._lost):
            raise self.machine.give_up(error) from error
        self.machine.cut(error)


def flavour(request: httpx.Request) -> ModuleType:
    """The module that a request is of: httpx, or httpx2."""
    # httpx2 need not be installed, so it is not imported here; a request of it shows that it is.
    return sys.modules[type(request).__module__.partition(".")[0]]


async def settle(value: Awaitable[ResultT] | ResultT) -> ResultT:
    """The result of a call, whether it has blocked or is to be awaited."""
    return await value if isinstance(value, Awaitable) else value


def run(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Drive a coroutine of a synchronous client, which never waits."""
    try:
        # It awaits nothing, so it runs to its end at the first step.
        coroutine.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    raise RuntimeError("a synchronous client has waited")
