"""Middleware cannot tell that an event was sent by the append, in the request's name."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_resumable import MemoryStore, Resumable
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.stream import Head
from fastapi_resumable.stores.base import Reservation
from tests.support.asgi import Client, Exchange, data_of, running

request_id: ContextVar[str] = ContextVar("request_id", default="none")
ID = "X-Conversation-Id"


class Recording:
    """A middleware that notes who sends, and in which context; and uses what only the task itself may use."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.sent: list[tuple[asyncio.Task[Any] | None, asyncio.Task[Any] | None, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `send`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id.set(scope["path"])
        own = asyncio.current_task()

        async def wrapped(message: Message) -> None:
            token = request_id.set(request_id.get())
            async with asyncio.timeout(60):
                with anyio.CancelScope():
                    await send(message)
            self.sent.append((own, asyncio.current_task(), request_id.get()))
            request_id.reset(token)

        await self.app(scope, receive, wrapped)


def make(ticks: "asyncio.Queue[str | None]") -> tuple[Recording, FastAPI]:
    resumable = Resumable(event_ids=False)
    app = FastAPI()
    app.include_router(resumable.router)

    async def body() -> AsyncIterator[str]:
        while (tick := await ticks.get()) is not None:
            yield f"data: {tick}\n\n"

    @app.post("/chat")
    @resumable.stream
    async def chat() -> StreamingResponse:
        return StreamingResponse(body(), media_type="text/event-stream")

    return Recording(app), app


def taken(exchange: Exchange) -> bytes:
    """All of the body that the client has got."""
    return b"".join(message.get("body", b"") for message in exchange.messages)


async def two_readers(client: Client, ticks: "asyncio.Queue[str | None]") -> tuple[Exchange, Exchange]:
    """The request that begins a stream and one that follows it; both have had its first event."""
    first = client.start("POST", "/chat", headers={ID: "a"})
    ticks.put_nowait("0")
    await first.read_until(b"0\n\n")
    second = client.start("GET", "/v1/stream/a")
    await second.read_until(b"0\n\n")
    return first, second


async def test_each_request_sends_in_its_own_name_and_context() -> None:
    """The first reader and a second one, whose events all come from one producer in a task of its own."""
    ticks: asyncio.Queue[str | None] = asyncio.Queue()
    recording, app = make(ticks)
    async with running(app):
        client = Client(recording)
        first, second = await two_readers(client, ticks)
        for tick in ("one", "two", "three"):
            ticks.put_nowait(tick)
            await asyncio.gather(*(each.read_until(f"{tick}\n\n".encode()) for each in (first, second)))
        ticks.put_nowait(None)
        await asyncio.gather(first.rest(), second.rest())
        await client.close()
    assert {path for _, _, path in recording.sent} == {"/chat", "/v1/stream/a"}
    assert all(own is sender for own, sender, _ in recording.sent)
    assert len(recording.sent) >= 2 * (1 + 4 + 1)


async def test_a_send_that_waits_delays_its_own_reader_only() -> None:
    """The producer and the other reader go on meanwhile; nothing is lost or doubled."""
    ticks: asyncio.Queue[str | None] = asyncio.Queue()
    recording, app = make(ticks)
    async with running(app):
        client = Client(recording)
        first, second = await two_readers(client, ticks)
        first.stall()
        for number in range(1, 20):
            ticks.put_nowait(str(number))
            await second.read_until(f"data: {number}\n\n".encode())
        ticks.put_nowait(None)
        await second.rest()
        first.resume()
        await first.rest()
        whole = (await client.get("/v1/stream/a")).body
        await client.close()
    assert data_of(whole) == [str(number) for number in range(20)]
    assert taken(first) == taken(second) == whole


async def test_a_request_that_is_cancelled_as_its_stream_begins_holds_nothing_back() -> None:
    """Its reader was attached for it, and never runs: the producer does not wait for it once the log is full."""

    class CancellingStore(MemoryStore):
        async def begin(self, reservation: Reservation, head: Head) -> MemoryStream:
            """Cancel the request that waits for this, as a middleware with a timeout does."""
            first.cancel()
            return await super().begin(reservation, head)

    store = CancellingStore()
    resumable = Resumable(store=store, max_stream_bytes=1000, shutdown_grace=3600)
    app = FastAPI()
    app.include_router(resumable.router)

    async def body() -> AsyncIterator[str]:
        for _ in range(30):
            yield "x" * 100

    @app.post("/chat")
    @resumable.stream
    async def chat() -> StreamingResponse:
        return StreamingResponse(body(), media_type="text/plain")

    client = Client(app)
    first = client.start("POST", "/chat", headers={ID: "a"})
    await first.served()
    item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["a"]})).json()[0]
    assert (item["status"], item["total_bytes"]) == ("completed", 3000)
    await client.close()
