"""A `send` that fails although the client is there: middleware that breaks, say."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("gone", [True, False], ids=["the client has gone", "it is there"])
async def test_a_response_is_only_closed_for_a_client_that_has_gone(gone: bool) -> None:
    """Else the client would take the end of what it has not had for the end of the stream."""
    resumable = Resumable()
    broken = asyncio.Event()
    app = FastAPI()

    @app.post("/chat")
    @resumable.stream
    async def chat() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            yield "data: 0\n\n"
            await broken.wait()
            yield "data: 1\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    sent: list[Any] = []
    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if requests:
            return requests.pop(0)
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body"):
            broken.set()
            raise ConnectionError("cut")

    headers = [(b"x-conversation-id", b"chat")]
    scope = {"type": "http", "method": "POST", "path": "/chat", "query_string": b"", "headers": headers}
    async with asyncio.timeout(20):
        await app(scope, receive, send)
    assert any(message.get("more_body") is False for message in sent) is gone
    await resumable.shutdown()
