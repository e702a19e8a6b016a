"""Every face of the library carries every kind of streaming endpoint, unchanged by the user."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from tests.support.asgi import (
    Client,
    Exchange,
    data_of,
    parse_events,
    running,
    settle,
    terminal_of,
    without_epochs,
)
from tests.support.life_apps import FACES, ID, INSIDE, RESPONSES, YIELDS, Stage, closed, make, stage, starlette_app
from tests.support.params import representatives

VALUES = ("one", "two", "three")

MATRIX = [
    *((face, kind, "async def") for face in FACES for kind in RESPONSES),
    *((face, RESPONSES[0], "def") for face in FACES),
    *((face, kind, "async def") for face in ("route_class", "middleware") for kind in YIELDS),
]
every_combination = pytest.mark.parametrize(("face", "kind", "endpoint"), MATRIX)


def is_simplest(combination: tuple[str, ...]) -> bool:
    """Each face with the simplest endpoint, and each endpoint at the simplest face that it can have."""
    face, kind, endpoint, *_ = combination
    return (kind, endpoint) == (RESPONSES[0], "async def") or face == ("route_class" if kind in YIELDS else "decorator")


every_dimension = pytest.mark.parametrize(("face", "kind", "endpoint"), representatives(MATRIX, is_simplest))
every_dimension_and_spec = pytest.mark.parametrize(
    ("face", "kind", "endpoint", "spec"),
    representatives(
        [
            *((*combination, "2.3") for combination in MATRIX),
            *((face, RESPONSES[0], "async def", "2.4") for face in FACES),
        ],
        is_simplest,
    ),
)
every_face = pytest.mark.parametrize("face", FACES)


def values_in(body: bytes, kind: str) -> list[str]:
    """The values that the endpoint yielded, out of a body of any kind."""
    if kind == "yield json lines":
        return [line.strip('"') for line in body.decode().splitlines()]
    if kind == "yield raw":
        return [value for value in ("one", "two", "three") if value.encode() in body]
    return [value.strip('"') for value in data_of(body)]


async def played(made: Stage, client: Client, stream_id: str | None) -> Exchange:
    """A POST whose run has yielded every value and returned."""
    number = len(made.runs)
    exchange = made.post(client, stream_id)
    run = await made.run(number)
    run.put(*VALUES)
    run.finish()
    return exchange


@every_combination
async def test_a_stream_is_recorded_whole_and_replayed_as_it_was(face: str, kind: str, endpoint: str) -> None:
    """The first response and a later replay are the same bytes, with the same media type."""
    made = stage(face, kind, endpoint=endpoint)
    async with running(made.app) as client:
        first = await (await played(made, client, "chat-1")).reply()
        replay = await client.get("/v1/stream/chat-1")
    assert first.status == replay.status == 200
    assert first.clean
    assert values_in(first.body, kind) == list(VALUES)
    assert replay.body == first.body
    assert replay.headers.get("content-type") == first.headers.get("content-type")


@every_dimension_and_spec
async def test_the_producer_goes_on_when_the_client_has_left(face: str, kind: str, endpoint: str, spec: str) -> None:
    """A client that leaves in mid-stream changes nothing for the generator, the session or the log."""
    made = stage(face, kind, endpoint=endpoint)
    async with running(made.app, spec_version=spec) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        exchange.disconnect()
        await settle()
        run.put("two")
        await settle()
        assert run.endings == []
        assert "session closed" not in made.trace
        run.put("three")
        run.finish()
        await run.wait_closed()
        replay = await client.get("/v1/stream/chat-1")
        await exchange.served()
    assert values_in(replay.body, kind) == list(VALUES)
    assert run.endings == ["finished"]


@every_dimension
async def test_a_stop_runs_the_finally_blocks(face: str, kind: str, endpoint: str) -> None:
    """DELETE ends the generator, closes what hangs on the request, and the stream is gone."""
    made = stage(face, kind, endpoint=endpoint)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        stopped = await client.delete("/v1/stream/chat-1")
        rest = await exchange.rest()
        # A generator in a thread sees the stop when a value comes, some turns of the event loop after the stop.
        run.put(*["two"] * 100)
        await exchange.served()
        await closed(run, kind)
        gone = await client.get("/v1/stream/chat-1")
    assert stopped.status == 204
    assert b"two" not in without_epochs(rest)
    assert "finished" not in run.endings
    assert gone.status == 404
    assert gone.code == "stream_not_found"


@every_dimension_and_spec
async def test_without_a_stream_id_the_answer_is_byte_for_byte_the_plain_one(
    face: str, kind: str, endpoint: str, spec: str
) -> None:
    """The very ASGI messages, head and pieces, are those of the same app without the library."""
    seen: list[list[dict[str, Any]]] = []
    for one in ("plain", face):
        mounted = one == "plain" and face == "mounted"
        made = _plain_mount(kind, endpoint) if mounted else stage(one, kind, endpoint=endpoint)
        async with running(made.app, spec_version=spec) as client:
            exchange = await played(made, client, None)
            await exchange.reply()
            await exchange.served()
            seen.append([_essence(message) for message in exchange.messages])
    assert seen[0] == seen[1]


def _plain_mount(kind: str, endpoint: str) -> Stage:
    made = Stage()
    made.path = "/sub/chat"
    made.app.mount("/sub", starlette_app(made, kind, endpoint))
    return made


def _essence(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "headers": [tuple(pair) for pair in message.get("headers", ())]}


@every_dimension_and_spec
async def test_without_a_stream_id_a_client_that_leaves_ends_the_generator(
    face: str, kind: str, endpoint: str, spec: str
) -> None:
    """Not opted in, a disconnect does what it always did."""
    made = stage(face, kind, endpoint=endpoint)
    async with running(made.app, spec_version=spec) as client:
        exchange, run = await made.begin(client, None, "one")
        await exchange.read_until(b"one")
        exchange.disconnect()
        run.put("two", "three")
        await exchange.served()
    assert "finished" not in run.endings


@pytest.mark.parametrize(
    ("face", "kind"),
    [(face, kind) for face, kind, endpoint in MATRIX if endpoint == "async def" and face != "mounted"],
)
async def test_the_endpoints_entry_in_openapi_is_that_of_the_plain_app(face: str, kind: str) -> None:
    """No parameter, response or schema of the endpoint changes; our own routes only come beside it."""
    plain, ours = stage("plain", kind).app.openapi(), stage(face, kind).app.openapi()
    assert ours["paths"]["/chat"] == plain["paths"]["/chat"]
    for name, schema in plain["components"]["schemas"].items():
        assert ours["components"]["schemas"][name] == schema


@pytest.mark.parametrize(
    ("face", "kind"),
    [*((face, kind) for face in INSIDE for kind in RESPONSES), *(("route_class", kind) for kind in YIELDS)],
)
async def test_an_exception_on_the_first_item_reaches_the_apps_own_handlers(face: str, kind: str) -> None:
    """A generator that raises before its first byte gives a real status, not a 200 with an error inside."""
    made = stage(face, kind, head_timeout=30.0)
    made.inner.add_exception_handler(KeyError, _teapot)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        (await made.run()).fail(KeyError("no such model"))
        reply = await exchange.reply()
        unknown = await client.get("/v1/stream/chat-1")
    assert (reply.status, reply.body) == (418, b"teapot")
    assert unknown.status == 404


async def _teapot(request: Any, error: Exception) -> Any:
    return PlainTextResponse("teapot", status_code=418)


@pytest.mark.parametrize(("face", "kind"), [*(("middleware", kind) for kind in YIELDS), ("mounted", RESPONSES[0])])
async def test_an_exception_on_the_first_item_is_a_real_error_under_the_middleware(face: str, kind: str) -> None:
    """The middleware is outside of the app's handlers, which saw the response begin: at the least, it is a 500."""
    made = stage(face, kind, head_timeout=30.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        (await made.run()).fail(KeyError("no such model"))
        reply = await exchange.reply()
        missing = await client.get("/v1/stream/chat-1")
    assert reply.status == 500
    assert missing.status == 404


@every_dimension
async def test_a_failure_in_mid_stream_ends_every_reader_alike(face: str, kind: str, endpoint: str) -> None:
    """What came before the failure stays; an event stream says how it ended, any other media type breaks off."""
    made = stage(face, kind, endpoint=endpoint)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        run.fail(ValueError("the password is swordfish"))
        body = await exchange.rest()
        replay = await client.get("/v1/stream/chat-1")
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]
    assert values_in(body, kind)[:1] == ["one"]
    assert replay.body == body
    assert b"swordfish" not in body
    assert item["status"] == "failed"
    if kind in ("yield json lines", "yield raw"):
        assert not exchange.clean
        assert not replay.clean
    else:
        end = terminal_of(body)
        assert exchange.clean
        assert (end.event, end.json()["code"]) == ("error", "producer_failed")


@every_face
async def test_every_event_of_every_face_carries_a_resume_position(face: str) -> None:
    """Whatever the face, the ids are there and lead on from where they stand."""
    made = stage(face)
    async with running(made.app) as client:
        body = (await (await played(made, client, "chat-1")).reply()).body
        second = parse_events(body)[1]
        tail = await client.get("/v1/stream/chat-1", headers={"Last-Event-ID": second.id})
    assert data_of(tail.body) == ["three"]
    assert body.endswith(tail.body)


@every_face
async def test_the_faces_answer_with_the_headers_of_a_resumable_response(face: str) -> None:
    """The id, the epoch and the way back are on the first response."""
    made = stage(face)
    async with running(made.app) as client:
        first = await (await played(made, client, "chat-1")).reply()
        replay = await client.get(first.headers["content-location"])
    assert first.headers[ID.lower()] == "chat-1"
    assert first.headers["x-stream-epoch"] == replay.headers["x-stream-epoch"]
    assert replay.body == first.body


async def test_all_faces_share_one_set_of_streams() -> None:
    """Four endpoints, one per face, on one `Resumable`: each stream is found by the same routes, none runs twice."""
    resumable = make()
    bodies = {}
    app: FastAPI | None = None
    for face in FACES:
        made = stage(face, resumable=resumable)
        async with running(made.app, lifespan=False) as client:
            bodies[face] = (await (await played(made, client, f"of-{face}")).reply()).body
        app = made.app
    assert app is not None
    async with running(app, lifespan=False) as client:
        for face, body in bodies.items():
            assert (await client.get(f"/v1/stream/of-{face}")).body == body


async def test_decorator_and_dependency_together_record_once() -> None:
    """Both opt-ins on one endpoint make one stream with one set of ids, not two."""
    made = stage("both")
    async with running(made.app) as client:
        first = await (await played(made, client, "chat-1")).reply()
        found = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()
    assert first.body.count(b"\nid: ") == 3
    assert len(made.runs) == 1
    assert len(found) == 1
    assert found[0]["total_bytes"] == len(first.body)


def test_the_decorator_on_a_yield_endpoint_says_what_to_use() -> None:
    """FastAPI builds the response of a `yield` endpoint itself: refused when the module loads, naming the way out."""
    resumable = make()

    async def chat() -> AsyncIterator[str]:
        yield "one"

    def chat_in_def() -> Iterator[str]:
        yield "one"

    for endpoint in (chat, chat_in_def):
        with pytest.raises((TypeError, ValueError), match="route_class"):
            resumable.stream(endpoint)


async def test_concurrent_streams_do_not_mix() -> None:
    """Twenty streams at once, fed in turns: each log holds its own."""
    made = stage("decorator")
    async with running(made.app) as client:
        exchanges = []
        for number in range(20):
            exchange, _ = await made.begin(client, f"chat-{number}", f"first of {number}")
            exchanges.append(exchange)
        for number, run in enumerate(made.runs):
            run.put(f"second of {number}")
            run.finish()
        bodies = await asyncio.gather(*(exchange.rest() for exchange in exchanges))
    for number, body in enumerate(bodies):
        assert data_of(body) == [f"first of {number}", f"second of {number}"]
