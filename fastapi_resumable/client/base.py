"""What the synchronous and the asynchronous client have in common."""

import codecs
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypedDict, TypeVar
from uuid import uuid4

import httpx
from httpx_sse import SSEError
from pydantic import TypeAdapter

from ..models import ResumableStreamItem
from .backoff import Backoff
from .cursors import Item
from .follower import Follower, Wire, call
from .machine import Head, Resumption, StreamState, first_offset
from .wires import Prepared, RequestOptions, SendOptions

TerminalEvents = Literal["raise", "yield"]
"""What becomes of the event by which a stream says that it did not complete."""
OnState = Callable[[StreamState], object]

MAX_LOOKUP = 1000
_ITEMS = TypeAdapter(list[ResumableStreamItem])
HttpT = TypeVar("HttpT", httpx.Client, httpx.AsyncClient)


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


class Requests(Generic[HttpT]):
    """Makes the requests of a client."""

    def __init__(self, http: HttpT, *, prefix: str, read_timeout: float | None, backoff: Backoff) -> None:
        self.http: HttpT = http
        self.backoff = backoff
        self._prefix = prefix.rstrip("/")
        self._read_timeout = read_timeout

    def build(self, method: str, url: httpx.URL | str, arguments: RequestArguments) -> Prepared:
        """Merge the client's settings, ours and the caller's."""
        given: dict[str, Any] = {**arguments}
        sending: Any = {name: given.pop(name) for name in SendOptions.__annotations__ if name in given}
        headers = httpx.Headers(given.pop("headers", None))
        # Compressed, the bytes that come would not be those of the log, by which a client finds its place.
        headers["Accept-Encoding"] = "identity"
        if "timeout" not in given:
            timeout = self.http.timeout
            given["timeout"] = type(timeout)(**{**timeout.as_dict(), "read": self._read_timeout})
        options: Any = {name: given[name] for name in RequestOptions.__annotations__ if name in given}
        request = self.http.build_request(method, url, headers=headers, **given)
        return Prepared(request, headers, options, sending)

    def start(self, method: str, url: httpx.URL | str, stream_id: str | None, arguments: RequestArguments) -> Prepared:
        """A request that begins a stream, and may be repeated: it names the stream, and itself."""
        headers = httpx.Headers(arguments.get("headers"))
        if stream_id is not None:
            headers["X-Conversation-Id"] = stream_id
        for name in ("X-Conversation-Id", "Idempotency-Key"):
            headers.setdefault(name, str(uuid4()))
        return self.build(method, url, {**arguments, "headers": headers})

    def resume(self, stream_id: str, offset: int, epoch: str | None, arguments: RequestArguments) -> Prepared:
        """A request that goes on with a stream."""
        query: dict[str, str | int] = {"conv_id": stream_id, "from": offset, **({"epoch": epoch} if epoch else {})}
        return self.build("GET", f"{self._prefix}/stream?{httpx.QueryParams(query)}", arguments)

    def stop(self, stream_id: str, epoch: str | None, arguments: RequestArguments) -> Prepared:
        """A request that stops a stream."""
        query = {"conv_id": stream_id, **({"epoch": epoch} if epoch else {})}
        return self.build("DELETE", f"{self._prefix}/stream?{httpx.QueryParams(query)}", arguments)

    def lookup(self, ids: Iterable[str], arguments: RequestArguments) -> Iterator[Prepared]:
        """Requests that look for streams."""
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), MAX_LOOKUP):
            body = {"conversation_ids": wanted[start : start + MAX_LOOKUP]}
            yield self.build("POST", f"{self._prefix}/streams/lookup", {**arguments, "json": body})

    def machine(self, prepared: Prepared, on_state: OnState | None) -> Resumption:
        """What follows the stream that a request begins."""
        request = prepared.request
        return Resumption(self.backoff, first_offset(str(request.url), request.headers), on_state)


def found(answers: Iterable[bytes]) -> list[ResumableStreamItem]:
    """The streams in the answers to a lookup, each once."""
    items = [item for answer in answers for item in _ITEMS.validate_json(answer)]
    return list({item.conversation_id: item for item in items}.values())


class BaseStream:
    """What both kinds of stream have in common."""

    def __init__(self, wire: Wire, machine: Resumption, request: httpx.Request, backoff: Backoff) -> None:
        self.request = request
        """The request that begins the stream."""
        self._wire = wire
        self._machine = machine
        self._follower = Follower(wire, machine)
        self._backoff = backoff
        self._first: Head | None = None
        self._items: deque[Item] = deque()
        self._offset = machine.cursor.offset
        self._face: str | None = None

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
        if await self._follower.open():
            assert self._follower.reply is not None
            self._first = self._follower.reply.head

    async def _next(self) -> Any:
        """The next item; `None` at the end. One at a time, so that none is lost when an iteration is left."""
        if not self._items:
            self._items.extend(await self._follower.read())
            if not self._items:
                return None
        value, self._offset = self._items.popleft()
        return value

    def _take(self, face: str) -> None:
        """Settle on one way to iterate, as they keep count in different ways."""
        if self._face not in (None, face):
            raise RuntimeError(f"The stream is being read with {self._face}(); go on with that.")
        if self._face is None:
            content_type = self._head.headers.get("content-type", "")
            if face == "events":
                if content_type.partition(";")[0].strip().lower() != "text/event-stream":
                    raise SSEError(f"The answer is {content_type!r}, no text/event-stream: use iter_lines().")
                self._machine.read_events()
            elif face == "iter_lines":
                self._machine.read_lines(_charset(content_type))
            self._face = face

    async def _stop(self) -> None:
        if not self._machine.is_over:
            await call(self._wire, self._machine.stop(), self._backoff)

    async def _close(self) -> None:
        self._machine.detach()
        self._items.clear()
        await self._follower.close()


def _charset(content_type: str) -> str:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            try:
                return codecs.lookup(value.strip().strip('"')).name
            except LookupError:
                break
    return "utf-8"
