"""What FastAPI does with an endpoint's result it does as without the library: by every face, named and unnamed."""

import functools
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Path,
    Query,
    Request,
    Security,
    UploadFile,
    WebSocket,
)
from fastapi import Response as FastAPIResponse
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from fastapi.security import SecurityScopes
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.responses import Response

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream
from tests.support.life_apps import YIELDS

FACES = ("decorator", "dependency", "route_class", "middleware")
ADDED = {"x-conversation-id", "x-stream-epoch", "content-location", "x-accel-buffering", "cache-control"}
"""What the library adds to a recorded answer; `Content-Length` becomes chunks."""


class Item(BaseModel):
    """A response model."""

    name: str
    price: float = 1.0
    secret: str | None = None


class Public(BaseModel):
    """What of it is shown."""

    name: str


class Aliased(BaseModel):
    """A model whose field has another name on the wire."""

    n: int = Field(serialization_alias="number")


class PlainTextStream(StreamingResponse):
    """A streaming response of the application's own."""

    media_type = "text/plain"


class Custom(JSONResponse):
    """A response class of the application's own."""

    media_type = "application/vnd.custom+json"

    def render(self, content: Any) -> bytes:
        return b"custom:" + json.dumps(content).encode()


callbacks = APIRouter()


@callbacks.post("{$callback_url}/done")
def done(item: Item) -> None:
    """What the application calls back."""


def quota(response: FastAPIResponse) -> None:
    """A dependency that adds to the response."""
    response.headers["x-quota"] = "7"
    response.set_cookie("sid", "s1")


def created(response: FastAPIResponse) -> None:
    """A dependency that sets the status."""
    response.status_code = 201


ran: list[str] = []
"""What background tasks have done."""


def granted(scopes: SecurityScopes) -> list[str]:
    """What the security of the endpoint asks for."""
    return scopes.scopes


def original() -> str:
    """What the application overrides."""
    return "original"


def refuse() -> None:
    """A dependency that refuses."""
    raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})


async def session() -> AsyncIterator[str]:
    """A dependency that holds something."""
    yield "session"


def with_headers(response: FastAPIResponse) -> Any:
    response.headers["x-run"] = "r1"
    response.headers.append("x-run", "r2")
    response.set_cookie("mine", "m1", httponly=True)
    return {"ok": True}


def with_status(response: FastAPIResponse) -> Any:
    response.status_code = 202
    return {"ok": True}


def with_background(background: BackgroundTasks) -> Any:
    background.add_task(list)
    return {"ok": True}


def own_response_and_injected(response: FastAPIResponse) -> Any:
    response.headers["x-lost"] = "1"
    response.set_cookie("lost", "1")
    return PlainTextResponse("own", headers={"x-own": "1"})


def cookies_of_its_own() -> Any:
    own = JSONResponse({"ok": True}, status_code=203)
    own.set_cookie("a", "1")
    own.set_cookie("b", "2")
    return own


def raising(error: Exception) -> Callable[[], Any]:
    def endpoint() -> Any:
        raise error

    return endpoint


def returning(value: Callable[[], Any]) -> Callable[[], Any]:
    def endpoint() -> Any:
        return value()

    return endpoint


def chunks() -> Iterator[str]:
    yield "data: one\n\n"
    yield "data: two\n\n"


async def async_chunks() -> AsyncIterator[bytes]:
    yield b"one\n"
    yield b"two\n"


def typed_model() -> Item:
    return Item(name="typed")


def typed_response() -> JSONResponse:
    return JSONResponse({"typed": True})


async def asynchronous() -> dict[str, int]:
    return {"n": 1}


def takes_query(number: Annotated[int, Query(ge=1)] = 0) -> Any:
    return {"number": number}


def takes_body(item: Item) -> Any:
    return item


def takes_two_bodies(item: Item, public: Annotated[Public, Body()]) -> Any:
    return [item, public]


def takes_form(text: Annotated[str, Form()]) -> Any:
    return text


def takes_header_and_cookie(x_a: Annotated[str, Header()], c: Annotated[str | None, Cookie()] = None) -> Any:
    return [x_a, c]


def takes_path(name: Annotated[str, Path(min_length=3)]) -> Any:
    return name


def takes_session(held: Annotated[str, Depends(session)]) -> Any:
    return held


async def takes_files(one: UploadFile, more: list[UploadFile], note: Annotated[str, Form()] = "n") -> Any:
    return [await one.read(), *[file.filename for file in more], note]


def streams_a_file(one: Annotated[UploadFile, File()]) -> Any:
    # The file is read while the response is sent, so it has to be open then.
    return StreamingResponse(iter(lambda: one.file.read(4), b""), media_type="application/octet-stream")


def takes_scopes(scopes: Annotated[list[str], Security(granted, scopes=["read", "write"])]) -> Any:
    return scopes


def takes_what_is_overridden(value: Annotated[str, Depends(original)]) -> Any:
    return value


async def takes_a_request(request: Request, connection: HTTPConnection, q: str = "x") -> Any:
    return [request.method, connection.url.path == request.url.path, q]


async def takes_anything(request: Request) -> Any:
    return (await request.body()).decode()


class Answering:
    """An object for an endpoint."""

    def __call__(self, q: str = "x") -> Any:
        """Answer."""
        return PlainTextResponse(q)


def prefixed(prefix: str, q: str = "x") -> Any:
    return JSONResponse([prefix, q])


def with_background_of_its_own(background: BackgroundTasks) -> Any:
    background.add_task(ran.append, "injected")
    return JSONResponse({}, background=BackgroundTask(ran.append, "own"))


def with_background_and_stream(background: BackgroundTasks) -> Any:
    background.add_task(ran.append, "after a stream")
    return StreamingResponse(chunks(), media_type="text/event-stream")


async def yields_json() -> AsyncIterator[Item]:
    yield Item(name="a")
    yield Item(name="b", secret="s")


def yields_json_in_def() -> Iterator[Item]:
    yield Item(name="a")
    yield Item(name="b", secret="s")


async def yields_text(response: FastAPIResponse) -> AsyncIterator[str]:
    response.headers["x-late"] = "1"
    yield "a"
    yield "b"


def json_of(value: Any, **options: Any) -> Callable[[], Any]:
    return returning(lambda: JSONResponse(value, **options))


# Name: endpoint, options of the route, options of the request.
ENDPOINTS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "dict": (returning(lambda: {"a": 1}), {}, {}),
    "list": (returning(lambda: [1, 2]), {}, {}),
    "text": (returning(lambda: "text"), {}, {}),
    "number": (returning(lambda: 3), {}, {}),
    "none": (returning(lambda: None), {}, {}),
    "false": (returning(lambda: False), {}, {}),
    "model": (returning(lambda: Item(name="a")), {}, {}),
    "async": (asynchronous, {}, {}),
    "typed model": (typed_model, {}, {}),
    "typed response": (typed_response, {}, {}),
    "status": (returning(lambda: {"a": 1}), {"status_code": 201}, {}),
    "status 204": (returning(lambda: None), {"status_code": 204, "response_model": None}, {}),
    "status 205": (returning(lambda: None), {"status_code": 205, "response_model": None}, {}),
    "status 304": (returning(lambda: None), {"status_code": 304, "response_model": None}, {}),
    "response class": (returning(lambda: "<p>"), {"response_class": HTMLResponse}, {}),
    "plain text class": (returning(lambda: "plain"), {"response_class": PlainTextResponse}, {}),
    "custom class": (returning(lambda: {"a": 1}), {"response_class": Custom}, {}),
    "redirect class": (returning(lambda: "/there"), {"response_class": RedirectResponse}, {}),
    "file class": (returning(lambda: __file__), {"response_class": FileResponse}, {}),
    "response model": (returning(lambda: Item(name="a", secret="s")), {"response_model": Public}, {}),
    "model list": (returning(lambda: [Item(name="a")]), {"response_model": list[Public]}, {}),
    "no model": (typed_model, {"response_model": None}, {}),
    "exclude unset": (
        returning(lambda: Item(name="a")),
        {"response_model": Item, "response_model_exclude_unset": True},
        {},
    ),
    "exclude none": (
        returning(lambda: Item(name="a")),
        {"response_model": Item, "response_model_exclude_none": True},
        {},
    ),
    "exclude": (returning(lambda: Item(name="a")), {"response_model": Item, "response_model_exclude": {"price"}}, {}),
    "include": (returning(lambda: Item(name="a")), {"response_model": Item, "response_model_include": {"name"}}, {}),
    "model mismatch": (returning(lambda: {"price": "x"}), {"response_model": Item}, {}),
    "nan": (returning(lambda: {"n": float("nan")}), {}, {}),
    "nan in a model": (returning(lambda: Item(name="a", price=float("inf"))), {"response_model": Item}, {}),
    "unserialisable": (returning(lambda: {"o": object()}), {}, {}),
    "injected headers": (with_headers, {}, {}),
    "injected status": (with_status, {}, {}),
    "injected status and route's": (with_status, {"status_code": 201}, {}),
    "background": (with_background, {}, {}),
    "own and injected": (own_response_and_injected, {}, {}),
    "a dependency's headers": (returning(lambda: {"a": 1}), {"dependencies": [Depends(quota)]}, {}),
    "a dependency's status": (returning(lambda: {"a": 1}), {"dependencies": [Depends(created)]}, {}),
    "a dependency's, own response": (json_of({"a": 1}), {"dependencies": [Depends(quota)]}, {}),
    "a session": (takes_session, {}, {}),
    "own json": (json_of({"a": 1}), {}, {}),
    "own status": (json_of({"a": 1}, status_code=201), {}, {}),
    "own status, route's": (json_of({"a": 1}, status_code=203), {"status_code": 201}, {}),
    "own headers": (json_of({"a": 1}, headers={"x-a": "1", "link": "</a>"}), {}, {}),
    "own cookies": (cookies_of_its_own, {}, {}),
    "own empty": (returning(Response), {}, {}),
    "own 204": (returning(lambda: Response(status_code=204)), {}, {}),
    "own 404": (json_of({"no": 1}, status_code=404), {}, {}),
    "own redirect": (returning(lambda: RedirectResponse("/there")), {}, {}),
    "own html": (returning(lambda: HTMLResponse("<p>")), {}, {}),
    "own file": (returning(lambda: FileResponse(__file__)), {}, {}),
    "own background": (json_of({"a": 1}, background=BackgroundTask(list)), {}, {}),
    "bytes stream": (returning(lambda: StreamingResponse(async_chunks(), media_type="application/x-ndjson")), {}, {}),
    "untyped stream": (returning(lambda: StreamingResponse(async_chunks())), {}, {}),
    "event stream": (returning(lambda: StreamingResponse(chunks(), media_type="text/event-stream")), {}, {}),
    "stream with status": (returning(lambda: StreamingResponse(async_chunks(), status_code=201)), {}, {}),
    "http exception": (raising(HTTPException(418, "teapot", headers={"x-tea": "1"})), {}, {}),
    "exception": (raising(LookupError("no")), {}, {}),
    "query": (takes_query, {}, {"params": {"number": 2}}),
    "query invalid": (takes_query, {}, {"params": {"number": 0}}),
    "body": (takes_body, {}, {"json": {"name": "a"}}),
    "body invalid": (takes_body, {}, {"json": {"price": 1}}),
    "body no json": (takes_body, {}, {"content": b"{", "headers": {"content-type": "application/json"}}),
    "bodies": (takes_two_bodies, {}, {"json": {"item": {"name": "a"}, "public": {"name": "b"}}}),
    "form": (takes_form, {}, {"data": {"text": "t"}}),
    "form missing": (takes_form, {}, {}),
    "header and cookie": (takes_header_and_cookie, {}, {"headers": {"x-a": "1", "cookie": "c=2"}}),
    "header missing": (takes_header_and_cookie, {}, {}),
    "path": (takes_path, {"path": "/{name}"}, {"path": "/long"}),
    "path invalid": (takes_path, {"path": "/{name}"}, {"path": "/x"}),
    "files": (
        takes_files,
        {},
        {"files": [("one", ("a.txt", b"aaa")), ("more", ("b.txt", b"b")), ("more", ("c.txt", b"c"))]},
    ),
    "a file missing": (takes_files, {}, {"files": [("more", ("b.txt", b"b"))]}),
    "a file that is streamed": (streams_a_file, {}, {"files": {"one": ("a.txt", b"0123456789")}}),
    "scopes": (takes_scopes, {}, {}),
    "an override": (takes_what_is_overridden, {}, {}),
    "request and connection": (takes_a_request, {}, {"params": {"q": "y"}}),
    "raw body": (takes_anything, {}, {"content": b"raw"}),
    "an object": (Answering(), {}, {"params": {"q": "y"}}),
    "a partial": (functools.partial(prefixed, "p"), {}, {}),
    "background, own and injected": (with_background_of_its_own, {}, {}),
    "background after a stream": (with_background_and_stream, {}, {}),
    "by alias": (returning(lambda: Aliased(n=1)), {"response_model": Aliased}, {}),
    "not by alias": (
        returning(lambda: Aliased(n=1)),
        {"response_model": Aliased, "response_model_by_alias": False},
        {},
    ),
    "exclude defaults": (
        returning(lambda: Item(name="a", price=1.0)),
        {"response_model": Item, "response_model_exclude_defaults": True},
        {},
    ),
    "own response and a model": (json_of({"a": 1}), {"response_model": Item}, {}),
    "own 205": (returning(lambda: Response(status_code=205)), {}, {}),
    "own 304": (returning(lambda: Response(status_code=304, headers={"etag": '"a"'})), {}, {}),
    "own bytes": (returning(lambda: Response(b"\x00\xff", media_type="image/png")), {}, {}),
    "own 500": (json_of({"no": 1}, status_code=500), {}, {}),
    "out of the schema": (returning(lambda: {"a": 1}), {"include_in_schema": False}, {}),
    "callbacks": (returning(lambda: {"a": 1}), {"callbacks": callbacks.routes}, {}),
    "responses": (returning(lambda: {"a": 1}), {"responses": {404: {"model": Public}}, "tags": ["t"]}, {}),
    "refused": (returning(lambda: {"a": 1}), {"dependencies": [Depends(refuse)]}, {}),
}


if YIELDS:
    from fastapi.sse import EventSourceResponse

    # The decorator refuses these, and the handle has no response to be given.
    ENDPOINTS |= {
        "yield json": (yields_json, {}, {}),
        "yield json in def": (yields_json_in_def, {}, {}),
        "yield json, a model": (yields_json, {"response_model": Public}, {}),
        "yield events": (yields_json, {"response_class": EventSourceResponse}, {}),
        "yield events in def": (yields_json_in_def, {"response_class": EventSourceResponse}, {}),
        "yield raw": (yields_text, {"response_class": StreamingResponse}, {}),
        "yield, status": (yields_text, {"response_class": PlainTextStream, "status_code": 201}, {}),
        "yield, refused": (yields_text, {"response_class": StreamingResponse, "dependencies": [Depends(refuse)]}, {}),
    }


def faces_of(name: str) -> tuple[str, ...]:
    """The faces that an endpoint can have."""
    return FACES[2:] if name.startswith("yield") else FACES


def with_handle(endpoint: Callable[..., Any], resumable: Resumable) -> Callable[..., Any]:
    """The endpoint, as its author would write it with the dependency."""
    parameter = inspect.Parameter(
        "stream",
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[ResumableStream, Depends(resumable)],
    )
    signature = inspect.signature(endpoint)

    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def wrapper(*args: Any, stream: ResumableStream, **kwargs: Any) -> Any:
            result = await endpoint(*args, **kwargs)
            return stream(result) if isinstance(result, Response) else result
    else:

        @functools.wraps(endpoint)
        def wrapper(*args: Any, stream: ResumableStream, **kwargs: Any) -> Any:
            result = endpoint(*args, **kwargs)
            return stream(result) if isinstance(result, Response) else result

    wrapper.__name__ = getattr(endpoint, "__name__", type(endpoint).__name__)
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect's protocol
        parameters=[*signature.parameters.values(), parameter]
    )
    return wrapper


def path_of(name: str) -> str:
    """The path of an endpoint; its last part is the name of its stream, too."""
    return f"/e/{list(ENDPOINTS).index(name)}"


def build(face: str) -> FastAPI:
    """An application with all the endpoints."""
    app = FastAPI()
    app.dependency_overrides[original] = lambda: "overridden"
    resumable = Resumable(owner=lambda: "alice")
    router = APIRouter(route_class=resumable.route_class) if face == "route_class" else APIRouter()
    paths = []
    for name, (endpoint, options, _) in ENDPOINTS.items():
        if face not in ("plain", *faces_of(name)):
            continue
        path = path_of(name) + options.get("path", "")
        paths.append(path)
        wrapped: Any = endpoint
        if face == "decorator":
            wrapped = resumable.stream(endpoint)
        elif face == "dependency":
            wrapped = with_handle(endpoint, resumable)
        router.api_route(methods=["POST"], operation_id=path, **options | {"path": path})(wrapped)
    app.include_router(router)
    if face == "middleware":
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=paths)
    if face != "plain":
        app.include_router(resumable.router, include_in_schema=False)
    return app


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, TestClient]]:
    """A client of each application, by its face."""
    with ExitStack() as stack:
        yield {
            face: stack.enter_context(TestClient(build(face), raise_server_exceptions=False, follow_redirects=False))
            for face in ("plain", *FACES)
        }


def ask(client: TestClient, name: str, *, named: bool) -> Any:
    """Ask for an endpoint."""
    options = dict(ENDPOINTS[name][2])
    headers = dict(options.pop("headers", {}))
    if named:
        headers["X-Conversation-Id"] = path_of(name)
    return client.post(path_of(name) + options.pop("path", ""), headers=headers, **options)


def essence(answer: Any, *, named: bool) -> Any:
    """What must agree: for a named request, without what is added."""
    headers = sorted((key.lower(), value) for key, value in answer.headers.multi_items())
    body = answer.content
    if named:
        headers = [(key, value) for key, value in headers if key not in ADDED and key != "content-length"]
        body = b"".join(line for line in body.splitlines(keepends=True) if not line.startswith(b"id: "))
    return answer.status_code, headers, body


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_endpoint_answers_as_without_the_library(clients: dict[str, TestClient], name: str) -> None:
    """Status, headers, cookies and body, by every face, with and without a stream id."""
    for named in (False, True):
        ran.clear()
        expected = essence(ask(clients["plain"], name, named=named), named=named), list(ran)
        for face in faces_of(name):
            ran.clear()
            assert (essence(ask(clients[face], name, named=named), named=named), ran) == expected, (face, named)


@pytest.mark.parametrize("face", FACES)
def test_the_schema_is_that_of_the_application_without_the_library(clients: dict[str, TestClient], face: str) -> None:
    """OpenAPI shows nothing of the faces."""
    plain, ours = (clients[one].get("/openapi.json").json()["paths"] for one in ("plain", face))
    assert ours == {
        path: shown for path, shown in plain.items() if face in faces_of(list(ENDPOINTS)[int(path.split("/")[2])])
    }


@pytest.mark.parametrize("face", FACES)
def test_a_mounted_application_answers_as_without_the_library(face: str) -> None:
    """With its own routes and the replay in it; and a websocket of the same router stays one."""

    def mounted(face: str) -> TestClient:
        inner, app = build(face), FastAPI()

        @inner.websocket("/ws")
        async def echo(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text(await websocket.receive_text())

        app.mount("/sub", inner)
        return TestClient(app)

    plain, ours = mounted("plain"), mounted(face)
    path = "/sub" + path_of("event stream")
    for named in (False, True):
        headers = {"X-Conversation-Id": "a/b"} if named else {}
        expected, answer = plain.post(path, headers=headers), ours.post(path, headers=headers)
        assert essence(answer, named=named) == essence(expected, named=named)
    assert answer.headers["content-location"] == "/sub/v1/stream/a/b"
    assert ours.get("/sub/v1/stream/a/b").content == answer.content
    with ours.websocket_connect("/sub/ws", headers={"X-Conversation-Id": "a"}) as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


@pytest.mark.parametrize("level", ["app", "router", "include"])
@pytest.mark.parametrize("face", ["decorator", "route_class", "dependency"])
def test_a_default_response_class_counts_at_every_level(level: str, face: str) -> None:
    """As without the library: the nearest one renders."""

    def app_with(face: str) -> FastAPI:
        resumable = Resumable()
        app = FastAPI(**({"default_response_class": Custom} if level == "app" else {}))
        kinds: dict[str, Any] = {"route_class": resumable.route_class} if face == "route_class" else {}
        if level == "router":
            kinds["default_response_class"] = Custom
        router = APIRouter(**kinds)
        endpoint: Any = returning(lambda: {"a": 1})
        endpoint = {"decorator": resumable.stream, "dependency": lambda e: with_handle(e, resumable)}.get(
            face, lambda e: e
        )(endpoint)
        router.post("/e")(endpoint)
        app.include_router(router, **({"default_response_class": Custom} if level == "include" else {}))
        return app

    for named in (False, True):
        headers = {"X-Conversation-Id": "chat-1"} if named else {}
        plain, ours = (TestClient(app_with(one)).post("/e", headers=headers) for one in ("plain", face))
        assert ours.text == plain.text
        assert ours.headers["content-type"] == plain.headers["content-type"]
