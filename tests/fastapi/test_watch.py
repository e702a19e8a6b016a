"""POST /streams/watch, the push twin of the lookup."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

from fastapi_resumable import MemoryStore, Resumable, StreamPending
from fastapi_resumable._run import watch as watching
from fastapi_resumable._run.manager import StreamManager
from fastapi_resumable.models import ResumableStreamItem
from tests.support.apps.player import Player, fail, send, unique, wait
from tests.support.asgi import Client, Exchange, bounded, parse_events, running, settle, until
from tests.support.life_apps import make, stage
from tests.support.rawhttp import Response
from tests.support.server import Server, serve

ONE = send(b"data: one\n\n")


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", http=request.param, options={"ping": 60, "owned": True}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port, [("x-user", "alice")]) as opened:
        yield opened


@pytest.fixture
async def stranger(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port, [("x-user", "bob")]) as opened:
        yield opened


def body_of(*ids: str) -> bytes:
    return json.dumps({"conversation_ids": ids}).encode()


async def watch(player: Player, *ids: str) -> Response:
    """Begin to watch; returns when the head has come."""
    return await player.open_request("POST", "/v1/streams/watch", body=body_of(*ids))


async def told(response: Response, count: int = 1) -> list[str]:
    """The next `count` events: what happened to which stream."""
    return [f"{item['conversation_id']} {item['status']}" for item in await items(response, count)]


async def items(response: Response, count: int = 1) -> list[dict[str, Any]]:
    """The items of the next `count` events."""
    found = []
    for _ in range(count):
        (event,) = parse_events(await response.read_until(b"\n\n"))
        item = event.json()
        assert event.event == f"stream.{item['status']}"
        assert event.id == ""
        found.append(item)
    return found


async def test_a_watch_begins_with_the_current_state(player: Player) -> None:
    """One event for each stream that a lookup shows, with the lookup's item."""
    done, live, unknown = unique("done"), unique("live"), unique("unknown")
    await player.record(done, ONE)
    await player.post(live, ONE, wait(live))
    await player.waits_at(live)
    response = await watch(player, live, done, unknown)
    assert await items(response, 2) == await player.lookup(live, done, unknown)
    assert (await told(await watch(player, done, done)))[0] == f"{done} completed"


async def test_a_watch_is_an_event_stream_that_is_not_cached(player: Player) -> None:
    """Its headers keep caches and buffering proxies off."""
    response = await watch(player, unique("any"))
    assert response.status == 200
    assert (response.header("content-type") or "").startswith("text/event-stream")
    assert response.header("cache-control") == "no-store, no-transform"
    assert response.header("x-accel-buffering") == "no"
    assert response.header("content-length") is None


async def test_a_stream_is_watched_from_its_request_to_its_end(player: Player) -> None:
    """Queued, in progress, completed: also one that was not there before."""
    name = unique("life")
    response = await watch(player, name)
    live = await player.post(name, ONE, wait(name))
    first = await items(response)
    if first[0]["status"] == "queued":
        first = await items(response)
    assert first[0]["status"] == "in_progress"
    assert first[0]["epoch"] == live.header("x-stream-epoch")
    await player.open(name)
    assert await items(response) == await player.lookup(name)


async def test_what_a_watch_tells_a_lookup_shows(player: Player) -> None:
    """Failed, completed after it, stopped: each is told with the bytes that there are."""
    name = unique("ends")
    response = await watch(player, name)
    failed = await player.record(name, ONE, fail())
    last = await until_status(response, "failed")
    assert last["total_bytes"] == len(failed.body)
    assert last["is_done"] is True
    await player.post(name, ONE, wait(name))
    await until_status(response, "in_progress")
    await player.stop(name)
    assert (await until_status(response, "cancelled"))["completed_at"] > 0


async def until_status(response: Response, status: str) -> dict[str, Any]:
    """Read on to the next item with a status."""
    while (item := (await items(response))[0])["status"] != status:
        pass
    return item


async def test_a_watch_shows_a_refused_request_as_failed(player: Player) -> None:
    """So that a spinner, which `queued` has started, stops."""
    name = unique("refused")
    response = await watch(player, name)
    pending = asyncio.ensure_future(player.record(name, before=[wait(name), ["http_error", 403]]))
    assert await told(response) == [f"{name} queued"]
    await player.open(name)
    assert (await pending).status == 403
    assert await told(response) == [f"{name} failed"]
    assert await player.lookup(name) == []


async def test_a_watch_shows_the_epoch_of_a_stream_that_replaces_another(player: Player) -> None:
    """The latest state of an id counts: that the older stream was cancelled at that moment may go unsaid."""
    name = unique("replaced")
    older = await player.post(name, ONE, wait(name))
    response = await watch(player, name)
    assert (await until_status(response, "in_progress"))["epoch"] == older.header("x-stream-epoch")
    newer = await player.post(name, ONE, wait(name))
    assert (await until_status(response, "in_progress"))["epoch"] == newer.header("x-stream-epoch")


async def test_variants_are_watched_with_their_id(player: Player) -> None:
    """Those that are there, and those that come; an id that merely begins alike is another."""
    name = unique("variants")
    await player.record(f"{name}::now", ONE)
    response = await watch(player, name)
    assert await told(response) == [f"{name}::now completed"]
    await player.record(f"{name}s", ONE)
    await player.record(f"{name}::later", ONE)
    assert (await until_status(response, "completed"))["conversation_id"] == f"{name}::later"


async def test_the_streams_of_others_stay_hidden(player: Player, stranger: Player) -> None:
    """Another owner's stream of that name is not told of; nor are one's own that were not asked for."""
    name = unique("owned")
    response = await watch(player, name)
    await stranger.record(name, ONE)
    await player.record(unique("other"), ONE)
    await player.record(name, ONE)
    item = await until_status(response, "completed")
    assert item == (await player.lookup(name))[0]
    assert response.body.count(b"stream.completed") == 1


async def test_a_bad_body_is_an_invalid_request(player: Player) -> None:
    """As for a lookup."""
    many = json.dumps({"conversation_ids": [str(number) for number in range(1001)]}).encode()
    for body in (None, b"", b"{", b"{}", b'{"conversation_ids": "a"}', b'{"conversation_ids": [1]}', many):
        reply = await player.fetch("POST", "/v1/streams/watch", body=body)
        assert (reply.status, json.loads(reply.body)["detail"]["code"]) == (400, "invalid_request")


async def test_a_watch_ends_when_the_server_shuts_down() -> None:
    """After it has told how the last stream ended; the process goes, and a new watch is refused."""
    options = {"ping": 60, "shutdown_grace": 0.2}
    with serve("tests.support.apps.scripted:app", options=options) as server:
        async with Player(server.port) as player:
            await player.post("chat", ONE, ["forever"])
            response = await watch(player, "chat")
            await until_status(response, "in_progress")
            idle = await watch(player, "nothing")
            server.terminate()
            assert (await until_status(response, "interrupted"))["is_done"] is True
            await response.read_all()
            await idle.read_all()
            assert response.clean
            assert idle.clean
        assert server.wait() in (0, -15)
        assert "Traceback" not in server.output


# In process.


def begin_watch(client: Client, *ids: str, **options: Any) -> Exchange:
    return client.start("POST", "/v1/streams/watch", json={"conversation_ids": ids}, **options)


def states(body: bytes) -> list[str]:
    """What a body tells."""
    return [f"{event.json()['conversation_id']} {event.event}" for event in parse_events(body)]


async def test_a_silent_watch_is_kept_alive() -> None:
    """With a comment line at once, and then every `ping` seconds."""
    made = stage("decorator", ping=0.01)
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat-1")
        assert await exchange.read_until(b": ping\n: ping\n: ping\n") == b": ping\n: ping\n: ping\n"


async def test_without_ping_a_watch_is_silent_after_its_beginning() -> None:
    """`ping=0` means never; the first line is there for proxies that hold a head back until its body begins."""
    made = stage("decorator", ping=0)
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat-1")
        await exchange.read_until(b": ping\n")
        _, run = await made.begin(client, "chat-1")
        run.finish()
        await exchange.read_until(b"stream.completed")
        assert exchange.received_bytes


async def test_a_slow_client_gets_the_latest_state_of_each_stream() -> None:
    """What it missed is one event for each stream, not a queue of all that happened."""
    made = stage("decorator", ping=60)
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat", "done")
        await exchange.read_until(b": ping\n")
        exchange.stall()
        post, run = await made.begin(client, "done")
        run.finish()
        await post.served()
        for _ in range(20):
            post, run = await made.begin(client, "chat")
            run.finish()
            await post.served()
        last, _ = await made.begin(client, "chat", "last")
        await settle()
        exchange.resume()
        body = await exchange.read_until(b"stream.in_progress")
        body += await exchange.read_until(b"\n\n")
    seen = [event.json() for event in parse_events(body)]
    # The first was on its way when the client stopped reading.
    assert [f"{item['conversation_id']} {item['status']}" for item in seen[1:]] == [
        "done completed",
        "chat in_progress",
    ]
    assert seen[-1]["epoch"] == (await last.head()).headers["x-stream-epoch"]


async def test_a_client_that_takes_nothing_is_disconnected() -> None:
    """After `stall_timeout`, and uncleanly, so that the server closes the connection."""
    made = stage("decorator", stall_timeout=0.05)
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat-1")
        await exchange.read_until(b": ping\n")
        exchange.stall()
        await made.begin(client, "chat-1")
        await exchange.served()
        assert not exchange.clean
        assert type(exchange.error).__name__ == "StreamBroken"
        assert made.resumable is not None
        assert_nobody_watches(made.resumable)


async def test_a_client_that_is_too_far_behind_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variants of an id are without number; what is kept for one client is not."""
    monkeypatch.setattr(watching, "MAX_BEHIND", 3)
    made = stage("decorator", ping=60)
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat")
        await exchange.read_until(b": ping\n")
        exchange.stall()
        for number in range(5):
            await made.begin(client, f"chat::{number}")
        await exchange.served()
        assert type(exchange.error).__name__ == "StreamBroken"


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_nothing_is_left_of_a_client_that_has_gone(spec_version: str) -> None:
    """While it waits, and while it is being told."""
    made = stage("decorator", ping=60)
    assert made.resumable is not None
    async with running(made.app, spec_version=spec_version) as client:
        waiting, taking = begin_watch(client, "chat"), begin_watch(client, "chat")
        for exchange in (waiting, taking):
            await exchange.read_until(b": ping\n")
        waiting.disconnect()
        await waiting.served()
        taking.stall()
        await made.begin(client, "chat")
        taking.disconnect()
        await taking.served()
        assert waiting.error is taking.error is None
        assert_nobody_watches(made.resumable)


async def test_nothing_is_left_of_a_watch_that_the_server_cancels() -> None:
    """As servers do when their patience with a request is over."""
    made = stage("decorator", ping=60)
    assert made.resumable is not None
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat")
        await exchange.read_until(b": ping\n")
        exchange.cancel()
        await exchange.served()
        assert isinstance(exchange.error, asyncio.CancelledError)
        assert_nobody_watches(made.resumable)


def assert_nobody_watches(resumable: Resumable) -> None:
    manager: StreamManager = resumable.manager
    assert not manager._watches
    assert not manager.store._watchers  # type: ignore[attr-defined]


async def test_a_watch_shows_how_streams_end_at_a_shutdown() -> None:
    """It stays as long as there are streams, and not a moment longer."""
    made = stage("decorator", ping=60, shutdown_grace=30.0)
    assert made.resumable is not None
    async with running(made.app) as client:
        _, run = await made.begin(client, "chat")
        exchange = begin_watch(client, "chat")
        await exchange.read_until(b"\n\n")
        closing = asyncio.ensure_future(made.resumable.shutdown())
        await settle()
        assert not exchange.over
        refused = await begin_watch(client, "chat").reply()
        assert (refused.status, refused.code) == (503, "shutting_down")
        assert "retry-after" in refused.headers
        run.finish()
        assert states(await exchange.rest()) == ["chat stream.completed"]
        assert exchange.clean
        await bounded(closing, "the shutdown")


async def test_a_watch_alone_does_not_hold_a_shutdown_up() -> None:
    """It has no end of its own, so nobody waits for it."""
    made = stage("decorator", ping=60, shutdown_grace=1000.0)
    assert made.resumable is not None
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat")
        await exchange.read_until(b": ping\n")
        await bounded(made.resumable.shutdown(), "the shutdown")
        assert await exchange.rest() == b""
        assert exchange.clean


async def test_a_client_that_does_not_take_the_end_is_disconnected_at_a_shutdown() -> None:
    """After `stop_grace`."""
    made = stage("decorator", ping=60, stop_grace=0.05)
    assert made.resumable is not None
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat")
        await exchange.read_until(b": ping\n")
        exchange.stall()
        await made.begin(client, "chat")
        await bounded(made.resumable.shutdown(), "the shutdown")
        await exchange.served()
        assert not exchange.clean


class SilentStore(MemoryStore):
    """Answers no lookup, as one that is away."""

    asked = 0

    async def lookup(self, _owner: str | None, _ids: Sequence[str]) -> list[ResumableStreamItem]:
        self.asked += 1
        return await asyncio.Event().wait()  # type: ignore[return-value]


async def test_a_watch_whose_store_does_not_answer_is_refused_at_a_shutdown() -> None:
    """It has sent nothing by then, so there is nothing to break off."""
    store = SilentStore()
    made = stage("decorator", ping=60, stop_grace=0.05, store=store)
    assert made.resumable is not None
    async with running(made.app) as client:
        exchange = begin_watch(client, "chat")
        await until(lambda: store.asked == 1, "the lookup")
        await bounded(made.resumable.shutdown(), "the shutdown")
        refused = await exchange.reply()
        assert (refused.status, refused.code) == (503, "shutting_down")


class SlowStore(MemoryStore):
    """Takes its time for a lookup, as a store elsewhere does."""

    def __init__(self) -> None:
        super().__init__()
        self.looked, self.go_on = asyncio.Event(), asyncio.Event()

    async def lookup(self, owner: str | None, ids: Sequence[str]) -> list[ResumableStreamItem]:
        found = await super().lookup(owner, ids)
        self.looked.set()
        await self.go_on.wait()
        return found


async def test_a_change_during_the_first_look_is_not_missed() -> None:
    """What happens meanwhile is newer than what the lookup shows."""
    store = SlowStore()
    made = stage("decorator", ping=60, store=store)
    async with running(made.app) as client:
        post, run = await made.begin(client, "chat")
        exchange = begin_watch(client, "chat")
        await bounded(store.looked.wait(), "the lookup")
        run.finish()
        await post.served()
        store.go_on.set()
        assert states(await exchange.read_until(b"\n\n")) == ["chat stream.completed"]


class LostStore(MemoryStore):
    """Cannot be asked."""

    async def lookup(self, _owner: str | None, _ids: Sequence[str]) -> list[ResumableStreamItem]:
        raise StreamPending


async def test_a_store_that_has_no_answer_is_an_error_before_the_watch_begins() -> None:
    """With the status of the error, for the lookup as well; and nothing is left behind."""
    made = stage("decorator", store=LostStore())
    assert made.resumable is not None
    async with running(made.app) as client:
        refused = await begin_watch(client, "chat").reply()
        assert (refused.status, refused.code) == (503, "stream_pending")
        looked = await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat"]})
        assert (looked.status, looked.code) == (503, "stream_pending")
        assert_nobody_watches(made.resumable)


@pytest.mark.parametrize("how", ["owner", "router"])
@pytest.mark.parametrize("path", ["/v1/streams/watch", "/v1/stream/chat-1", "/ai/chat-1/stream"])
async def test_what_a_dependency_holds_is_given_back_before_the_first_byte(path: str, how: str) -> None:
    """A database session is not held for as long as a client follows a stream: by `owner`, nor by the router's own."""
    held: list[str] = []

    async def session() -> AsyncIterator[str]:
        held.append("session")
        yield "alice"
        held.clear()

    async def owner(name: Annotated[str, Depends(session)]) -> str:
        return name

    resumable = make(ping=60, owner=owner) if how == "owner" else make(ping=60)
    app = FastAPI()
    guard = [Depends(session)] if how == "router" else []
    app.include_router(resumable.router, dependencies=guard)
    app.include_router(resumable.ai_sdk_router, prefix="/ai", dependencies=guard)
    release = asyncio.Event()

    async def words() -> AsyncIterator[str]:
        yield "data: one\n\n"
        await release.wait()

    @app.post("/chat")
    @resumable.stream
    async def chat() -> StreamingResponse:
        return StreamingResponse(words(), media_type="text/event-stream")

    async with running(app) as client:
        first = client.start("POST", "/chat", headers={"X-Conversation-Id": "chat-1"})
        await first.read_until(b"one")
        assert held == []
        method, options = ("POST", {"json": {"conversation_ids": ["chat-1"]}}) if "watch" in path else ("GET", {})
        follower = client.start(method, path, **options)
        await follower.read_until(b"data: ")
        assert held == []
        release.set()


def test_a_watch_is_documented() -> None:
    """Body, item, example and errors, and no 422."""
    app = FastAPI()
    app.include_router(make().router)
    schema = app.openapi()
    operation = schema["paths"]["/v1/streams/watch"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert "conversation_ids" in body["properties"]
    stream = operation["responses"]["200"]["content"]["text/event-stream"]
    names = stream["itemSchema"]["properties"]["event"]["enum"]
    assert names[:3] == ["stream.queued", "stream.in_progress", "stream.completed"]
    assert len(names) == 6
    reference = stream["itemSchema"]["properties"]["data"]["contentSchema"]["$ref"]
    assert reference.split("/")[-1] in schema["components"]["schemas"]
    (example,) = parse_events(stream["example"].encode())
    assert example.event == f"stream.{example.json()['status']}"
    assert {"200", "400", "503", "4XX"} == set(operation["responses"])
