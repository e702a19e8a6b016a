"""The other end of `tests.support.apps.scripted`: starts scripts, opens gates, replays, stops, looks up.

async with Player(server.port) as player:
    live = await player.post("some-id", send(b"data: 1\\n\\n"), wait("go"), send(b"data: 2\\n\\n"))
    await live.read_until(b"\\n\\n")
    await player.open("go")
    await live.read_all()
"""

import itertools
import json
import os
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from tests.support.rawhttp import Connection, Headers, Reply, Response, connect, fetch

Step = list[Any]
_counter = itertools.count()


def send(data: bytes) -> Step:
    """One chunk."""
    return ["send", data.hex()]


def sends(*chunks: bytes) -> list[Step]:
    """Several chunks."""
    return [send(chunk) for chunk in chunks]


def wait(gate: str) -> Step:
    """Stay until the gate is opened."""
    return ["wait", gate]


def numbered(count: int, size: int) -> Step:
    """Many events of the same size."""
    return ["events", count, size]


def fail(text: str = "as the script says") -> Step:
    """Raise."""
    return ["raise", text]


def forever() -> Step:
    """Stay until cancelled."""
    return ["forever"]


def unique(label: str) -> str:
    """A name that no other test uses."""
    return f"{label}-{os.getpid()}-{next(_counter)}"


class Player:
    """A client of one scripted application; closes every connection that it has opened."""

    def __init__(self, port: int, headers: Headers = (), prefix: str = "/v1") -> None:
        """Send `headers` with every request to the resumable routes."""
        self.port = port
        self.prefix = prefix
        self._headers = list(headers)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def connect(self, *, receive_buffer: int | None = None) -> Connection:
        """A connection that ends with this player."""
        return await self._stack.enter_async_context(await connect(self.port, receive_buffer=receive_buffer))

    async def open_request(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        receive_buffer: int | None = None,
    ) -> Response:
        """Send a request on a connection of its own; return when the head has come."""
        connection = await self.connect(receive_buffer=receive_buffer)
        await connection.request(method, target, [*self._headers, *headers], body)
        return await connection.response()

    async def fetch(self, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> Reply:
        """Send a request; return when all of the answer has come."""
        return await fetch(self.port, method, target, [*self._headers, *headers], body)

    async def post(
        self,
        stream_id: str | bytes | None,
        *steps: Step,
        headers: Headers = (),
        receive_buffer: int | None = None,
        **script: Any,
    ) -> Response:
        """Start a script; return when the head of the answer has come."""
        return await self.open_request(
            "POST",
            "/script",
            [*script_headers(stream_id), *headers],
            script_body(*steps, **script),
            receive_buffer=receive_buffer,
        )

    async def record(self, stream_id: str | bytes | None, *steps: Step, headers: Headers = (), **script: Any) -> Reply:
        """Start a script and read the answer to its end."""
        response = await self.post(stream_id, *steps, headers=headers, **script)
        await response.read_all()
        await response.connection.close()
        return response

    def target(self, stream_id: str, **query: object) -> str:
        """The replay URL of a stream, in the query form; `from_` stands for `from`."""
        pairs = {"conv_id": stream_id, **{name.rstrip("_"): value for name, value in query.items()}}
        return f"{self.prefix}/stream?" + "&".join(
            f"{key}={quote(str(value), safe='')}" for key, value in pairs.items()
        )

    async def replay(self, stream_id: str, *, headers: Headers = (), **query: object) -> Reply:
        """Read a stream from the replay route, to its end."""
        return await self.fetch("GET", self.target(stream_id, **query), headers)

    async def follow(
        self, stream_id: str, *, headers: Headers = (), receive_buffer: int | None = None, **query: object
    ) -> Response:
        """Begin to read a stream from the replay route."""
        return await self.open_request("GET", self.target(stream_id, **query), headers, receive_buffer=receive_buffer)

    async def resume(self, stream_id: str, last_event_id: str | bytes, **query: object) -> Reply:
        """Read on from an event id, to the end."""
        return await self.replay(stream_id, headers=[("last-event-id", last_event_id)], **query)

    async def head(self, stream_id: str, *, headers: Headers = (), **query: object) -> Reply:
        """Ask for the head of a replay."""
        return await self.fetch("HEAD", self.target(stream_id, **query), headers)

    async def stop(self, stream_id: str, **query: object) -> Reply:
        """Stop a stream."""
        return await self.fetch("DELETE", self.target(stream_id, **query))

    async def lookup(self, *stream_ids: str) -> list[dict[str, Any]]:
        """Look streams up; the answer must be 200."""
        reply = await self.lookup_raw(json.dumps({"conversation_ids": stream_ids}).encode())
        assert reply.status == 200, reply
        items: list[dict[str, Any]] = json.loads(reply.body)
        return items

    async def lookup_raw(self, body: bytes | None, content_type: str = "application/json") -> Reply:
        """Send any body to the lookup route."""
        return await self.fetch("POST", f"{self.prefix}/streams/lookup", [("content-type", content_type)], body)

    async def prepare(self, name: str, *steps: Step, **script: Any) -> None:
        """Keep a script for `GET /play/{name}` and for the chat completions route."""
        body = script_body(*steps, **{"name": name, **script})
        reply = await self.fetch("POST", f"/prepare/{quote(name)}", [("content-type", "application/json")], body)
        assert reply.status == 204, reply

    async def open(self, gate: str) -> None:
        """Let a script go on."""
        assert (await self.fetch("POST", f"/gate/{quote(gate)}")).status == 204

    async def events(self, until: str | None = None, count: int = 1) -> list[str]:
        """The journal, once it has the entry `until`, `count` times."""
        query = f"?until={quote(until)}&count={count}" if until else ""
        entries: list[str] = json.loads((await self.fetch("GET", f"/events{query}")).body)
        return entries

    async def waits_at(self, gate: str) -> None:
        """Return once a script has come to the gate: everything before it is with the library."""
        await self.events(until=f"waits:{gate}")


def script_headers(stream_id: str | bytes | None) -> list[tuple[str, str | bytes]]:
    """The headers of a request that starts a script."""
    named: list[tuple[str, str | bytes]] = [] if stream_id is None else [("x-conversation-id", stream_id)]
    return [("content-type", "application/json"), *named]


def script_body(*steps: Step, **script: Any) -> bytes:
    """The body of a request that starts a script."""
    return json.dumps({"steps": steps, **script}).encode()
