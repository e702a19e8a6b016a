"""Sentences of the how-to guides that no block of code shows."""

from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream

NAMED = {"X-Conversation-Id": "chat"}


async def events() -> AsyncIterator[str]:
    for number in range(2):
        yield f"data: {number}\n\n"


def last_event_id(client: TestClient, headers: dict[str, str]) -> dict[str, str]:
    """Start a stream at `/chat`; the headers that resume it after its first event."""
    answer = client.post("/chat", headers=headers)
    assert answer.status_code == 200
    return {**headers, "Last-Event-ID": answer.text.splitlines()[1].removeprefix("id: ")}


@pytest.mark.parametrize("last", [True, False], ids=["declared last", "declared first"])
def test_a_resume_runs_every_dependency_and_never_the_endpoint(last: bool) -> None:
    """faces.md: wherever the stream is declared."""
    ran: list[str] = []
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    def check() -> None:
        ran.append("check")

    Stream = Annotated[ResumableStream, Depends(resumable)]  # noqa: N806  # a type
    Checked = Annotated[None, Depends(check)]  # noqa: N806  # a type

    async def stream_last(_checked: Checked, stream: Stream):
        ran.append("endpoint")
        return stream(StreamingResponse(events(), media_type="text/event-stream"))

    async def stream_first(stream: Stream, _checked: Checked):
        ran.append("endpoint")
        return stream(StreamingResponse(events(), media_type="text/event-stream"))

    app.post("/chat", response_model=None)(stream_last if last else stream_first)
    with TestClient(app) as client:
        headers = last_event_id(client, NAMED)
        ran.clear()
        resumed = client.post("/chat", headers=headers)
    assert resumed.text.startswith("data: 1\n")
    assert ran == ["check"]


@pytest.mark.parametrize("outside", [True, False], ids=["added later", "added earlier"])
def test_cors_reaches_the_middlewares_resumes_only_from_outside(outside: bool) -> None:
    """proxies.md: `CORSMiddleware` is to be added after `ResumableMiddleware`."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    @app.post("/chat")
    async def chat():
        return StreamingResponse(events(), media_type="text/event-stream")

    def add_cors() -> None:
        app.add_middleware(CORSMiddleware, allow_origins=["https://chat.example.com"])

    if not outside:
        add_cors()
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    if outside:
        add_cors()
    with TestClient(app) as client:
        headers = last_event_id(client, {**NAMED, "Origin": "https://chat.example.com"})
        resumed = client.post("/chat", headers=headers)
        refused = client.post("/chat", headers={**headers, "Last-Event-ID": "aaaaaaaaaaaaaaaa-1"})
    assert (resumed.status_code, refused.status_code) == (200, 409)
    for response in (resumed, refused):
        assert ("access-control-allow-origin" in response.headers) is outside
