"""A decorated endpoint is the user's own function; nothing is told of a stream before a request has passed."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Path, Query, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from pydantic import AfterValidator
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream, header
from tests.support.asgi import data_of, running, until
from tests.support.life_apps import YIELDS, app_under

ID = "X-Conversation-Id"


async def words(text: str) -> AsyncIterator[str]:
    yield f"data: {text}\n\n"


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write it: it keeps a function's kind."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return asynchronous

    @functools.wraps(function)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return synchronous


@pytest.mark.parametrize("order", ["alone", "above", "below"])
async def test_a_decorated_endpoint_called_directly_is_the_function_that_it_was(order: str) -> None:
    """By position, by keyword, bound with `partial`, `def` and `async def`, with other decorators around."""
    resumable = Resumable()

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        match order:
            case "above":
                return logged(resumable.stream(function))
            case "below":
                return resumable.stream(logged(function))
        return resumable.stream(function)

    def chat(q: str, /, n: int = 1, *rest: str, flag: bool = False) -> Any:
        return (q, n, rest, flag)

    async def chat_async(q: str, n: int = 1) -> Any:
        return StreamingResponse(words(f"{q}{n}"))

    decorated, decorated_async = decorate(chat), decorate(chat_async)
    assert decorated("x", 2, "y", flag=True) == ("x", 2, ("y",), True)
    assert functools.partial(decorated, "x")(n=3) == ("x", 3, (), False)
    assert isinstance(await decorated_async("x", n=2), StreamingResponse)
    assert inspect.iscoroutinefunction(decorated_async)
    assert not inspect.iscoroutinefunction(decorated)
    kinds = [parameter.kind for parameter in inspect.signature(chat).parameters.values()]
    assert [parameter.kind for parameter in inspect.signature(decorated).parameters.values()][: len(kinds)] == kinds


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("order", ["above", "below"])
def test_other_decorators_around_ours_leave_the_endpoint_resumable(order: str, kind: str) -> None:
    """Above and below."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    async def chat_async(q: str) -> Any:
        return StreamingResponse(words(q), media_type="text/event-stream")

    def chat(q: str) -> Any:
        return StreamingResponse(words(q), media_type="text/event-stream")

    endpoint = chat if kind == "def" else chat_async
    app.post("/chat")(logged(resumable.stream(endpoint)) if order == "above" else resumable.stream(logged(endpoint)))
    with TestClient(app) as client:
        first = client.post("/chat?q=x", headers={ID: "a"})
        assert "id: " in first.text
        assert client.get("/v1/stream/a").content == first.content
        assert client.post("/chat?q=x").text == "data: x\n\n"


async def test_a_def_endpoint_that_a_decorator_calls_in_the_event_loop_is_recorded() -> None:
    """FastAPI awaits what the decorator makes of it."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    def in_the_loop(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @app.post("/chat")
    @in_the_loop
    @resumable.stream
    def chat() -> Any:
        return PlainTextResponse("here")

    async with running(app) as client:
        assert (await client.post("/chat", headers={ID: "a"})).body == b"here"
        assert (await client.get("/v1/stream/a")).body == b"here"


class Sending(Response):
    """A response of an application's decorator, which sends another one."""

    def __init__(self, inner: Response) -> None:
        super().__init__()
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._inner(scope, receive, send)


@pytest.mark.parametrize("face", ["decorator", "dependency"])
async def test_a_response_that_is_sent_within_another_one_is_recorded(face: str) -> None:
    """FastAPI gets the outer one."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    def sending(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def send_within(*args: Any, **kwargs: Any) -> Any:
            return Sending(await function(*args, **kwargs))

        return send_within

    async def chat() -> Any:
        return StreamingResponse(words("x"), media_type="text/event-stream")

    async def handled(stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
        return stream(await chat())

    app.post("/chat")(sending(resumable.stream(chat) if face == "decorator" else handled))
    async with running(app) as client:
        first = await client.post("/chat", headers={ID: "a"})
        assert data_of(first.body) == ["x"]
        assert (await client.get("/v1/stream/a")).body == first.body
        assert (await client.post("/chat")).body == b"data: x\n\n"


def test_a_handle_that_a_router_asks_for_leaves_its_websockets_alone() -> None:
    """They get a handle of no stream."""
    resumable = Resumable()
    router = APIRouter(dependencies=[Depends(resumable)])

    @router.websocket("/ws")
    async def talk(websocket: WebSocket, stream: Annotated[ResumableStream, Depends(resumable)]) -> None:
        await websocket.accept()
        await websocket.send_json(bool(stream))
        await websocket.close()

    app = FastAPI()
    app.include_router(router)
    with TestClient(app) as client, client.websocket_connect("/ws", headers={ID: "a"}) as connection:
        assert connection.receive_json() is False


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class"])
def test_class_based_views_work(face: str) -> None:
    """fastapi-utils' `@cbv` takes the first parameter for `self`, and makes routes anew."""
    cbv = pytest.importorskip("fastapi_utils.cbv").cbv
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)
    router = APIRouter(route_class=resumable.route_class) if face == "route_class" else APIRouter()
    Stream = Annotated[ResumableStream, Depends(resumable)]  # noqa: N806  # a type

    class Chat:
        model: str = Depends(lambda: "model")

        async def plain(self, q: str = "x") -> Any:
            return StreamingResponse(words(f"{self.model} {q}"), media_type="text/event-stream")

        async def handled(self, stream: Stream, q: str = "x") -> Any:
            return stream(StreamingResponse(words(f"{self.model} {q}"), media_type="text/event-stream"))

        plain = router.post("/chat")(resumable.stream(plain) if face == "decorator" else plain)
        if face == "dependency":
            router.routes.clear()
            handled = router.post("/chat")(handled)

    cbv(router)(Chat)
    app.include_router(router)
    with TestClient(app) as client:
        parameters = client.get("/openapi.json").json()["paths"]["/chat"]["post"].get("parameters", [])
        assert [parameter["name"] for parameter in parameters] == ["q"]
        assert client.post("/chat").text == "data: model x\n\n"
        first = client.post("/chat", headers={ID: "a"})
        assert first.text.startswith("data: model x\nid: ")
        assert client.get("/v1/stream/a").content == first.content


async def test_dishkas_inject_works_above_and_below() -> None:
    """A container's own injection, which changes the signature, too."""
    dishka = pytest.importorskip("dishka")
    integration = pytest.importorskip("dishka.integrations.fastapi")
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    class Model(dishka.Provider):
        @dishka.provide(scope=dishka.Scope.REQUEST)
        def name(self) -> str:
            return "model"

    async def chat(name: dishka.FromDishka[str], q: str = "x") -> Any:
        return StreamingResponse(words(f"{name} {q}"), media_type="text/event-stream")

    app.post("/above")(integration.inject(resumable.stream(chat)))
    app.post("/below")(resumable.stream(integration.inject(chat)))
    integration.setup_dishka(dishka.make_async_container(Model()), app)
    async with running(app) as client:
        for path in ("/above", "/below"):
            first = await client.post(path, headers={ID: path})
            assert first.body.startswith(b"data: model x\nid: ")
            assert (await client.get(f"/v1/stream?conv_id={path}")).body == first.body


@pytest.mark.parametrize("order", ["above", "below"])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_dependency_injectors_inject_works_above_and_below(order: str, kind: str) -> None:
    """It replaces markers among the arguments when the endpoint is called."""
    containers = pytest.importorskip("dependency_injector.containers")
    providers = pytest.importorskip("dependency_injector.providers")
    wiring = pytest.importorskip("dependency_injector.wiring")
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    class Container(containers.DeclarativeContainer):  # type: ignore[misc]  # its class is `Any` where it is not installed
        name = providers.Factory(str, "model")

    Name = Annotated[str, Depends(wiring.Provide[Container.name])]  # noqa: N806  # a type

    async def chat(name: Name, q: str = "x") -> Any:
        return StreamingResponse(words(f"{name} {q}"), media_type="text/event-stream")

    def chat_in_def(name: Name, q: str = "x") -> Any:
        return StreamingResponse(words(f"{name} {q}"), media_type="text/event-stream")

    endpoint: Any = chat if kind == "async def" else chat_in_def
    inject: Any = wiring.inject
    wrapped = inject(resumable.stream(endpoint)) if order == "above" else resumable.stream(inject(endpoint))
    app.post("/chat")(wrapped)
    container = Container()
    for each in (chat, chat_in_def, wrapped, endpoint):
        each.__module__ = __name__
    container.wire(modules=[__name__])
    try:
        with TestClient(app) as client:
            assert client.post("/chat").text == "data: model x\n\n"
            first = client.post("/chat", headers={ID: "a"})
            assert first.text.startswith("data: model x\nid: ")
            assert client.get("/v1/stream/a").content == first.content
    finally:
        container.unwire()


@pytest.mark.parametrize("face", ["decorator", "dependency"])
def test_views_of_fastapi_class_work(face: str) -> None:
    """Another library of class-based views."""
    library = pytest.importorskip("fastapi_class")
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)
    Stream = Annotated[ResumableStream, Depends(resumable)]  # noqa: N806  # a type

    async def plain(self: Any, q: str = "x") -> Any:
        return StreamingResponse(words(q), media_type="text/event-stream")

    async def handled(self: Any, stream: Stream, q: str = "x") -> Any:
        return stream(StreamingResponse(words(q), media_type="text/event-stream"))

    class Chat:
        post = resumable.stream(plain) if face == "decorator" else handled

    library.View(app, path="/chat")(Chat)
    with TestClient(app) as client:
        assert client.post("/chat?q=y").text == "data: y\n\n"
        first = client.post("/chat", headers={ID: "a"})
        assert first.text.startswith("data: x\nid: ")
        assert client.get("/v1/stream/a").content == first.content


def test_the_route_class_leaves_the_endpoint_as_it_is() -> None:
    """`route.endpoint` is the user's own function, after requests too."""
    resumable = Resumable()
    router = APIRouter(route_class=resumable.route_class)

    @router.post("/chat")
    async def chat() -> Any:
        return PlainTextResponse("here")

    app = FastAPI()
    app.include_router(router)
    TestClient(app).post("/chat", headers={ID: "a"})
    assert router.routes[0].endpoint is chat  # type: ignore[attr-defined]  # of an APIRoute


# Nothing is told before.


def refusing(authorization: Annotated[str | None, Header()] = None) -> None:
    """Who asks is checked."""
    if authorization != "good":
        raise HTTPException(401)


def valid(value: str) -> str:
    """The same, in a parameter's validator."""
    if value != "good":
        raise ValueError("no")
    return value


def nothing() -> None:
    """No check."""


FACES = ("decorator", "dependency", "route_class", *(AROUND := ("middleware", "mounted", "base_http", "wrapped")))
"""`mounted`: in an application that has the middleware; `base_http`: another middleware is in between;
`wrapped`: around a mounted application and another middleware."""
KINDS = ("async def", "def", *(("yield",) if YIELDS else ()))
AUTHS = ("shared", "route", "parameter", "app")


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """A middleware that changes nothing."""
    return await call_next(request)


def guarded(face: str, auth: str, kind: str, resumable: Resumable) -> tuple[FastAPI, list[str]]:
    """An application whose endpoint is guarded in one way; what has run of it."""
    runs: list[str] = []
    guards = [Depends(refusing)]
    app = FastAPI(dependencies=guards if auth == "app" else [])
    app.include_router(resumable.router)
    kinds: dict[str, Any] = {"route_class": resumable.route_class} if face == "route_class" else {}
    router = APIRouter(**kinds)
    Stream = Annotated[ResumableStream, Depends(resumable)]  # noqa: N806  # a type

    def tracing(stream: Stream) -> str | None:
        # The handle is used by another dependency, which comes before the one that checks.
        return stream.id

    Checked = Annotated[str, AfterValidator(valid)] if auth == "parameter" else str  # noqa: N806  # a type

    def response() -> Any:
        runs.append("ran")
        return StreamingResponse(words("SECRET"), media_type="text/event-stream")

    def endpoint_for(key: str) -> Any:
        Guard = Annotated[None, Depends(refusing if auth == "shared" else nothing)]  # noqa: N806  # a type
        is_traced = auth == "shared" and face in ("decorator", "dependency")
        Trace = Annotated[Any, Depends(tracing if is_traced else nothing)]  # noqa: N806

        async def chat(trace: Trace, guard: Guard, key: Annotated[Checked, Query()]) -> Any:
            return response()

        def chat_in_def(trace: Trace, guard: Guard, key: Annotated[Checked, Query()]) -> Any:
            return response()

        async def chat_yield(trace: Trace, guard: Guard, key: Annotated[Checked, Query()]) -> Any:
            runs.append("ran")
            yield b"SECRET\n"

        async def handled(trace: Trace, guard: Guard, stream: Stream, key: Annotated[Checked, Query()]) -> Any:
            return stream(response())

        def handled_in_def(trace: Trace, guard: Guard, stream: Stream, key: Annotated[Checked, Query()]) -> Any:
            return stream(response())

        if face == "dependency":
            return handled_in_def if kind == "def" else handled
        return {"async def": chat, "def": chat_in_def, "yield": chat_yield}[kind]

    endpoint = endpoint_for("good")
    options: dict[str, Any] = {"response_class": StreamingResponse} if kind == "yield" else {}
    router.post("/chat", dependencies=guards if auth == "route" else [], **options)(
        resumable.stream(endpoint) if face == "decorator" else endpoint
    )
    app.include_router(router)
    if face == "mounted":
        inner, app = app, FastAPI()
        app.include_router(resumable.router)
        app.mount("/", inner)
    if face == "wrapped":
        inner, app = app, FastAPI()
        app.include_router(resumable.router)
        app.mount("/", ResumableMiddleware(CORSMiddleware(inner), resumable=resumable, paths=["/chat"]))
    if face == "base_http":
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    if face in AROUND and face != "wrapped":
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    return app, runs


@pytest.mark.parametrize(
    ("face", "kind"),
    [(face, kind) for face in FACES for kind in KINDS if kind != "yield" or face in ("route_class", *AROUND)],
)
@pytest.mark.parametrize("auth", AUTHS)
async def test_a_stranger_learns_nothing_of_a_stream(face: str, kind: str, auth: str) -> None:
    """Neither recorded bytes, nor 404, 409, 416 or 400: only what the check answers; and no id is held."""
    resumable = Resumable(on_conflict="reject")
    app, runs = guarded(face, auth, kind, resumable)
    known = {"authorization": "good", ID: "a", "idempotency-key": "k"}
    async with running(app) as client:
        first = await client.post("/chat?key=good", headers=known)
        assert b"SECRET" in first.body
        plain = await client.post("/chat")
        for headers in (
            {ID: "a"},
            {ID: "a", "last-event-id": "aaaaaaaaaaaaaaaa-1"},
            {ID: "b", "last-event-id": "x"},
            {ID: "a", "idempotency-key": "k"},
            {ID: "a" * 600},
            {ID: "a", "prefer": "respond-async"},
        ):
            stranger = await client.post("/chat", headers=headers)
            assert (stranger.status, stranger.body) == (plain.status, plain.body), headers
        assert runs == ["ran"]
        again = await client.post("/chat?key=good", headers=known)
        assert again.body == first.body
        resumed = await client.post("/chat?key=good", headers={"authorization": "good", ID: "b", "last-event-id": "x"})
        assert resumed.status == 404
        assert runs == ["ran"]


@pytest.mark.parametrize("kind", KINDS)
async def test_half_open_requests_hold_no_place_on_the_route_class(kind: str) -> None:
    """A body that never comes reserves nothing: the one after them is served."""
    resumable = Resumable(max_streams=1, shutdown_grace=0.1)
    app = FastAPI()
    router = APIRouter(route_class=resumable.route_class)

    async def chat(item: dict[str, str]) -> Any:
        return PlainTextResponse("here")

    def chat_in_def(item: dict[str, str]) -> Any:
        return PlainTextResponse("here")

    async def chat_yield(item: dict[str, str]) -> AsyncIterator[str]:
        yield "here"

    router.post("/chat")({"async def": chat, "def": chat_in_def, "yield": chat_yield}[kind])
    app.include_router(router)
    async with running(app) as client:
        half = [client.start("POST", "/chat", headers={ID: f"half-{n}"}, body=b'{"a"', more=True) for n in range(3)]
        assert b"here" in (await client.post("/chat", headers={ID: "whole"}, json={"a": "b"})).body
        for exchange in half:
            exchange.disconnect()


async def test_who_waits_to_attach_and_leaves_is_noticed() -> None:
    """The wait ends with the client."""
    resumable = Resumable(on_conflict="attach", pending_timeout=60, shutdown_grace=0.1)
    app = FastAPI()
    release = asyncio.Event()

    @app.post("/chat")
    @resumable.stream
    async def chat() -> Any:
        await release.wait()
        return StreamingResponse(words("x"), media_type="text/event-stream")

    async with running(app) as client:
        first = client.start("POST", "/chat", headers={ID: "a"})
        await until(lambda: bool(resumable.manager._producers), "the first request")
        waiting = client.start("POST", "/chat", headers={ID: "a"})
        waiting.disconnect()
        await waiting.served()
        release.set()
        assert (await first.reply()).status == 200


async def test_who_waits_to_attach_waits_no_longer_than_pending_timeout() -> None:
    """It is answered 503; the first request is left alone."""
    resumable = Resumable(on_conflict="attach", pending_timeout=0.05, shutdown_grace=0.1)
    app = FastAPI()
    release = asyncio.Event()

    @app.post("/chat")
    @resumable.stream
    async def chat() -> Any:
        await release.wait()
        return StreamingResponse(words("x"), media_type="text/event-stream")

    async with running(app) as client:
        first = client.start("POST", "/chat", headers={ID: "a"})
        await until(lambda: bool(resumable.manager._producers), "the first request")
        waiting = await client.post("/chat", headers={ID: "a"})
        assert (waiting.status, waiting.code) == (503, "stream_pending")
        assert "retry-after" in waiting.headers
        release.set()
        assert (await first.reply()).status == 200


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])
async def test_a_request_about_another_never_begins_a_stream(face: str, method: str) -> None:
    """Nor replaces one."""

    async def chat() -> Any:
        return StreamingResponse(words("x"), media_type="text/event-stream")

    app = app_under(face, chat, methods=("GET", method))
    async with running(app) as client:
        first = await client.get("/chat", headers={ID: "a"})
        head = await client.request(method, "/chat", headers={ID: "a"})
        assert head.status == 200
        assert "x-stream-epoch" not in head.headers
        assert (await client.get("/v1/stream/a")).body == first.body


@pytest.mark.parametrize("name", ["lastEventId", "last_event_id"])
@pytest.mark.parametrize("path", ["/chat", "/v1/stream/a"])
async def test_a_polyfill_resumes_by_the_query(path: str, name: str) -> None:
    """At the endpoint and on the replay route; a header wins."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)
    runs: list[int] = []

    @app.get("/chat")
    @resumable.stream
    async def chat() -> Any:
        runs.append(1)

        async def two() -> AsyncIterator[str]:
            yield "data: one\n\n"
            yield "data: two\n\n"

        return StreamingResponse(two(), media_type="text/event-stream")

    async with running(app) as client:
        first = (await client.get("/chat", headers={ID: "a"})).body
        ids = [line[4:].decode() for line in first.splitlines() if line.startswith(b"id: ")]
        second = await client.get(f"{path}?{name}={ids[0]}", headers={ID: "a"})
        assert first.endswith(second.body)
        assert b"data: one" not in second.body
        third = await client.get(f"{path}?{name}={ids[0]}", headers={ID: "a", "Last-Event-ID": ids[1]})
        assert third.status == 204
    assert len(runs) == 1


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_several_decorators_on_one_endpoint(kind: str) -> None:
    """Each of its own `Resumable` records the requests that name its stream; the same one twice is one."""
    app, chats, runs = FastAPI(), Resumable(), Resumable(prefix="/runs", stream_id=header("X-Run"))
    app.include_router(chats.router)
    app.include_router(runs.router)

    def chat() -> Any:
        return StreamingResponse(words("hello"), media_type="text/event-stream")

    async def chat_async() -> Any:
        return chat()

    endpoint = chats.stream(runs.stream(chats.stream(chat if kind == "def" else chat_async)))
    app.post("/chat")(endpoint)
    async with running(app) as client:
        plain = await client.post("/chat")
        first = await client.post("/chat", headers={ID: "a"})
        second = await client.post("/chat", headers={"X-Run": "b"})
        assert (await client.get("/v1/stream/a")).body == first.body
        assert (await client.get("/runs/stream/b")).body == second.body
    assert plain.body == b"data: hello\n\n"
    assert first.body.count(b"data: hello") == second.body.count(b"data: hello") == 1


async def one_word(_request: Any) -> StreamingResponse:
    return StreamingResponse(words("hello"), media_type="text/event-stream")


@pytest.mark.parametrize(("is_fastapi", "owner"), [(False, None), (False, "alice"), (True, None)])
async def test_the_middleware_says_once_where_it_cannot_check_the_user(
    is_fastapi: bool, owner: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """That is an endpoint which is not FastAPI's; an owner is a check."""
    resumable = Resumable(owner=None if owner is None else lambda: owner)
    app: Any = FastAPI()
    if is_fastapi:
        app.post("/chat")(functools.partial(one_word, None))
    else:
        app.add_route("/chat", one_word, methods=["POST"])
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/chat"])
    outer = FastAPI()
    outer.include_router(resumable.router)
    outer.mount("/", app)
    async with running(outer) as client:
        for _ in range(2):
            assert data_of((await client.post("/chat", headers={ID: "a"})).body) == ["hello"]
    assert caplog.text.count("anyone who knows a stream id") == (not is_fastapi and owner is None)


@pytest.mark.parametrize("around", ["a mount", "the application"])
async def test_the_middleware_finds_the_replay_route_wherever_it_stands(around: str) -> None:
    """Around an application that is mounted in that of the router, and around all that a server gets."""
    app, resumable = FastAPI(), Resumable()
    app.include_router(resumable.router)
    if around == "a mount":
        inner = Starlette(routes=[Route("/chat", one_word, methods=["POST"])])
        app.mount("/mounted", ResumableMiddleware(inner, resumable=resumable, paths=["/chat"]))
        served: Any = app
    else:
        app.add_route("/mounted/chat", one_word, methods=["POST"])
        served = ResumableMiddleware(app, resumable=resumable, paths=["/mounted/chat"])
    async with running(served) as client:
        first = await client.post("/mounted/chat", headers={ID: "a"})
        assert first.headers.get("content-location") == "/v1/stream/a"
        assert (await client.get("/v1/stream/a")).body == first.body


def test_the_middleware_has_the_parameters_of_its_paths_for_dependencies_and_urls() -> None:
    """The application does not see them, as it may have other names for the same parts."""

    def of_run(tenant: Annotated[str, Path()], run_id: Annotated[int, Path()]) -> str:
        return f"{tenant}:{run_id}"

    resumable = Resumable(stream_id=of_run)
    app = FastAPI()
    app.include_router(resumable.router, prefix="/{tenant}")
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/other", "/{tenant}/runs/{run_id:int}"])

    @app.get("/{customer}/runs/{number}")
    async def run(request: Request, customer: str, number: int) -> StreamingResponse:
        return StreamingResponse(words(f"{customer} {number} of {len(request.path_params)}"))

    with TestClient(app) as client:
        first = client.get("/ann%20b/runs/7")
        assert "data: ann b 7 of 2" in first.text
        assert first.headers["x-conversation-id"] == "ann b:7"
        assert first.headers["content-location"] == "/ann%20b/v1/stream/ann%20b:7"
        assert client.get(first.headers["content-location"]).text == first.text
