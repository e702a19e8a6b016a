"""Requests to the library's own routes, and answers of its own in place of an endpoint's."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from starlette.routing import BaseRoute, Match

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream, body_field
from tests.support.asgi import bounded, running, settle

ID = {"X-Conversation-Id": "chat-1"}
CODE = "invalid_stream_id"


async def answer():
    yield "data: hello\n\n"


def events() -> StreamingResponse:
    return StreamingResponse(answer(), media_type="text/event-stream")


@pytest.mark.parametrize("escaped", ["chat-1%0A", "%0Achat-1", "a%0A/b", "a/b%0A", "chat-1%0A%0A"])
async def test_a_line_feed_in_the_path_is_part_of_the_id(escaped: str):
    """It is refused as any control character is, and the stream without it is neither shown nor stopped."""
    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router)
    app.include_router(resumable.ai_sdk_router, prefix="/api/chat")
    app.post("/chat")(resumable.stream(events))
    async with running(app) as client:
        await client.post("/chat", headers=ID)
        for method, path in (("GET", "/v1/stream/{}"), ("DELETE", "/v1/stream/{}"), ("POST", "/api/chat/{}/stop")):
            reply = await client.request(method, path.format(escaped))
            assert (reply.status, reply.code) == (400, CODE)
        assert (await client.get("/v1/stream/chat-1")).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("stream_id", ["chat-1", "chat-1%0A", "a%0Ab", "x" * 600])
async def test_guards_are_asked_before_an_id_is_looked_at(method: str, stream_id: str):
    """What a request without credentials gets does not depend on its id."""

    async def guard():
        raise HTTPException(401)

    app = FastAPI()
    app.include_router(Resumable().router, dependencies=[Depends(guard)])
    async with running(app) as client:
        assert (await client.request(method, f"/v1/stream/{stream_id}")).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_background_tasks_of_a_guard_run_after_a_replay(method: str):
    """FastAPI hands them to the response."""
    ran: list[str] = []

    async def audit(request: Request, tasks: BackgroundTasks):
        tasks.add_task(ran.append, request.url.path)

    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router, dependencies=[Depends(audit)])
    app.post("/chat")(resumable.stream(events))
    async with running(app) as client:
        await client.post("/chat", headers=ID)
        replay = client.start(method, "/v1/stream/chat-1")
        assert (await replay.head()).status == 200
        await replay.served()
    assert ran == ["/v1/stream/chat-1"]


async def test_background_tasks_of_a_guard_run_after_a_watch():
    """When its client has left."""
    ran: list[int] = []

    async def audit(tasks: BackgroundTasks):
        tasks.add_task(ran.append, 1)

    app = FastAPI()
    app.include_router(Resumable().router, dependencies=[Depends(audit)])
    async with running(app) as client:
        watch = client.start("POST", "/v1/streams/watch", json={"conversation_ids": ["chat-1"]})
        await watch.head()
        assert ran == []
        watch.disconnect()
        await watch.served()
    assert ran == [1]


@pytest.mark.parametrize("headers", [{"Last-Event-ID": "{}-0"}, {"Idempotency-Key": "once"}])
@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "yield"])
async def test_background_tasks_of_a_dependency_run_when_a_stream_answers_for_the_endpoint(
    face: str, headers: dict[str, str]
):
    """The dependencies of the endpoint are solved for it, so what they ask for is done."""
    if face == "yield":
        pytest.importorskip("fastapi.sse")  # FastAPI takes no `yield` endpoints before it has these
    ran: list[int] = []

    async def audit(tasks: BackgroundTasks):
        tasks.add_task(ran.append, 1)

    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router)

    async def chat(_: Annotated[None, Depends(audit)]):
        return events()

    async def by_yield(_: Annotated[None, Depends(audit)]):
        yield "hello"

    async def by_dependency(_: Annotated[None, Depends(audit)], stream: Annotated[ResumableStream, Depends(resumable)]):
        return stream(events())

    if face == "dependency":
        app.post("/chat")(by_dependency)
    elif face == "decorator":
        app.post("/chat")(resumable.stream(chat))
    else:
        router = APIRouter(route_class=resumable.route_class)
        router.post("/chat")(by_yield if face == "yield" else chat)
        app.include_router(router)
    async with running(app) as client:
        first = client.start("POST", "/chat", headers=ID | {"Idempotency-Key": "once"})
        body = await first.rest()
        await first.served()
        assert ran == [1]
        epoch = (await first.head()).headers["x-stream-epoch"]
        again = client.start("POST", "/chat", headers=ID | {name: text.format(epoch) for name, text in headers.items()})
        assert await again.rest() == body
        await again.served()
    assert ran == [1, 1]


@pytest.mark.parametrize("fails", [False, True])
async def test_background_tasks_run_after_a_202_if_the_endpoint_returned_no_response_but_not_if_it_raised(fails: bool):
    """As without the library."""
    ran: list[int] = []
    resumable, app = Resumable(pending_timeout=0), FastAPI()
    app.include_router(resumable.router)

    @app.post("/chat")
    @resumable.stream
    async def chat(tasks: BackgroundTasks):
        tasks.add_task(ran.append, 1)
        await exchange.head()
        if fails:
            raise ValueError("of the application's own")
        return {"no": "response"}

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID | {"Prefer": "respond-async"})
        assert (await exchange.head()).status == 202
        await exchange.served()
    assert ran == ([] if fails else [1])


async def test_a_body_that_a_limit_has_cut_off_is_answered_by_the_limit():
    """Nothing is left to be read of it, so it is not waited for."""
    resumable = Resumable(stream_id=body_field("id"))
    app = FastAPI()
    app.include_router(resumable.router)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])

    @app.post("/chat")
    async def chat(body: dict[str, Any]):
        return events()

    async def limited(scope, receive, send):
        async def receive_little():
            message = await receive()
            if b"too much" in message.get("body", b""):
                raise HTTPException(413)
            return message

        await app(scope, receive_little, send)

    async with running(limited) as client:
        reply = await client.post("/chat", pieces=[b'{"id": "chat-1", ', b'"text": "too much"}'])
    assert reply.status == 413


async def test_an_application_may_have_routes_that_know_no_urls():
    """Starlette asks those before ours for the URL of the replay, and they have no answer."""

    class Nameless(BaseRoute):
        def matches(self, scope):
            return Match.NONE, {}

    resumable, app = Resumable(), FastAPI()
    app.router.routes.append(Nameless())
    app.include_router(resumable.router)
    app.post("/chat")(resumable.stream(events))
    async with running(app) as client:
        first = await client.post("/chat", headers=ID)
        assert (first.status, "content-location" in first.headers) == (200, False)
        assert (await client.get("/v1/stream/chat-1")).body == first.body


async def test_what_is_not_recorded_is_said_once_for_a_route(caplog: pytest.LogCaptureFixture):
    """And not again for each value in its path."""
    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router)

    @app.post("/chat/{number}")
    @resumable.stream
    async def chat(number: int):
        return {"number": number}

    async with running(app) as client:
        for number in range(3):
            assert (await client.post(f"/chat/{number}", headers=ID)).json() == {"number": number}
    (warning,) = [record.getMessage() for record in caplog.records if "route_class" in record.getMessage()]
    assert warning.startswith("the endpoint of /chat/{number} returned a dict,")


@pytest.mark.parametrize(
    "more",
    [
        b"[%b1]" % (b"[]," * 2**18),
        b"[%b1]" % (b'{"a":{}},' * 2**17),
        b"[%b1]" % (b"1," * 2**19),
        b'"%b"' % (b"\\n" * 2**19),
    ],
    ids=["lists", "objects", "numbers", "escapes"],
)
async def test_a_lookup_that_takes_long_to_parse_is_refused(more: bytes):
    """No single request holds up the event loop; a thousand long ids that are escapes alone are read."""
    app = FastAPI()
    app.include_router(Resumable().router)
    async with running(app) as client:
        body = b'{"conversation_ids":["a"],"more":%b}' % more
        reply = await client.request("POST", "/v1/streams/lookup", body=body)
        assert (reply.status, reply.code) == (400, "invalid_request")
        reply = await client.post("/v1/streams/lookup", json={"conversation_ids": ["é" * 256] * 1000})
        assert (reply.status, reply.json()) == (200, [])


@pytest.mark.parametrize(("encoding", "status"), [("utf-8-sig", 200), ("utf-16", 400)])
async def test_a_lookup_may_begin_with_a_bom_and_is_utf_8(encoding: str, status: int):
    """RFC 8259 §8.1."""
    app = FastAPI()
    app.include_router(Resumable().router)
    async with running(app) as client:
        body = '{"conversation_ids":["a"]}'.encode(encoding)
        assert (await client.request("POST", "/v1/streams/lookup", body=body)).status == status


@pytest.mark.parametrize("face", ["decorator", "route_class"])
async def test_a_request_that_is_cancelled_in_a_dependency_ends_after_its_dependencies(face: str):
    """They close in the request, as without us: what stands around it may tear down what they need."""
    steps: list[str] = []
    waits = asyncio.Event()

    async def session():
        try:
            yield
        finally:
            await settle()
            steps.append("dependency closed")

    async def slow(_: Annotated[None, Depends(session)]):
        waits.set()
        await asyncio.Event().wait()

    async def chat(_: Annotated[None, Depends(slow)]):
        return events()

    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router)
    if face == "route_class":
        app.router.route_class = resumable.route_class
    app.post("/chat")(chat if face == "route_class" else resumable.stream(chat))

    async def outermost(scope, receive, send):
        try:
            await app(scope, receive, send)
        finally:
            steps.append("request over")

    async with running(outermost, lifespan=False) as client:
        exchange = client.start("POST", "/chat", headers=ID)
        await bounded(waits.wait())
        exchange.cancel()
        await exchange.served()
    assert steps == ["dependency closed", "request over"]


@pytest.mark.parametrize("root_path", ["", "/", "/api"])
async def test_the_middleware_finds_its_paths_below_any_root_path(root_path: str):
    """One slash alone, which some servers give, is none."""
    resumable, app = Resumable(), FastAPI()
    app.include_router(resumable.router)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    app.post("/chat")(events)
    async with running(app, root_path=root_path, lifespan=False) as client:
        reply = await client.post(f"{root_path.rstrip('/')}/chat", headers=ID)
    assert (reply.status, "x-stream-epoch" in reply.headers) == (200, True)


async def test_a_replay_of_the_applications_own_is_not_recorded_again() -> None:
    """Not behind a dependency either that asks for the handle, for a request that names the stream."""
    resumable, app, go_on = Resumable(), FastAPI(), asyncio.Event()

    async def parts() -> AsyncIterator[str]:
        yield "data: one\n\n"
        await go_on.wait()
        yield "data: two\n\n"

    @app.post("/chat")
    @resumable.stream
    async def chat() -> StreamingResponse:
        return StreamingResponse(parts(), media_type="text/event-stream")

    @app.get("/mine", dependencies=[Depends(resumable)])
    async def mine(request: Request) -> Response:
        return await resumable.replay(request, "a")

    app.include_router(resumable.router)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={"X-Conversation-Id": "a"})
        await exchange.read_until(b"one")
        replay = client.start("GET", "/mine", headers={"X-Conversation-Id": "a"})
        await replay.read_until(b"one")
        go_on.set()
        assert b"event: cancelled" not in await exchange.rest() + await replay.rest()
        epoch = (await exchange.head()).headers["x-stream-epoch"]
        assert (await client.get("/v1/stream/a")).headers["x-stream-epoch"] == epoch
