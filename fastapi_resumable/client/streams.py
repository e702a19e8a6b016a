"""A stream as an iterator of events, lines or bytes, synchronously and not: thin faces of the engine."""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from httpx_sse import ServerSentEvent, SSEError

from .decoding import Decoder, EventDecoder, Item, LineDecoder, terminal
from .engine import Engine, Wire, call, run
from .errors import StreamIncomplete
from .machine import Resumption, StreamState
from .messages import Backoff, Head, charset_of

TerminalEvents = Literal["raise", "yield"]
"""What becomes of the event by which a stream says that it did not complete."""


class ResumableStream:
    """A stream, over as many connections as it takes: its name, and this client's place in it."""

    def __init__(self, engine: Engine, wire: Wire, backoff: Backoff) -> None:
        self._engine = engine
        self._machine = engine.machine
        self._wire = wire
        self._backoff = backoff
        self._first = engine.reply.head if engine.reply else None

    @property
    def state(self) -> StreamState:
        """Where this client is with the stream."""
        return self._machine.state

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
        return self._machine.offset

    @property
    def _head(self) -> Head:
        if self._first is None:
            raise RuntimeError(
                "The stream is not open. Use it in a `with` block: `with client.stream(...) as stream:`."
            )
        return self._first


class BaseStream(ResumableStream):
    """What the synchronous and the asynchronous stream of a client have in common."""

    def __init__(self, wire: Wire, machine: Resumption, backoff: Backoff) -> None:
        super().__init__(Engine(wire, machine), wire, backoff)
        self._items: deque[Item] = deque()
        self._offset = machine.offset
        self._face: str | None = None
        self._decoder = Decoder(0)
        self._ended = False
        self._raises = True
        self._failure: StreamIncomplete | None = None

    @property
    def status_code(self) -> int:
        """The status of the answer."""
        return self._head.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer."""
        return self._head.headers

    @property
    def offset(self) -> int:
        """The position right after what has been delivered: with `id` and `epoch`, all that `resume` needs."""
        return self._offset

    @property
    def replay_url(self) -> str | None:
        """Where the stream can be had again; `None` if the server does not keep it."""
        return self._machine.replay_url

    async def _open(self) -> None:
        await self._wire.load()
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


class ClientStream(BaseStream):
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


class AsyncClientStream(BaseStream):
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
