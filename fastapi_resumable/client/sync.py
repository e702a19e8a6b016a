"""The synchronous client."""

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, Unpack

import httpx
from httpx_sse import ServerSentEvent

from ..models import ResumableStreamItem
from .backoff import Backoff
from .base import BaseStream, OnState, RequestArguments, Requests, TerminalEvents, found
from .follower import call, run
from .machine import Ask
from .wires import Prepared, SyncClientWire


class ResumableClient:
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

    def __init__(
        self,
        http: httpx.Client,
        *,
        prefix: str = "/v1",
        read_timeout: float | None = 45.0,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._requests = Requests(http, prefix=prefix, read_timeout=read_timeout, backoff=backoff or Backoff())
        self._sleep = sleep

    def stream(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        stream_id: str | None = None,
        on_state: OnState | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> "ClientStream":
        """Begin a stream with a request to its endpoint; use the result in a `with` block.

        Args:
            method: Of the request.
            url: Of the endpoint.
            stream_id: Goes into the header `X-Conversation-Id`. By default, what `headers` has there, or a fresh one.
            on_state: Called with each new state.
            **arguments: httpx's own: `json`, `content`, `headers`, `params`, `auth`, `timeout` ...
        """
        return self._follow(self._requests.start(method, url, stream_id, arguments), on_state)

    def resume(
        self,
        stream_id: str,
        *,
        offset: int = 0,
        epoch: str | None = None,
        on_state: OnState | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> "ClientStream":
        """Go on with a stream, say after a restart; use the result in a `with` block.

        Args:
            stream_id: A stream's `id`.
            offset: Its `offset`, from where on it is delivered.
            epoch: Its `epoch`: another one is refused, 409 `stream_replaced`.
            on_state: Called with each new state.
            **arguments: httpx's own: `headers`, `auth`, `timeout` ...
        """
        return self._follow(self._requests.resume(stream_id, offset, epoch, arguments), on_state)

    def stop(self, stream_id: str, *, epoch: str | None = None, **arguments: Unpack[RequestArguments]) -> None:
        """Stop a stream at the server; with `epoch`, no other one of that id.

        Raises:
            ClientError: The server did not say that it has.
        """
        self._call(self._requests.stop(stream_id, epoch, arguments))

    def lookup(self, ids: Iterable[str], **arguments: Unpack[RequestArguments]) -> list[ResumableStreamItem]:
        """Ask which of these streams there are, and what they are doing; an id also matches its variants, `id::...`.

        Raises:
            ClientError: There is no answer, or a refusal.
        """
        return found(self._call(prepared) for prepared in self._requests.lookup(ids, arguments))

    def _wire(self, prepared: Prepared) -> SyncClientWire:
        return SyncClientWire(self._requests.http, self._sleep, prepared)

    def _follow(self, prepared: Prepared, on_state: OnState | None) -> "ClientStream":
        machine = self._requests.machine(prepared, on_state)
        return ClientStream(self._wire(prepared), machine, prepared.request, self._requests.backoff)

    def _call(self, prepared: Prepared) -> bytes:
        return run(call(self._wire(prepared), Ask(0), self._requests.backoff))


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
        self._take("events")
        self._machine.raises = terminal_events == "raise"
        while (item := run(self._next())) is not None:
            yield item

    def iter_bytes(self) -> Iterator[bytes]:
        """Iterate over the bytes, of any media type, as they come.

        Raises:
            ClientError: The stream cannot be reached any more; or, if it is no event stream, did not complete.
        """
        self._take("iter_bytes")
        while (item := run(self._next())) is not None:
            yield item

    def iter_lines(self) -> Iterator[str]:
        """Iterate over lines of text, without their ends; for NDJSON and plain text.

        Raises:
            ClientError: The stream cannot be reached any more; or, if it is no event stream, did not complete.
        """
        self._take("iter_lines")
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
        """Let go of the connection. The stream itself goes on."""
        run(self._close())
