"""A small chat whose answers survive a reload, a cut connection and a closed tab.

What the library adds: `resumable`, its router, the decorator on an endpoint, and the hook that keeps the answer.
"""

import os
import uuid
from pathlib import Path
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, Header, Response
from fastapi.staticfiles import StaticFiles

from example_app import llm, operations, poem
from example_app.bad_line import BadLine
from example_app.conversations import Conversations, Turn
from fastapi_resumable import FinishedStream, Resumable

ConversationId = Annotated[str | None, Header(alias="X-Conversation-Id")]


resumable = Resumable()
conversations = Conversations(os.environ.get("EXAMPLE_DATABASE", ":memory:"))

app = FastAPI(title="fastapi-resumable example")
app.include_router(resumable.router)


@app.post("/v1/chat/completions")
@resumable.stream
async def chat_completions(
    request: llm.ChatRequest,
    upstream: Annotated[httpx.AsyncClient | None, Depends(llm.connect)],
    conversation: ConversationId = None,
    turn: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> Response:
    """Answer, as OpenAI's endpoint of this name does."""
    turn = turn or uuid.uuid4().hex
    if conversation:
        conversations.ask(conversation, turn, request.question)
    try:
        response = await llm.answer(request, upstream)
    except BaseException:  # refused, or stopped before it began
        if conversation:
            conversations.withdraw(conversation, turn)
        raise
    response.headers["X-Turn"] = turn  # recorded with the stream: a replay says which question it answers
    if "EXAMPLE_WORKER" in os.environ:
        response.headers["X-Writer"] = os.environ["EXAMPLE_WORKER"]  # recorded, so replays have it, too
    return response


@resumable.on_finish
def keep_answer(record: FinishedStream) -> None:
    """Write a finished answer into the conversation, where pages find it after the retention."""
    turn = record.headers.get("x-turn")
    if turn:
        text = llm.text_of(b"".join(record.iter_bytes()))
        conversations.answer(record.id, turn, text, record.status)


@app.get("/conversations/{conversation}")
def read_conversation(conversation: str) -> list[Turn]:
    """What was said so far. The answer of a turn is null while it is being written."""
    return conversations.turns(conversation)


@app.delete("/conversations/{conversation}", status_code=204)
def forget_conversation(conversation: str) -> None:
    """Forget what was said."""
    conversations.forget(conversation)


# The page with the native `EventSource`, and a line that can be cut under it.
app.include_router(poem.router)
app.include_router(poem.resumable.router)
app.add_middleware(BadLine)

app.include_router(operations.router)

app.mount("/", StaticFiles(directory=Path(__file__).parent / "static", html=True))
