"""An OpenAI-compatible server that writes when it is told to: some words at once, the rest as `POST /write` allows."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

API_KEY = "sk-of-the-fake"
WORDS = [f"word{number} — <b>ümlaut</b> 🦄\n" for number in range(1, 61)]
AT_ONCE = 10


@dataclass
class Answer:
    """One answer, and what it was asked for."""

    question: str
    body: dict[str, Any]
    allowed: int = AT_ONCE
    outcome: str = "writing"
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def allow(self, words: int) -> None:
        """Let it write more words."""
        self.allowed += words
        self.changed.set()

    async def words(self) -> AsyncIterator[str]:
        """The words that are allowed, then those that will be."""
        for number, word in enumerate(WORDS):
            while number >= self.allowed:
                self.changed.clear()
                await self.changed.wait()
            yield word


app = FastAPI()
answers: list[Answer] = []


@app.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer with the same words each time."""
    if request.headers.get("Authorization") != f"Bearer {API_KEY}":
        return JSONResponse({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, 401)
    body = await request.json()
    answer = Answer(body["messages"][-1]["content"], body)
    answers.append(answer)
    head = {"id": "chatcmpl-fake", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        answer.outcome = "whole"
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})

    async def chunks() -> AsyncIterator[str]:
        try:
            async for word in answer.words():
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
            answer.outcome = "whole"
        finally:
            if answer.outcome != "whole":
                answer.outcome = "abandoned"

    return StreamingResponse(chunks(), media_type="text/event-stream")


@app.post("/write")
async def write(words: int) -> None:
    """Let every answer go on by so many words."""
    for answer in answers:
        answer.allow(words)


@app.get("/journal")
async def journal(question: str = "") -> list[dict[str, Any]]:
    """The answers to a question: what exactly was asked, and how each came out."""
    return [{"body": answer.body, "outcome": answer.outcome} for answer in answers if answer.question == question]
