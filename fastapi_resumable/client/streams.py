"""A stream as an iterator of events, lines or bytes, synchronously and not: thin faces of the engine."""

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Generic, Literal, Self, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from ..exceptions import ClientError, StreamIncomplete
from .decoder import Decoder, Form, Item, known_charset, terminal
from .engine import Engine, run
from .machine import StreamState
from .messages import Backoff

ValueT = TypeVar("ValueT")
TerminalEvents = Literal["raise", "yield"]
"""What becomes of the event by which a stream says that it did not complete."""


class ResumableStream:
    """A stream, over as many connections as it takes: its name, and this client's place in it."""

    def __init__(self, engine: Engine, backoff: Backoff, first: httpx.Response | None = None) -> None:
        self._engine = engine
        self._machine = engine.machine
        self._backoff = backoff
        self._first = first
        self._offset = engine.machine.offset

    @property
    def state(self) -> StreamState:
        """Where this client is with the stream."""
        return self._machine.state

    @property
    def id(self) -> str:
        """The stream id."""
        return str(self._head.headers.get("x-conversation-id", ""))

    @property
    def epoch(self) -> str:
        """Which run of the id this is."""
        return self._machine.epoch or ""

    @property
    def offset(self) -> int:
        """The position right after what has been delivered: with `id` and `epoch`, all that `resume` needs."""
        return self._offset

    @property
    def status_code(self) -> int:
        """The status of the answer."""
        return self._head.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the answer."""
        return self._head.headers

    @property
    def replay_url(self) -> str | None:
        """Where the stream can be had again; `None` if the server does not keep it."""
        return self._machine.replay_url

    @property
    def _head(self) -> httpx.Response:
        if self._first is None:
            raise RuntimeError(
                "The stream is not open. Use it in a `with` block: `with client.stream(...) as stream:`."
            )
        return self._first


class Items(Generic[ValueT]):
    """What a stream delivers, one by one: for `for`, or `async for` if its client is asynchronous."""

    def __init__(self, stream: "BaseStream") -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[ValueT]:
        return self

    def __next__(self) -> ValueT:
        item = run(self._stream.next_item())
        if item is None:
            raise StopIteration
        return item.value  # type: ignore[no-any-return]  # the decoder is the one of this type

    def __aiter__(self) -> AsyncIterator[ValueT]:
        return self

    async def __anext__(self) -> ValueT:
        item = await self._stream.next_item()
        if item is None:
            raise StopAsyncIteration
        return item.value  # type: ignore[no-any-return]


class BaseStream(ResumableStream):
    """What the synchronous and the asynchronous stream of a client have in common."""

    def __init__(self, engine: Engine, backoff: Backoff) -> None:
        super().__init__(engine, backoff)
        self._items: deque[Item] = deque()
        self._form: Form | None = None
        self._decoder = Decoder("iter_bytes", 0)
        self._ended = False
        self._raises = True
        self._failure: StreamIncomplete | None = None

    def events(self, terminal_events: TerminalEvents = "raise") -> Items[ServerSentEvent]:
        """Iterate over server-sent events, each once, in order.

        Args:
            terminal_events: What becomes of the event by which the server says that the stream did not complete:
                `raise` it as `StreamFailed` or `StreamCancelled`, or `yield` it as the last one.

        Raises:
            ClientError: The stream did not complete, or cannot be reached any more; or it is not an event stream.
        """
        self._raises = terminal_events == "raise"
        return self._iterate("events")

    def iter_bytes(self) -> Items[bytes]:
        """Iterate over the bytes, of any media type, as they come.

        Raises:
            ClientError: The stream cannot be reached any more; or, if it is not an event stream, did not complete.
        """
        return self._iterate("iter_bytes")

    def iter_lines(self) -> Items[str]:
        """Iterate over lines of text, without their ends; for NDJSON and plain text.

        Raises:
            ClientError: The stream cannot be reached any more; or, if it is not an event stream, did not complete.
        """
        return self._iterate("iter_lines")

    def _iterate(self, form: Form) -> Items[Any]:
        """Settle on one form, as each finds its place in its own way."""
        # A decoder holds what is not whole yet, which the one of another form would read in another way.
        if self._form not in (None, form):
            raise RuntimeError(f"The stream is being read with {self._form}(); go on with that.")
        if self._form is None:
            # Refused here: httpx-sse would find no event in it, and the loop would just end.
            content_type = self._head.headers.get("content-type", "")
            if form == "events" and content_type.partition(";")[0].strip().lower() != "text/event-stream":
                raise ClientError(f"The answer is {content_type!r}, not text/event-stream: use iter_lines().")
            self._decoder = Decoder(form, self._offset, known_charset(self._head.charset_encoding))
            self._form = form
        return Items(self)

    async def next_item(self) -> Item | None:
        """The next item; `None` at the end. One at a time, so that none is lost when an iteration is left."""
        while not self._items:
            # Raised only when all items before it have been handed out, and once.
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            data = await self._engine.read()
            if not data and self._ended:
                return None
            self._ended = not data
            # At the end of a stream that is not complete, its last line may be half of one; it is not handed out.
            if data or self.state is StreamState.DONE:
                await self._decode(data, final=not data)
        # The offset moves with each item that is handed out, and not with what has come: `resume` goes on after it.
        item = self._items.popleft()
        self._offset = item.offset
        return item

    async def _decode(self, data: bytes, *, final: bool) -> None:
        """Take what has come; look for the event by which a stream says that it did not complete."""
        for item in self._decoder.feed(data, final=final):
            failure = terminal(item.value) if self._form == "events" else None
            if failure is None:
                self._items.append(item)
                continue
            await self._engine.close()
            self._failure = self._machine.conclude(failure)
            if not self._raises:
                self._failure = None
                self._items.append(item)
            return
        if self._decoder.retry is not None:
            self._machine.wait_at_least(self._decoder.retry)

    async def _open(self) -> None:
        await self._engine.load()
        if await self._engine.open():
            self._first, self._offset = self._engine.response, self._machine.offset

    async def _stop(self) -> None:
        # A stop of a stream that has ended would delete it for readers that come later; one that is not kept has ended
        # with its connection.
        ended = (StreamState.DONE, StreamState.STOPPED, StreamState.FAILED)
        is_gone = self.replay_url is None and self._machine.is_over
        if self.state not in ended and not is_gone:
            await self._engine.stop(self._backoff)

    async def _close(self) -> None:
        self._machine.detach()
        # What was read ahead is not delivered, so `offset` says where to resume.
        self._items.clear()
        self._decoder = Decoder("iter_bytes", 0)
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[ServerSentEvent]:
        return self.events()

    def stop(self) -> None:
        """Stop the stream at the server. What has come so far can still be read; then the iteration ends.

        May be called from another thread, and after `close`. If the stream has ended, or its connection has
        and the server does not keep it, this does nothing.

        Raises:
            ClientError: The server did not confirm it.
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

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[ServerSentEvent]:
        return self.events()

    async def stop(self) -> None:
        """Stop the stream at the server, as `ClientStream.stop`. May be called from another task."""
        await self._stop()

    async def close(self) -> None:
        """Close the connection. The stream itself goes on."""
        await self._close()
