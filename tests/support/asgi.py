"""A streaming in-process ASGI client: every message, in both directions, is in the test's hand.

httpx's ``ASGITransport`` buffers a response until its end, so it can neither leave in mid-stream nor read slowly.
Here a request is an `Exchange`: the test reads what has come, leaves, stalls, uploads piece by piece, or cancels
the server's task as a server does at shutdown. Every wait is bounded by `LIMIT`.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, unquote

T = TypeVar("T")
Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]

LIMIT = 45.0
"""Seconds that any single wait may take before the test fails."""


def without_epochs(data: bytes | bytearray) -> bytes:
    """Data of the same length in which no epoch is left: one can have any word in it."""
    return re.sub(rb"[a-z2-7]{16}(?=-\d)", bytes(16), data)


async def bounded(awaitable: Awaitable[T], what: str = "something that should have happened") -> T:
    """Await, but not for ever."""
    try:
        return await asyncio.wait_for(awaitable, LIMIT)
    except TimeoutError as error:
        raise AssertionError(f"waited {LIMIT:.0f} s in vain for {what}") from error


async def until(condition: Callable[[], bool], what: str = "a condition") -> None:
    """Give the loop turns until ``condition()`` is true."""

    async def turns() -> None:
        turn = 0
        while not condition():
            turn += 1
            # Spin at first, for state that changes within some loop turns; then leave the CPU to threads.
            await asyncio.sleep(0 if turn < 200 else 0.002)

    await bounded(turns(), what)


async def settle(turns: int = 60) -> None:
    """Let everything run that can run without further input (not a wait for an event: those have events)."""
    for _ in range(turns):
        await asyncio.sleep(0)


class ClientGone(OSError):
    """What ``send`` raises after a disconnect under ASGI HTTP spec 2.4."""


@dataclass(frozen=True)
class Head:
    """Status and headers of a response."""

    status: int
    raw_headers: tuple[tuple[bytes, bytes], ...]

    @property
    def headers(self) -> dict[str, str]:
        """Headers by lower-case name; a repeated one shows its last value (see `all`)."""
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self.raw_headers}

    def all(self, name: str) -> list[str]:
        """Every value of one header."""
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.raw_headers if key.lower() == wanted]


@dataclass(frozen=True)
class Reply:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes
    clean: bool

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return jsonlib.loads(self.body)

    @property
    def code(self) -> str:
        """The error code of a ``{"detail": {"code": ...}}`` body."""
        detail = self.json()["detail"]
        assert isinstance(detail, dict), self.body
        assert isinstance(detail["message"], str) and detail["message"], self.body
        return str(detail["code"])


class Exchange:
    """One request in flight, seen from the client's end."""

    def __init__(self, app: App, scope: Message, upload: Iterable[bytes], *, more: bool = False) -> None:
        self._uploads: deque[Message] = deque()
        self._gone = False
        self._open_gate = asyncio.Event()
        self._open_gate.set()
        self._moved = asyncio.Event()
        self._buffer = bytearray()
        self._keep = True
        self.spec_version: str = scope["asgi"]["spec_version"]
        self.messages: list[Message] = []
        self.violations: list[str] = []
        self.head_now: Head | None = None
        self.received_bytes = 0
        self.clean = False
        self.body_messages = 0
        self.upload(*upload, more=more)
        self.task = asyncio.get_running_loop().create_task(self._serve(app, scope))
        self.error: BaseException | None = None

    # -- what the server does ------------------------------------------------------------------------------------

    async def _serve(self, app: App, scope: Message) -> None:
        try:
            await app(scope, self._receive, self._send)
        except BaseException as error:
            self.error = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._move()

    async def _receive(self) -> Message:
        while True:
            if self._gone or self.clean:
                return {"type": "http.disconnect"}
            if self._uploads:
                return self._uploads.popleft()
            await self._moved.wait()

    async def _send(self, message: Message) -> None:
        while not self._open_gate.is_set() and not self._gone:
            await self._moved.wait()
        if self._gone:
            if self.spec_version == "2.3":
                return
            raise ClientGone("the client has left")
        self._check(message)
        if self._keep:
            self.messages.append(message)
        if message["type"] == "http.response.start":
            headers = tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
            self.head_now = Head(message["status"], headers)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self.body_messages += 1
            self.received_bytes += len(body)
            if self._keep:
                self._buffer += body
            if not message.get("more_body", False):
                self.clean = True
        self._move()

    def _check(self, message: Message) -> None:
        problem = None
        match message["type"]:
            case "http.response.start" if self.head_now is not None:
                problem = "a second response start"
            case "http.response.body" if self.head_now is None:
                problem = "a body before the response start"
            case "http.response.body" if self.clean:
                problem = "a body after the end"
        if problem:
            self.violations.append(problem)
            raise RuntimeError(f"ASGI violation: {problem}")

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    # -- what the client does ------------------------------------------------------------------------------------

    def upload(self, *pieces: bytes, more: bool = False) -> None:
        """Send pieces of the request's body; the last one ends it unless ``more``."""
        for number, piece in enumerate(pieces, 1):
            self._uploads.append({"type": "http.request", "body": piece, "more_body": more or number < len(pieces)})
        if hasattr(self, "task"):
            self._move()

    def disconnect(self) -> None:
        """Leave: from now on ``receive`` says so, and ``send`` does what the spec version says."""
        self._gone = True
        self._move()

    def cancel(self) -> None:
        """Cancel the server's task, as a server does when its own shutdown runs out of time."""
        self.task.cancel()

    def stall(self) -> None:
        """Stop reading: ``send`` blocks until `resume` or `disconnect`."""
        self._open_gate.clear()

    def resume(self) -> None:
        """Read again."""
        self._open_gate.set()
        self._move()

    def count_only(self) -> None:
        """From now on count the bytes that come, and keep none of them."""
        self._keep = False
        self._buffer.clear()
        self.messages.clear()

    @property
    def over(self) -> bool:
        """Whether the response has ended, or its server task has."""
        return self.clean or self.task.done()

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        async def turns() -> None:
            while not condition():
                await self._moved.wait()

        await bounded(turns(), what)

    async def head(self) -> Head:
        """Status and headers, once they have come."""
        await self._until(lambda: self.head_now is not None or self.task.done(), "the response's head")
        assert self.head_now is not None, f"the server ended without a response: {self.error!r}"
        return self.head_now

    async def read(self) -> bytes:
        """What has come since the last read, at least one byte; empty at the end."""
        await self._until(lambda: bool(self._buffer) or self.over, "more of the body")
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def read_until(self, marker: bytes) -> bytes:
        """The body up to and with ``marker``."""
        await self._until(lambda: marker in without_epochs(self._buffer) or self.over, f"{marker!r} in the body")
        assert marker in without_epochs(self._buffer), f"the body ended without {marker!r}: {bytes(self._buffer)!r}"
        end = without_epochs(self._buffer).index(marker) + len(marker)
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        return data

    async def rest(self) -> bytes:
        """The body from here to its end, clean or not (see `clean`)."""
        await self._until(lambda: self.over, "the end of the response")
        return await self.read()

    async def reply(self) -> Reply:
        """The whole response."""
        head = await self.head()
        body = await self.rest()
        assert not self.violations, self.violations
        return Reply(head.status, head.headers, body, self.clean)

    async def served(self) -> None:
        """Wait until the server's task for this request is done, however it ends."""
        await bounded(asyncio.wait([self.task]), "the end of the server's task")
        assert self.task.done(), "the server's task is still running"


class Client:
    """Starts exchanges against one app."""

    def __init__(self, app: App, *, spec_version: str = "2.3", root_path: str = "") -> None:
        self.app = app
        self.spec_version = spec_version
        self.root_path = root_path
        self.state: dict[str, Any] = {}
        self.exchanges: list[Exchange] = []

    def start(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        body: bytes = b"",
        pieces: Iterable[bytes] | None = None,
        more: bool = False,
    ) -> Exchange:
        """Send a request; ``pieces`` uploads its body in several messages and ``more`` leaves it open."""
        raw_path, _, query = url.partition("?")
        fields = {name.lower(): value for name, value in (headers or {}).items()}
        if json is not None:
            body = jsonlib.dumps(json).encode()
            fields.setdefault("content-type", "application/json")
        parts = [body] if pieces is None else list(pieces)
        if not more:
            fields.setdefault("content-length", str(sum(map(len, parts))))
        fields.setdefault("host", "testserver")
        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": self.spec_version},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(raw_path),
            "raw_path": quote(raw_path, safe="/%:,;=+@!$&'()*").encode(),
            "query_string": query.encode(),
            "root_path": self.root_path,
            "headers": [(name.encode(), value.encode("utf-8")) for name, value in fields.items()],
            "client": ("127.0.0.1", 40000 + len(self.exchanges)),
            "server": ("testserver", 80),
            "state": dict(self.state),
        }
        exchange = Exchange(self.app, scope, parts, more=more)
        self.exchanges.append(exchange)
        return exchange

    async def request(self, method: str, url: str, **options: Any) -> Reply:
        """Send a request and read the whole response."""
        return await self.start(method, url, **options).reply()

    async def get(self, url: str, **options: Any) -> Reply:
        """GET."""
        return await self.request("GET", url, **options)

    async def post(self, url: str, **options: Any) -> Reply:
        """POST."""
        return await self.request("POST", url, **options)

    async def delete(self, url: str, **options: Any) -> Reply:
        """DELETE."""
        return await self.request("DELETE", url, **options)

    async def head_status(self, url: str, **options: Any) -> int:
        """HEAD; only the status."""
        return (await self.request("HEAD", url, **options)).status

    async def close(self) -> None:
        """Leave every exchange that is still open and wait for the server's tasks."""
        for exchange in self.exchanges:
            exchange.disconnect()
        tasks = {exchange.task for exchange in self.exchanges if not exchange.task.done()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=LIMIT)
            for task in late:
                task.cancel()
            assert not late, f"{len(late)} server tasks outlived their clients and the app's shutdown"


class Lifespan:
    """The app's lifespan, in its own task, as a server runs it."""

    def __init__(self, app: App, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Send the startup event and wait for the answer."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._exchange("lifespan.startup")

    async def shutdown(self) -> None:
        """Send the shutdown event and wait for the answer."""
        await self._exchange("lifespan.shutdown")
        assert self._task is not None
        await bounded(self._task, "the end of the lifespan")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._inbox.get, self._outbox.put)
        except Exception as error:
            await self._outbox.put({"type": "lifespan.raised", "error": error})

    async def _exchange(self, kind: str) -> None:
        await self._inbox.put({"type": kind})
        answer = await bounded(self._outbox.get(), f"the answer to {kind}")
        if answer["type"] == "lifespan.raised":
            raise answer["error"]
        assert answer["type"] == f"{kind}.complete", answer


@asynccontextmanager
async def running(
    app: App, *, spec_version: str = "2.3", root_path: str = "", lifespan: bool = True
) -> AsyncIterator[Client]:
    """The app, started, and a client for it; at the end clients leave first, then the app shuts down.

    Leaving before the shutdown is the harder order: streams are then live with nobody reading.
    """
    client = Client(app, spec_version=spec_version, root_path=root_path)
    life = Lifespan(app, client.state)
    if lifespan:
        await life.startup()
    try:
        yield client
    finally:
        for exchange in client.exchanges:
            exchange.disconnect()
        if lifespan:
            await life.shutdown()
        await client.close()


@dataclass(frozen=True)
class Event:
    """A server-sent event as a browser would dispatch it."""

    data: str
    event: str = "message"
    id: str = ""

    def json(self) -> Any:
        """The data as JSON."""
        return jsonlib.loads(self.data)


def parse_events(body: bytes) -> list[Event]:
    """Decode an event stream as the WHATWG algorithm does (an unfinished last event is discarded)."""
    events: list[Event] = []
    data: list[str] = []
    name = last_id = ""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    for line in text.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append(Event("\n".join(data), name or "message", last_id))
            data, name = [], ""
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id":
            last_id = value
    return events


def data_of(body: bytes) -> list[str]:
    """The data of every unnamed event."""
    return [event.data for event in parse_events(body) if event.event == "message"]


def terminal_of(body: bytes) -> Event | None:
    """The terminal event (``error`` or ``cancelled``) that ends the body, if one does."""
    events = parse_events(body)
    return events[-1] if events and events[-1].event in {"error", "cancelled"} else None
