"""A chat's backend for the AI SDK, whose answers a test writes: `POST /write`, `POST /fail`.

An answer has a bit of everything: reasoning, text, a tool's output, data and metadata. `GET /journal` and
`GET /outcomes` tell what became of it.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from fastapi_resumable import Resumable, body_field

AT_ONCE = 6
WORDS = 60

resumable = Resumable(
    stream_id=body_field("id"),
    terminal_event="ai-sdk",
    shutdown_grace=0.1,
    **json.loads(os.environ.get("RESUMABLE_TEST_OPTIONS", "{}")),
)
app = FastAPI()
app.include_router(resumable.router)
app.include_router(resumable.ai_sdk_router, prefix="/api/chat")


class ChatRequest(BaseModel):
    """What `DefaultChatTransport` sends, as far as it is needed here."""

    id: str
    messages: list[dict[str, Any]]


class Answer:
    """One answer: how much of it may be written, and how it came out."""

    def __init__(self) -> None:
        self.allowed = AT_ONCE
        self.failing = False
        self.outcome = "writing"
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()

    async def words(self) -> AsyncIterator[str]:
        """The words, each as soon as it is allowed."""
        for number in range(WORDS):
            while number >= self.allowed:
                if self.failing:
                    raise RuntimeError("as the test says")
                await self.changed.wait()
                self.changed.clear()
            yield f"{number} — <b>ü</b> 🦄\n"

    async def parts(self, number: int) -> AsyncIterator[str]:
        """The answer in the UI message stream protocol."""
        try:
            yield part("start", messageId=f"answer-{number}", messageMetadata={"number": number})
            yield part("start-step")
            yield part("reasoning-start", id="r")
            yield part("reasoning-delta", id="r", delta="Let me see.")
            yield part("reasoning-end", id="r")
            yield part("tool-input-available", toolCallId="c", toolName="count", input={"to": WORDS})
            yield part("tool-output-available", toolCallId="c", output={"counted": WORDS})
            yield part("data-mood", id="d", data={"mood": "good"})
            yield part("text-start", id="t")
            async for word in self.words():
                yield part("text-delta", id="t", delta=word)
            yield part("text-end", id="t")
            yield part("finish-step")
            yield part("finish", finishReason="stop")
            yield "data: [DONE]\n\n"
            self.outcome = "whole"
        finally:
            if self.outcome != "whole":
                self.outcome = "abandoned"
            self.ended.set()


answers: dict[str, list[Answer]] = {}


def part(kind: str, **members: Any) -> str:
    """One part as a server-sent event."""
    return f"data: {json.dumps({'type': kind, **members})}\n\n"


@app.post("/api/chat")
@resumable.stream
async def chat(request: ChatRequest) -> StreamingResponse:
    """Answer."""
    if request.messages[-1]["parts"][0]["text"] == "refuse":
        raise HTTPException(402, "No.")
    answer = Answer()
    of_chat = answers.setdefault(request.id, [])
    of_chat.append(answer)
    return StreamingResponse(
        answer.parts(len(of_chat)),
        media_type="text/event-stream",
        headers={"x-vercel-ai-ui-message-stream": "v1"},
    )


@app.post("/write")
async def write(chat: str, words: int = WORDS) -> None:
    """Let the chat's last answer go on by so many words; without a number, to its end."""
    answer = answers[chat][-1]
    answer.allowed += words
    answer.changed.set()


@app.post("/fail")
async def fail(chat: str) -> None:
    """Let the chat's last answer raise."""
    answer = answers[chat][-1]
    answer.failing = True
    answer.changed.set()


@app.get("/journal")
async def journal(chat: str) -> list[str]:
    """How the chat's answers came out: `writing`, `whole` or `abandoned`."""
    return [answer.outcome for answer in answers[chat]]


@app.get("/outcomes")
async def outcomes(chat: str) -> list[str]:
    """The same, once the last one has ended."""
    await answers[chat][-1].ended.wait()
    return [answer.outcome for answer in answers[chat]]
