"""A request to a `def` endpoint takes one place of the application's thread pool, and none while it only waits."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio.to_thread
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse

from fastapi_resumable import MemoryStore, Resumable, ResumableMiddleware, ResumableStream
from tests.support.asgi import bounded, running, until

every_face = pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])
RETRY = {"X-Conversation-Id": "a", "Idempotency-Key": "k"}


@pytest.fixture
async def limiter() -> AsyncIterator[anyio.CapacityLimiter]:
    """The pool of the application's threads; there is a single one."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    yield limiter
    limiter.total_tokens = before


def serving(face: str, resumable: Resumable, respond: Any) -> FastAPI:
    """An application with a `def` endpoint at `/chat`, and another one."""
    app = FastAPI()

    def handled(stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
        return stream(respond())

    def chat() -> Any:
        return respond()

    endpoint = resumable.stream(chat) if face == "decorator" else handled if face == "dependency" else chat
    router = APIRouter(route_class=resumable.route_class) if face == "route_class" else APIRouter()
    router.post("/chat")(endpoint)
    app.include_router(router)
    app.include_router(resumable.router)
    app.get("/other")(lambda: "other")
    if face == "middleware":
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    return app


@every_face
async def test_an_owner_in_a_thread_does_not_wait_for_the_thread_of_its_endpoint(
    face: str, limiter: anyio.CapacityLimiter
) -> None:
    """As many requests at a time as there are threads would wait for each other for ever."""

    def owner() -> str:
        return "me"

    def respond() -> Any:
        return StreamingResponse(iter(["data: here\n\n"]), media_type="text/event-stream")

    async with running(serving(face, Resumable(owner=owner), respond)) as client:
        assert b"here" in (await client.post("/chat", headers=RETRY)).body
        assert b"here" in (await client.get("/v1/stream/a")).body
    assert limiter.total_tokens == 1


@every_face
async def test_retries_that_wait_hold_up_no_other_endpoint(face: str, limiter: anyio.CapacityLimiter) -> None:
    """They get the answer of the request that they wait for, and the pool is as large as before."""
    go_on, runs = asyncio.Event(), []

    async def words() -> AsyncIterator[str]:
        await go_on.wait()
        yield "data: here\n\n"

    def respond() -> Any:
        runs.append("chat")
        return StreamingResponse(words(), media_type="text/event-stream")

    resumable = Resumable(head_timeout=60, pending_timeout=60)
    async with running(serving(face, resumable, respond)) as client:
        first = client.start("POST", "/chat", headers=RETRY)
        await until(lambda: runs == ["chat"] and not limiter.borrowed_tokens, "the first request")
        retries = [client.start("POST", "/chat", headers=RETRY) for _ in range(3)]
        await until(lambda: limiter.borrowed_tokens == 3, "the retries")
        assert (await bounded(client.get("/other"))).json() == "other"
        go_on.set()
        body = (await first.reply()).body
        assert [(await retry.reply()).body for retry in retries] == [body] * 3
        await until(lambda: not limiter.borrowed_tokens, "the threads")
    assert runs == ["chat"]
    assert limiter.total_tokens == 1


@every_face
async def test_no_more_endpoints_run_at_a_time_than_there_are_threads(
    face: str, limiter: anyio.CapacityLimiter
) -> None:
    """However many of them have waited for a store."""
    running_now, most, lock, go_on = 0, 0, threading.Lock(), asyncio.Event()

    class Slow(MemoryStore):
        async def reserve(self, *args: Any) -> Any:
            await go_on.wait()
            return await super().reserve(*args)

    def respond() -> Any:
        nonlocal running_now, most
        with lock:
            running_now += 1
            most = max(most, running_now)
        time.sleep(0.01)
        with lock:
            running_now -= 1
        return PlainTextResponse("here")

    async with running(serving(face, Resumable(store=Slow()), respond)) as client:
        requests = [client.start("POST", "/chat", headers={"X-Conversation-Id": str(number)}) for number in range(5)]
        await until(lambda: limiter.borrowed_tokens == 5 and limiter.total_tokens == 6, "all to lend their threads")
        go_on.set()
        assert [(await request.reply()).body for request in requests] == [b"here"] * 5
        await until(lambda: not limiter.borrowed_tokens, "the threads")
    assert most == 1
    assert limiter.total_tokens == 1


@every_face
async def test_a_request_that_is_cancelled_while_its_thread_waits_holds_no_id(
    face: str, limiter: anyio.CapacityLimiter
) -> None:
    """The thread is left behind by then, and does not run the endpoint."""
    waits, go_on, runs = asyncio.Event(), asyncio.Event(), []

    class Slow(MemoryStore):
        async def reserve(self, *args: Any) -> Any:
            waits.set()
            await go_on.wait()
            return await super().reserve(*args)

    def respond() -> Any:
        runs.append("chat")
        return PlainTextResponse("here")

    resumable = Resumable(store=Slow())
    async with running(serving(face, resumable, respond)) as client:
        request = client.start("POST", "/chat", headers=RETRY)
        await bounded(waits.wait(), "the request")
        request.task.cancel()
        await request.served()
        go_on.set()
        # The next one's thread is the same.
        assert (await client.get("/other")).json() == "other"
        await until(lambda: not resumable.manager._producers, "the id to be given back")
        assert runs == []
        assert (await client.post("/chat", headers=RETRY)).body == b"here"
