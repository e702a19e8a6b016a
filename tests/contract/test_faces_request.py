"""The request stays alive, from its own point of view, until its producer is done; and what else must just work."""

import asyncio
import contextvars
import functools
import gzip
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, File, Form, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream
from tests.support.asgi import bounded, data_of, parse_events, running, settle, until
from tests.support.life_apps import ID, Run, Stage, answer, app_under, make, sse, stage, starlette_app
from tests.support.params import spread

FASTAPI_FACES = ("decorator", "dependency", "route_class", "middleware")
every_fastapi_face = pytest.mark.parametrize("face", FASTAPI_FACES)
every_face = pytest.mark.parametrize("face", [*FASTAPI_FACES, "mounted"])
both_specs = pytest.mark.parametrize("spec", ["2.3", "2.4"])


@spread(both_specs, every_fastapi_face)
async def test_a_dependency_with_yield_stays_open_until_the_generator_is_done(face: str, spec: str) -> None:
    """The client is long gone; the session closes after the generator and the background tasks, and once."""
    made = stage(face)
    async with running(made.app, spec_version=spec) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        await settle()
        assert made.trace == ["session opened"]
        run.put("two")
        run.finish()
        await until(lambda: "session closed" in made.trace, "the session's close")
        await exchange.served()
    assert made.trace == ["session opened", "generator closed", "background ran", "session closed"]


@every_fastapi_face
async def test_a_dependency_outlives_the_cancellation_of_the_servers_task(face: str) -> None:
    """A server that cancels the request's task (at its own shutdown) does not close what the generator still uses."""
    made = stage(face)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        exchange.cancel()
        await settle()
        assert run.endings == []
        assert made.trace == ["session opened"]
        run.put("two")
        run.finish()
        await run.wait_closed()
        await exchange.served()
        await until(lambda: "session closed" in made.trace, "the session's close")
        replay = await client.get("/v1/stream/chat-1")
    assert data_of(replay.body) == ["one", "two"]
    assert made.trace == ["session opened", "generator closed", "background ran", "session closed"]


@every_fastapi_face
async def test_a_dependency_sees_the_generators_exception(face: str) -> None:
    """As without the library: so a session can roll back."""
    made = stage(face)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        await settle()
        run.fail(LookupError("gone"))
        await until(lambda: "session closed" in made.trace, "the session's close")
        await exchange.served()
    assert made.trace == ["session opened", "generator closed", "session saw LookupError", "session closed"]


@every_fastapi_face
async def test_dependencies_close_in_reverse_order_and_once(face: str) -> None:
    """Two sessions, one built on the other: the inner closes first."""
    trace: list[str] = []

    async def outer() -> AsyncIterator[str]:
        yield "outer"
        trace.append("outer closed")

    async def inner(above: Annotated[str, Depends(outer)]) -> AsyncIterator[str]:
        yield "inner"
        trace.append("inner closed")

    app, run = _with_endpoint(face, Stage(), Depends(inner))
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run.put("one")
        await exchange.head()
        exchange.disconnect()
        await settle()
        assert trace == []
        run.finish()
        await run.wait_closed()
        await exchange.served()
        await until(lambda: len(trace) == 2, "both closes")
    assert trace == ["inner closed", "outer closed"]


def _with_endpoint(face: str, made: Stage, dependency: Any) -> tuple[FastAPI, Run]:
    """A fresh app whose endpoint needs ``dependency`` and streams one run."""
    run = made.new_run()

    async def chat(needed: Any = dependency) -> Any:
        return answer(run, "async generator")

    return app_under(face, chat), run


def _with_background(face: str, kind: str, task: Any) -> tuple[Any, Run]:
    """An app whose endpoint answers with one run and a background task."""
    run = Stage().new_run()

    async def chat() -> Any:
        response = answer(run, kind)
        response.background = BackgroundTask(task)
        return response

    return app_under(face, chat), run


@every_fastapi_face
async def test_a_background_task_of_the_response_runs_after_the_stream(face: str) -> None:
    """`StreamingResponse(background=...)` keeps its promise too, with the client gone."""
    ran: list[str] = []
    app, run = _with_background(face, "async generator", lambda: ran.append("ran"))
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run.put("one")
        await exchange.head()
        exchange.disconnect()
        await settle()
        assert ran == []
        run.finish()
        await until(lambda: ran == ["ran"], "the background task")
        await exchange.served()
    assert ran == ["ran"]


async def _stamp(request: Request, call_next: Any) -> Any:
    response = await call_next(request)
    response.headers["x-stamp"] = "here"
    return response


@spread(both_specs, every_face)
async def test_a_base_http_middleware_is_no_obstacle(face: str, spec: str) -> None:
    """`BaseHTTPMiddleware` around everything: the stream flows, survives its client, stops, and replays."""
    made = stage(face)
    made.app.add_middleware(BaseHTTPMiddleware, dispatch=_stamp)
    async with running(made.app, spec_version=spec) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        assert (await exchange.head()).headers["x-stamp"] == "here"
        assert b"one" in await exchange.read_until(b"one")
        exchange.disconnect()
        await settle()
        run.put("two")
        await settle()
        assert run.endings == []
        follower = client.start("GET", "/v1/stream/chat-1")
        await follower.read_until(b"two")
        run.finish()
        await run.wait_closed()
        assert data_of((await client.get("/v1/stream/chat-1")).body) == ["one", "two"]
        _, second = await made.begin(client, "chat-2", "one")
        await client.delete("/v1/stream/chat-2")
        await second.wait_closed()
    assert second.endings != ["finished"]


async def test_a_base_http_middleware_inside_the_resumable_one_is_no_obstacle() -> None:
    """Added before `ResumableMiddleware`, it runs inside the recorded app."""
    run = Stage().new_run()

    async def chat() -> Any:
        return answer(run, "async generator")

    app = FastAPI()
    app.add_middleware(BaseHTTPMiddleware, dispatch=_stamp)
    async with running(app_under("middleware", chat, app=app)) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run.put("one")
        await exchange.read_until(b"one")
        exchange.disconnect()
        await settle()
        run.put("two")
        run.finish()
        await run.wait_closed()
        await exchange.served()
        replay = await client.get("/v1/stream/chat-1")
    assert data_of(replay.body) == ["one", "two"]
    assert replay.headers["x-stamp"] == "here"


@every_face
async def test_gzip_middleware_does_not_hold_an_event_stream_back(face: str) -> None:
    """With GZip in the app, a client that accepts it reads each event as it comes, and the log is not compressed."""
    made = stage(face)
    made.app.add_middleware(GZipMiddleware, minimum_size=1)
    accept = {"Accept-Encoding": "gzip"}
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one", headers=accept)
        await exchange.read_until(b"one")
        run.put("two")
        run.finish()
        await exchange.rest()
        replay = await client.get("/v1/stream/chat-1", headers=accept)
    assert data_of(replay.body) == ["one", "two"]


async def test_gzip_inside_the_recorded_app_is_recorded_uncompressed() -> None:
    """What a middleware compresses for one client must be readable by the next: the log holds the plain bytes."""
    resumable = make()
    app = FastAPI()
    app.include_router(resumable.router)

    async def lines() -> AsyncIterator[str]:
        for number in range(50):
            yield f'{{"number": {number}}}\n'

    @app.post("/export")
    async def export() -> StreamingResponse:
        return StreamingResponse(lines(), media_type="application/x-ndjson")

    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/export"])
    whole = b"".join([f'{{"number": {number}}}\n'.encode() for number in range(50)])
    async with running(app) as client:
        first = await client.post("/export", headers={ID: "chat-1", "Accept-Encoding": "gzip"})
        replay = await client.get("/v1/stream/chat-1?from=0")
    assert _plain(first.headers, first.body) == whole
    assert replay.body == whole
    assert "content-encoding" not in replay.headers


def _plain(headers: dict[str, str], body: bytes) -> bytes:
    return gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class"])
async def test_a_mounted_sub_app_works(face: str) -> None:
    """The whole app, router included, under a mount; the way back is right from outside."""
    made = stage(face)
    outer = FastAPI()
    outer.mount("/api", made.app)
    made.path = "/api/chat"
    async with running(outer) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        run.finish()
        await run.wait_closed()
        where = (await exchange.head()).headers["content-location"]
        replay = await client.get(where)
    assert where.startswith("/api/v1/stream/")
    assert data_of(replay.body) == ["one"]


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class"])
async def test_a_router_with_a_prefix_works(face: str) -> None:
    """The endpoint's router has a prefix, and so has the include of ours."""
    resumable = make()
    made = Stage()
    run = made.new_run()
    kind = {"route_class": resumable.route_class} if face == "route_class" else {}
    router = APIRouter(prefix="/bots/{bot}", **kind)  # type: ignore[arg-type]

    async def plain(bot: str) -> Any:
        return StreamingResponse(run.frames(sse), media_type="text/event-stream")

    async def with_stream(bot: str, stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
        return stream(StreamingResponse(run.frames(sse), media_type="text/event-stream"))

    endpoint: Any = {"decorator": resumable.stream(plain), "dependency": with_stream, "route_class": plain}[face]
    router.post("/chat")(endpoint)
    made.app.include_router(router, prefix="/v2")
    made.app.include_router(resumable.router, prefix="/streams")
    async with running(made.app) as client:
        exchange = client.start("POST", "/v2/bots/bob/chat", headers={ID: "chat-1"})
        run.put("one")
        run.finish()
        reply = await exchange.reply()
        replay = await client.get(reply.headers["content-location"])
    assert reply.headers["content-location"].startswith("/streams/v1/stream/")
    assert replay.body == reply.body


def _finite_app(face: str) -> FastAPI:
    """An app for the synchronous `TestClient`: its generator ends by itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.started = True
        yield

    async def tokens() -> AsyncIterator[str]:
        for token in ("one", "two", "three"):
            yield sse(token)

    async def chat() -> Any:
        return StreamingResponse(tokens(), media_type="text/event-stream")

    return app_under(face, chat, app=FastAPI(lifespan=lifespan))


@every_fastapi_face
def test_the_test_client_works_without_with(face: str) -> None:
    """Each request of a bare `TestClient` has an event loop of its own; a finished stream is replayed in the next."""
    client = TestClient(_finite_app(face))
    first = client.post("/chat", headers={ID: "chat-1"})
    replay = client.get("/v1/stream/chat-1")
    missing = client.get("/v1/stream/chat-2")
    assert data_of(first.content) == ["one", "two", "three"]
    assert replay.content == first.content
    assert missing.status_code == 404
    assert client.post("/chat", headers={ID: "chat-1"}).status_code == 200
    assert client.delete("/v1/stream/chat-1").status_code == 204
    assert client.get("/v1/stream/chat-1").status_code == 404


@every_fastapi_face
def test_the_test_client_works_with_with(face: str) -> None:
    """With its lifespan, twice in a row on one app; the app's own lifespan runs too."""
    app = _finite_app(face)
    for _ in range(2):
        with TestClient(app) as client:
            assert app.state.started
            first = client.post("/chat", headers={ID: "chat-1"})
            assert first.status_code == 200, first.text
            assert client.get("/v1/stream/chat-1").content == first.content
            assert data_of(first.content) == ["one", "two", "three"]


@spread(both_specs, every_fastapi_face)
async def test_an_uploaded_file_is_readable_until_the_end(face: str, spec: str) -> None:
    """The upload hangs on the request: the generator reads it after the client has left, then it is closed."""
    run = Stage().new_run()
    files: list[UploadFile] = []

    async def upper(file: UploadFile) -> AsyncIterator[str]:
        async for step in run.frames(int):
            yield sse((await file.read(step)).decode().upper())

    async def chat(file: Annotated[UploadFile, File()], note: Annotated[str, Form()]) -> Any:
        files.append(file)
        return StreamingResponse(upper(file), media_type="text/event-stream")

    app = app_under(face, chat)
    boundary = b"--frontier\r\n"
    body = (
        boundary
        + b'Content-Disposition: form-data; name="note"\r\n\r\nhi\r\n'
        + boundary
        + b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n'
        + b"abcdef\r\n--frontier--\r\n"
    )
    headers = {ID: "chat-1", "Content-Type": "multipart/form-data; boundary=frontier"}
    async with running(app, spec_version=spec) as client:
        exchange = client.start("POST", "/chat", headers=headers, pieces=[body[:40], body[40:150], body[150:]])
        run.put("3")
        await exchange.read_until(b"ABC")
        exchange.disconnect()
        await settle()
        assert not files[0].file.closed
        run.put("2")
        await settle()
        run.put("1")
        run.finish()
        await run.wait_closed()
        await exchange.served()
        await until(lambda: files[0].file.closed, "the file's close")
        replay = await client.get("/v1/stream/chat-1")
    assert data_of(replay.body) == ["ABC", "DE", "F"]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@spread(every_fastapi_face, pytest.mark.parametrize("kind", ["async generator", "sync generator"]))
async def test_context_variables_last_as_long_as_the_producer(face: str, kind: str) -> None:
    """Set by a middleware and by a dependency, seen to the end, reset in their own context, leaked nowhere."""
    run = Stage().new_run()
    seen: list[tuple[str, str]] = []
    inner: contextvars.ContextVar[str] = contextvars.ContextVar("inner", default="unset")
    resets: list[str] = []

    async def scoped() -> AsyncIterator[None]:
        token = inner.set("from a dependency")
        try:
            yield
        finally:
            inner.reset(token)
            resets.append("reset")

    class Outer:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            token = variable.set("from a middleware")
            try:
                await self.app(scope, receive, send)
            finally:
                variable.reset(token)

    def look(value: str) -> str:
        seen.append((variable.get(), inner.get()))
        return sse(value)

    async def chat(scope: Annotated[None, Depends(scoped)]) -> Any:
        frames = run.frames(look) if kind == "async generator" else run.frames_in_thread(look)
        return StreamingResponse(frames, media_type="text/event-stream")

    app = app_under(face, chat)
    app.add_middleware(Outer)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run.put("one")
        await exchange.read_until(b"one")
        exchange.disconnect()
        await settle()
        run.put("two")
        run.finish()
        await run.wait_closed()
        await exchange.served()
        await until(lambda: resets == ["reset"], "the dependency's reset")
        assert variable.get() == "unset"
    assert seen == [("from a middleware", "from a dependency")] * 2


@every_fastapi_face
async def test_a_plain_json_answer_under_a_stream_id_is_recorded_too(face: str) -> None:
    """An endpoint may turn out not to stream: its JSON can be replayed like any stream."""

    async def chat() -> Any:
        return JSONResponse({"answer": 42})

    app = app_under(face, chat)
    async with running(app) as client:
        first = await client.post("/chat", headers={ID: "chat-1"})
        replay = await client.get("/v1/stream/chat-1")
    assert first.json() == replay.json() == {"answer": 42}
    assert replay.headers["content-type"] == "application/json"


@pytest.mark.parametrize("face", ["decorator", "route_class"])
async def test_an_endpoint_that_returns_a_plain_value_keeps_fastapis_serialisation(face: str) -> None:
    """A returned dict goes through FastAPI's own response building, with and without a stream id."""

    async def chat() -> dict[str, int]:
        return {"answer": 42}

    app = app_under(face, chat, status_code=201)
    async with running(app) as client:
        bare = await client.post("/chat")
        named = await client.post("/chat", headers={ID: "chat-1"})
    assert (bare.status, bare.json()) == (201, {"answer": 42})
    assert (named.status, named.json()) == (201, {"answer": 42})


class Record:
    """A pure ASGI app that keeps what it received."""

    def __init__(self) -> None:
        self.body = b""
        self.messages: list[str] = []
        self.cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while True:
            message = await receive()
            self.messages.append(message["type"])
            if message["type"] == "http.disconnect":
                return
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        await PlainTextResponse(self.body[::-1])(scope, receive, send)


def _over(inner: Any, resumable: Resumable) -> Any:
    app = FastAPI()
    app.include_router(resumable.router)
    app.mount("/raw", inner)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/raw/chat"])
    return app


async def test_the_middleware_passes_bodies_in_several_messages() -> None:
    """Piece by piece, with pauses, empty ones among them: the app gets the whole body."""
    inner = Record()
    async with running(_over(inner, make())) as client:
        exchange = client.start("POST", "/raw/chat", headers={ID: "chat-1"}, pieces=[b"abc"], more=True)
        await settle()
        exchange.upload(b"", b"def", more=True)
        await settle()
        exchange.upload(b"ghi")
        reply = await exchange.reply()
        replay = await client.get("/v1/stream/chat-1")
    assert inner.body == b"abcdefghi"
    assert reply.body == replay.body == b"ihgfedcba"


async def test_a_client_that_leaves_in_mid_upload_aborts_the_request() -> None:
    """Half a body is no request: the app sees the disconnect, and no stream begins."""
    inner = Record()
    async with running(_over(inner, make())) as client:
        exchange = client.start("POST", "/raw/chat", headers={ID: "chat-1"}, pieces=[b"abc"], more=True)
        await until(lambda: inner.messages == ["http.request"], "the first piece")
        exchange.disconnect()
        await exchange.served()
        missing = await client.get("/v1/stream/chat-1")
    assert inner.messages[-1] == "http.disconnect"
    assert missing.status == 404


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])
async def test_a_client_that_leaves_in_mid_upload_never_runs_the_endpoint(face: str) -> None:
    """Under every face of a FastAPI app: the endpoint needs the whole body."""
    made = stage(face)
    async with running(made.app) as client:
        headers = {ID: "chat-1", "Content-Type": "application/json"}
        exchange = client.start("POST", "/chat", headers=headers, pieces=[b'{"text": '], more=True)
        await settle()
        exchange.disconnect()
        await exchange.served()
        missing = await client.get("/v1/stream/chat-1")
    assert made.runs == []
    assert missing.status == 404


async def test_the_middleware_leaves_other_paths_alone() -> None:
    """Only the paths it was given are recorded."""
    made = stage("middleware")
    run = made.new_run()

    @made.app.post("/other")
    async def other() -> Any:
        return StreamingResponse(run.frames(sse), media_type="text/event-stream")

    async with running(made.app) as client:
        exchange = client.start("POST", "/other", headers={ID: "chat-1"})
        run.put("one")
        run.finish()
        reply = await exchange.reply()
        missing = await client.get("/v1/stream/chat-1")
    assert reply.body == b"data: one\n\n"
    assert ID.lower() not in reply.headers
    assert missing.status == 404


async def test_the_middleware_works_over_an_app_without_fastapi() -> None:
    """Plain Starlette, the middleware wrapped around it; the routes are served by a FastAPI app beside it."""
    resumable = make()
    made = Stage()
    wrapped = ResumableMiddleware(starlette_app(made, "async generator"), resumable=resumable, paths=["/chat"])
    routes = FastAPI()
    routes.include_router(resumable.router)
    async with running(wrapped, lifespan=False) as client, running(routes) as replays:
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        run.put("two")
        run.finish()
        await run.wait_closed()
        replay = await replays.get("/v1/stream/chat-1")
    assert data_of(replay.body) == ["one", "two"]


async def test_websockets_and_lifespans_pass_through_the_middleware() -> None:
    """The middleware is about HTTP; any other scope is not its business."""
    scopes: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope["type"])

    wrapped = ResumableMiddleware(inner, resumable=make(), paths=["/chat"])
    for kind in ("websocket", "lifespan"):
        await bounded(wrapped({"type": kind, "path": "/chat", "headers": []}, None, None))  # type: ignore[arg-type]
    assert scopes == ["websocket", "lifespan"]


@every_face
async def test_the_endpoint_gets_its_body_whole_in_several_messages(face: str) -> None:
    """An upload in many messages reaches the endpoint, whatever the face."""
    made = stage(face)
    text = b'{"text": "' + b"x" * 100 + b'"}'
    headers = {ID: "chat-1", "Content-Type": "application/json"}
    async with running(made.app) as client:
        pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
        exchange = client.start("POST", made.path, headers=headers, pieces=pieces)
        run = await made.run()
        run.put("one")
        run.finish()
        reply = await exchange.reply()
    assert reply.status == 200
    assert data_of(reply.body) == ["one"]


def test_uploads_through_the_test_client_work() -> None:
    """A multipart form through httpx, as users' tests send it."""
    resumable = make()
    app = FastAPI()
    app.include_router(resumable.router)

    @app.post("/chat")
    @resumable.stream
    def chat(file: UploadFile) -> StreamingResponse:
        def lines() -> Iterator[bytes]:
            while piece := file.file.read(2):
                yield piece

        return StreamingResponse(lines(), media_type="text/plain")

    with TestClient(app) as client:
        reply = client.post("/chat", headers={ID: "chat-1"}, files={"file": ("a.txt", io.BytesIO(b"abcdef"))})
        assert reply.content == b"abcdef"
        assert client.get("/v1/stream/chat-1?from=4").content == b"ef"


@spread(every_fastapi_face, pytest.mark.parametrize("kind", ["async generator", "sse-starlette"]))
async def test_a_slow_background_task_does_not_hold_the_end_of_the_response(face: str, kind: str) -> None:
    """The client has its whole answer while the task is still at work, as without the library."""
    gate = asyncio.Event()
    app, run = _with_background(face, kind, gate.wait)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run.put("one")
        run.finish()
        body = await exchange.rest()
        clean = exchange.clean
        replay = await client.get("/v1/stream/chat-1")
        gate.set()
        await exchange.served()
    assert clean
    assert data_of(body) == ["one"]
    assert replay.body == body


@pytest.mark.parametrize("face", ["decorator", "dependency", "both"])
async def test_a_background_task_that_fails_does_not_undo_a_whole_answer(face: str) -> None:
    """The response had ended, and the client had all of it."""

    async def fail() -> None:
        raise ValueError("disk full")

    app, run = _with_background(face, "async generator", fail)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run.put("one")
        run.finish()
        body = await exchange.rest()
        await exchange.served()
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]
    assert [event.event for event in parse_events(body)] == ["message"]
    assert item["status"] == "completed"


async def test_a_handle_that_is_not_used_leaves_the_answer_alone() -> None:
    """An endpoint may decide not to stream: its answer is its own, and the id is free again."""
    resumable = make(max_streams=1)
    app = FastAPI()
    app.include_router(resumable.router)

    @app.post("/chat")
    async def chat(stream: Annotated[ResumableStream, Depends(resumable)]) -> dict[str, bool]:
        return {"named": bool(stream)}

    async with running(app) as client:
        replies = [await client.post("/chat", headers={ID: "chat-1"}) for _ in range(3)]
        missing = await client.get("/v1/stream/chat-1")
    assert [reply.json() for reply in replies] == [{"named": True}] * 3
    assert missing.status == 404


async def test_without_its_router_a_stream_works_and_names_no_way_back() -> None:
    """Forgetting `include_router` costs the replay routes, not the answer."""
    resumable = make()
    app = FastAPI()

    @app.post("/chat")
    @resumable.stream
    async def chat() -> StreamingResponse:
        return StreamingResponse(iter([b"data: one\n\n"]), media_type="text/event-stream")

    async with running(app) as client:
        reply = await client.post("/chat", headers={ID: "chat-1"})
    assert data_of(reply.body) == ["one"]
    assert "content-location" not in reply.headers


async def test_anything_that_fastapi_takes_for_an_endpoint_can_be_decorated() -> None:
    """Objects with `__call__`, bound methods and partials."""
    resumable = make()
    app = FastAPI()
    app.include_router(resumable.router)

    class Endpoint:
        async def __call__(self, number: int) -> StreamingResponse:
            return StreamingResponse(iter([f"data: {number}\n\n"]), media_type="text/event-stream")

        async def method(self, number: int) -> StreamingResponse:
            return await self(number)

    async def two(prefix: str, number: int) -> StreamingResponse:
        return StreamingResponse(iter([f"data: {prefix}{number}\n\n"]), media_type="text/event-stream")

    app.post("/object")(resumable.stream(Endpoint()))
    app.post("/method")(resumable.stream(Endpoint().method))
    app.post("/partial")(resumable.stream(functools.partial(two, "x")))
    async with running(app) as client:
        replies = [
            await client.post(f"/{path}?number=7", headers={ID: path}) for path in ("object", "method", "partial")
        ]
        bad = await client.post("/object?number=many", headers={ID: "bad"})
    assert [data_of(reply.body) for reply in replies] == [["7"], ["7"], ["x7"]]
    assert bad.status == 422
