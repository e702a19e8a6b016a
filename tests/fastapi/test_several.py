"""Several `Resumable`s that one request names, each by a header of its own: each has the stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream, header
from tests.support.asgi import bounded, running
from tests.support.life_apps import YIELDS
from tests.support.params import spread

FACES = [
    ("decorator", "decorator"),
    ("dependency", "dependency"),
    ("dependency", "dependency turned"),
    ("dependency", "decorator"),
    ("route_class", "decorator"),
    ("route_class", "dependency"),
    ("middleware", "decorator"),
    ("middleware", "dependency"),
    ("middleware", "route_class"),
    ("middleware", "middleware"),
]
"""The outer one and the inner one: of what FastAPI solves for an endpoint, what it solves first is the outer one."""
every_pair = pytest.mark.parametrize(("outer", "inner"), FACES)
every_media_type = pytest.mark.parametrize("media_type", ["text/event-stream", "text/plain"])
HEADERS = {"X-Outer": "a", "X-Inner": "b"}


class Endpoint:
    """An endpoint that streams until it may end."""

    def __init__(self, outer: str, inner: str, media_type: str) -> None:
        self.app = FastAPI()
        self.first = Resumable(prefix="/outer", stream_id=header("X-Outer"))
        self.second = Resumable(prefix="/inner", stream_id=header("X-Inner"))
        self.go_on, self.closed = asyncio.Event(), asyncio.Event()
        self._media_type = media_type
        kinds: dict[str, Any] = {}
        for face, resumable in ((outer, self.first), (inner, self.second)):
            self.app.include_router(resumable.router)
            if face == "route_class":
                kinds["route_class"] = resumable.route_class
        router = APIRouter(**kinds)
        router.post("/chat")(self._endpoint(outer, inner))
        self.app.include_router(router)
        for face, resumable in ((inner, self.second), (outer, self.first)):
            if face == "middleware":
                self.app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])

    def _endpoint(self, outer: str, inner: str) -> Any:
        First = Annotated[ResumableStream, Depends(self.first)]  # noqa: N806  # types
        Second = Annotated[ResumableStream, Depends(self.second)]  # noqa: N806

        def respond() -> StreamingResponse:
            return StreamingResponse(self._parts(), media_type=self._media_type)

        async def chat() -> Any:
            return respond()

        async def chat_outer(stream: First) -> Any:
            return stream(respond())

        async def chat_inner(stream: Second) -> Any:
            return stream(respond())

        async def chat_both(first: First, second: Second) -> Any:
            return second(first(respond())) if inner.endswith("turned") else first(second(respond()))

        if outer == "dependency" and inner != "decorator":
            return chat_both
        endpoint: Any = chat_outer if outer == "dependency" else chat_inner if inner == "dependency" else chat
        if outer == "decorator":
            endpoint = self.first.stream(endpoint)
        return self.second.stream(endpoint) if inner == "decorator" else endpoint

    async def _parts(self) -> AsyncIterator[str]:
        try:
            yield "data: one\n\n"
            await self.go_on.wait()
            yield "data: two\n\n"
        finally:
            self.closed.set()


@spread(every_pair, every_media_type)
async def test_each_replays_what_the_client_was_sent(outer: str, inner: str, media_type: str) -> None:
    endpoint = Endpoint(outer, inner, media_type)
    async with running(endpoint.app) as client:
        endpoint.go_on.set()
        first = await client.post("/chat", headers=HEADERS)
        assert first.status == 200
        assert first.body.count(b"data: two") == 1
        assert (await client.get("/outer/stream/a")).body == first.body
        assert (await client.get("/inner/stream/b")).body == first.body


@spread(every_pair, every_media_type)
async def test_none_of_them_ends_when_the_client_leaves(outer: str, inner: str, media_type: str) -> None:
    endpoint = Endpoint(outer, inner, media_type)
    async with running(endpoint.app) as client:
        exchange = client.start("POST", "/chat", headers=HEADERS)
        await exchange.read_until(b"one")
        exchange.disconnect()
        endpoint.go_on.set()
        await bounded(endpoint.closed.wait())
        await exchange.served()
        outside = await client.get("/outer/stream/a")
        assert b"two" in outside.body
        assert (await client.get("/inner/stream/b")).body == outside.body


@pytest.mark.parametrize("stopped", ["/outer/stream/a", "/inner/stream/b"])
@spread(every_pair, every_media_type)
async def test_a_stop_of_one_of_them_ends_both(
    outer: str, inner: str, media_type: str, stopped: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The outer one's stop is the inner one's; the inner one's is an end that the outer one records.

    A body that cannot say so breaks off for the clients of both.
    """
    endpoint = Endpoint(outer, inner, media_type)
    async with running(endpoint.app) as client:
        exchange = client.start("POST", "/chat", headers=HEADERS)
        await exchange.read_until(b"one")
        assert (await client.delete(stopped)).status == 204
        await bounded(endpoint.closed.wait())
        await exchange.served()
        assert await client.head_status("/inner/stream/b") == 404
        replayed = await client.get("/outer/stream/a")
    says_so = media_type == "text/event-stream"
    assert exchange.clean is says_so
    if stopped.startswith("/outer"):
        assert replayed.status == 404
    else:
        assert (b"event: cancelled" in replayed.body) is replayed.clean is says_so
    assert "abandoned" not in caplog.text
    assert "ERROR" not in caplog.text


@every_pair
async def test_one_of_them_answers_a_client_that_does_not_wait(outer: str, inner: str) -> None:
    """The other one records the stream all the same, and not that answer."""
    endpoint = Endpoint(outer, inner, "text/event-stream")
    async with running(endpoint.app) as client:
        exchange = client.start("POST", "/chat", headers=HEADERS | {"Prefer": "respond-async"})
        reply = await exchange.reply()
        assert reply.status == 202
        endpoint.go_on.set()
        await exchange.served()
        replayed = (await client.get("/outer/stream/a")).body
        assert replayed.count(b"data: two") == 1
        assert (await client.get("/inner/stream/b")).body == replayed
    assert exchange.error is None


AGAIN = {"X-Outer": "a", "X-Inner": "b", "Idempotency-Key": "k"}


@every_pair
async def test_what_the_outer_one_answers_begins_no_stream_of_the_inner_one(outer: str, inner: str) -> None:
    """Whichever of them had the first request to the endpoint."""
    endpoint = Endpoint(outer, inner, "text/event-stream")
    endpoint.go_on.set()
    async with running(endpoint.app) as client:
        await client.post("/chat", headers={"X-Inner": "earlier"})
        first = await client.post("/chat", headers=AGAIN)
        assert (await client.post("/chat", headers=AGAIN | {"X-Inner": "c"})).body == first.body
        assert await client.head_status("/inner/stream/c") == 404


@every_pair
async def test_the_outer_one_records_what_the_inner_one_answers(outer: str, inner: str) -> None:
    endpoint = Endpoint(outer, inner, "text/event-stream")
    endpoint.go_on.set()
    async with running(endpoint.app) as client:
        first = await client.post("/chat", headers=AGAIN)
        assert (await client.post("/chat", headers=AGAIN | {"X-Outer": "c"})).body == first.body
        assert (await client.get("/outer/stream/c")).body == first.body


@pytest.mark.skipif(not YIELDS, reason="FastAPI's own streams came later")
@pytest.mark.parametrize("inner", ["middleware", "route_class"])
async def test_what_the_outer_one_answers_for_an_endpoint_with_yield_begins_no_stream(inner: str) -> None:
    """FastAPI has made a response of it by then."""
    app, runs = FastAPI(), []
    first, second = (Resumable(prefix=f"/{name}", stream_id=header(f"X-{name}")) for name in ("outer", "inner"))
    router = APIRouter(route_class=second.route_class) if inner == "route_class" else APIRouter()

    @router.post("/chat")
    async def chat() -> AsyncIterator[int]:
        runs.append("chat")
        yield 1

    app.include_router(router)
    for resumable, is_around in ((second, inner == "middleware"), (first, True)):
        app.include_router(resumable.router)
        if is_around:
            app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        recorded = await client.post("/chat", headers=AGAIN)
        assert recorded.status == 200
        assert (await client.post("/chat", headers=AGAIN | {"X-Inner": "c"})).body == recorded.body
        assert await client.head_status("/inner/stream/c") == 404
        assert (await client.get("/inner/stream/b")).body == recorded.body
    assert runs == ["chat"]
