"""A Responses API with OpenAI's background contract, whose streams say a count."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable, body_field


async def caller(authorization: Annotated[str, Header()]) -> str:
    return authorization


resumable = Resumable(stream_id=body_field("input"), owner=caller, shutdown_grace=0.1)
app = FastAPI()
app.include_router(resumable.router)


def describe(response_id: str, status: str) -> dict[str, Any]:
    return {
        "id": response_id,
        "object": "response",
        "created_at": 0,
        "status": status,
        "model": "count",
        "output": [],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
    }


async def count(response_id: str, until: int, model: str) -> AsyncIterator[str]:
    for number in range(until + 1):
        if number == until and model == "never-ending":
            await asyncio.Event().wait()
        data: dict[str, Any] = {"sequence_number": number}
        if number in (0, until):
            kind = "response.completed" if number else "response.created"
            data |= {"type": kind, "response": describe(response_id, "completed" if number else "in_progress")}
        else:
            kind = "response.output_text.delta"
            data |= {"type": kind, "item_id": "m", "output_index": 0, "content_index": 0, "delta": f"{number} "}
            data["logprobs"] = []
        yield f"event: {kind}\ndata: {json.dumps(data)}\n\n"


@app.post("/v1/responses")
@resumable.stream
async def create(body: dict[str, Any]) -> Response:
    return StreamingResponse(
        count(body["input"], body["max_output_tokens"], body["model"]), media_type="text/event-stream"
    )


@app.get("/v1/responses/{response_id}")
async def retrieve(request: Request, response_id: str, user: Annotated[str, Depends(caller)]) -> Response:
    return await resumable.replay(request, response_id, owner=user)


@app.post("/v1/responses/{response_id}/cancel")
async def cancel(response_id: str, user: Annotated[str, Depends(caller)]) -> dict[str, Any]:
    await resumable.stop(response_id, owner=user)
    return describe(response_id, "cancelled")
