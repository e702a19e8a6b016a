"""Endpoints that speak the wires of two SDKs: Anthropic's messages, and the runs of LangGraph's server."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable, ResumableStream

WORDS = [f"Wort {number} 😀 " for number in range(150)]
USAGE = {"input_tokens": 1, "output_tokens": 1}
MESSAGE = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": USAGE}

app = FastAPI()
resumable = Resumable(terminal_event="anthropic", auto_id=True, shutdown_grace=0.1)
app.include_router(resumable.router)
runs: list[str] = []


@app.get("/runs")
async def count() -> list[str]:
    """What has run, by name."""
    return runs


@app.post("/v1/messages")
@resumable.stream
async def messages(body: dict[str, Any]) -> StreamingResponse:
    """What Anthropic's API sends; the model `failing` breaks off."""
    runs.append(body["model"])

    async def events() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "message_start", "message": MESSAGE}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        for word in WORDS:
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        if body["model"] == "failing":
            raise RuntimeError("as the model says")
        yield {"type": "content_block_stop", "index": 0}
        yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": USAGE}
        yield {"type": "message_stop"}

    async def lines() -> AsyncIterator[str]:
        async for event in events():
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


@app.post("/threads/{thread_id}/runs/stream")
async def run(thread_id: str, stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
    """What LangGraph's server sends: its SDK comes back to `Location`."""
    runs.append(thread_id)

    async def events() -> AsyncIterator[str]:
        for word in WORDS:
            yield f"event: custom\ndata: {json.dumps(word)}\n\n"
        yield "event: end\ndata: null\n\n"

    headers = {"Location": f"/v1/stream?conv_id={stream.id}"}
    return stream(StreamingResponse(events(), media_type="text/event-stream", headers=headers))
