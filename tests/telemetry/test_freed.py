"""What a measured stream leaves behind."""

import gc

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable
from fastapi_resumable._run.producer import Producer
from tests.support.asgi import until
from tests.support.otel import recording

pytestmark = pytest.mark.anyio


async def test_a_measured_stream_is_freed_with_its_request():
    """Not only by the garbage collector: until then its bytes count, and new streams could be refused."""
    resumable, app = Resumable(), FastAPI()

    async def words():
        yield "data: one\n\n"

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return StreamingResponse(words(), media_type="text/event-stream")

    with recording():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            gc.collect()
            gc.disable()
            try:
                await client.post("/chat", headers={"X-Conversation-Id": "freed"})
                await until(
                    lambda: not any(isinstance(each, Producer) and each.key.id == "freed" for each in gc.get_objects()),
                    "the producer to go",
                )
            finally:
                gc.enable()
    await resumable.shutdown()
