"""What fails beside the answer, and does not make that fail or hang."""

import asyncio
import logging

import pytest
from fastapi import BackgroundTasks
from fastapi.responses import StreamingResponse
from starlette.types import Message

from fastapi_resumable import MemoryStore, Resumable, SqliteStore
from fastapi_resumable.exceptions import StoreUnavailable
from tests.support.asgi import bounded, data_of, running, settle, until
from tests.support.life_apps import app_under

ID = {"X-Conversation-Id": "chat-1"}


@pytest.mark.parametrize("face", ["decorator", "route_class"])
async def test_a_background_task_that_fails_does_not_make_a_complete_answer_fail(face: str) -> None:
    """As without the library, where the client has its whole answer by then."""

    async def words():
        yield "data: one\n\n"

    async def chat(tasks: BackgroundTasks):
        tasks.add_task(int, "no number")
        return StreamingResponse(words(), media_type="text/event-stream")

    async with running(app_under(face, chat, Resumable())) as client:
        reply = await client.post("/chat", headers=ID)
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]

    assert data_of(reply.body) == ["one"]
    assert item["status"] == "completed"


class Unloggable(logging.Handler):
    """Fails at the first record, as a handler may that sends records elsewhere."""

    has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Fail, once."""
        if not self.has_failed:
            self.has_failed = True
            raise ConnectionError("the service for log records cannot be reached")


async def test_a_log_handler_that_raises_keeps_no_stream_from_ending() -> None:
    """The failure is logged before the stream ends; its readers get their terminal event."""

    async def broken():
        yield "data: one\n\n"
        raise ValueError("of the application's own")

    response = lambda: StreamingResponse(broken(), media_type="text/event-stream")  # noqa: E731
    app = app_under("decorator", response, Resumable())
    handler = Unloggable()
    logging.getLogger("fastapi_resumable").addHandler(handler)
    try:
        async with running(app) as client:
            reply = await client.post("/chat", headers=ID)
    finally:
        logging.getLogger("fastapi_resumable").removeHandler(handler)

    assert b'"code":"producer_failed"' in reply.body


async def test_an_application_that_fails_while_a_store_begins_its_stream_leaves_no_live_stream() -> None:
    """Its head has been held for `head_timeout`, so the stream begins beside it, and has to be ended."""
    beginning, failed = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def begin(self, reservation, head):
            beginning.set()
            await failed.wait()
            return await super().begin(reservation, head)

    async def broken():
        await beginning.wait()
        raise ValueError("of the application's own")
        yield ""

    resumable = Resumable(store=Slow(), head_timeout=0)
    app = app_under("decorator", lambda: StreamingResponse(broken(), media_type="text/event-stream"), resumable)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID)
        await bounded(beginning.wait(), "the beginning")
        await settle()
        failed.set()
        reply = await exchange.reply()
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]

    assert b'"code":"producer_failed"' in reply.body
    assert item["status"] == "failed"
    assert not resumable.manager._producers


@pytest.mark.parametrize("face", ["decorator", "route_class", "middleware"])
async def test_the_exception_of_a_failed_stream_keeps_none_of_its_bytes(face, tmp_path, caplog) -> None:
    """A handler of log records may keep it, and with it the frames of the request."""

    async def broken():
        yield f"data: {'x' * 10_000}\n\n"
        raise ValueError("of the application's own")

    store = SqliteStore(tmp_path / "streams.db")
    app = app_under(face, lambda: StreamingResponse(broken(), media_type="text/event-stream"), Resumable(store=store))
    async with running(app) as client:
        reply = await client.post("/chat", headers=ID)
        await until(lambda: store.held_bytes == 0, "the bytes to be given back")

    assert b'"code":"producer_failed"' in reply.body
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("face", ["decorator", "route_class", "middleware"])
async def test_an_application_that_is_silent_does_not_keep_its_client_from_the_store_s_error(face: str) -> None:
    """After `head_timeout` the stream begins beside it, and cannot."""

    class Away(MemoryStore):
        async def begin(self, reservation, head):
            raise StoreUnavailable("The store is away.")

    async def silent():
        try:
            await asyncio.Future()
        finally:
            closed.set()
        yield ""

    closed = asyncio.Event()
    resumable = Resumable(store=Away(), head_timeout=0.01)
    app = app_under(face, lambda: StreamingResponse(silent(), media_type="text/event-stream"), resumable)
    async with running(app) as client:
        reply = await bounded(client.post("/chat", headers=ID))
        await bounded(closed.wait(), "the end of the application")

    assert reply.status == 503
    assert b"store_unavailable" in reply.body


class Odd(BaseException):
    """No `Exception`, and no cancellation either."""


@pytest.mark.parametrize("face", ["decorator", "route_class", "middleware"])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_send_that_raises_what_is_no_exception_makes_no_stream_fail(face: str, number: int) -> None:
    """Neither the head, nor the first part, nor one that is sent while the producer appends: it is its reader's."""

    async def words():
        for word in "one", "two", "three":
            yield f"data: {word}\n\n"
            await settle()

    async def chat():
        return StreamingResponse(words(), media_type="text/event-stream")

    app = app_under(face, chat, Resumable())
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])
        if len(sent) > number:
            raise Odd

    async def receive() -> Message:
        if not received:
            received.append(1)
            return {"type": "http.request"}
        return await asyncio.Future()

    received: list[int] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/chat",
        "query_string": b"",
        "headers": [(b"x-conversation-id", b"chat-1")],
    }
    async with running(app) as client:
        with pytest.raises(Odd):
            await bounded(app(scope, receive, send))
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]
        reply = await client.get("/v1/stream/chat-1")

    assert item["status"] == "completed"
    assert data_of(reply.body) == ["one", "two", "three"]
    assert len(sent) == number + 1


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("face", ["route_class", "decorator"])
async def test_bytes_that_failed_never_end_like_whole_ones_behind_middleware(face: str, count: int) -> None:
    """Each `BaseHTTPMiddleware` ends what it passes on; and has the last parts on their way for a while."""

    async def numbers():
        for number in range(3):
            yield b"%d\n" % number
        raise ValueError

    async def chat():
        return StreamingResponse(numbers(), media_type="application/x-ndjson")

    app = app_under(face, chat, Resumable())
    for _ in range(count):

        @app.middleware("http")
        async def pass_on(request, call_next):
            return await call_next(request)

    async with running(app) as client:
        exchanges = [client.start("POST", "/chat", headers=ID)]
        assert await exchanges[0].rest() == b"0\n1\n2\n"
        for offset, rest in ((0, b"0\n1\n2\n"), (4, b"2\n"), (6, b"")):
            exchanges.append(client.start("GET", f"/v1/stream/chat-1?from={offset}"))
            assert await exchanges[-1].rest() == rest
        for exchange in exchanges:
            assert type(exchange.error).__name__ == "StreamBroken"
            assert not exchange.clean
