"""An application for shutdown tests: what it does after a SIGTERM is decided by requests that were open before it.

`POST /chat` streams one event, then one for each byte of the body of `PUT /tap`, which may be open as long as the test
likes; the end of that body ends the stream. A server that shuts down takes no new connections, but lets these be.
"""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from sse_starlette import EventSourceResponse

from fastapi_resumable import FinishedStream, Resumable, ResumableMiddleware, ResumableStream

options = json.loads(os.environ.get("RESUMABLE_TEST_OPTIONS", "{}"))
notes = Path(os.environ["RESUMABLE_TEST_NOTES"])
resumable = Resumable(**options)
app = FastAPI()
app.include_router(resumable.router)
tap: asyncio.Queue[bytes] = asyncio.Queue()


def note(text: str) -> None:
    """Tell the test, which reads the file."""
    with notes.open("a") as file:
        file.write(f"{text}\n")


@resumable.on_finish
def finished(record: FinishedStream) -> None:
    """Tell of every stream that has ended."""
    note(f"finished {record.id} {record.status}")


@app.post("/chat")
@resumable.stream
async def chat(request: Request, media_type: str = "text/event-stream") -> StreamingResponse:
    """Stream what comes out of the tap."""
    await request.body()
    return StreamingResponse(events(), media_type=media_type)


async def events() -> AsyncIterator[bytes]:
    """The tap's bytes as events."""
    try:
        yield b"data: begun\n\n"
        while byte := await tap.get():
            yield b"data: " + byte + b"\n\n"
        note("generator finished")
    finally:
        note("generator closed")


@app.put("/tap")
async def pour(request: Request) -> dict[str, bool]:
    """Hand each byte of the body to the stream."""
    note("tap open")
    async for piece in request.stream():
        for byte in piece:
            tap.put_nowait(bytes([byte]))
    tap.put_nowait(b"")
    return {"done": True}


@app.post("/flood")
@resumable.stream
async def flood() -> StreamingResponse:
    """More than any socket takes."""

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * 65_536 + b"\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


@app.post("/thread")
def thread(stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
    """A sync generator that sits in its thread until it is told to stop."""

    def work() -> Iterator[bytes]:
        yield b"data: begun\n\n"
        waiter = threading.Event()
        while not stream.stopped:
            waiter.wait(0.005)
        note("thread saw the stop")

    return stream(StreamingResponse(work(), media_type="text/event-stream"))


@app.post("/starlette")
@resumable.stream
async def starlette(request: Request) -> EventSourceResponse:
    """The same by sse-starlette, whose responses end by themselves when the server is told to exit."""
    await request.body()

    async def frames() -> AsyncIterator[dict[str, str]]:
        try:
            yield {"data": "begun"}
            while byte := await tap.get():
                yield {"data": byte.decode()}
        finally:
            note("generator closed")

    return EventSourceResponse(frames())


@app.post("/deaf")
@resumable.stream
async def deaf() -> StreamingResponse:
    """A generator that will not be cancelled."""

    async def stubborn() -> AsyncIterator[bytes]:
        yield b"data: begun\n\n"
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                note("cancellation ignored")

    return StreamingResponse(stubborn(), media_type="text/event-stream")


routed = APIRouter(route_class=resumable.route_class)


@routed.post("/routed")
async def chat_routed(request: Request, media_type: str = "text/event-stream") -> StreamingResponse:
    """The same by the route class."""
    await request.body()
    return StreamingResponse(events(), media_type=media_type)


app.include_router(routed)


@app.post("/depended")
async def chat_depended(
    request: Request, stream: Annotated[ResumableStream, Depends(resumable)], media_type: str = "text/event-stream"
) -> StreamingResponse:
    """The same by the dependency."""
    await request.body()
    return stream(StreamingResponse(events(), media_type=media_type))


@app.post("/behind")
async def chat_behind(request: Request, media_type: str = "text/event-stream") -> StreamingResponse:
    """The same behind the middleware."""
    await request.body()
    return StreamingResponse(events(), media_type=media_type)


app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/behind"])


@app.post("/failing")
@resumable.stream
async def failing() -> StreamingResponse:
    """Two parts, and no more."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"
        raise ValueError("there is no third part")

    return StreamingResponse(parts(), media_type="application/octet-stream")


for _ in range(int(os.environ.get("RESUMABLE_TEST_BASES", "0"))):

    @app.middleware("http")
    async def pass_on(request: Request, call_next: Any) -> Any:
        """A `BaseHTTPMiddleware`, which runs the application in a task group."""
        return await call_next(request)


@app.get("/")
async def ready() -> dict[str, bool]:
    """Answer."""
    return {"ready": True}
