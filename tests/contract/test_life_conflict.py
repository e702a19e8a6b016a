"""Conflict: what a second POST on a live id does, under each rule, and with an Idempotency-Key."""

import asyncio
from typing import Any

import pytest

from tests.support.asgi import Client, Exchange, data_of, parse_events, running, settle, terminal_of, until
from tests.support.life_apps import PLACES, Stage, stage
from tests.support.params import spread

every_face = pytest.mark.parametrize("face", PLACES)
rules = pytest.mark.parametrize("rule", ["replace", "attach", "reject"])


def key(value: str) -> dict[str, str]:
    """The header that makes a retry safe."""
    return {"Idempotency-Key": value}


# -- one after the other ------------------------------------------------------------------------------------------


@every_face
async def test_replace_stops_the_old_stream_and_begins_a_new_epoch(face: str) -> None:
    """The old readers are told; the old generator's finally runs; the id is the new stream's."""
    made = stage(face)
    async with running(made.app) as client:
        first, old = await made.begin(client, "chat-1", "old")
        reader = client.start("GET", "/v1/stream/chat-1")
        await reader.read_until(b"old")
        second, new = await made.begin(client, "chat-1", "new")
        bodies = [await first.rest(), await reader.rest()]
        await old.wait_closed()
        new.finish()
        body = await second.rest()
        replay = await client.get("/v1/stream/chat-1")
    for told in bodies:
        end = terminal_of(told)
        assert (end.event, end.json()["code"]) == ("cancelled", "replaced")
    assert first.clean
    assert "finished" not in old.endings
    assert data_of(body) == ["new"]
    assert replay.body == body
    assert (await first.head()).headers["x-stream-epoch"] != (await second.head()).headers["x-stream-epoch"]


@every_face
async def test_replace_leaves_the_old_stream_alone_until_the_new_one_begins(face: str) -> None:
    """While the new request waits for its endpoint, readers of the old one read on."""
    made = stage(face, gated=True)
    async with running(made.app) as client:
        first = made.post(client, "chat-1")
        old = await made.run(0)
        old.admitted.set()
        old.put("one")
        await first.read_until(b"one")
        second = made.post(client, "chat-1")
        new = await made.run(1)
        await settle()
        old.put("two")
        await first.read_until(b"two")
        replay = client.start("GET", "/v1/stream/chat-1")
        await replay.read_until(b"two")
        assert old.endings == []
        new.admitted.set()
        new.put("new")
        await second.read_until(b"new")
        await old.wait_closed()
        new.finish()


@every_face
async def test_attach_follows_the_running_stream_from_its_start(face: str) -> None:
    """The second POST reads the first one's bytes, and the endpoint does not run again."""
    made = stage(face, on_conflict="attach")
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one")
        await first.read_until(b"one")
        second = made.post(client, "chat-1")
        await second.read_until(b"one")
        first.disconnect()
        run.put("two")
        run.finish()
        await second.rest()
        replay = await client.get("/v1/stream/chat-1")
        third, again = await made.begin(client, "chat-1", "new")
        again.finish()
        await third.rest()
    received = b"".join(m.get("body", b"") for m in second.messages)
    assert received == replay.body
    assert data_of(received) == ["one", "two"]
    assert len(made.runs) == 2


@every_face
async def test_attach_to_a_finished_stream_begins_a_new_one(face: str) -> None:
    """The rule is about live streams; a new question after the answer is a new stream."""
    made = stage(face, on_conflict="attach")
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one")
        run.finish()
        await first.rest()
        second, again = await made.begin(client, "chat-1", "two")
        again.finish()
        assert data_of(await second.rest()) == ["two"]


@every_face
async def test_reject_answers_409_and_touches_nothing(face: str) -> None:
    """The live stream goes on; after its end the id is free."""
    made = stage(face, on_conflict="reject")
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one")
        refused = await made.post(client, "chat-1").reply()
        run.put("two")
        run.finish()
        body = await first.rest()
        second, again = await made.begin(client, "chat-1", "new")
        again.finish()
        await second.rest()
    assert (refused.status, refused.code) == (409, "stream_exists")
    assert data_of(body) == ["one", "two"]
    assert len(made.runs) == 2


# -- at the same instant ------------------------------------------------------------------------------------------


async def _two(made: Stage, client: Client, **options: Any) -> tuple[Exchange, Exchange]:
    """Two POSTs on one id that both wait: for their endpoint, or for each other."""
    first = made.post(client, "chat-1", **options)
    await made.run(0)
    second = made.post(client, "chat-1", **options)
    await settle()
    return first, second


@spread(every_face, pytest.mark.parametrize("order", [(0, 1), (1, 0)]))
async def test_two_posts_at_once_under_replace_leave_one_stream(face: str, order: tuple[int, int]) -> None:
    """Whichever endpoint answers first, the later request wins, and the earlier client is told."""
    made = stage(face, gated=True)
    async with running(made.app) as client:
        exchanges = await _two(made, client)
        await made.run(1)
        for number in order:
            run = made.runs[number]
            run.admitted.set()
            run.put(f"from {number}")
            await until(lambda number=number: exchanges[number].head_now is not None, "an answer")  # type: ignore[misc]
        made.runs[1].put("more")
        made.runs[1].finish()
        early = await exchanges[0].reply()
        late = await exchanges[1].reply()
        replay = await client.get("/v1/stream/chat-1")
        if made.runs[0].started.is_set():
            await made.runs[0].wait_closed()
    assert late.status == 200
    assert data_of(late.body) == ["from 1", "more"]
    assert replay.body == late.body
    assert "finished" not in made.runs[0].endings
    if order == (0, 1):
        end = terminal_of(early.body)
        assert early.status == 200
        assert end.json()["code"] == "replaced"
    else:
        assert (early.status, early.code) == (409, "stream_replaced")


@spread(every_face, pytest.mark.parametrize("order", [(0, 1), (1, 0)]))
async def test_two_posts_at_once_under_attach_run_the_endpoint_once(face: str, order: tuple[int, int]) -> None:
    """Both clients read the same bytes, in whichever order they read."""
    made = stage(face, gated=True, on_conflict="attach")
    async with running(made.app) as client:
        exchanges = await _two(made, client)
        run = await made.run(0)
        assert len(made.runs) == 1
        run.admitted.set()
        run.put("one", "two")
        run.finish()
        bodies = {}
        for number in order:
            reply = await exchanges[number].reply()
            assert reply.status == 200
            bodies[number] = reply.body
    assert bodies[0] == bodies[1]
    assert data_of(bodies[0]) == ["one", "two"]
    assert len(made.runs) == 1


@every_face
async def test_two_posts_at_once_under_reject_let_one_through(face: str) -> None:
    """The second is refused at once: it does not wait for the first to begin."""
    made = stage(face, gated=True, on_conflict="reject")
    async with running(made.app) as client:
        first, second = await _two(made, client)
        refused = await second.reply()
        run = await made.run(0)
        run.admitted.set()
        run.put("one")
        run.finish()
        reply = await first.reply()
    assert (refused.status, refused.code) == (409, "stream_exists")
    assert data_of(reply.body) == ["one"]
    assert len(made.runs) == 1


@rules
async def test_a_hundred_posts_at_once_leave_one_stream(rule: str) -> None:
    """A stampede obeys the rule: one live stream, every client answered."""
    # On a busy machine the hundred take longer to come in than `pending_timeout` allows by default.
    made = stage("decorator", gated=True, on_conflict=rule, pending_timeout=60.0)
    async with running(made.app) as client:
        exchanges = [made.post(client, "chat-1") for _ in range(100)]
        await settle(400)
        for run in made.runs:
            run.admitted.set()
            run.put("one")
            run.finish()
        replies = await asyncio.gather(*(exchange.reply() for exchange in exchanges))
        replay = await client.get("/v1/stream/chat-1")
    statuses = sorted({reply.status for reply in replies})
    match rule:
        case "replace":
            assert set(statuses) <= {200, 409}
            assert len(made.runs) == 100
        case "attach":
            assert statuses == [200]
            assert len(made.runs) == 1
            assert {reply.body for reply in replies} == {replay.body}
        case "reject":
            assert [reply.status for reply in replies].count(200) == 1
            assert statuses == [200, 409]
            assert len(made.runs) == 1


async def test_a_waiter_gets_its_turn_when_the_first_request_fails() -> None:
    """Attached to a request that never begins, a client is not left hanging."""
    made = stage("decorator", gated=True, on_conflict="attach")
    async with running(made.app) as client:
        first, second = await _two(made, client)
        made.runs[0].fail(KeyError("no"))
        made.runs[0].admitted.set()
        assert (await first.reply()).status == 500
        await until(lambda: second.over or len(made.runs) == 2, "an answer or a run for the second")
        if len(made.runs) == 2:
            made.runs[1].admitted.set()
            made.runs[1].put("one")
            made.runs[1].finish()
        reply = await second.reply()
    assert reply.status in (200, 500)


# -- the idempotency key ------------------------------------------------------------------------------------------


@spread(every_face, rules)
async def test_a_repeated_key_attaches_to_the_running_stream(face: str, rule: str) -> None:
    """Whatever the rule, a retry with the same key pays once."""
    made = stage(face, on_conflict=rule)
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one", headers=key("k-1"))
        await first.read_until(b"one")
        first.disconnect()
        retry = made.post(client, "chat-1", headers=key("k-1"))
        await retry.read_until(b"one")
        run.put("two")
        run.finish()
        await retry.rest()
        replay = await client.get("/v1/stream/chat-1")
    assert b"".join(m.get("body", b"") for m in retry.messages) == replay.body
    assert data_of(replay.body) == ["one", "two"]
    assert len(made.runs) == 1


@spread(every_face, rules, pytest.mark.parametrize("fails", [False, True]))
async def test_a_repeated_key_replays_the_finished_stream(face: str, rule: str, fails: bool) -> None:
    """A retry is safe just after the end, too; and no second attempt at work that has failed."""
    made = stage(face, on_conflict=rule)
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one", headers=key("k-1"))
        if fails:
            run.fail(ValueError("no"))
        else:
            run.finish()
        body = await first.rest()
        retry = await made.post(client, "chat-1", headers=key("k-1")).reply()
    assert retry.status == 200
    assert retry.body == body
    assert len(made.runs) == 1


@every_face
async def test_another_key_is_another_request(face: str) -> None:
    """A new question on the id, with a key of its own, begins a new epoch."""
    made = stage(face)
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one", headers=key("k-1"))
        run.finish()
        await first.rest()
        second, again = await made.begin(client, "chat-1", "two", headers=key("k-2"))
        again.finish()
        await second.rest()
        third, last = await made.begin(client, "chat-1", "three", headers=key("k-1"))
        last.finish()
        assert data_of(await third.rest()) == ["three"]
    assert len(made.runs) == 3


@every_face
async def test_no_key_never_repeats_a_stream_without_one(face: str) -> None:
    """Two requests without a key are two questions."""
    made = stage(face)
    async with running(made.app) as client:
        for number in range(2):
            exchange, run = await made.begin(client, "chat-1", f"answer {number}")
            run.finish()
            assert data_of(await exchange.rest()) == [f"answer {number}"]


@spread(every_face, rules)
async def test_two_posts_at_once_with_one_key_run_the_endpoint_once(face: str, rule: str) -> None:
    """A client library that sends its retry before the first answer has begun."""
    made = stage(face, gated=True, on_conflict=rule)
    async with running(made.app) as client:
        exchanges = await _two(made, client, headers=key("k-1"))
        assert len(made.runs) == 1
        run = made.runs[0]
        run.admitted.set()
        run.put("one")
        run.finish()
        replies = [await exchange.reply() for exchange in exchanges]
    assert [reply.status for reply in replies] == [200, 200]
    assert replies[0].body == replies[1].body
    assert len(made.runs) == 1


async def test_a_key_does_not_outlive_a_stop() -> None:
    """A stopped stream is gone; the same key starts afresh."""
    made = stage("decorator")
    async with running(made.app) as client:
        _, run = await made.begin(client, "chat-1", "one", headers=key("k-1"))
        await client.delete("/v1/stream/chat-1")
        await run.wait_closed()
        second, again = await made.begin(client, "chat-1", "two", headers=key("k-1"))
        again.finish()
        assert data_of(await second.rest()) == ["two"]


async def test_replay_routes_never_start_work() -> None:
    """GET, HEAD, lookup and DELETE on an unknown id run nothing."""
    made = stage("decorator")
    async with running(made.app) as client:
        for method, url in [
            ("GET", "/v1/stream/chat-1"),
            ("GET", "/v1/stream?conv_id=chat-1"),
            ("HEAD", "/v1/stream/chat-1"),
            ("DELETE", "/v1/stream/chat-1"),
        ]:
            await client.request(method, url, headers=key("k-1"))
        await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})
        await settle()
    assert made.runs == []


@every_face
async def test_an_attached_client_that_leaves_takes_nothing_with_it(face: str) -> None:
    """Neither the first nor a later follower owns the producer."""
    made = stage(face, on_conflict="attach")
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one")
        second = made.post(client, "chat-1")
        await second.read_until(b"one")
        second.disconnect()
        await second.served()
        run.put("two")
        await first.read_until(b"two")
        run.finish()
        await first.rest()
        events = parse_events((await client.get("/v1/stream/chat-1")).body)
    assert [event.data for event in events] == ["one", "two"]
