"""Opt-in, Start, Resume at the endpoint itself."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Query
from fastapi.responses import JSONResponse, StreamingResponse

from fastapi_resumable import Resumable, ResumableStream
from tests.support.asgi import Client, Exchange, data_of, parse_events, running, settle, until
from tests.support.life_apps import ID, PLACES, Run, Stage, answer, app_under, make, sse, stage
from tests.support.params import spread

every_face = pytest.mark.parametrize("face", PLACES)
both_specs = pytest.mark.parametrize("spec", ["2.3", "2.4"])


async def lookup(client: Client, *ids: str) -> list[dict[str, Any]]:
    """What a lookup finds."""
    reply = await client.post("/v1/streams/lookup", json={"conversation_ids": list(ids)})
    assert reply.status == 200
    found: list[dict[str, Any]] = reply.json()
    return found


# -- opt-in -------------------------------------------------------------------------------------------------------


@spread(every_face, pytest.mark.parametrize("blank", ["", "   "]))
async def test_a_blank_id_is_no_id(face: str, blank: str) -> None:
    """A header that is there but empty opts in to nothing."""
    made = stage(face)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, blank, "one")
        run.finish()
        reply = await exchange.reply()
    assert reply.body == b"data: one\n\n"
    assert "x-stream-epoch" not in reply.headers


@every_face
async def test_without_a_stream_id_a_last_event_id_is_the_apps_own_business(face: str) -> None:
    """A resume names a stream; a `Last-Event-ID` alone reaches the endpoint."""
    made = stage(face)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, None, "one", headers={"Last-Event-ID": "7"})
        run.finish()
        reply = await exchange.reply()
    assert reply.body == b"data: one\n\n"


# -- start --------------------------------------------------------------------------------------------------------


@every_face
async def test_an_id_is_reserved_before_the_endpoint_answers(face: str) -> None:
    """While the endpoint thinks, the stream is there already, and `queued`."""
    made = stage(face, gated=True)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        queued = await lookup(client, "chat-1")
        run.admitted.set()
        run.put("one")
        await exchange.read_until(b"one")
        live = await lookup(client, "chat-1")
        run.finish()
        await exchange.rest()
        done = await lookup(client, "chat-1")
    assert [items[0]["status"] for items in (queued, live, done)] == ["queued", "in_progress", "completed"]
    assert [items[0]["is_done"] for items in (queued, live, done)] == [False, False, True]
    assert queued[0]["epoch"] == live[0]["epoch"] == done[0]["epoch"]


@every_face
async def test_a_replay_of_a_queued_stream_waits_for_its_beginning(face: str) -> None:
    """Asked for before the endpoint has answered, it is served as soon as the stream begins."""
    made = stage(face, gated=True, pending_timeout=30.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        replay = client.start("GET", "/v1/stream/chat-1")
        await settle()
        assert not replay.over
        run.admitted.set()
        run.put("one")
        run.finish()
        assert data_of(await replay.rest()) == data_of(await exchange.rest()) == ["one"]


ERRORS = {
    "raised 402": (402, {"detail": "pay first"}),
    "returned 401": (401, {"oops": "who are you?"}),
    "validation 422": (422, None),
    "raised KeyError": (500, {"from": "the app's handler"}),
}


def _failing_app(face: str, made: Stage, resumable: Resumable) -> FastAPI:
    """``POST /chat?error=...`` fails in a given way, or else streams."""

    async def chat(error: str = "", number: int = 0) -> Any:
        match error:
            case "raised 402":
                raise HTTPException(402, "pay first", {"X-Price": "5"})
            case "returned 401":
                return JSONResponse({"oops": "who are you?"}, 401, {"WWW-Authenticate": "Basic"})
            case "raised KeyError":
                raise KeyError("secret")
        return answer(made.new_run(), "async generator")

    @made.app.exception_handler(KeyError)
    async def handler(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"from": "the app's handler"}, 500)

    return app_under(face, chat, resumable, app=made.app)


def _url(error: str) -> str:
    return "/chat?number=many" if error == "validation 422" else f"/chat?error={error.replace(' ', '%20')}"


@spread(every_face, pytest.mark.parametrize("error", ERRORS))
async def test_an_answer_that_is_no_success_passes_through_unrecorded(face: str, error: str) -> None:
    """Status, headers and body are the app's own, and there is no stream."""
    made = Stage()
    app = _failing_app(face, made, make())
    async with running(app) as client:
        bare = await client.post(_url(error))
        named = await client.post(_url(error), headers={ID: "chat-1"})
        missing = await client.get("/v1/stream/chat-1")
        found = await lookup(client, "chat-1")
    status, body = ERRORS[error]
    assert named.status == bare.status == status
    assert named.body == bare.body
    assert body is None or named.json() == body
    assert {k: v for k, v in named.headers.items() if k in bare.headers} == bare.headers
    assert "x-stream-epoch" not in named.headers
    assert missing.status == 404
    assert found == []


@pytest.mark.parametrize(
    ("face", "error", "rule"),
    [
        *((face, error, "replace") for face in PLACES for error in ERRORS),
        *(("decorator", error, rule) for error in ERRORS for rule in ("attach", "reject")),
    ],
)
async def test_a_failed_start_leaves_a_finished_stream_as_it_was(face: str, error: str, rule: str) -> None:
    """The old answer is still there after a new question failed."""
    made = Stage()
    app = _failing_app(face, made, make(on_conflict=rule))
    async with running(app) as client:
        first = client.start("POST", "/chat", headers={ID: "chat-1"})
        run = await made.run()
        run.put("one")
        run.finish()
        body = (await first.reply()).body
        failed = await client.post(_url(error), headers={ID: "chat-1"})
        replay = await client.get("/v1/stream/chat-1")
    assert failed.status == ERRORS[error][0]
    assert replay.body == body


@spread(every_face, pytest.mark.parametrize("error", ERRORS))
async def test_a_failed_start_leaves_a_live_stream_as_it_was(face: str, error: str) -> None:
    """Under `replace`, a new request touches the running stream only when it begins; this one never does."""
    made = Stage()
    app = _failing_app(face, made, make())
    async with running(app) as client:
        first = client.start("POST", "/chat", headers={ID: "chat-1"})
        run = await made.run()
        run.put("one")
        await first.read_until(b"one")
        failed = await client.post(_url(error), headers={ID: "chat-1"})
        run.put("two")
        run.finish()
        rest = await first.rest()
        replay = await client.get("/v1/stream/chat-1")
    assert failed.status == ERRORS[error][0]
    assert first.clean
    assert data_of(b"\n\n" + rest.partition(b"\n\n")[2]) == ["two"]
    assert data_of(replay.body) == ["one", "two"]


@every_face
async def test_a_first_item_that_fails_leaves_an_earlier_stream_as_it_was(face: str) -> None:
    """The head was held, so nothing had begun."""
    made = stage(face, head_timeout=30.0)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        second = made.post(client, "chat-1")
        (await made.run(1)).fail(KeyError("no"))
        assert (await second.reply()).status == 500
        run.put("two")
        run.finish()
        body = await exchange.rest()
        replay = await client.get("/v1/stream/chat-1")
    assert data_of(body) == ["one", "two"]
    assert replay.body == body


@every_face
async def test_the_head_is_held_until_the_first_bytes_come(face: str) -> None:
    """However long the generator thinks, within `head_timeout` the client has seen nothing yet."""
    made = stage(face, head_timeout=30.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        await run.started.wait()
        await settle()
        assert exchange.head_now is None
        run.put("one")
        assert (await exchange.head()).status == 200
        run.finish()
        await exchange.rest()


@every_face
async def test_the_head_is_held_no_longer_than_head_timeout(face: str) -> None:
    """A generator that thinks for longer does not keep its client in doubt."""
    made = stage(face, head_timeout=0.01)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        assert (await exchange.head()).status == 200
        run = await made.run()
        assert run.yielded == 0
        run.put("one")
        run.finish()
        assert data_of(await exchange.rest()) == ["one"]


@every_face
async def test_a_failure_after_the_head_timeout_is_a_failure_in_mid_stream(face: str) -> None:
    """The 200 is out; the stream says how it ended."""
    made = stage(face, head_timeout=0.01)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        await exchange.head()
        (await made.run()).fail(KeyError("late"))
        events = parse_events(await exchange.rest())
    assert [(event.event, event.json()["code"]) for event in events] == [("error", "producer_failed")]


@spread(every_face, pytest.mark.parametrize("kind", ["async generator", "sync generator", "sse-starlette"]))
async def test_an_http_exception_on_the_first_item_keeps_its_own_status(face: str, kind: str) -> None:
    """Status, headers and body as if it had been raised in the endpoint."""
    made = stage(face, kind, head_timeout=30.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        (await made.run()).fail(HTTPException(402, "pay first", {"X-Price": "5"}))
        reply = await exchange.reply()
        missing = await client.get("/v1/stream/chat-1")
    assert missing.status == 404
    if face == "mounted":  # the mounted app's own last resort has answered, with a 500
        assert reply.status in (402, 500)
        return
    assert reply.status == 402
    assert reply.headers["x-price"] == "5"
    assert b"pay first" in reply.body


@every_face
async def test_an_unhandled_exception_on_the_first_item_is_a_500(face: str) -> None:
    """Starlette's own, as for any endpoint."""
    made = stage(face, head_timeout=30.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        (await made.run()).fail(KeyError("secret"))
        reply = await exchange.reply()
    assert reply.status == 500
    assert b"secret" not in reply.body


@every_face
async def test_a_stream_that_yields_nothing_is_an_empty_success(face: str) -> None:
    """No bytes, no error: 200, recorded, empty."""
    made = stage(face, head_timeout=30.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        (await made.run()).finish()
        reply = await exchange.reply()
        replay = await client.get("/v1/stream/chat-1")
    assert (reply.status, reply.body, reply.clean) == (200, b"", True)
    assert (replay.status, replay.body, replay.clean) == (200, b"", True)


# -- resume at the endpoint itself --------------------------------------------------------------------------------


async def chat_id(chat: Annotated[str | None, Query()] = None) -> str | None:
    """The stream's name, where a native `EventSource` can put it."""
    return chat


class Guarded:
    """A GET endpoint with an auth dependency that counts, under one face."""

    def __init__(self, face: str, **settings: Any) -> None:
        self.made = Stage()
        self.auth = 0
        self.closed = 0
        self.seen: list[str] = []
        self.resumable = make(stream_id=chat_id, **settings)

        async def auth(key: Annotated[str, Query()] = "") -> AsyncIterator[str]:
            self.auth += 1
            if key != "sesame":
                raise HTTPException(401, "who are you?")
            try:
                yield key
            except Exception as error:
                self.seen.append(type(error).__name__)
                raise
            finally:
                self.closed += 1

        async def events(key: Annotated[str, Depends(auth)]) -> Any:
            return answer(self.made.new_run(), "async generator")

        self.app = app_under(face, events, self.resumable, path="/events", methods=("GET",))

    async def open(self, client: Client) -> tuple[Exchange, Run]:
        """A live stream with two events."""
        exchange = client.start("GET", "/events?chat=c-1&key=sesame")
        run = await self.made.run()
        run.put("one", "two")
        await exchange.read_until(b"two")
        return exchange, run


endpoint_faces = pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])


async def _ids(client: Client) -> list[str]:
    replay = client.start("GET", "/v1/stream/c-1")
    await replay.read_until(b"two")
    return [event.id for event in parse_events(b"".join([bytes(m.get("body", b"")) for m in replay.messages]))]


@endpoint_faces
async def test_an_event_source_that_comes_back_to_the_endpoint_resumes(face: str) -> None:
    """The same URL and `Last-Event-ID`: the rest of the stream, and the endpoint runs once in all."""
    guarded = Guarded(face)
    async with running(guarded.app) as client:
        exchange, run = await guarded.open(client)
        first_id = (await _ids(client))[0]
        exchange.disconnect()
        back = client.start("GET", "/events?chat=c-1&key=sesame", headers={"Last-Event-ID": first_id})
        await back.read_until(b"data: two")
        run.put("three")
        run.finish()
        rest = await back.rest()
        again = await client.get("/events?chat=c-1&key=sesame", headers={"Last-Event-ID": first_id})
    assert b"data: one" not in rest
    assert b"data: three" in rest
    assert data_of(again.body) == ["two", "three"]
    assert len(guarded.made.runs) == 1


@endpoint_faces
async def test_a_resume_at_the_endpoint_ends_with_204_when_nothing_is_left(face: str) -> None:
    """So an `EventSource` stops reconnecting."""
    guarded = Guarded(face)
    async with running(guarded.app) as client:
        exchange, run = await guarded.open(client)
        run.finish()
        await exchange.rest()
        last_id = parse_events((await client.get("/v1/stream/c-1")).body)[-1].id
        done = await client.get("/events?chat=c-1&key=sesame", headers={"Last-Event-ID": last_id})
    assert (done.status, done.body) == (204, b"")
    assert len(guarded.made.runs) == 1


@endpoint_faces
async def test_a_resume_at_the_endpoint_has_the_errors_of_the_replay_route(face: str) -> None:
    """Unknown stream, foreign epoch, unknown id: never a run of the endpoint."""
    guarded = Guarded(face)
    async with running(guarded.app) as client:
        unknown = await client.get("/events?chat=nope&key=sesame", headers={"Last-Event-ID": "x"})
        _, run = await guarded.open(client)
        ours = (await _ids(client))[0]
        other_epoch = ("a" if ours[0] != "a" else "b") + ours[1:]
        replaced = await client.get("/events?chat=c-1&key=sesame", headers={"Last-Event-ID": other_epoch})
        lost = await client.get("/events?chat=c-1&key=sesame", headers={"Last-Event-ID": "an id of the app's"})
        run.finish()
    assert (unknown.status, unknown.code) == (404, "stream_not_found")
    assert (replaced.status, replaced.code) == (409, "stream_replaced")
    assert (lost.status, lost.code) == (400, "unknown_event_id")
    assert len(guarded.made.runs) == 1


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])
async def test_a_resume_at_the_endpoint_passes_the_endpoints_auth(face: str) -> None:
    """Resuming is not a way round the login: the endpoint's dependencies run, and may refuse."""
    guarded = Guarded(face)
    async with running(guarded.app) as client:
        _, run = await guarded.open(client)
        first_id = (await _ids(client))[0]
        before = guarded.auth
        refused = await client.get("/events?chat=c-1&key=wrong", headers={"Last-Event-ID": first_id})
        follower = client.start("GET", "/events?chat=c-1&key=sesame", headers={"Last-Event-ID": first_id})
        await follower.read_until(b"two")
        ran = guarded.auth - before
        run.finish()
        await follower.rest()
        await follower.served()
        await until(lambda: guarded.closed == 2, "the close of both requests' dependencies")
    assert refused.status == 401
    assert ran == 2
    assert len(guarded.made.runs) == 1


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])
async def test_a_resume_at_the_endpoint_is_no_failure_for_its_dependencies(face: str) -> None:
    """What stands after their `yield` runs: a resume that succeeds does not look like an exception to a session."""
    guarded = Guarded(face)
    async with running(guarded.app) as client:
        _, run = await guarded.open(client)
        first_id = (await _ids(client))[0]
        run.finish()
        follower = client.start("GET", "/events?chat=c-1&key=sesame", headers={"Last-Event-ID": first_id})
        await follower.rest()
        await follower.served()
        await until(lambda: guarded.closed == 2, "the close of both requests' dependencies")
    assert guarded.seen == []


async def test_the_dependencies_of_the_route_run_before_the_handle() -> None:
    """`dependencies=[...]` of a route or router come first: the handle may be the endpoint's only parameter."""
    resumable = make(stream_id=chat_id)
    made = Stage()
    app = made.app
    app.include_router(resumable.router)

    def auth(key: Annotated[str, Query()] = "") -> None:
        if key != "sesame":
            raise HTTPException(401, "who are you?")

    @app.get("/events", dependencies=[Depends(auth)])
    async def events(stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
        return stream(StreamingResponse(made.new_run().frames(sse), media_type="text/event-stream"))

    async with running(app) as client:
        exchange = client.start("GET", "/events?chat=c-1&key=sesame")
        run = await made.run()
        run.put("one", "two")
        run.finish()
        first_id = parse_events(await exchange.rest())[0].id
        refused = await client.get("/events?chat=c-1&key=wrong", headers={"Last-Event-ID": first_id})
        resumed = await client.get("/events?chat=c-1&key=sesame", headers={"Last-Event-ID": first_id})
    assert refused.status == 401
    assert data_of(resumed.body) == ["two"]
    assert len(made.runs) == 1


@every_face
async def test_an_empty_last_event_id_is_no_resume(face: str) -> None:
    """A header without a value starts the stream."""
    guarded = Guarded(face)
    async with running(guarded.app) as client:
        exchange = client.start("GET", "/events?chat=c-1&key=sesame", headers={"Last-Event-ID": ""})
        run = await guarded.made.run()
        run.put("one")
        run.finish()
        assert data_of(await exchange.rest()) == ["one"]


@both_specs
async def test_a_post_may_resume_too(spec: str) -> None:
    """A `fetch` client that repeats its POST with `Last-Event-ID` resumes, and pays once."""
    made = stage("decorator")
    async with running(made.app, spec_version=spec) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        exchange.disconnect()
        run.put("two")
        run.finish()
        await run.wait_closed()
        one = parse_events((await client.get("/v1/stream/chat-1")).body)[0].id
        resumed = await made.post(client, "chat-1", headers={"Last-Event-ID": one}).reply()
    assert data_of(resumed.body) == ["two"]
    assert len(made.runs) == 1


async def test_the_owner_is_checked_on_a_resume_at_the_endpoint() -> None:
    """A stranger who resumes by the endpoint's URL finds nothing."""

    async def owner(user: Annotated[str | None, Header()] = None) -> str | None:
        return user

    made = stage("decorator", owner=owner)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one", headers={"User": "ann"})
        run.finish()
        body = await exchange.rest()
        one = parse_events(body)[0].id
        foreign = await made.post(client, "chat-1", headers={"Last-Event-ID": one, "User": "bob"}).reply()
    assert (foreign.status, foreign.code) == (404, "stream_not_found")


async def test_many_starts_of_one_id_in_a_row_each_begin_an_epoch() -> None:
    """A conversation is one id and many answers."""
    made = stage("decorator")
    epochs = set()
    async with running(made.app) as client:
        for number in range(10):
            exchange, run = await made.begin(client, "chat-1", f"answer {number}")
            run.finish()
            body = await exchange.rest()
            epochs.add((await exchange.head()).headers["x-stream-epoch"])
            assert data_of(body) == [f"answer {number}"]
            assert (await client.get("/v1/stream/chat-1")).body == body
    assert len(epochs) == 10
    assert asyncio.get_running_loop().is_running()
