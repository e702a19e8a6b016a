"""The answer to the POST that starts a stream, its variants, and the reasons not to start one."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import (
    Player,
    forever,
    script_body,
    script_headers,
    send,
    unique,
    wait,
)
from tests.support.rawhttp import Reply
from tests.support.server import Server, serve
from tests.support.ssemodel import payloads, types

APP = "tests.support.apps.scripted:app"
ASYNC = [("prefer", "respond-async")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(APP, options={"ping": 60, "pending_timeout": 60}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


def code(reply: Reply) -> str:
    detail = json.loads(reply.body)["detail"]
    assert detail["message"]
    return detail["code"]


async def test_the_answer_and_every_replay_say_which_stream_it_is(player: Player) -> None:
    """Id, epoch, place, and that nobody may store or transform it."""
    name = unique("which")
    first = await player.post(name, send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"))
    await first.read_until(b"\n\n")
    live = await player.follow(name)
    await player.open(name)
    await first.read_all()
    await live.read_all()
    replies = [first, live, await player.replay(name), await player.replay(name, from_=5), await player.head(name)]
    for reply in replies:
        assert reply.header("x-conversation-id") == name
        assert reply.header("x-stream-epoch") == first.header("x-stream-epoch")
        assert reply.header("content-location") == first.header("content-location")
        assert reply.header("cache-control") == "no-store, no-transform"
        assert reply.header("x-accel-buffering") == "no"
    location = first.header("content-location")
    assert location
    assert (await player.fetch("GET", location)).body == first.body


async def test_an_endpoint_may_ask_for_the_request_itself(player: Player) -> None:
    """What the endpoint declares is what it gets, the request included."""
    name = unique("asks")
    body = script_body(send(b"data: one\n\n"))
    reply = await player.fetch("POST", "/asks", script_headers(name), body)
    assert (reply.status, payloads(reply.body)) == (200, ["one"])
    assert (await player.replay(name)).body == reply.body


async def test_refusals_are_not_stored_either(player: Player) -> None:
    """A cache that kept a 404 would hide the stream when it comes."""
    reply = await player.replay(unique("unknown"))
    assert reply.status == 404
    assert "no-store" in (reply.header("cache-control") or "no-store")


async def test_respond_async_answers_202_with_a_place_and_an_item(player: Player) -> None:
    """The generation goes on in the background, and `Location` leads to it."""
    name = unique("async")
    reply = await player.record(name, send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"), headers=ASYNC)
    assert reply.status == 202
    item = json.loads(reply.body)
    assert item["conversation_id"] == name
    assert item["is_done"] is False
    assert set(item) >= {
        "status",
        "epoch",
        "total_bytes",
        "dropped_bytes",
        "started_at",
        "completed_at",
        "content_type",
    }
    location = reply.header("location")
    assert location
    follower = await player.open_request("GET", location)
    assert follower.status == 200
    assert follower.header("x-stream-epoch") == item["epoch"]
    await follower.read_until(b"data: one\n")
    await player.open(name)
    await follower.read_all()
    assert payloads(follower.body) == ["one", "two"]


@pytest.mark.parametrize(
    "value", ["respond-async", "Respond-Async", "respond-async, wait=10", "foo; bar, respond-async"]
)
async def test_a_preference_is_read_as_http_writes_it(player: Player, value: str) -> None:
    """In any case, and beside others."""
    reply = await player.record(unique("prefer"), send(b"data: one\n\n"), headers=[("prefer", value)])
    assert reply.status == 202


@pytest.mark.parametrize("value", ["return=minimal", "respond-asynchronously", "x-respond-async", "wait=5"])
async def test_another_preference_changes_nothing(player: Player, value: str) -> None:
    """The stream is answered as ever."""
    reply = await player.record(unique("other"), send(b"data: one\n\n"), headers=[("prefer", value)])
    assert (reply.status, payloads(reply.body)) == (200, ["one"])


async def test_respond_async_is_answered_though_the_endpoint_is_slow() -> None:
    """After `pending_timeout` the item says `queued`; the stream comes later."""
    name, gate = unique("slow"), unique("gate")
    with serve(APP, options={"ping": 60, "pending_timeout": 0.3}) as server:
        async with Player(server.port) as player:
            reply = await player.record(name, send(b"data: one\n\n"), headers=ASYNC, before=[wait(gate)])
            assert reply.status == 202
            assert json.loads(reply.body)["status"] == "queued"
            await player.open(gate)
            await player.events(until="ended:script")
            location = reply.header("location")
            assert location
            async with asyncio.timeout(60):
                while (replay := await player.fetch("GET", location)).status == 503:
                    pass
    assert payloads(replay.body) == ["one"]


async def test_respond_async_passes_a_refusal_of_the_app_on(player: Player) -> None:
    """What is no stream is not accepted."""
    name = unique("refused")
    reply = await player.record(name, headers=ASYNC, before=[["http_error", 403]])
    assert (reply.status, json.loads(reply.body)) == (403, {"detail": "as the script says"})
    assert (await player.replay(name)).status == 404


async def test_respond_async_without_a_stream_id_is_a_plain_request(player: Player) -> None:
    """No opt-in, no difference."""
    reply = await player.record(None, send(b"data: one\n\n"), headers=ASYNC)
    assert (reply.status, reply.body) == (200, b"data: one\n\n")


async def test_an_idempotency_key_is_that_of_its_stream(player: Player) -> None:
    """The same key on another id is another request."""
    key = [("idempotency-key", "same")]
    one = await player.record(unique("one"), send(b"data: one\n\n"), headers=key)
    two = await player.record(unique("two"), send(b"data: two\n\n"), headers=key)
    assert (payloads(one.body), payloads(two.body)) == (["one"], ["two"])


async def test_without_auto_id_no_id_is_chosen(player: Player) -> None:
    """No stream id, no stream."""
    reply = await player.record(None, send(b"data: one\n\n"))
    assert (reply.status, reply.body) == (200, b"data: one\n\n")
    assert reply.header("x-conversation-id") is None


async def test_a_stream_that_is_replaced_does_not_count_twice() -> None:
    """At the limit, a new POST on the id of a live stream takes its place."""
    with serve(APP, options={"max_streams": 1, "ping": 60}) as server:
        async with Player(server.port) as player:
            name = unique("place")
            live = await player.post(name, send(b"data: one\n\n"), forever())
            await live.read_until(b"\n\n")
            again = await player.record(name, send(b"data: two\n\n"))
            assert (again.status, payloads(again.body)) == (200, ["two"])
            assert types(await live.read_all()) == ["cancelled"]
