"""Agents that count, in the protocols of AG-UI (`/agent`) and TanStack AI (`/tanstack`); a test says how far.

`POST /write?key=&words=` lets the last run of a key go on, `POST /fail?key=` lets it raise, and `GET /outcomes?key=`
tells how its runs ended, once the last one has. A key is a thread.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from fastapi_resumable import Resumable, body_field, header

WORDS = 40
AT_ONCE = 3

app = FastAPI()
ag_ui = Resumable(stream_id=body_field("threadId"), terminal_event="ag-ui", shutdown_grace=0.1)
app.include_router(ag_ui.router)
tanstack = Resumable(
    prefix="/runs", stream_id=header("X-Run-Id"), event_ids="first", terminal_event="ag-ui", shutdown_grace=0.1
)
app.include_router(tanstack.router)


class Run:
    """One run: how much of it may be written, and how it came out."""

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
            yield f"{number} — ü 🦄\n"

    async def events(self, first: list[Any], last: list[Any], word: dict[str, Any]) -> AsyncIterator[str]:
        """A run's events; `word` is what each word is put into, as its `delta`."""
        try:
            for event in first:
                yield f"data: {json.dumps(event)}\n\n"
            async for delta in self.words():
                yield f"data: {json.dumps({**word, 'delta': delta})}\n\n"
            for event in last:
                yield f"data: {json.dumps(event)}\n\n"
            self.outcome = "whole"
        finally:
            if self.outcome != "whole":
                self.outcome = "abandoned"
            self.ended.set()


runs: dict[str, list[Run]] = {}


def begin(key: str, thread: str, run_id: str) -> StreamingResponse:
    """Begin a run."""
    run = Run()
    runs.setdefault(key, []).append(run)
    about = {"threadId": thread, "runId": run_id}
    message = {"messageId": f"m-{run_id}"}
    first = [{"type": "RUN_STARTED", **about}, {"type": "TEXT_MESSAGE_START", **message, "role": "assistant"}]
    last = [{"type": "TEXT_MESSAGE_END", **message}, {"type": "RUN_FINISHED", **about}]
    word = {"type": "TEXT_MESSAGE_CONTENT", **message}
    return StreamingResponse(run.events(first, last, word), media_type="text/event-stream")


@app.post("/agent")
@ag_ui.stream
async def agent(request: Request) -> StreamingResponse:
    """What `HttpAgent` asks for."""
    asked = await request.json()
    return begin(asked["threadId"], asked["threadId"], asked["runId"])


@app.post("/tanstack")
@tanstack.stream
async def chat(request: Request) -> StreamingResponse:
    """What TanStack AI's `fetchServerSentEvents` asks for, and asks for again after a cut."""
    asked = await request.json()
    return begin(asked["threadId"], asked["threadId"], asked["runId"])


@app.get("/tanstack")
async def join(request: Request, runId: str) -> Response:  # noqa: N803  # the protocol's name
    """What it asks for after a reload."""
    return await tanstack.replay(request, runId)


@app.post("/write")
async def write(key: str, words: int = WORDS) -> None:
    """Let the last run go on by so many words; without a number, to its end."""
    run = runs[key][-1]
    run.allowed += words
    run.changed.set()


@app.post("/fail")
async def fail(key: str) -> None:
    """Let the last run raise."""
    run = runs[key][-1]
    run.failing = True
    run.changed.set()


@app.get("/outcomes")
async def outcomes(key: str) -> list[str]:
    """How the runs came out, once the last one has ended."""
    await runs[key][-1].ended.wait()
    return [run.outcome for run in runs[key]]
