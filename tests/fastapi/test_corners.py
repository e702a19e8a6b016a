"""What seldom happens, through requests."""

import asyncio
import gc
import inspect
import json
import threading
import uuid
from collections.abc import Iterable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect

from fastapi_resumable import MemoryStore, Resumable, ResumableMiddleware, ResumableStream, body_field, header
from tests.support.asgi import bounded, running, settle, until

ID = {"X-Conversation-Id": "chat-1"}


async def words(*values: str):
    for value in values:
        yield f"data: {value}\n\n"


def events(*values: str) -> StreamingResponse:
    return StreamingResponse(words(*values), media_type="text/event-stream")


def make(**settings: Any) -> tuple[FastAPI, Resumable]:
    resumable = Resumable(**{"shutdown_grace": 0.1, "stop_grace": 1.0} | settings)
    app = FastAPI()
    app.include_router(resumable.router)
    return app, resumable


async def test_a_callable_object_can_be_decorated():
    """An endpoint need not be a function."""
    app, resumable = make()

    class Chat:
        async def __call__(self, name: str = "you"):
            return events("hello", name)

    app.post("/chat")(resumable.stream(Chat()))
    async with running(app) as client:
        reply = await client.post("/chat?name=me", headers=ID)

        assert b"data: me\n" in reply.body
        assert (await client.get("/v1/stream/chat-1")).body == reply.body


def test_annotations_that_cannot_be_resolved_yet_are_left_to_fastapi():
    """A name that is defined later is no reason to fail at decoration."""
    _, resumable = make()

    @resumable.stream
    async def chat(prompt: "NotYetDefined"):  # noqa: F821
        return events("x")

    assert inspect.signature(chat).parameters["prompt"].annotation == "NotYetDefined"


async def test_a_value_that_is_no_response_is_left_to_fastapi(caplog):
    """It is rendered by the response model, recorded nowhere, and said once, with the way to have it recorded."""
    app, resumable = make()

    class Public(BaseModel):
        name: str

    @app.post("/model", status_code=201)
    @resumable.stream
    async def model() -> Public:
        return Public.model_validate({"name": "ann"})

    @app.post("/custom", response_class=JSONResponse, response_model=Public)
    @resumable.stream
    def custom() -> Any:
        return {"name": "bob", "secret": "hidden"}

    @app.post("/handed")
    async def handed(stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
        return stream({"name": "eve"})  # type: ignore[type-var]  # no response

    answers = (("/model", 201, {"name": "ann"}), ("/custom", 200, {"name": "bob"}), ("/handed", 200, {"name": "eve"}))
    async with running(app) as client:
        for path, status, body in answers:
            for _ in range(2):
                reply = await client.post(path, headers={"X-Conversation-Id": path})
                assert (reply.status, json.loads(reply.body)) == (status, body)
            assert (await client.get(f"/v1/stream?conv_id={path}")).status == 404
            assert caplog.text.count(path) == 1
    assert "route_class" in caplog.text


async def test_a_number_in_the_body_is_an_id_too():
    """`{"id": 7}` names the stream `7`; `true` and a list name none."""
    app, resumable = make(stream_id=body_field("id"))

    @app.post("/chat")
    @resumable.stream
    async def chat(body: dict[str, Any]):
        return events("x")

    async with running(app) as client:
        assert (await client.post("/chat", json={"id": 7})).headers["x-conversation-id"] == "7"
        for nameless in ({"id": True}, {"id": [1]}, {}):
            assert "x-conversation-id" not in (await client.post("/chat", json=nameless)).headers


@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
@pytest.mark.parametrize("face", ["decorator", "dependency"])
def test_an_id_comes_from_a_form_that_the_endpoint_reads_too(face: str, kind: str) -> None:
    """FastAPI has read the form by then; its files are still the endpoint's."""

    def of_form(chat: Annotated[str, Form()]) -> str:
        return chat

    app = FastAPI()
    resumable = Resumable(stream_id=of_form)
    app.include_router(resumable.router)

    async def answer(text: Annotated[str, Form()], file: UploadFile | None = None) -> StreamingResponse:
        return StreamingResponse(iter([f"{text} {'' if file is None else await file.read()}"]))

    async def handed(
        text: Annotated[str, Form()],
        stream: Annotated[ResumableStream, Depends(resumable)],
        file: UploadFile | None = None,
    ) -> StreamingResponse:
        return stream(await answer(text, file))

    app.post("/chat")(resumable.stream(answer) if face == "decorator" else handed)
    with TestClient(app) as client:
        files = {"file": b"of a file"} if kind == "multipart" else None
        first = client.post("/chat", data={"chat": "a=1&b", "text": "words"}, files=files)
        assert first.status_code == 200
        assert first.text.startswith("words" if files is None else "words b'of a file'")
        assert client.get("/v1/stream", params={"conv_id": "a=1&b"}).text == first.text


@pytest.mark.parametrize("text", ["\u0449" * 400_000, "+2AA-"], ids=["long", "half a pair"])
def test_a_form_that_the_endpoint_takes_is_no_fault_of_its_id(text: str) -> None:
    """Written anew for the dependency, a long text would be over the limit of a field, and not every text can be."""

    async def of_form(request: Request) -> str | None:
        return str((await request.form()).get("chat"))

    app = FastAPI()
    resumable = Resumable(stream_id=of_form)
    app.include_router(resumable.router)

    @app.post("/chat")
    @resumable.stream
    async def chat(text: Annotated[str, Form()]) -> StreamingResponse:
        return StreamingResponse(iter([str(len(text))]))

    part = "--x\r\nContent-Disposition: form-data; name={}\r\n\r\n{}\r\n"
    parts = f"{part.format('chat', 'a')}{part.format('text', text)}--x--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={'utf-7' if '+' in text else 'utf-8'}"}
    with TestClient(app) as client:
        answer = client.post("/chat", content=parts.encode(), headers=headers)
        assert (answer.status_code, answer.headers["x-conversation-id"]) == (200, "a")


async def test_a_form_has_no_json_field():
    """Looking for the id in a form's body finds none, and takes nothing away."""
    app, resumable = make(stream_id=body_field("id"))

    @app.post("/chat")
    @resumable.stream
    async def chat(name: Annotated[str, Form(alias="id")]):
        return events(name)

    async with running(app) as client:
        reply = await client.post("/chat", body=b"id=7", headers={"content-type": "application/x-www-form-urlencoded"})

        assert reply.body == b"data: 7\n\n"
        assert "x-conversation-id" not in reply.headers


FACES = ["decorator", "dependency", "route class", "middleware"]


def with_face(face: str, app: FastAPI, resumable: Resumable) -> None:
    """Add `POST /chat` that takes a JSON body, or none, and answers with one event."""
    router = APIRouter(route_class=resumable.route_class) if face == "route class" else APIRouter()
    if face == "dependency":

        @router.post("/chat")
        async def handled(stream: Annotated[ResumableStream, Depends(resumable)], body: Annotated[Any, Body()] = None):
            return stream(events("x"))
    else:

        async def chat(body: Annotated[Any, Body()] = None):
            return events("x")

        router.post("/chat")(resumable.stream(chat) if face == "decorator" else chat)
    app.include_router(router)
    if face == "middleware":
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("name", ["owner", "stream_id"])
async def test_a_dependency_that_returns_no_string_is_a_mistake_that_is_named(name: str, face: str):
    """The same answer on every face: the sentence says which one, and what to do; an earlier stream stays."""
    found: list[Any] = ["chat-1"]
    app, resumable = make(**{"stream_id": lambda: "chat-1", name: lambda: found[0]})
    with_face(face, app, resumable)
    async with running(app) as client:
        first = await client.post("/chat")
        for found[0] in (7, b"chat-1", uuid.UUID(int=1)):
            exchange = client.start("POST", "/chat")
            await exchange.served()

            assert exchange.head_now.status == 500
            assert f"{name} must return str or None, not {type(found[0]).__name__}: return str()" in str(exchange.error)
        found[0] = "chat-1"
        assert (await client.get("/v1/stream/chat-1")).body == first.body


async def test_the_routes_take_the_same_owners_as_the_faces():
    """A mistake of the application is told to it, and not taken for another owner; the stream stays."""
    found: list[Any] = ["me"]
    app, resumable = make(owner=lambda: found[0])
    app.include_router(resumable.ai_sdk_router, prefix="/api")
    with_face("decorator", app, resumable)
    async with running(app) as client:
        first = await client.post("/chat", headers=ID)
        found[0] = 7
        for method, path, body in [
            ("GET", "/v1/stream/chat-1", None),
            ("GET", "/v1/stream?conv_id=chat-1", None),
            ("DELETE", "/v1/stream/chat-1", None),
            ("DELETE", "/v1/stream?conv_id=chat-1", None),
            ("POST", "/v1/streams/lookup", {"conversation_ids": ["chat-1"]}),
            ("POST", "/v1/streams/watch", {"conversation_ids": ["chat-1"]}),
            ("GET", "/api/chat-1/stream", None),
            ("POST", "/api/chat-1/stop", None),
        ]:
            exchange = client.start(method, path, **({} if body is None else {"json": body}))
            await exchange.served()

            assert exchange.head_now.status == 500, path
            assert "owner must return str or None, not int" in str(exchange.error), path
        found[0] = "me"
        assert (await client.get("/v1/stream/chat-1")).body == first.body


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize("path", ["/me", "/resumable"])
@pytest.mark.parametrize("order", ["auth first", "stream first"])
async def test_auth_may_ask_the_application_with_a_copy_of_the_scope(order: str, path: str, included: bool):
    """What is in the copy is the same objects, but it is another request; the first one is recorded as ever."""
    app, resumable = make()
    router = APIRouter() if included else app.router

    async def auth(request: Request) -> int:
        statuses: list[int] = []

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        await app({**request.scope, "path": path, "raw_path": path.encode()}, receive, send)
        return statuses[0]

    @router.post("/me")
    async def me():
        return "me"

    Stream = Annotated[ResumableStream, Depends(resumable)]  # noqa: N806  # a type
    Auth = Annotated[int, Depends(auth)]  # noqa: N806  # a type

    @router.post("/resumable")
    async def inner(stream: Stream):
        return stream(events("inner"))

    if order == "auth first":

        @router.post("/chat")
        async def chat(status: Auth, stream: Stream):
            return stream(events("chat", str(status)))
    else:

        @router.post("/chat")
        async def chat(stream: Stream, status: Auth):
            return stream(events("chat", str(status)))

    if included:
        app.include_router(router)
    async with running(app) as client:
        reply = await client.post("/chat", headers=ID)

        assert b"data: chat" in reply.body
        assert b"data: 200" in reply.body
        assert (await client.get("/v1/stream/chat-1")).body == reply.body


@pytest.mark.parametrize("face", FACES)
async def test_half_a_body_takes_no_place_from_others(face: str):
    """Sixty clients that send half a body, where fifty streams are allowed, keep no other client from its stream."""
    app, resumable = make(max_streams=50)
    with_face(face, app, resumable)
    seen = []

    @app.middleware("http")
    async def read(request: Request, call_next: Any) -> Any:
        seen.append(request.headers["x-conversation-id"])
        return await call_next(request)

    async with running(app) as client:
        halves = [
            client.start(
                "POST",
                "/chat",
                headers={"X-Conversation-Id": f"half-{number}", "Content-Type": "application/json"},
                pieces=[b"{"],
                more=True,
            )
            for number in range(60)
        ]
        await until(lambda: len(seen) == 60, "the half requests")
        reply = await client.post("/chat", headers=ID)
        for half in halves:
            half.upload(b"}")
        statuses = {(await half.reply()).status for half in halves}

    assert reply.status == 200
    assert b"data: x" in reply.body
    assert statuses <= {200, 503}


async def test_an_upload_that_is_answered_from_the_log_never_reaches_the_end_of_its_application():
    """The application has had the first of the body, and is cancelled when the request turns out to be a resume."""
    resumable = Resumable(on_conflict="attach")
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        try:
            while True:
                message = await receive()
                seen.append(message["body"].decode())
                if not message["more_body"]:
                    break
            head = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            await asyncio.sleep(3600)  # a live stream, since a stop leaves alone what runs on after the end of one
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    served = FastAPI()
    served.mount("/", app)
    served.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(served) as client:
        first = client.start("POST", "/chat", headers=ID, pieces=[b"a", b"b"])
        await first.read_until(b"data: x")
        second = client.start("POST", "/chat", headers=ID, pieces=[b"c"], more=True)
        await until(lambda: "c" in seen, "the first piece")
        second.upload(b"d")
        assert b"data: x" in await second.read_until(b"data: x")
        await until(lambda: "cancelled" in seen, "the cancellation")
        await resumable.stop("chat-1")
        await first.served()
        await second.served()

    assert seen == ["a", "b", "c", "cancelled", "cancelled"]


async def test_faces_within_faces_record_once():
    """Middleware, route class, decorator and dependency on one endpoint: the outermost does it all."""
    app, resumable = make()
    app.router.route_class = resumable.route_class
    seen: list[ResumableStream] = []

    @app.post("/chat")
    @resumable.stream
    async def chat(stream: Annotated[ResumableStream, Depends(resumable)]):
        seen.append(stream)
        return stream(events("one"))

    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        reply = await client.post("/chat", headers=ID)
        assert reply.body.count(b"data: one") == reply.body.count(b"id: ") == 1
        assert (seen[0].id, seen[0].epoch) == ("chat-1", reply.headers["x-stream-epoch"])
        assert not seen[0].stopped

        assert (await client.post("/chat")).body == b"data: one\n\n"
        assert (seen[1].id, seen[1].epoch, bool(seen[1]), seen[1].stopped) == (None, None, False, False)


@pytest.mark.parametrize("face", ["decorator", "route_class"])
async def test_an_endpoint_that_fails_after_202_leaves_nothing_behind(face, caplog):
    """The client has its answer; the failure is logged, the stream never was."""
    app, resumable = make(pending_timeout=0)
    if face == "route_class":
        app.router.route_class = resumable.route_class
    release = asyncio.Event()

    async def chat():
        await release.wait()
        raise LookupError("too late")

    app.post("/chat")(chat if face == "route_class" else resumable.stream(chat))
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID | {"Prefer": "respond-async"})
        assert (await exchange.head()).status == 202
        release.set()
        assert json.loads(await exchange.rest())["status"] == "queued"
        await exchange.served()

        assert exchange.error is None
        assert (await client.get("/v1/stream/chat-1")).status == 404
    assert "failed before it began" in caplog.text


class Shouting(Request):
    """A request of the application's own, made as FastAPI's documentation shows it: without a `send`."""

    async def body(self) -> bytes:
        return (await super().body()).upper()


class OfShouting(APIRoute):
    """A route whose endpoint gets it."""

    def get_route_handler(self):
        handle = super().get_route_handler()

        async def handle_shouting(request: Request) -> Response:
            return await handle(Shouting(request.scope, request.receive))

        return handle_shouting


@pytest.mark.parametrize("face", ["decorator", "dependency"])
async def test_a_request_of_the_applications_own_class_is_answered_202_with_its_response(face):
    """It has no way to be answered before that."""
    app, resumable = make(pending_timeout=0)
    app.router.route_class = OfShouting
    release = asyncio.Event()

    def respond(body: dict[str, str]):
        return JSONResponse(body)

    async def chat(body: dict[str, str]):
        await release.wait()
        return respond(body)

    async def handled(body: dict[str, str], stream: Annotated[ResumableStream, Depends(resumable)]):
        await release.wait()
        return stream(respond(body))

    app.post("/chat")(resumable.stream(chat) if face == "decorator" else handled)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID | {"Prefer": "respond-async"}, json={"a": "b"})
        await settle()
        release.set()
        assert (await exchange.reply()).status == 202
        assert (await client.get("/v1/stream/chat-1")).json() == {"A": "B"}


async def test_an_answer_that_is_no_stream_is_dropped_after_202():
    """A refusal that comes too late to be told is not sent after the 202."""
    app, resumable = make(pending_timeout=0)
    release = asyncio.Event()

    @app.post("/chat")
    @resumable.stream
    async def chat():
        await release.wait()
        return JSONResponse({"no": "thanks"}, status_code=402)

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID | {"Prefer": "respond-async"})
        assert (await exchange.head()).status == 202
        release.set()
        await exchange.served()

        assert b"thanks" not in await exchange.rest()
        assert exchange.error is None


async def test_202_without_the_router_has_no_location(caplog):
    """An application that does not include the router is told so, once."""
    resumable = Resumable(on_conflict="attach")
    app = FastAPI()
    release = asyncio.Event()

    async def slow():
        yield "data: one\n\n"
        await release.wait()

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return StreamingResponse(slow(), media_type="text/event-stream")

    async with running(app) as client:
        for _ in range(2):
            reply = client.start("POST", "/chat", headers=ID | {"Prefer": "respond-async"})
            head = await reply.head()
            assert head.status == 202
            assert "location" not in head.headers
        release.set()
    assert caplog.text.count("include_router(resumable.router)") == 1


async def test_a_refusal_passes_through_with_its_own_channel():
    """A non-2xx response sees the client's disconnect, as if we were not there."""
    app, resumable = make()
    told = asyncio.Event()

    class Refusal(JSONResponse):
        async def __call__(self, scope, receive, send):
            await super().__call__(scope, receive, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            told.set()

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return Refusal({"no": True}, status_code=403)

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID)
        assert (await exchange.head()).status == 403
        exchange.disconnect()
        await bounded(told.wait(), "the refusal's end")


async def test_a_stop_between_the_endpoint_and_its_response_is_a_stop():
    """The response is never run, and the caller is told."""
    app, resumable = make()
    ran = []

    async def never():
        ran.append(True)
        yield "data: x\n\n"

    @app.post("/chat")
    @resumable.stream
    async def chat(request: Request):
        producer = next(iter(resumable.manager._producers)).__self__
        # As if the stop came when nothing can be cancelled any more.
        producer.cancel_request = lambda: None
        await resumable.store.stop(producer.key, None)
        return StreamingResponse(never(), media_type="text/event-stream")

    async with running(app) as client:
        reply = await client.post("/chat", headers=ID)

    assert (reply.status, reply.code) == (400, "cancelled")
    assert ran == []


async def test_an_app_that_sends_after_a_stop_gets_a_disconnect():
    """Before the first byte, too: `send` raises OSError."""
    app, resumable = make(head_timeout=30)
    seen: list[str] = []
    waiting = asyncio.Event()

    class Stubborn(StreamingResponse):
        async def __call__(self, scope, receive, send):
            waiting.set()
            try:
                await receive()
                while (await receive())["type"] != "http.disconnect":
                    pass
                await send({"type": "http.response.start", "status": 200, "headers": []})
            except OSError as error:
                seen.append(str(error))

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return Stubborn(words())

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID)
        await bounded(waiting.wait())
        await settle()
        await client.delete("/v1/stream/chat-1")
        reply = await exchange.reply()

    assert (reply.status, reply.code) == (400, "cancelled")
    assert seen == ["the stream was stopped before it began"]


async def test_the_response_class_keeps_what_a_response_offers():
    """Whoever wraps the endpoint finds the user's response in ours."""
    app, resumable = make()
    found: list[Any] = []

    def outer(endpoint):
        async def wrapper(**values):
            response = await endpoint(**values)
            found.append(response.body_iterator)
            response.headers["X-Outer"] = "yes"
            return response

        wrapper.__signature__ = inspect.signature(endpoint)
        return wrapper

    @app.post("/chat")
    @outer
    @resumable.stream
    async def chat():
        return events("x")

    async with running(app) as client:
        assert (await client.post("/chat", headers=ID)).headers["x-outer"] == "yes"
    assert found


async def test_a_lookup_body_that_is_too_large_is_refused_before_it_is_read():
    """Memory is not for the asking."""
    app, _ = make()
    async with running(app) as client:
        reply = await client.post("/v1/streams/lookup", pieces=[b'{"conversation_ids": ["'] + [b"x" * 65536] * 70)

    assert (reply.status, reply.code) == (400, "invalid_request")


async def test_a_header_that_is_not_utf_8_is_a_bad_id():
    """And is told apart from no id."""
    app, resumable = make(owner=header("X-User"))

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return events("x")

    async with running(app) as client:
        for name in (b"x-conversation-id", b"x-user"):
            exchange = client.start("POST", "/chat", headers=ID)
            await exchange.served()
            scope_headers = [(b"x-conversation-id", b"a"), (name, b"\xff")]
            sent: list[Any] = []

            async def send(message, sent=sent):
                sent.append(message)

            async def receive():
                return {"type": "http.request", "body": b"", "more_body": False}

            await app(
                {
                    "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
                    "method": "POST", "scheme": "http", "path": "/chat", "raw_path": b"/chat", "query_string": b"",
                    "root_path": "", "headers": scope_headers[::-1], "client": ("127.0.0.1", 1), "server": ("t", 80),
                },
                receive,
                send,
            )  # fmt: skip
            assert sent[0]["status"] == 400


def test_a_bound_that_one_stream_would_burst_is_refused():
    """The sentence names both settings."""
    with pytest.raises(ValueError, match=r"max_total_bytes \(10\) must be at least max_stream_bytes \(20\)"):
        Resumable(max_stream_bytes=20, max_total_bytes=10)


def test_a_route_that_is_made_again_is_not_guarded_twice():
    """Older FastAPI makes routes anew, from the wrapped endpoint, for each router they are included in."""
    _, resumable = make()
    route = resumable.route_class("/x", lambda: None)

    assert resumable.route_class("/x", route.endpoint).endpoint is route.endpoint


@pytest.mark.parametrize("kind", ["def", "async def", "yield", "async yield"])
async def test_a_resume_at_any_kind_of_endpoint_checks_its_caller_first(kind):
    """The dependencies run, the endpoint does not; a refusal is passed on as it is."""
    app, resumable = make()
    app.router.route_class = resumable.route_class
    ran: list[str] = []

    async def check(key: str = ""):
        if key != "sesame":
            raise HTTPException(401, "who are you?")

    if kind == "def":

        def chat():
            ran.append(kind)
            return events("one", "two")
    elif kind == "async def":

        async def chat():
            ran.append(kind)
            return events("one", "two")
    elif kind == "yield":

        def chat():
            ran.append(kind)
            yield "data: one\n\n"
            yield "data: two\n\n"
    else:

        async def chat():
            ran.append(kind)
            yield "data: one\n\n"
            yield "data: two\n\n"

    class Events(StreamingResponse):
        media_type = "text/event-stream"

    try:
        app.get("/chat", dependencies=[Depends(check)], response_class=Events)(chat)
    except Exception:
        assert "yield" in kind
        return  # FastAPI below 0.134 has no endpoints that yield
    async with running(app) as client:
        whole = await client.get("/chat?key=sesame", headers=ID)
        if whole.status == 500 and "yield" in kind:
            return
        first = next(line[4:] for line in whole.body.decode().splitlines() if line.startswith("id: "))
        resumed = await client.get("/chat?key=sesame", headers=ID | {"Last-Event-ID": first})
        refused = await client.get("/chat", headers=ID | {"Last-Event-ID": first})

    assert resumed.body and whole.body.endswith(resumed.body)
    assert refused.status == 401
    assert ran == [kind]


@pytest.mark.parametrize("paths", ["/chat", ["chat"]])
def test_paths_that_cannot_match_are_refused(paths):
    """The sentence shows the form."""
    with pytest.raises(ValueError, match="must be a list of paths that start with '/'"):
        ResumableMiddleware(FastAPI(), resumable=Resumable(), paths=paths)


async def test_a_refusal_in_time_is_not_made_a_202():
    """The endpoint has answered before `pending_timeout`: its answer is the answer."""
    app, resumable = make()

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return JSONResponse({"no": "thanks"}, status_code=402)

    async with running(app) as client:
        assert (await client.post("/chat", headers=ID | {"Prefer": "respond-async"})).status == 402


async def test_a_dependency_that_fails_while_a_resume_ends_is_not_hidden():
    """Ending a request quietly hides nothing but itself."""
    app, resumable = make()

    async def fragile():
        try:
            yield
        finally:
            if failing:
                raise LookupError("closing failed")

    failing: list[bool] = []

    @app.get("/chat", dependencies=[Depends(fragile)])
    async def chat(stream: Annotated[ResumableStream, Depends(resumable)]):
        return stream(events("one", "two"))

    async with running(app) as client:
        whole = await client.get("/chat", headers=ID)
        failing.append(True)
        first = next(line[4:] for line in whole.body.decode().splitlines() if line.startswith("id: "))
        exchange = client.start("GET", "/chat", headers=ID | {"Last-Event-ID": first})
        await exchange.served()

    assert isinstance(exchange.error, LookupError)


async def test_a_store_that_finds_out_late_that_a_stream_was_stopped_is_heeded():
    """What other processes have decided shows when the stream is to begin."""

    class Late(MemoryStore):
        async def begin(self, reservation, head):
            await self.stop(reservation.key, None)
            return await super().begin(reservation, head)

    app, resumable = make(store=Late())

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return events("one")

    async with running(app) as client:
        reply = await client.post("/chat", headers=ID)

    assert (reply.status, reply.code) == (400, "cancelled")


@pytest.mark.parametrize("face", ["decorator", "route class", "middleware"])
async def test_a_request_that_is_stopped_before_its_store_has_answered_is_not_kept(face: str):
    """Another worker may be quicker; a shutdown would wait for what is left over."""

    class Slow(MemoryStore):
        async def reserve(self, reservation, on_conflict):
            stream = await super().reserve(reservation, on_conflict)
            await self.stop(reservation.key, None)
            return stream

    app, resumable = make(store=Slow())

    async def chat():
        return events("one")

    if face == "decorator":
        app.post("/chat")(resumable.stream(chat))
    elif face == "middleware":
        app.post("/chat")(chat)
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    else:
        app.router.route_class = resumable.route_class
        app.post("/chat")(chat)
    async with running(app) as client:
        reply = await client.post("/chat", headers=ID)
        assert (reply.status, reply.code) == (400, "cancelled")
        assert not resumable.manager._producers


async def test_a_request_that_is_cancelled_after_its_client_left_still_waits_for_its_producer():
    """Cancelled once or twice: the dependencies are closed when the generator is done."""
    app, resumable = make(shutdown_grace=30)
    release, done = asyncio.Event(), asyncio.Event()
    closed: list[bool] = []

    async def session():
        yield
        closed.append(done.is_set())

    async def slow():
        yield "data: one\n\n"
        await release.wait()
        done.set()

    @app.post("/chat", dependencies=[Depends(session)])
    @resumable.stream
    async def chat():
        return StreamingResponse(slow(), media_type="text/event-stream")

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID)
        await exchange.read_until(b"one")
        exchange.disconnect()
        await settle()
        for _ in range(2):
            exchange.cancel()
            await settle()
        assert closed == []
        release.set()
        await exchange.served()

    assert closed == [True]


@pytest.mark.parametrize("stream_id", [" a ", "a ", "  é/ü ::x "])
async def test_an_id_with_spaces_at_its_ends_makes_no_header_that_a_server_refuses(stream_id: str):
    """A header's value has none, so there they are left out; the URL of the replay has the whole id."""
    app, resumable = make(stream_id=body_field("id"))

    @app.post("/chat")
    @resumable.stream
    async def chat(body: dict[str, Any]):
        return events("hello")

    async with running(app) as client:
        for prefer in ({}, {"Prefer": "respond-async"}):
            first = await client.post("/chat", json={"id": stream_id}, headers=prefer)
            replay = await client.get(first.headers["content-location"])
            assert b"hello" in replay.body
            for answer in (first, replay):
                assert answer.headers["x-conversation-id"].encode("latin-1").decode() == stream_id.strip()
        found = await client.post("/v1/streams/lookup", json={"conversation_ids": [stream_id, stream_id.strip()]})
        assert [item["conversation_id"] for item in found.json()] == [stream_id]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"id":' * 50_000, b'{"id": "\\ud800"}', b"\xff", b"nan"])
async def test_a_body_that_no_parser_takes_names_no_stream(body: bytes):
    """However deep it is: it is the endpoint's to refuse."""
    app, resumable = make(stream_id=body_field("id"))

    @app.post("/chat")
    @resumable.stream
    async def chat(request: Request):
        return JSONResponse(len(await request.body()))

    async with running(app) as client:
        answer = await client.request("POST", "/chat", body=body, headers={"content-type": "application/json"})
    assert answer.status == (400 if b"ud800" in body else 200)
    assert "x-stream-epoch" not in answer.headers


@pytest.mark.parametrize("face", ["decorator", "route_class", "middleware"])
async def test_an_application_that_starts_its_response_twice_has_failed(face: str, caplog: pytest.LogCaptureFixture):
    """It is no answer that is complete."""
    app, resumable = make()

    class Twice(StreamingResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            await send(start)
            await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
            await send(start)
            await send({"type": "http.response.body", "body": b"data: two\n\n", "more_body": False})

    async def chat():
        return Twice(words())

    router = APIRouter(route_class=resumable.route_class) if face == "route_class" else APIRouter()
    router.post("/chat")(resumable.stream(chat) if face == "decorator" else chat)
    app.include_router(router)
    if face == "middleware":
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        answer = await client.post("/chat", headers=ID)
        assert b"data: one" in answer.body and b"data: two" not in answer.body
        assert b"event: error" in answer.body
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]
        assert item["status"] == "failed"


@pytest.mark.parametrize("size", [512, 514])
async def test_an_idempotency_key_is_measured_as_it_was_sent(size: int):
    """In bytes of the header, which are two for each of these letters."""
    app, resumable = make()
    app.post("/chat")(resumable.stream(lambda: events("one")))
    async with running(app) as client:
        reply = await client.post("/chat", headers=ID | {"Idempotency-Key": "é" * (size // 2)})

    assert reply.status == (200 if size == 512 else 400)


async def test_a_refused_request_to_an_event_stream_of_fastapis_gets_its_error():
    """FastAPI has begun a task group by then, which would make a group of the error, and 500 of its status."""
    sse = pytest.importorskip("fastapi.sse")
    app, resumable = make(on_conflict="reject")
    app.router.route_class = resumable.route_class

    @app.get("/chat", response_class=sse.EventSourceResponse)
    async def chat():
        yield {"number": 1}
        await asyncio.Event().wait()

    async with running(app) as client:
        first = client.start("GET", "/chat", headers=ID)
        await first.read_until(b"number")
        conflict = await client.get("/chat", headers=ID)
        unknown = await client.get("/chat", headers={"X-Conversation-Id": "other", "Last-Event-ID": "1"})

    assert (conflict.status, conflict.code) == (409, "stream_exists")
    assert (unknown.status, unknown.code) == (404, "stream_not_found")


async def test_a_stop_while_a_store_begins_a_silent_stream_is_no_error(caplog: pytest.LogCaptureFixture):
    """Its head has been held for `head_timeout`, so no message of the application is there to be refused."""
    beginning, stopped = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def begin(self, reservation, head):
            beginning.set()
            await stopped.wait()
            return await super().begin(reservation, head)

    async def silent():
        await asyncio.Event().wait()
        yield "data: x\n\n"

    app, resumable = make(store=Slow(), head_timeout=0)
    app.post("/chat")(resumable.stream(lambda: StreamingResponse(silent(), media_type="text/event-stream")))
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID)
        await bounded(beginning.wait(), "the beginning")
        assert (await client.delete("/v1/stream/chat-1")).status == 204
        stopped.set()
        reply = await exchange.reply()

    assert (reply.status, reply.code) == (400, "cancelled")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_client_that_leaves_before_its_202_is_no_error(caplog: pytest.LogCaptureFixture):
    """Servers of ASGI 2.4 raise from `send` then; the stream goes on."""
    app, resumable = make()
    gone, ended = asyncio.Event(), asyncio.Event()

    @app.post("/chat")
    @resumable.stream
    async def chat():
        await gone.wait()
        return events("one")

    @resumable.on_finish
    async def on_finish(_stream):
        ended.set()

    async with running(app, spec_version="2.4") as client:
        exchange = client.start("POST", "/chat", headers=ID | {"Prefer": "respond-async"})
        await settle()
        exchange.disconnect()
        gone.set()
        await bounded(ended.wait(), "the end of the stream")
        assert b"data: one" in (await client.get("/v1/stream/chat-1")).body

    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("http_version", ["1.1", "2"])
async def test_an_endpoint_that_reads_no_body_does_not_see_a_client_that_leaves_at_once(http_version: str):
    """There is nothing that the client owes it, though nothing has been read."""
    app, resumable = make()
    app.router.route_class = resumable.route_class
    gone = asyncio.Event()

    @app.get("/chat")
    async def chat():
        await gone.wait()
        return EventSourceResponse(data async for data in numbers())

    async def numbers():
        # This response listens for a disconnect: it has time to hear of one.
        for number in range(3):
            await settle()
            yield {"data": str(number)}

    async def served(scope, receive, send):
        await app(scope | {"http_version": http_version}, receive, send)

    async with running(served) as client:
        exchange = client.start("GET", "/chat", headers=ID)
        await settle()
        exchange.disconnect()
        gone.set()
        await exchange.served()
        assert (await client.get("/v1/stream/chat-1")).body.count(b"data: ") == 3


async def test_headers_that_middleware_adds_inside_the_face_come_once_in_a_replay():
    """They are recorded, and the middleware adds them to the replay, too; under whatever path that is."""
    app, resumable = make()
    app.get("/chat")(lambda: events("one"))

    @app.api_route("/answers/{stream_id}", methods=["GET", "HEAD"])
    async def answer(request: Request, stream_id: str):
        return await resumable.replay(request, stream_id)

    class AddHeaders:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def send_more(message):
                if message["type"] == "http.response.start":
                    message["headers"] += [(b"x-frame-options", b"DENY"), [b"link", b"</a>"], [b"link", b"</b>"]]
                await send(message)

            await self.app(scope, receive, send_more)

    app.add_middleware(AddHeaders)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    async with running(app) as client:
        again = ID | {"Idempotency-Key": "key"}
        await client.get("/chat", headers=again)
        replays = [(method, url) for method in ("GET", "HEAD") for url in ("/v1/stream/chat-1", "/answers/chat-1")]
        for method, url in (*replays, ("GET", "/chat")):
            head = await client.start(method, url, headers=again).head()
            assert head.all("x-frame-options") == ["DENY"], (method, url)
            assert head.all("link") == ["</a>", "</b>"], (method, url)


def put(face: str, app: FastAPI, resumable: Resumable, endpoint: Any) -> None:
    """`POST /chat` of an endpoint that takes the request, by one of the faces."""

    async def depending(request: Request, stream: Annotated[ResumableStream, Depends(resumable)]):
        return stream(await endpoint(request))

    router = APIRouter(**({"route_class": resumable.route_class} if face == "route class" else {}))
    router.post("/chat")({"decorator": resumable.stream(endpoint), "dependency": depending}.get(face, endpoint))
    app.include_router(router)
    if face == "middleware":
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])


@pytest.mark.parametrize("pieces", [[], [b"abc"]])
@pytest.mark.parametrize("face", FACES)
async def test_an_endpoint_that_reads_an_upload_sees_its_client_leave(face: str, pieces: list[bytes]):
    """It cannot do its work without the rest, so it does not wait for that, and does not hold the id."""
    app, resumable = make()
    seen: list[BaseException] = []

    async def upload(request: Request):
        try:
            return JSONResponse({"size": len(await request.body())})
        except Exception as exc:
            seen.append(exc)
            raise

    put(face, app, resumable, upload)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID | {"Content-Length": "6"}, pieces=pieces, more=True)
        await settle()
        exchange.disconnect()
        await exchange.served()
        assert await client.head_status("/v1/stream/chat-1") == 404

    assert [type(exc) for exc in seen] == [ClientDisconnect]


@pytest.mark.parametrize("face", FACES)
async def test_a_body_that_the_endpoint_never_reads_is_not_owed(face: str):
    """It has come, so an endpoint whose response listens for a disconnect does not see that its client leaves."""
    app, resumable = make()
    running_endpoint, gone = asyncio.Event(), asyncio.Event()

    async def numbers():
        for number in range(3):
            await settle()
            yield {"data": str(number)}

    async def ignoring(_request: Request):
        running_endpoint.set()
        await gone.wait()
        return EventSourceResponse(numbers())

    put(face, app, resumable, ignoring)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID, json={})
        await bounded(running_endpoint.wait())
        exchange.disconnect()
        gone.set()
        await exchange.served()
        assert (await client.get("/v1/stream/chat-1")).body.count(b"data: ") == 3


@pytest.mark.parametrize("face", ["decorator", "dependency", "route class"])
async def test_an_endpoint_that_reads_no_body_runs_without_it(face: str):
    """A middleware may have read it, or its client may never send it."""
    app, resumable = make(head_timeout=0.01)

    async def ignoring(_request: Request):
        return events("one")

    put(face, app, resumable, ignoring)
    async with running(app) as client:
        reply = await client.start("POST", "/chat", headers=ID | {"Content-Length": "3"}, pieces=[], more=True).reply()
        assert reply.body == (await client.get("/v1/stream/chat-1")).body
        assert b"data: one" in reply.body


async def test_a_body_that_a_later_dependency_reads_is_owed_no_more():
    """So the endpoint, whose response listens for a disconnect, does not see that its client leaves."""
    app, resumable = make()
    read, gone = asyncio.Event(), asyncio.Event()

    async def verified(request: Request):
        await request.body()

    async def numbers():
        read.set()
        await gone.wait()
        for number in range(3):
            await settle()
            yield {"data": str(number)}

    @app.post("/chat")
    async def chat(stream: Annotated[ResumableStream, Depends(resumable)], _: Annotated[None, Depends(verified)]):
        return stream(EventSourceResponse(numbers()))

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID, json={})
        await bounded(read.wait())
        exchange.disconnect()
        gone.set()
        await exchange.served()
        assert (await client.get("/v1/stream/chat-1")).body.count(b"data: ") == 3


@pytest.mark.parametrize("face", FACES)
async def test_a_stop_of_what_was_answered_202_is_no_error(face: str, caplog: pytest.LogCaptureFixture):
    """Though the endpoint has yet to return its response."""
    app, resumable = make(pending_timeout=0.01)

    async def silent(_request: Request):
        await asyncio.Event().wait()

    put(face, app, resumable, silent)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID | {"Prefer": "respond-async"})
        assert (await exchange.reply()).status == 202
        assert (await client.delete("/v1/stream/chat-1")).status == 204
        await exchange.served()

    assert exchange.error is None
    assert "ERROR" not in caplog.text


async def test_a_stop_waits_for_a_generator_that_is_at_work_in_a_thread():
    """Then it is closed, before the dependency that it uses, and by no garbage collection."""
    pytest.importorskip("fastapi.sse")  # FastAPI takes no `yield` endpoints before it has these
    app, resumable = make(stop_grace=45.0)
    go_on, trace = threading.Event(), []

    def session():
        try:
            yield
        finally:
            trace.append("session closed")

    app.router.route_class = resumable.route_class

    @app.post("/chat")
    def chat(_session: Annotated[None, Depends(session)]) -> Iterable[str]:
        try:
            yield "one"
            go_on.wait(45)
            yield "two"
        finally:
            trace.append("generator closed")

    async with running(app) as client:
        gc.disable()
        try:
            exchange = client.start("POST", "/chat", headers=ID)
            await exchange.read_until(b"one")
            assert (await client.delete("/v1/stream/chat-1")).status == 204
            await settle()
            go_on.set()
            await exchange.served()
        finally:
            gc.enable()

    assert trace == ["generator closed", "session closed"]


@pytest.mark.parametrize("rule", ["replace", "attach", "reject"])
async def test_a_handle_in_a_dependency_of_the_router_begins_no_stream(rule: str):
    """As in one that checks the user, for the endpoint and for replays: the client names the stream to both."""
    resumable = Resumable(on_conflict=rule, shutdown_grace=0.1)
    handles: list[bool] = []

    async def checked(stream: Annotated[ResumableStream, Depends(resumable)]):
        handles.append(bool(stream))
        return stream

    async def endless():
        yield "data: one\n\n"
        await asyncio.Event().wait()

    app = FastAPI()
    app.include_router(resumable.router, dependencies=[Depends(checked)])

    @app.post("/chat")
    async def chat(stream: Annotated[ResumableStream, Depends(checked)]):
        return stream(StreamingResponse(endless(), media_type="text/event-stream"))

    async with running(app) as client:
        first = client.start("POST", "/chat", headers=ID)
        event = await first.read_until(b"id: ")
        replay = client.start("GET", f"/v1/stream/chat-1?from={event.index(b'id: ')}", headers=ID)
        assert (await replay.read_until(b"id: ")).startswith(b"id: ")
        assert (
            len((await client.post("/v1/streams/lookup", headers=ID, json={"conversation_ids": ["chat-1"]})).json())
            == 1
        )
        assert (await client.delete("/v1/stream/chat-1", headers=ID)).status == 204
        assert b"event: cancelled" in await first.rest()

    assert handles == [True, False, False, False]


@pytest.mark.parametrize("face", ["decorator", "dependency", "route class"])
async def test_a_generator_that_is_stopped_at_work_in_a_thread_is_closed_before_dependencies(face: str):
    """What it uses is there until it has ended."""
    # Longer than anything here takes on a busy machine: a thread that is abandoned closes nothing.
    app, resumable = make(stop_grace=60.0)
    working, go_on = threading.Event(), threading.Event()
    trace: list[str] = []

    async def session():
        try:
            yield
        finally:
            trace.append("session closed")

    def parts():
        try:
            yield "data: one\n\n"
            working.set()
            go_on.wait(60)
            yield "data: two\n\n"
        finally:
            trace.append("generator closed")

    async def chat(_session: Annotated[None, Depends(session)]):
        return StreamingResponse(parts(), media_type="text/event-stream")

    async def chat_by_handle(
        _session: Annotated[None, Depends(session)], stream: Annotated[ResumableStream, Depends(resumable)]
    ):
        return stream(StreamingResponse(parts(), media_type="text/event-stream"))

    router = APIRouter(route_class=resumable.route_class) if face == "route class" else APIRouter()
    endpoints = {"decorator": resumable.stream(chat), "dependency": chat_by_handle, "route class": chat}
    router.post("/chat")(endpoints[face])
    app.include_router(router)
    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers=ID)
        await until(working.is_set, "the thread")
        await client.delete("/v1/stream/chat-1")
        await settle()
        go_on.set()
        await exchange.served()

    assert trace == ["generator closed", "session closed"]
