"""The middleware runs an application up to its endpoint, and no further if a log has the answer."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_resumable import Resumable, ResumableMiddleware, header
from tests.support.asgi import data_of, running, settle, until

ID = "X-Conversation-Id"
AGAIN = {ID: "a", "Idempotency-Key": "k"}


async def words(text: str) -> AsyncIterator[str]:
    yield f"data: {text}\n\n"


def secret() -> StreamingResponse:
    return StreamingResponse(words("SECRET"), media_type="text/event-stream")


def in_two_parts(go_on: asyncio.Event) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "data: one\n\n"
        await go_on.wait()
        yield "data: two\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


def refuse() -> None:
    """A check that no caller of these tests passes."""
    raise HTTPException(401)


class Around:
    """A middleware that keeps to Starlette's convention for what it wraps."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def checked() -> FastAPI:
    """An application that refuses each request to its endpoint."""
    app = FastAPI()
    app.post("/chat", dependencies=[Depends(refuse)])(secret)
    return app


def mounted(wrap: Callable[[FastAPI], ASGIApp]) -> FastAPI:
    app = FastAPI()
    app.mount("/mounted", wrap(checked()))
    return app


def included() -> FastAPI:
    router, app = APIRouter(), FastAPI()
    router.post("/chat", dependencies=[Depends(refuse)])(secret)
    app.include_router(router, prefix="/deep")
    return app


@pytest.mark.parametrize(
    ("make_app", "path", "status"),
    [
        (checked, "/chat", 401),
        (included, "/deep/chat", 401),
        (lambda: mounted(lambda app: app), "/mounted/chat", 401),
        (lambda: mounted(Around), "/mounted/chat", 401),
        (checked, "/nothing", 404),
        (checked, "/chat/", 307),
    ],
)
async def test_a_log_is_not_shown_where_the_application_refuses_the_request(
    make_app: Callable[[], FastAPI], path: str, status: int
) -> None:
    """Wherever its endpoint is; nor where it has none."""
    resumable = Resumable()
    app = make_app()
    app.include_router(resumable.router)
    open_app = FastAPI()
    open_app.post("/open")(resumable.stream(secret))
    app.mount("/known", open_app)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/{path:path}"])
    async with running(app) as client:
        first = await client.post("/known/open", headers=AGAIN)
        assert data_of(first.body) == ["SECRET"]
        place = first.headers["x-stream-epoch"] + "-0"
        for headers in ({ID: "a", "Last-Event-ID": place}, AGAIN):
            assert (await client.post(path, headers=headers)).status == status


async def test_an_endpoint_of_another_kind_runs_once_beside_one_of_fastapis() -> None:
    """At the same path, for another method."""
    resumable, app, calls = Resumable(), FastAPI(), []

    async def chat(_request: Request) -> StreamingResponse:
        calls.append("chat")
        return secret()

    app.get("/chat")(lambda: {"about": "chat"})
    app.router.routes.append(Route("/chat", chat, methods=["POST"]))
    app.include_router(resumable.router)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        replies = [await client.post("/chat", headers=AGAIN) for _ in range(2)]
    assert replies[0].body == replies[1].body
    assert calls == ["chat"]


class OfAnotherFramework:
    """An application whose routes are not Starlette's."""

    routes = ("/chat",)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse("hello")(scope, receive, send)


async def test_routes_of_another_framework_are_passed_over() -> None:
    """Its answer is recorded like any other."""
    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router)
    app.mount("/other", OfAnotherFramework())
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/other/chat"])
    async with running(app) as client:
        reply = await client.post("/other/chat", headers={ID: "a"})
        assert (await client.get("/v1/stream/a")).body == reply.body == b'"hello"'


async def test_background_tasks_run_after_a_replay_and_its_dependencies_close_before() -> None:
    """As on the other faces; what a dependency raises at its close is for the server to log."""
    resumable, app, trace = Resumable(), FastAPI(), []

    async def session(tasks: BackgroundTasks) -> AsyncIterator[None]:
        tasks.add_task(trace.append, "task")
        yield
        trace.append("closed")
        if "replay" in trace:
            raise RuntimeError("it cannot be closed")

    app.post("/chat", dependencies=[Depends(session)])(secret)
    app.include_router(resumable.router)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        first = await client.post("/chat", headers=AGAIN)
        await until(lambda: "closed" in trace, "the close of the first request's session")
        trace[:] = ["replay"]
        exchange = client.start("POST", "/chat", headers=AGAIN)
        assert await exchange.rest() == first.body
        await exchange.served()
    assert str(exchange.error) == "it cannot be closed"
    assert trace == ["replay", "closed", "task"]


async def test_a_stream_that_another_resumable_follows_begins_no_second_one() -> None:
    """The outer one attaches, so the inner one has nothing to record, and what is live there goes on."""
    app, go_on, calls = FastAPI(), asyncio.Event(), []
    outer = Resumable(on_conflict="attach", prefix="/outer", stream_id=header("X-Outer"))
    inner = Resumable(prefix="/inner", stream_id=header("X-Inner"))

    async def chat() -> StreamingResponse:
        calls.append("chat")
        return in_two_parts(go_on)

    app.post("/chat")(chat)
    for resumable in (inner, outer):
        app.include_router(resumable.router)
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        first = client.start("POST", "/chat", headers={"X-Outer": "a", "X-Inner": "b"})
        await first.read_until(b"one")
        second = client.start("POST", "/chat", headers={"X-Outer": "a", "X-Inner": "b"})
        await second.read_until(b"one")
        go_on.set()
        assert data_of(await first.rest()) == data_of(await second.rest()) == ["two"]
        assert data_of((await client.get("/inner/stream/b")).body) == ["one", "two"]
    assert calls == ["chat"]


class Listens:
    """A middleware that cancels its application when the client leaves, as people write it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue()

        async def listen() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                messages.put_nowait(message)
            task.cancel()

        task = asyncio.ensure_future(self.app(scope, messages.get, send))
        listening = asyncio.ensure_future(listen())
        try:
            await task
        finally:
            listening.cancel()


async def test_what_listens_for_a_disconnect_before_the_endpoint_does_not_hear_of_one_after() -> None:
    """The client leaves, and the stream goes on."""
    resumable, app, go_on = Resumable(), FastAPI(), asyncio.Event()

    async def chat(_body: dict[str, str]) -> StreamingResponse:
        return in_two_parts(go_on)

    app.post("/chat")(chat)
    app.include_router(resumable.router)
    app.add_middleware(Listens)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "a"}, json={})
        await exchange.read_until(b"one")
        exchange.disconnect()
        await settle()
        go_on.set()
        assert data_of((await client.get("/v1/stream/a")).body) == ["one", "two"]
        await exchange.served()


@pytest.mark.parametrize("place", ["within the application", "around it"])
async def test_what_stands_around_the_middleware_sees_the_route_as_without_it(place: str) -> None:
    """Metrics name a request by it: one without an id, a recorded one, and one that is answered from the log."""
    resumable, app, seen = Resumable(), FastAPI(), []

    class Names(Around):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().__call__(scope, receive, send)
            if scope["type"] == "http":
                seen.append((scope["route"].path, scope["endpoint"]))

    app.post("/chat/{name}")(secret)
    app.include_router(resumable.router)
    served: ASGIApp = app
    if place == "around it":
        served = Names(ResumableMiddleware(app, resumable=resumable, paths=["/chat/{name}"]))
    else:
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat/{name}"])
        app.add_middleware(Names)
    async with running(served) as client:
        for headers in ({}, AGAIN, AGAIN):
            assert (await client.post("/chat/a", headers=headers)).status == 200
    assert seen == [("/chat/{name}", secret)] * 3


@pytest.mark.parametrize("inside", ["a middleware", "another one"])
async def test_one_around_an_application_and_its_middleware_finds_the_application(inside: str) -> None:
    """A stream can be replayed, and the application's dependencies refuse a request before a log answers it."""
    resumable, other, app, is_open = Resumable(), Resumable(prefix="/v2"), FastAPI(), True

    def guard() -> None:
        if not is_open:
            refuse()

    app.post("/chat", dependencies=[Depends(guard)])(secret)
    app.include_router(resumable.router)
    app.include_router(other.router)
    wrapped = Around(app) if inside == "a middleware" else ResumableMiddleware(app, resumable=other, paths=["/chat"])
    async with running(ResumableMiddleware(wrapped, resumable=resumable, paths=["/chat"])) as client:
        first = await client.post("/chat", headers=AGAIN)
        assert (await client.get(first.headers["content-location"])).body == first.body
        is_open = False
        assert (await client.post("/chat", headers=AGAIN)).status == 401
