"""An application as users write it, for type checkers: nothing here is run but by them and by one test."""

from collections.abc import AsyncIterator
from typing import Annotated, assert_type

from fastapi import APIRouter, Depends, FastAPI, Header
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from sse_starlette import EventSourceResponse

from fastapi_resumable import (
    FinishedStream,
    MemoryStore,
    Resumable,
    ResumableMiddleware,
    ResumableSettings,
    ResumableStatus,
    ResumableStream,
    body_field,
    header,
)


async def current_user(authorization: Annotated[str | None, Header()] = None) -> str | None:
    """Say who asks."""
    return authorization


async def of_run(run_id: str) -> AsyncIterator[str | None]:
    """Name the stream, by a dependency that uses `yield`."""
    yield run_id


def as_comment(status: str, code: str, message: str) -> bytes | None:
    """Write a terminal event."""
    return None if status == "completed" else f": {code} {message}\n\n".encode()


plain = Resumable()
by_url = Resumable(store="sqlite:///streams.db", stream_id=of_run, owner=current_user, on_conflict="attach")
resumable = Resumable(
    store=MemoryStore(),
    prefix="/streams",
    stream_id=header("X-Chat"),
    owner=current_user,
    event_ids="first",
    ping=0,
    max_streams_per_owner=None,
    retention=60,
    auto_id=True,
    terminal_event=as_comment,
)
chat_app = Resumable(stream_id=body_field("id"), terminal_event="ai-sdk")
assert_type(resumable, Resumable)
assert_type(resumable.settings.retention, float)
assert_type(ResumableSettings(ping=3).ping, float)
assert_type(resumable.router, APIRouter)

app = FastAPI()
app.include_router(resumable.router)
app.include_router(chat_app.ai_sdk_router, prefix="/api/chat")
app.add_middleware(ResumableMiddleware, resumable=plain, paths=["/v1/chat/completions"])
router = APIRouter(route_class=resumable.route_class)


async def tokens(prompt: str) -> AsyncIterator[str]:
    """Generate."""
    yield f"data: {prompt}\n\n"


@app.post("/decorated")
@resumable.stream
async def decorated(prompt: str, times: int = 1) -> StreamingResponse:
    """An `async def` endpoint."""
    return StreamingResponse(tokens(prompt * times), media_type="text/event-stream")


@app.post("/decorated-def")
@resumable.stream
def decorated_def(prompt: str) -> EventSourceResponse:
    """A `def` endpoint."""
    return EventSourceResponse(tokens(prompt))


Stream = Annotated[ResumableStream, Depends(resumable)]


@app.post("/handled")
async def handled(prompt: str, stream: Stream) -> Response:
    """An endpoint with a handle, of which nothing is lost."""
    assert_type(stream.id, str | None)
    assert_type(stream.epoch, str | None)
    assert_type(stream.stopped, bool)
    assert_type(stream(JSONResponse({})), JSONResponse)
    answer = stream(StreamingResponse(tokens(prompt)))
    assert_type(answer, StreamingResponse)
    return answer if stream else PlainTextResponse("no stream")


@router.get("/generated")
async def generated(prompt: str) -> AsyncIterator[str]:
    """An endpoint that uses `yield`."""
    yield prompt


@resumable.on_finish
async def save(stream: FinishedStream) -> None:
    """Persist an answer."""
    assert_type(stream.id, str)
    assert_type(stream.owner, str | None)
    assert_type(stream.status, ResumableStatus)


async def call() -> None:
    """Call decorated endpoints: they are what they were."""
    assert_type(await decorated("a", times=2), StreamingResponse)
    assert_type(decorated_def("a"), EventSourceResponse)
    await resumable.stop("a", owner="alice", epoch=None)
    await resumable.shutdown()
