"""Where answers come from: a built-in writer of public-domain prose, or any OpenAI-compatible server.

Both give the bytes of an OpenAI chat-completions stream. Nothing here knows that the stream can be resumed.
"""

import asyncio
import json
import logging
import os
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

log = logging.getLogger("example_app")

PROSE = {path.stem: path.read_text("utf-8").strip() for path in sorted((Path(__file__).parent / "prose").glob("*.txt"))}
SHELF = {  # what a question may ask for
    "white-rabbit": ("alice", "rabbit", "wonder"),
    "water-gazers": ("sea", "whale", "ship", "ocean"),
    "best-of-times": ("times", "city", "cities", "king"),
    "entangled-bank": ("nature", "species", "evolve", "darwin"),
}


class Message(BaseModel):
    """One message, in OpenAI's form."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The words of the message, without its other parts."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class ChatRequest(BaseModel):
    """The body of a chat completion. Fields that are unknown here are passed on to the server."""

    model_config = ConfigDict(extra="allow")

    model: str = "example"
    messages: list[Message]
    stream: bool = False

    @property
    def question(self) -> str:
        """The last thing the user said."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")


def words_per_second() -> float:
    """How fast the built-in writer writes."""
    return float(os.environ.get("EXAMPLE_WORDS_PER_SECOND", "8"))


def passage(request: ChatRequest) -> str:
    """Choose what to recite: what the question asks for, else the next on the shelf."""
    asked = request.question.lower()
    for title, keywords in SHELF.items():
        if any(keyword in asked for keyword in keywords):
            return PROSE[title]
    turn = sum(message.role == "user" for message in request.messages)
    return PROSE[list(SHELF)[(turn - 1) % len(SHELF)]]


async def answer(request: ChatRequest, upstream: httpx.AsyncClient | None) -> Response:
    """Answer from the OpenAI-compatible server if there is one, else from the shelf."""
    if upstream:
        return await relay(upstream, request)
    if request.stream:
        return StreamingResponse(write(request), media_type="text/event-stream")
    return JSONResponse(write_at_once(request))


async def write(request: ChatRequest) -> AsyncIterator[bytes]:
    """Recite a passage word by word, at reading speed."""
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        body = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()

    words = re.findall(r"\S+\s*", passage(request))
    written = 0
    log.info("The writer begins an answer of %d words.", len(words))
    try:
        yield chunk({"role": "assistant", "content": ""})
        for word in words:
            yield chunk({"content": word})
            written += 1
            await asyncio.sleep(1 / words_per_second())
        yield chunk({}, "stop")
        yield b"data: [DONE]\n\n"
    finally:
        log.info("The writer lays down the pen after %d of %d words.", written, len(words))


def write_at_once(request: ChatRequest) -> dict[str, Any]:
    """The same answer for a client that did not ask for a stream."""
    message = {"role": "assistant", "content": passage(request)}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


async def connect() -> AsyncIterator[httpx.AsyncClient | None]:
    """A client for the OpenAI-compatible server, if one is configured.

    It is closed when the answer is complete or stopped, not when the browser goes away: that is what the library
    does for every dependency with `yield`.
    """
    base_url, api_key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not (base_url and api_key):
        yield None
        return
    headers = {"Authorization": f"Bearer {api_key}"}
    timeout = httpx.Timeout(10, read=120)
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=timeout) as client:
        yield client


async def relay(client: httpx.AsyncClient, request: ChatRequest) -> Response:
    """Ask the OpenAI-compatible server, and pass its answer on as it comes.

    Raises:
        HTTPException: The server cannot be reached, or refuses.
    """
    body = request.model_dump(exclude_unset=True) | {"model": os.environ.get("OPENAI_MODEL", request.model)}
    try:
        answer = await client.send(client.build_request("POST", "chat/completions", json=body), stream=True)
        if answer.is_success:
            return StreamingResponse(answer.aiter_bytes(), media_type=answer.headers.get("content-type"))
        reason = f"answered {answer.status_code}: {(await answer.aread()).decode(errors='replace')[:500]}"
    except httpx.HTTPError as error:
        reason = f"cannot be reached: {error}"
    raise HTTPException(502, {"code": "upstream_failed", "message": f"The language model's server {reason}"})


def text_of(answer: bytes) -> str:
    """Read the words of an answer, or of the part there is, from its bytes: of a stream, or of one JSON document."""
    text = answer.decode(errors="replace")
    words: list[str] = []
    for document in re.findall(r"^data: ?(.*)$", text, re.MULTILINE) or [text]:
        # Not each has words: `[DONE]`, an error, or what a server has of its own.
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            choices = json.loads(document)["choices"]
            words += [(choice.get("delta") or choice.get("message") or {}).get("content") or "" for choice in choices]
    return "".join(words)
