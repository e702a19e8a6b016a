"""The six uses of others' private state, each tried on its own: what a release of FastAPI or Starlette may break."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.types import Message, Scope

from fastapi_resumable._fastapi import internals
from tests.support.asgi import running


async def test_the_channel_that_a_request_listens_to_can_be_replaced() -> None:
    """`request.is_disconnected()` asks the other one."""
    app = FastAPI()

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    @app.get("/")
    async def endpoint(request: Request) -> list[bool]:
        before = await request.is_disconnected()
        internals.replace_receive(request, gone)
        return [before, await request.is_disconnected()]

    async with running(app) as client:
        assert (await client.get("/")).json() == [False, True]


async def test_a_request_says_whether_its_body_was_read() -> None:
    """By FastAPI, for a parameter, or by the endpoint; whatever came of it."""
    app = FastAPI()

    @app.post("/parameter")
    async def parameter(request: Request, _item: dict[str, int]) -> list[bool]:
        return [internals.has_read_body(request)]

    @app.post("/read")
    async def read(request: Request) -> list[bool]:
        before = internals.has_read_body(request)
        await request.body()
        return [before, internals.has_read_body(request)]

    async with running(app) as client:
        assert (await client.post("/parameter", json={"a": 1})).json() == [True]
        assert (await client.post("/read", json={"a": 1})).json() == [False, True]


async def test_a_request_can_be_answered_while_its_endpoint_is_at_work() -> None:
    """By the channel that the server gave."""
    app = FastAPI()
    answered, done = asyncio.Event(), asyncio.Event()

    class Nothing(Response):
        async def __call__(self, *_: Any) -> None:
            """The client has its answer."""

    @app.get("/")
    async def endpoint(request: Request) -> Response:
        await Response("early", 202)(request.scope, request.receive, internals.send_of(request))
        answered.set()
        await done.wait()
        return Nothing()

    async with running(app) as client:
        exchange = client.start("GET", "/")
        await answered.wait()
        assert (await exchange.reply()).status == 202
        done.set()
        await exchange.served()


def test_the_stack_of_a_request_closes_its_dependencies_after_the_response() -> None:
    """What is pushed last is closed first, and what it raises is seen by the dependencies."""
    order: list[str] = []
    app = FastAPI()

    async def session() -> AsyncIterator[None]:
        try:
            yield
        except LookupError:
            order.append("dependency saw it")
            raise

    class Sending(Response):
        async def __call__(self, *args: Any) -> None:
            """Note when it is sent."""
            await super().__call__(*args)
            order.append("sent")

    @app.get("/", dependencies=[Depends(session)])
    async def endpoint(request: Request) -> Response:
        async def fail() -> None:
            order.append("pushed")
            raise LookupError

        internals.dependency_stack(request.scope).push_async_callback(fail)
        return Sending("ok")

    with pytest.raises(LookupError):
        TestClient(app).get("/")
    assert order == ["sent", "pushed", "dependency saw it"]


@pytest.mark.parametrize("place", ["app", "router", "nested", "mount"])
def test_the_endpoint_that_runs_can_be_replaced_by_a_dependency_of_the_same_request(place: str) -> None:
    """On the route of an app, of an included router, included twice, and of a mounted app; it stands in every time."""
    app = FastAPI()

    async def endpoint() -> str:
        return "endpoint"

    async def stand_in(**values: Any) -> str:
        return f"stand-in for {values['request'].method}"

    def replace(request: Request) -> None:
        (dependant,) = internals.running_dependants(request.scope)
        if dependant.call is endpoint:
            assert dependant.request_param_name is None
            dependant.call, dependant.request_param_name = stand_in, "request"

    inner = app if place == "app" else FastAPI() if place == "mount" else APIRouter()
    inner.get("/e", dependencies=[Depends(replace)])(endpoint)
    prefix = "" if place == "app" else "/sub"
    if isinstance(inner, FastAPI):
        if place == "mount":
            app.mount("/sub", inner)
    elif place == "nested":
        outer = APIRouter(prefix="/sub")
        outer.include_router(inner)
        app.include_router(outer)
        app.include_router(outer, prefix="/again")
    else:
        app.include_router(inner, prefix="/sub")
    with TestClient(app) as client:
        for path in (f"{prefix}/e", f"{prefix}/e", *(["/again/sub/e"] if place == "nested" else [])):
            assert client.get(path).json() == "stand-in for GET"


def test_a_request_that_no_route_of_fastapis_serves_has_no_endpoint() -> None:
    """Nor does one that none serves at all."""
    seen: list[object] = []
    app = FastAPI()

    async def plain(request: Request) -> Response:
        seen.extend(internals.running_dependants(request.scope))
        return Response()

    app.add_route("/plain", plain)
    assert TestClient(app).get("/plain").status_code == 200
    assert not seen
    assert not list(internals.running_dependants({"type": "http"}))


async def test_a_request_that_is_cancelled_closes_its_dependencies_under_a_shield() -> None:
    """By the scope that FastAPI keeps for it, where it has one, or else by one of ours; both end in order."""
    app = FastAPI()
    sending = asyncio.Event()
    closed: list[str] = []

    async def session() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append("closed")

    class Forever(Response):
        async def __call__(self, scope: Scope, *_: Any) -> None:
            """Send nothing until the request is cancelled, then have the dependencies closed in a shield."""
            sending.set()
            try:
                await asyncio.Event().wait()
            finally:
                shield = internals.cleanup_scope(scope)
                if shield is None:
                    stack = internals.dependency_stack(scope)
                    with anyio.CancelScope(shield=True):
                        await stack.pop_all().aclose()
                else:
                    shield.shield = True

    @app.get("/", dependencies=[Depends(session)])
    async def endpoint() -> Response:
        return Forever()

    async def cancelling(scope: Scope, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(app, scope, receive, send)
            if scope["type"] == "http":
                await sending.wait()
                group.cancel_scope.cancel()

    async with running(cancelling) as client:
        await client.start("GET", "/").served()
    assert closed == ["closed"]


def test_the_generator_that_a_response_runs_in_threads_is_found() -> None:
    """Of others there is none: they are closed by themselves, or are no generators."""

    def words() -> Iterator[str]:
        yield "one"

    async def async_words() -> AsyncIterator[str]:
        yield "one"

    generator = words()
    assert internals.threaded_generator(StreamingResponse(generator)) is generator
    for response in (StreamingResponse(async_words()), StreamingResponse(["one"]), Response("one")):
        assert internals.threaded_generator(response) is None
