"""Clients that start, follow, resume, stop and look up streams, synchronously and not: thin faces of the engine."""

import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, Unpack
from uuid import uuid4

import anyio
import httpx
from httpx_sse import ServerSentEvent, SSEError
from pydantic import TypeAdapter

from ..models import ResumableStreamItem
from .decoding import Decoder, EventDecoder, Item, LineDecoder, terminal
from .engine import ClientWire, Engine, Prepared, Sleep, call, run
from .errors import ClientError, StreamIncomplete
from .machine import Backoff, Resumption, StreamState
from .messages import Ask, Head, charset_of, first_offset

TerminalEvents = Literal["raise", "yield"]
"""What becomes of the event by which a stream says that it did not complete."""
OnState = Callable[[StreamState], object]

MAX_LOOKUP = 1000
_ITEMS = TypeAdapter(list[ResumableStreamItem])
_KEPT = ("cookies", "extensions", "timeout")
"""What belongs to every request of a stream, and is not the client's already."""
StreamT = TypeVar("StreamT", bound="_Stream")


class RequestArguments(TypedDict, total=False):
    """httpx's own: see `httpx.Client.stream`."""

    content: str | bytes | Iterable[bytes] | AsyncIterable[bytes] | None
    data: Mapping[str, Any] | None
    files: Any
    json: Any
    params: Any
    headers: httpx.Headers | Mapping[str, str] | Sequence[tuple[str, str]] | None
    cookies: Any
    auth: Any
    follow_redirects: bool
    timeout: float | httpx.Timeout | None
    extensions: dict[str, Any] | None


class _Stream:
    """What both kinds of stream have in common."""

    def __init__(self, wire: ClientWire, machine: Resumption, backoff: Backoff) -> None:
        self._wire = wire
        self._machine = machine
        self._engine = Engine(wire, machine)
        self._backoff = backoff
        self._first: Head | None = None
        self._items: deque[Item] = deque()
        self._offset = machine.offset
        self._face: str | None = None
        self._decoder = Decoder(0)
        self._ended = False
        self._raises = True
        self._failure: StreamIncomplete | None = None

    @property
    def state(self) -> StreamState:
        """Where this client is with the stream."""
        return self._machine.state

    @property
    def status_code(self) -> int:
        """The status of the answer."""
        return self._head.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer."""
        return self._head.headers

    @property
    def id(self) -> str:
        """The stream id."""
        return self._head.headers.get("x-conversation-id", "")

    @property
    def epoch(self) -> str:
        """Which incarnation of the id this is."""
        return self._machine.epoch or ""

    @property
    def offset(self) -> int:
        """The position right after what has been delivered: with `id` and `epoch`, all that `resume` needs."""
        return self._offset

    @property
    def replay_url(self) -> str | None:
        """Where the stream can be had again; `None` if the server does not keep it."""
        return self._machine.replay_url

    @property
    def _head(self) -> Head:
        if self._first is None:
            raise RuntimeError(
                "The stream is not open. Use it in a `with` block: `with client.stream(...) as stream:`."
            )
        return self._first

    async def _open(self) -> None:
        if await self._engine.open():
            assert self._engine.reply is not None
            self._first = self._engine.reply.head

    def _take(self, face: str, terminal_events: TerminalEvents = "raise") -> None:
        """Settle on one way to iterate, as they keep count in different ways."""
        if self._face not in (None, face):
            raise RuntimeError(f"The stream is being read with {self._face}(); go on with that.")
        self._raises = terminal_events == "raise"
        if self._face is None:
            content_type = self._head.headers.get("content-type", "")
            if face == "events":
                if content_type.partition(";")[0].strip().lower() != "text/event-stream":
                    raise SSEError(f"The answer is {content_type!r}, no text/event-stream: use iter_lines().")
                self._decoder = EventDecoder(self._offset)
            elif face == "iter_lines":
                self._decoder = LineDecoder(self._offset, charset_of(content_type))
            else:
                self._decoder = Decoder(self._offset)
            self._face = face

    async def _next(self) -> Any:
        """The next item; `None` at the end. One at a time, so that none is lost when an iteration is left."""
        while not self._items:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            data = await self._engine.read()
            if data:
                await self._decode(self._decoder.feed(data))
            elif self._ended:
                return None
            else:
                self._ended = True
                if self.state is StreamState.DONE:
                    await self._decode(self._decoder.finish())
        value, self._offset = self._items.popleft()
        return value

    async def _decode(self, items: Iterable[Item]) -> None:
        """Take what has come; look for the event by which a stream says that it did not complete."""
        decoder = self._decoder
        if not isinstance(decoder, EventDecoder):
            self._items.extend(items)
            return
        before = decoder.offset
        for item in items:
            failure = terminal(item.value)
            if failure is None:
                self._items.append(item)
                before = item.offset
                continue
            await self._engine.close()
            if failure.code == "store_unavailable" and item.value.id != f"{self.epoch}-{item.offset}":
                # It is not in the log: this server has lost sight of the stream, which may be well.
                self._decoder = EventDecoder(before)
                self._machine.go_back(before, failure)
            else:
                self._failure = self._machine.conclude(failure)
                if not self._raises:
                    self._failure = None
                    self._items.append(item)
            return
        if decoder.retry is not None:
            self._machine.wait_at_least(decoder.retry)

    async def _stop(self) -> None:
        if not self._machine.is_over:
            await call(self._wire, self._machine.stop(), self._backoff)

    async def _close(self) -> None:
        self._machine.detach()
        self._items.clear()
        self._decoder = Decoder(0)
        await self._engine.close()


class ClientStream(_Stream):
    """A stream that is read to its end, over as many connections as it takes. Made by `ResumableClient`.

    Leaving its `with` block early detaches from the stream, which goes on; `stop` stops it. Iterate in one of the three
    ways; an iteration that was left can be taken up again.
    """

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            RequestRefused: The server's answer is final.
            ConnectionLost: There is no way to the server.
        """
        run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[ServerSentEvent]:
        return self.events()

    def events(self, terminal_events: TerminalEvents = "raise") -> Iterator[ServerSentEvent]:
        """Iterate over server-sent events, each once, in order.

        Args:
            terminal_events: What becomes of the event by which the server says that the stream did not complete:
                `raise` it as `StreamFailed` or `StreamCancelled`, or `yield` it as the last one.

        Raises:
            ClientError: The stream did not complete, or cannot be reached any more.
            httpx_sse.SSEError: It is no event stream.
        """
        return self._iterate("events", terminal_events)

    def iter_bytes(self) -> Iterator[bytes]:
        """Iterate over the bytes, of any media type, as they come.

        Raises:
            ClientError: The stream cannot be reached any more; or, if it is no event stream, did not complete.
        """
        return self._iterate("iter_bytes")

    def iter_lines(self) -> Iterator[str]:
        """Iterate over lines of text, without their ends; for NDJSON and plain text.

        Raises:
            ClientError: The stream cannot be reached any more; or, if it is no event stream, did not complete.
        """
        return self._iterate("iter_lines")

    def _iterate(self, face: str, terminal_events: TerminalEvents = "raise") -> Iterator[Any]:
        self._take(face, terminal_events)
        while (item := run(self._next())) is not None:
            yield item

    def stop(self) -> None:
        """Stop the stream at the server. What has come so far can still be read; then the iteration ends.

        May be called from another thread. If the stream has ended, this does nothing.

        Raises:
            ClientError: The server did not say that it has.
        """
        run(self._stop())

    def close(self) -> None:
        """Close the connection. The stream itself goes on."""
        run(self._close())


class AsyncClientStream(_Stream):
    """The same as `ClientStream`, with `await`. Made by `AsyncResumableClient`."""

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[ServerSentEvent]:
        return self.events()

    def events(self, terminal_events: TerminalEvents = "raise") -> AsyncIterator[ServerSentEvent]:
        """Iterate over server-sent events, as `ClientStream.events`."""
        return self._iterate("events", terminal_events)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes, as `ClientStream.iter_bytes`."""
        return self._iterate("iter_bytes")

    def iter_lines(self) -> AsyncIterator[str]:
        """Iterate over lines of text, as `ClientStream.iter_lines`."""
        return self._iterate("iter_lines")

    async def _iterate(self, face: str, terminal_events: TerminalEvents = "raise") -> AsyncIterator[Any]:
        self._take(face, terminal_events)
        while (item := await self._next()) is not None:
            yield item

    async def stop(self) -> None:
        """Stop the stream at the server, as `ClientStream.stop`. May be called from another task."""
        await self._stop()

    async def close(self) -> None:
        """Close the connection. The stream itself goes on."""
        await self._close()


class _Client(Generic[StreamT]):
    """What both clients have in common: all but how they wait."""

    _stream: type[StreamT]
    _sleep: Sleep

    def __init__(
        self,
        http: Any,
        *,
        prefix: str = "/v1",
        read_timeout: float | None = 45.0,
        backoff: Backoff | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        self._http = http
        self._prefix = prefix.rstrip("/")
        self._read_timeout = read_timeout
        self._backoff = backoff or Backoff()
        self._sleep = sleep or self._sleep

    def stream(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        stream_id: str | None = None,
        on_state: OnState | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> StreamT:
        """Begin a stream with a request to its endpoint; use the result in a `with` block.

        The request names the stream, and itself, so that it may be repeated.

        Args:
            method: Of the request.
            url: Of the endpoint.
            stream_id: Goes into the header `X-Conversation-Id`. By default, what `headers` has there, or a fresh one.
            on_state: Called with each new state.
            **arguments: httpx's own: `json`, `content`, `headers`, `params`, `auth`, `timeout` ...
        """
        headers = httpx.Headers(arguments.get("headers"))
        if stream_id is not None:
            headers["X-Conversation-Id"] = stream_id
        for name in ("X-Conversation-Id", "Idempotency-Key"):
            headers.setdefault(name, str(uuid4()))
        return self._follow(method, url, on_state, {**arguments, "headers": headers})

    def resume(
        self,
        stream_id: str,
        *,
        offset: int = 0,
        epoch: str | None = None,
        on_state: OnState | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> StreamT:
        """Go on with a stream, say after a restart; use the result in a `with` block.

        Args:
            stream_id: A stream's `id`.
            offset: Its `offset`, from where on it is delivered.
            epoch: Its `epoch`: another one is refused, 409 `stream_replaced`.
            on_state: Called with each new state.
            **arguments: httpx's own: `headers`, `auth`, `timeout` ...
        """
        return self._follow("GET", self._route(stream_id, epoch, {"from": offset}), on_state, arguments)

    def _follow(
        self, method: str, url: httpx.URL | str, on_state: OnState | None, arguments: RequestArguments
    ) -> StreamT:
        wire = self._wire(method, url, arguments)
        request = wire.prepared.request
        start = str(request.url)
        machine = Resumption(self._backoff, start, first_offset(start, request.headers), on_state)
        return self._stream(wire, machine, self._backoff)

    def _route(self, stream_id: str, epoch: str | None, more: Mapping[str, Any]) -> str:
        query = {"conv_id": stream_id, **more, **({"epoch": epoch} if epoch else {})}
        return f"{self._prefix}/stream?{httpx.QueryParams(query)}"

    def _wire(self, method: str, url: httpx.URL | str, arguments: RequestArguments) -> ClientWire:
        """Merge the client's settings, ours and the caller's into what makes the requests."""
        given: dict[str, Any] = {**arguments}
        sending = {"auth": given.pop("auth")} if "auth" in given else {}
        follow_redirects = given.pop("follow_redirects", self._http.follow_redirects)
        headers = httpx.Headers(given.pop("headers", None))
        # Compressed, the bytes that come would not be those of the log, by which a client finds its place.
        headers["Accept-Encoding"] = "identity"
        if "timeout" not in given:
            timeout = self._http.timeout
            given["timeout"] = type(timeout)(**{**timeout.as_dict(), "read": self._read_timeout})
        options = {name: given[name] for name in _KEPT if name in given}
        request = self._http.build_request(method, url, headers=headers, **given)
        return ClientWire(self._http, Prepared(request, headers, options, sending, follow_redirects), self._sleep)

    async def _stop(self, stream_id: str, epoch: str | None, arguments: RequestArguments) -> None:
        await call(self._wire("DELETE", self._route(stream_id, epoch, {}), arguments), Ask(0), self._backoff)

    async def _lookup(self, ids: Iterable[str], arguments: RequestArguments) -> list[ResumableStreamItem]:
        wanted = list(dict.fromkeys(ids))
        found: dict[str, ResumableStreamItem] = {}
        for start in range(0, len(wanted), MAX_LOOKUP):
            body = {"conversation_ids": wanted[start : start + MAX_LOOKUP]}
            wire = self._wire("POST", f"{self._prefix}/streams/lookup", {**arguments, "json": body})
            answer = await call(wire, Ask(0), self._backoff)
            try:
                found.update({item.conversation_id: item for item in _ITEMS.validate_json(answer)})
            except ValueError as exc:
                raise ClientError("The answer to the lookup is none. Is `prefix` where the router is?") from exc
        return list(found.values())


class ResumableClient(_Client[ClientStream]):
    """Starts, resumes, stops and looks up streams, with your own `httpx.Client`.

    Args:
        http: Makes all requests: its `base_url`, auth, cookies, proxies and so on apply. It stays yours to close.
        prefix: Where the server has the routes for `resume`, `stop` and `lookup`: a path, or a whole URL if `http` has
            no `base_url`. A stream that was begun with `stream` knows its own.
        read_timeout: Seconds without a byte after which a connection counts as lost. An event stream has a keep-alive
            every 15 seconds. It takes the place of the client's own, but not of a `timeout` given with a request.
        backoff: How long to wait before the next attempt, and how often to try.
        sleep: Waits for so many seconds.
    """

    _stream = ClientStream
    _sleep = staticmethod(time.sleep)

    def stop(self, stream_id: str, *, epoch: str | None = None, **arguments: Unpack[RequestArguments]) -> None:
        """Stop a stream at the server; with `epoch`, no other one of that id.

        Raises:
            ClientError: The server did not say that it has.
        """
        run(self._stop(stream_id, epoch, arguments))

    def lookup(self, ids: Iterable[str], **arguments: Unpack[RequestArguments]) -> list[ResumableStreamItem]:
        """Ask which of these streams there are, and what they are doing; an id also matches its variants, `id::...`.

        Raises:
            ClientError: There is no answer, or a refusal.
        """
        return run(self._lookup(ids, arguments))


class AsyncResumableClient(_Client[AsyncClientStream]):
    """The same as `ResumableClient`, with `await`, and your own `httpx.AsyncClient`."""

    _stream = AsyncClientStream
    _sleep = staticmethod(anyio.sleep)

    async def stop(self, stream_id: str, *, epoch: str | None = None, **arguments: Unpack[RequestArguments]) -> None:
        """Stop a stream at the server, as `ResumableClient.stop`."""
        await self._stop(stream_id, epoch, arguments)

    async def lookup(self, ids: Iterable[str], **arguments: Unpack[RequestArguments]) -> list[ResumableStreamItem]:
        """Ask which of these streams there are, as `ResumableClient.lookup`."""
        return await self._lookup(ids, arguments)
