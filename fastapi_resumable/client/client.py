"""Clients that start, resume, stop and look up streams with a user's own httpx client, synchronously and not."""

import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from uuid import uuid4

import anyio
import httpx
from pydantic import TypeAdapter

from ..models import ResumableStreamItem
from .engine import Sleep, Wire, call, flavour, run, settle
from .errors import ClientError
from .machine import Resumption, StreamState
from .messages import Ask, Backoff, first_offset, origin, without_credentials
from .streams import AsyncClientStream, BaseStream, ClientStream

OnState = Callable[[StreamState], object]

MAX_LOOKUP = 1000
_ITEMS = TypeAdapter(list[ResumableStreamItem])
NO_AUTH: Mapping[str, Any] = {"auth": None}
StreamT = TypeVar("StreamT", bound=BaseStream)


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
        self._is_async = hasattr(http, "aclose")
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
        request, wire = self._prepare(method, url, arguments)
        start = str(request.url)
        machine = Resumption(self._backoff, start, first_offset(start, request.headers), on_state)
        return self._stream(wire, machine, self._backoff)

    def _route(self, stream_id: str, epoch: str | None, more: Mapping[str, Any]) -> str:
        query = {"conv_id": stream_id, **more, **({"epoch": epoch} if epoch else {})}
        return f"{self._prefix}/stream?{httpx.QueryParams(query)}"

    def _prepare(self, method: str, url: httpx.URL | str, arguments: RequestArguments) -> tuple[httpx.Request, Wire]:
        """Merge the client's settings, ours and the caller's into a request, and what makes it."""
        given: dict[str, Any] = {**arguments}
        auth = {"auth": given.pop("auth")} if "auth" in given else {}
        follow_redirects = given.pop("follow_redirects", self._http.follow_redirects)
        headers = httpx.Headers(given.pop("headers", None))
        # Compressed, the bytes that come would not be those of the log, by which a client finds its place.
        headers["Accept-Encoding"] = "identity"
        if "timeout" not in given:
            timeout = self._http.timeout
            given["timeout"] = type(timeout)(**{**timeout.as_dict(), "read": self._read_timeout})
        request = self._http.build_request(method, url, headers=headers, **given)

        def send(request: httpx.Request, trusted: bool) -> Any:
            return self._send(request, auth if trusted else NO_AUTH, follow_redirects)

        return request, Wire(send, request, self._sleep, is_async=self._is_async, decoded=True)

    async def _send(self, request: Any, auth: Mapping[str, Any], follow_redirects: bool) -> Any:
        """Make a request, and follow redirects: not with httpx, which would take cookies and keys along."""
        for _ in range(self._http.max_redirects + 1):
            response = await settle(self._http.send(request, stream=True, follow_redirects=False, **auth))
            if not follow_redirects or response.next_request is None:
                return response
            await settle(response.aclose() if self._is_async else response.close())
            before, request = request, response.next_request
            if auth is NO_AUTH or origin(str(request.url)) != origin(str(before.url)):
                request, auth = without_credentials(request), NO_AUTH
        raise flavour(request).TooManyRedirects(f"More than {self._http.max_redirects} redirects.", request=request)

    async def _call(self, method: str, url: str, arguments: RequestArguments) -> bytes:
        _, wire = self._prepare(method, url, arguments)
        await wire.load()
        return await call(wire, Ask(0), self._backoff)

    async def _stop(self, stream_id: str, epoch: str | None, arguments: RequestArguments) -> None:
        await self._call("DELETE", self._route(stream_id, epoch, {}), arguments)

    async def _lookup(self, ids: Iterable[str], arguments: RequestArguments) -> list[ResumableStreamItem]:
        wanted = list(dict.fromkeys(ids))
        found: dict[str, ResumableStreamItem] = {}
        for start in range(0, len(wanted), MAX_LOOKUP):
            body = {"conversation_ids": wanted[start : start + MAX_LOOKUP]}
            answer = await self._call("POST", f"{self._prefix}/streams/lookup", {**arguments, "json": body})
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
