"""One request at a time without a socket: what Python spends on an event, and nothing that the kernel does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI


async def call(app: Any, path: str, query: str = "", method: str = "POST", stream_id: str = "bench") -> int:
    """Run one request with a `send` that takes everything at once; return how many bytes of body came."""
    received = 0
    over = asyncio.Event()
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal received
        if message["type"] == "http.response.body":
            received += len(message["body"])
            if not message.get("more_body"):
                over.set()
        else:
            assert message["status"] == 200, message

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"bench"), (b"x-conversation-id", stream_id.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    await app(scope, receive, send)
    return received


class _Sink(asyncio.Transport):
    """A transport that takes everything at once."""

    def __init__(self, over: asyncio.Event) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.received = 0
        self._over = over

    def write(self, data: Any) -> None:
        self.received += len(data)
        if data.endswith(b"0\r\n\r\n"):
            self._over.set()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self._over.set()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def call_uvicorn(app: Any, path: str, query: str = "", method: str = "POST", stream_id: str = "bench") -> int:
    """The same under uvicorn's HTTP protocol: its share is part of what an event costs."""
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState

    config = Config(app, http="httptools", ws="none", access_log=False, log_level="warning", lifespan="off")
    config.load()
    # As `uvicorn.run` would, without middleware for proxies.
    config.loaded_app = app
    over = asyncio.Event()
    state = ServerState()
    protocol = HttpToolsProtocol(config=config, server_state=state, app_state={})
    sink = _Sink(over)
    protocol.connection_made(sink)
    protocol.data_received(
        f"{method} {path}?{query} HTTP/1.1\r\nhost: bench\r\nx-conversation-id: {stream_id}\r\n\r\n".encode()
    )
    await over.wait()
    await asyncio.wait(state.tasks or {asyncio.ensure_future(asyncio.sleep(0))})
    protocol.connection_lost(None)
    return sink.received


CALLS: dict[str, Callable[..., Any]] = {"send": call, "uvicorn": call_uvicorn}


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[FastAPI]:
    """The application between its startup and its shutdown."""
    async with app.router.lifespan_context(app):
        yield app
