"""POST /streams/lookup."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import Player, fail, numbered, send, unique, wait
from tests.support.server import Server, serve

FIELDS = {
    "conversation_id",
    "is_done",
    "total_bytes",
    "started_at",
    "completed_at",
    "status",
    "epoch",
    "dropped_bytes",
    "content_type",
}
BOUND = 65536


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = {"ping": 60, "owned": True, "max_stream_bytes": BOUND}
    with serve("tests.support.apps.scripted:app", options=options) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port, [("x-user", "alice")]) as opened:
        yield opened


@pytest.fixture
async def stranger(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port, [("x-user", "bob")]) as opened:
        yield opened


async def test_an_item_says_what_a_finished_stream_is(player: Player) -> None:
    """Every field, with its type and its meaning."""
    name = unique("finished")
    reply = await player.record(name, send(b"data: one\n\n"))
    (item,) = await player.lookup(name)
    assert set(item) == FIELDS
    assert item["conversation_id"] == name
    assert item["is_done"] is True
    assert item["status"] == "completed"
    assert item["epoch"] == reply.header("x-stream-epoch")
    assert (item["total_bytes"], item["dropped_bytes"]) == (len(reply.body), 0)
    assert item["content_type"] == reply.header("content-type")
    assert 1_500_000_000 < item["started_at"] <= item["completed_at"]


async def test_an_item_says_what_a_live_stream_is(player: Player) -> None:
    """Not done, completed at 0, and the bytes so far."""
    name = unique("live")
    live = await player.post(name, send(b"data: one\n\n"), wait(name))
    seen = await live.read_until(b"\n\n")
    await player.waits_at(name)
    (item,) = await player.lookup(name)
    assert (item["is_done"], item["status"], item["completed_at"]) == (False, "in_progress", 0)
    assert item["total_bytes"] == len(seen)
    assert item["started_at"] > 1_500_000_000
    await player.open(name)
    await live.read_all()
    (after,) = await player.lookup(name)
    assert (after["is_done"], after["status"]) == (True, "completed")
    assert after["started_at"] == item["started_at"]


async def test_an_item_says_what_became_of_a_failed_stream(player: Player) -> None:
    """`failed`, done, and with its terminal event counted."""
    name = unique("failed")
    reply = await player.record(name, send(b"data: one\n\n"), fail())
    (item,) = await player.lookup(name)
    assert (item["is_done"], item["status"], item["total_bytes"]) == (True, "failed", len(reply.body))
    assert item["completed_at"] >= item["started_at"] > 0


async def test_an_item_counts_what_was_dropped(player: Player) -> None:
    """`total_bytes` is the tail, `dropped_bytes` the earliest offset that is left."""
    name = unique("dropped")
    body = (await player.record(name, numbered(100, 2048))).body
    (item,) = await player.lookup(name)
    assert item["total_bytes"] == len(body)
    assert (await player.replay(name, from_=item["dropped_bytes"])).body == body[item["dropped_bytes"] :]


async def test_only_ids_asked_for_are_listed(player: Player) -> None:
    """Unknown ones are left out; those not named stay hidden."""
    named, other = unique("named"), unique("other")
    for name in (named, other):
        await player.record(name, send(b"data: one\n\n"))
    assert [item["conversation_id"] for item in await player.lookup(named, unique("unknown"))] == [named]
    assert await player.lookup() == []
    assert await player.lookup(unique("unknown")) == []
    assert await player.lookup("", " ", "*", "%", "::") == []


async def test_an_id_matches_its_variants(player: Player) -> None:
    """`id` finds `id` and `id::anything`, and nothing that merely begins alike."""
    name = unique("variants")
    kinds = ["", "::llama", "::org/model:7b", "::a::b", "::", ":x", "x", "-::y", "/z", "::é"]
    for kind in kinds:
        await player.record(name + kind, send(b"data: one\n\n"))
    found = {item["conversation_id"] for item in await player.lookup(name)}
    assert found == {name + kind for kind in ("", "::llama", "::org/model:7b", "::a::b", "::", "::é")}
    deeper = {item["conversation_id"] for item in await player.lookup(f"{name}::a")}
    assert deeper == {f"{name}::a::b"}


async def test_a_stream_found_twice_is_listed_once(player: Player) -> None:
    """By an id that is repeated, and by an id and its variant."""
    name = unique("twice")
    await player.record(name, send(b"data: one\n\n"))
    await player.record(f"{name}::v", send(b"data: one\n\n"))
    found = [item["conversation_id"] for item in await player.lookup(name, name, f"{name}::v", name)]
    assert sorted(found) == [name, f"{name}::v"]


async def test_a_foreign_stream_does_not_exist(player: Player, stranger: Player) -> None:
    """In a lookup, a replay, a head: another owner finds nothing, and each has a stream of that name."""
    name = unique("owned")
    mine = await player.record(name, send(b"data: mine\n\n"))
    await player.record(f"{name}::v", send(b"data: mine\n\n"))
    assert await stranger.lookup(name) == []
    assert (await stranger.replay(name)).status == (await stranger.head(name)).status == 404
    assert b'"stream_not_found"' in (await stranger.replay(name)).body
    theirs = await stranger.record(name, send(b"data: theirs\n\n"))
    assert (await player.replay(name)).body == mine.body
    assert (await stranger.replay(name)).body == theirs.body
    assert [item["epoch"] for item in await stranger.lookup(name)] == [theirs.header("x-stream-epoch")]


async def test_a_thousand_ids_may_be_asked_for(player: Player) -> None:
    """One more is refused."""
    name = unique("last")
    await player.record(name, send(b"data: one\n\n"))
    many = [f"x{number}" for number in range(999)]
    assert [item["conversation_id"] for item in await player.lookup(*many, name)] == [name]
    reply = await player.lookup_raw(json.dumps({"conversation_ids": [*many, name, "more"]}).encode())
    assert (reply.status, json.loads(reply.body)["detail"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"{",
        b"null",
        b"[]",
        b'["a"]',
        b'"a"',
        b"{}",
        b'{"conversation_ids": null}',
        b'{"conversation_ids": "a"}',
        b'{"conversation_ids": {"a": 1}}',
        b'{"conversation_ids": [1]}',
        b'{"conversation_ids": [null]}',
        b'{"conversation_ids": [["a"]]}',
        b'{"conversation_ids": ["a", 1]}',
        b'{"conversationIds": ["a"]}',
        b'{"conversation_ids": ["\xff"]}',
        b"conversation_ids=a",
        b"[" * 100_000,
        b'{"conversation_ids": ["a"], "more": [' + b"{}," * 20_000 + b"{}]}",
    ],
    ids=lambda body: repr(body)[:40],
)
async def test_a_bad_body_is_an_invalid_request(player: Player, body: bytes | None) -> None:
    """400 in our own form, not FastAPI's 422, and never 500."""
    reply = await player.lookup_raw(body)
    assert reply.status == 400, reply.body
    detail = json.loads(reply.body)["detail"]
    assert detail["code"] == "invalid_request"
    assert detail["message"]


async def test_a_bad_id_in_a_lookup_finds_nothing_or_is_refused(player: Player) -> None:
    """Too long or with control characters: no such stream can be, and no such request is an internal error."""
    name = unique("beside")
    await player.record(name, send(b"data: one\n\n"))
    for bad in ("x" * 513, "a\0b", "\n", "\ud800"):
        reply = await player.lookup_raw(json.dumps({"conversation_ids": [bad, name]}).encode())
        assert reply.status in {200, 400}, (bad, reply.body)
        if reply.status == 200:
            assert [item["conversation_id"] for item in json.loads(reply.body)] == [name]


async def test_members_that_the_route_does_not_know_are_ignored(player: Player) -> None:
    """A newer client may send more."""
    name = unique("more")
    await player.record(name, send(b"data: one\n\n"))
    reply = await player.lookup_raw(json.dumps({"conversation_ids": [name], "newer": 1}).encode())
    assert [item["conversation_id"] for item in json.loads(reply.body)] == [name]
