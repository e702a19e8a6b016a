"""Clients that start, resume, stop and look up streams with a user's own httpx client, synchronously and not."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, TypeVar
from uuid import uuid4

import httpx
from pydantic import TypeAdapter

from ..exceptions import ClientError
from ..models import ResumableStreamItem
from .engine import Engine, Sleep, run, settle
from .machine import Resumption, StreamState
from .messages import Backoff, first_offset, next_headers, origin
from .streams import AsyncClientStream, BaseStream, ClientStream

OnState = Callable[[StreamState], object]
StreamT = TypeVar("StreamT", bound=BaseStream)

MAX_LOOKUP = 1000
_ITEMS = TypeAdapter(list[ResumableStreamItem])


class _Client(Generic[StreamT]):
    """What both clients have in common: all but how they wait."""

    _stream: type[StreamT]

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
        # Not by `isinstance`: the client may be one of httpx2, or a subclass of neither.
        self._is_async = hasattr(http, "aclose")
        self._prefix = prefix.rstrip("/")
        self._read_timeout = read_timeout
        self._backoff = backoff or Backoff()
        self._sleep = sleep

    def stream(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        stream_id: str | None = None,
        on_state: OnState | None = None,
        **arguments: Any,
    ) -> StreamT:
        """Begin a stream with a request to its endpoint; use the result in a `with` block.

        The request names the stream, and itself, so that it may be repeated.

        Args:
            method: Of the request.
            url: Of the endpoint.
            stream_id: Goes into the header `X-Conversation-Id`. By default, what `headers` has there, or a fresh one.
            on_state: Called with each new state.
            **arguments: Those of `httpx.Client.stream`: `json`, `content`, `headers`, `params`, `auth`, `timeout` ...
        """
        headers = httpx.Headers(arguments.get("headers"))
        if stream_id is not None:
            headers["X-Conversation-Id"] = stream_id
        # A request that is lost before its answer can be sent again: the key leads to the run that the first one has
        # begun.
        for name in ("X-Conversation-Id", "Idempotency-Key"):
            headers.setdefault(name, str(uuid4()))
        return self._stream(self._engine(method, url, {**arguments, "headers": headers}, on_state), self._backoff)

    def resume(
        self,
        stream_id: str,
        *,
        offset: int = 0,
        epoch: str | None = None,
        on_state: OnState | None = None,
        **arguments: Any,
    ) -> StreamT:
        """Continue a stream, for example after a restart; use the result in a `with` block.

        Args:
            stream_id: A stream's `id`.
            offset: Its `offset`, where to continue.
            epoch: Its `epoch`: another one is refused, 409 `stream_replaced`.
            on_state: Called with each new state.
            **arguments: Those of `httpx.Client.stream`: `headers`, `auth`, `timeout` ...
        """
        query = {"conv_id": stream_id, "epoch": epoch or "", "from": offset}
        engine = self._replay("GET", query, arguments, on_state)
        engine.machine.may_be_start = False
        return self._stream(engine, self._backoff)

    def _replay(
        self, method: str, query: Mapping[str, Any], arguments: Mapping[str, Any], on_state: OnState | None = None
    ) -> Engine:
        # The id is in the query, because a path changes an id with `..`, `//` or an encoded slash on its way through
        # proxies. Not as a part of the URL, where httpx would put the client's or the caller's `params` in its place.
        params = httpx.QueryParams(arguments.get("params")).merge(query)
        return self._engine(method, f"{self._prefix}/stream", {**arguments, "params": params.multi_items()}, on_state)

    def _engine(
        self, method: str, url: httpx.URL | str, arguments: Mapping[str, Any], on_state: OnState | None = None
    ) -> Engine:
        """Merge the client's settings, ours and the caller's into a request, and what makes it."""
        given = {**arguments}
        # Absent and `None` are different for httpx: `None` switches the client's own auth off.
        auth = {"auth": given.pop("auth")} if "auth" in given else {}
        follow_redirects = given.pop("follow_redirects", self._http.follow_redirects)
        headers = httpx.Headers(given.pop("headers", None))
        # Compressed, the bytes that come would not be those of the log, by which a client finds its place.
        headers["Accept-Encoding"] = "identity"
        # A read timeout for ordinary requests is too long or too short for a stream, which has its keep-alives.
        if "timeout" not in given:
            timeout = self._http.timeout
            given["timeout"] = type(timeout)(**{**timeout.as_dict(), "read": self._read_timeout})
        request = self._http.build_request(method, url, headers=headers, **given)
        send = partial(self._send, auth, self._http.max_redirects if follow_redirects else 0)
        machine = Resumption(self._backoff, str(request.url), first_offset(request), on_state)
        return Engine(send, request, machine, self._sleep, is_async=self._is_async, decoded=True)

    async def _send(self, auth: Mapping[str, Any], redirects: int, request: Any, trusted: bool) -> Any:
        """Make a request, and follow redirects: not with httpx, which would take cookies and keys along."""
        home = origin(str(request.url))
        while True:
            arguments = auth if trusted else {"auth": None}
            response = await settle(self._http.send(request, stream=True, follow_redirects=False, **arguments))
            if not redirects or response.next_request is None:
                return response
            redirects -= 1
            # Its body is not read, so the connection would never return to the pool by itself.
            await settle(response.aclose() if self._is_async else response.close())
            request = response.next_request
            trusted = trusted and origin(str(request.url)) == home
            if not trusted:
                request.headers = next_headers(request.headers, trusted=False)

    async def _stop(self, stream_id: str, epoch: str | None, arguments: Mapping[str, Any]) -> None:
        await self._replay("DELETE", {"conv_id": stream_id, "epoch": epoch or ""}, arguments).fetch()

    async def _lookup(self, ids: Iterable[str], arguments: Mapping[str, Any]) -> list[ResumableStreamItem]:
        # Without repetitions, and in order: the limit of the server counts each id.
        wanted = list(dict.fromkeys(ids))
        found: dict[str, ResumableStreamItem] = {}
        for start in range(0, len(wanted), MAX_LOOKUP):
            body = {"conversation_ids": wanted[start : start + MAX_LOOKUP]}
            url = f"{self._prefix}/streams/lookup"
            answer = await self._engine("POST", url, {**arguments, "json": body}).fetch()
            try:
                found.update({item.conversation_id: item for item in _ITEMS.validate_json(answer)})
            except ValueError as exc:
                raise ClientError(
                    "The answer is not that of a lookup. Is `prefix` the prefix of the server's router?"
                ) from exc
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
        sleep: A function that waits for a number of seconds.
    """

    _stream = ClientStream

    def stop(self, stream_id: str, *, epoch: str | None = None, **arguments: Any) -> None:
        """Stop a stream at the server; with `epoch`, no other one of that id.

        Raises:
            ClientError: The server did not confirm it.
        """
        run(self._stop(stream_id, epoch, arguments))

    def lookup(self, ids: Iterable[str], **arguments: Any) -> list[ResumableStreamItem]:
        """Ask which of these streams exist, and for their states; an id also matches its variants, `id::...`.

        Raises:
            ClientError: The server does not answer, or refuses.
        """
        return run(self._lookup(ids, arguments))


class AsyncResumableClient(_Client[AsyncClientStream]):
    """The same as `ResumableClient`, with `await`, and your own `httpx.AsyncClient`."""

    _stream = AsyncClientStream

    async def stop(self, stream_id: str, *, epoch: str | None = None, **arguments: Any) -> None:
        """Stop a stream at the server, as `ResumableClient.stop`."""
        await self._stop(stream_id, epoch, arguments)

    async def lookup(self, ids: Iterable[str], **arguments: Any) -> list[ResumableStreamItem]:
        """Ask which of these streams exist, as `ResumableClient.lookup`."""
        return await self._lookup(ids, arguments)
