"""What FastAPI does with an endpoint's result it does as without the library: by every face, named and unnamed."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Cookie, Depends, FastAPI, Form, Header, HTTPException, Path, Query
from fastapi import Response as FastAPIResponse
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import Response

from fastapi_resumable import Resumable, ResumableMiddleware, ResumableStream

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


class Custom(JSONResponse):
    """A response class of the application's own."""

    media_type = "application/vnd.custom+json"

    def render(self, content: Any) -> bytes:
        return b"custom:" + json.dumps(content).encode()


def quota(response: FastAPIResponse) -> None:
    """A dependency that adds to the response."""
    response.headers["x-quota"] = "7"
    response.set_cookie("sid", "s1")


def created(response: FastAPIResponse) -> None:
    """A dependency that sets the status."""
    response.status_code = 201


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
    "path": (takes_path, {"path": "/e/{name}"}, {"path": "/e/long"}),
    "path invalid": (takes_path, {"path": "/e/{name}"}, {"path": "/e/x"}),
    "refused": (returning(lambda: {"a": 1}), {"dependencies": [Depends(refuse)]}, {}),
}


def with_handle(endpoint: Callable[..., Any], resumable: Resumable) -> Callable[..., Any]:
    """The endpoint, as its author would write it with the dependency."""
    import functools  # beside its one use
    import inspect  # as above

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

    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect's protocol
        parameters=[*signature.parameters.values(), parameter]
    )
    return wrapper


def path_of(name: str, path: str = "/e") -> str:
    """Where an endpoint is: each has a folder of its own."""
    return f"/{list(ENDPOINTS).index(name)}{path}"


def build(face: str) -> FastAPI:
    """An application with every endpoint."""
    app = FastAPI()
    resumable = Resumable(owner=lambda: "alice")
    router = APIRouter(**({"route_class": resumable.route_class} if face == "route_class" else {}))
    paths = []
    for name, (plain, options, _) in ENDPOINTS.items():
        paths.append(path_of(name, options.get("path", "/e")))
        match face:
            case "decorator":
                endpoint = resumable.stream(plain)
            case "dependency":
                endpoint = with_handle(plain, resumable)
            case _:
                endpoint = plain
        router.api_route(**{**options, "path": paths[-1]}, methods=["POST"])(endpoint)
    app.include_router(router)
    if face != "plain":
        app.include_router(resumable.router)
    if face == "middleware":
        app.add_middleware(ResumableMiddleware, resumable=resumable, paths=paths)
    return app


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, TestClient]]:
    """A client of each application."""
    with ExitStack() as stack:
        yield {
            face: stack.enter_context(TestClient(build(face), raise_server_exceptions=False, follow_redirects=False))
            for face in ("plain", *FACES)
        }


def ask(client: TestClient, name: str, *, named: bool) -> Any:
    """Ask for the endpoint."""
    options = dict(ENDPOINTS[name][2])
    headers = dict(options.pop("headers", {}))
    if named:
        headers["X-Conversation-Id"] = name
    client.cookies.clear()
    return client.post(path_of(name, options.pop("path", "/e")), headers=headers, **options)


def essence(answer: Any, *, named: bool) -> Any:
    """What must agree: for a named request, without what is added."""
    headers = sorted((key.lower(), value) for key, value in answer.headers.multi_items())
    text = answer.text
    if named:
        headers = [(key, value) for key, value in headers if key not in ADDED and key != "content-length"]
        text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("id: "))
    return answer.status_code, headers, text


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_endpoint_answers_as_without_the_library(clients: dict[str, TestClient], name: str) -> None:
    """Status, headers, cookies and body, by every face, with and without a stream id."""
    for named in (False, True):
        expected = essence(ask(clients["plain"], name, named=named), named=named)
        for face in FACES:
            assert essence(ask(clients[face], name, named=named), named=named) == expected, (face, named)


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
