"""Retention, end and limits: how long a stream stays, who hears of its end, how many there may be."""

import asyncio
import logging
from typing import Annotated, Any

import pytest
from fastapi import Header

from fastapi_resumable import FinishedStream, ResumableStatus
from tests.support.asgi import Client, bounded, data_of, parse_events, running, settle, until
from tests.support.life_apps import ID, PLACES, Clock, Run, Stage, memory_store, stage

every_face = pytest.mark.parametrize("face", PLACES)


async def finished(made: Stage, client: Client, stream_id: str, *values: str) -> bytes:
    """A stream that has completed; its bytes."""
    exchange, run = await made.begin(client, stream_id, *values)
    run.finish()
    body = await exchange.rest()
    await exchange.served()
    return body


# -- retention ----------------------------------------------------------------------------------------------------


@every_face
async def test_a_finished_stream_stays_for_the_retention_and_then_is_gone(face: str) -> None:
    """Until the last second it is replayed; after it, 404, and lookups do not know it."""
    clock = Clock()
    made = stage(face, store=memory_store(clock), retention=60.0)
    async with running(made.app) as client:
        body = await finished(made, client, "chat-1", "one")
        clock.advance(59.0)
        replay = await client.get("/v1/stream/chat-1")
        clock.advance(2.0)
        gone = await client.get("/v1/stream/chat-1")
        found = await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})
    assert replay.body == body
    assert (gone.status, gone.code) == (404, "stream_not_found")
    assert found.json() == []


@every_face
async def test_retention_never_counts_while_a_stream_is_live(face: str) -> None:
    """A silent hour, then the rest: nothing was lost, whether or not somebody was reading."""
    clock = Clock()
    made = stage(face, store=memory_store(clock), retention=60.0)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        clock.advance(3600.0)
        live = client.start("GET", "/v1/stream/chat-1")
        await live.read_until(b"one")
        clock.advance(3600.0)
        run.put("two")
        await live.read_until(b"two")
        run.finish()
        await live.rest()
        clock.advance(59.0)
        replay = await client.get("/v1/stream/chat-1")
    assert data_of(replay.body) == ["one", "two"]


async def test_a_queued_stream_does_not_expire() -> None:
    """An endpoint that thinks for an hour is found when it begins."""
    clock = Clock()
    made = stage("decorator", gated=True, store=memory_store(clock), retention=60.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        clock.advance(3600.0)
        found = await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})
        run.admitted.set()
        run.put("one")
        run.finish()
        assert data_of(await exchange.rest()) == ["one"]
    assert found.json()[0]["status"] == "queued"


async def test_a_reader_in_mid_replay_is_not_cut_off_by_expiry() -> None:
    """Who has begun to read a finished stream reads it to its end."""
    clock = Clock()
    made = stage("decorator", store=memory_store(clock), retention=60.0)
    async with running(made.app) as client:
        body = await finished(made, client, "chat-1", "one", "two")
        reader = client.start("GET", "/v1/stream/chat-1")
        reader.stall()
        await settle()
        clock.advance(61.0)
        await client.get("/v1/stream/chat-1")
        reader.resume()
        assert await reader.rest() == body
        assert reader.clean


async def test_an_expired_id_can_be_used_again() -> None:
    """A new stream under an old name has nothing of the old one."""
    clock = Clock()
    made = stage("decorator", store=memory_store(clock), retention=60.0)
    async with running(made.app) as client:
        old = await finished(made, client, "chat-1", "old")
        clock.advance(61.0)
        new = await finished(made, client, "chat-1", "new")
        old_id = parse_events(old)[0].id
        resumed = await client.get("/v1/stream/chat-1", headers={"Last-Event-ID": old_id})
    assert data_of(new) == ["new"]
    assert (resumed.status, resumed.code) == (409, "stream_replaced")


async def test_a_stream_expires_without_anybody_asking() -> None:
    """Real time, a tiny retention: memory is given back although no request comes."""
    made = stage("decorator", retention=0.02)
    async with running(made.app) as client:
        await finished(made, client, "chat-1", "one")
        store = made.resumable.store

        await until(lambda: not store._streams, "the expiry")
        assert store._budget.used < 1024, "but for the head, as long as the request's objects have it"


async def test_the_terminal_state_is_part_of_the_log() -> None:
    """Whenever a reader comes within the retention, it learns the end; it is no message that can be missed."""
    clock = Clock()
    made = stage("decorator", store=memory_store(clock), retention=60.0)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        run.fail(ValueError("no"))
        await run.wait_closed()
        await exchange.served()
        for _ in range(3):
            clock.advance(15.0)
            events = parse_events((await client.get("/v1/stream/chat-1")).body)
            assert [event.event for event in events] == ["message", "error"]


# -- on_finish ----------------------------------------------------------------------------------------------------


class Records:
    """A hook that keeps what it got."""

    def __init__(self, made: Stage) -> None:
        self.made = made
        self.got: list[FinishedStream] = []

        @made.resumable.on_finish
        async def keep(record: FinishedStream) -> None:
            self.got.append(record)

    async def first(self) -> FinishedStream:
        """The first record, once it has come."""
        await until(lambda: bool(self.got), "a finished record")
        return self.got[0]


FATES = {
    "completed": ResumableStatus.COMPLETED,
    "failed": ResumableStatus.FAILED,
    "stopped": ResumableStatus.CANCELLED,
    "replaced": ResumableStatus.CANCELLED,
    "interrupted": ResumableStatus.INTERRUPTED,
}


@pytest.mark.parametrize("fate", FATES)
@every_face
async def test_on_finish_hears_of_every_fate(face: str, fate: str) -> None:
    """Completed, failed, stopped, replaced, interrupted: one record each, with all that was said."""

    async def owner(x_user: Annotated[str | None, Header()] = None) -> str | None:
        return x_user

    ann = {"X-User": "ann"}
    made = stage(face, owner=owner)
    records = Records(made)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one", headers=ann)
        epoch = (await exchange.head()).headers["x-stream-epoch"]
        body = await exchange.read_until(b"one")
        match fate:
            case "completed":
                run.finish()
            case "failed":
                run.fail(ValueError("no"))
            case "stopped":
                await client.delete("/v1/stream/chat-1", headers=ann)
            case "replaced":
                await made.begin(client, "chat-1", "other", headers=ann)
            case "interrupted":
                await made.resumable.shutdown()
        body += await exchange.rest()
        record = await records.first()
        await run.wait_closed()
        await settle()
        assert [one.epoch for one in records.got].count(epoch) == 1
    assert (record.id, record.owner, record.epoch) == ("chat-1", "ann", epoch)
    assert record.status == FATES[fate]
    assert record.status_code == 200
    assert record.media_type.startswith("text/event-stream")
    assert dict(record.headers)["content-type"].startswith("text/event-stream")
    assert record.started_at <= record.completed_at
    assert record.started_at > 1_700_000_000
    assert b"".join(record.iter_bytes()) == body
    assert record.total_bytes == len(body)
    assert record.dropped_bytes == 0
    assert record.head_dropped is False


async def test_a_finished_record_has_its_events() -> None:
    """`iter_events` splits them, to persist an answer without a parser of one's own."""
    made = stage("decorator")
    records = Records(made)
    async with running(made.app) as client:
        body = await finished(made, client, "chat-1", "one", "two")
        record = await records.first()
    events = list(record.iter_events())
    assert len(events) == 2
    assert len(list(record.iter_events())) == 2, "it can be read more than once"
    assert [getattr(event, "data", event) for event in events] in (["one", "two"], [b"one", b"two"]) or b"".join(
        bytes(event) for event in events
    ) == body


async def test_a_finished_record_tells_when_its_head_was_dropped() -> None:
    """What is left is the newest `max_stream_bytes`."""
    made = stage("decorator", "bytes", max_stream_bytes=16 * 1024)
    records = Records(made)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "a" * 1024)
        exchange.disconnect()
        run.put(*("b" * 1024 for _ in range(99)))
        run.finish()
        record = await records.first()
        await exchange.served()
    kept = b"".join(record.iter_bytes())
    assert record.head_dropped is True
    assert record.total_bytes == 100 * 1024
    assert record.dropped_bytes == 100 * 1024 - len(kept)
    assert set(kept) == {ord("b")}


async def test_on_finish_is_not_told_of_what_never_began() -> None:
    """A 4xx, a stop while queued: no stream, no record."""
    made = stage("decorator", gated=True)
    records = Records(made)
    async with running(made.app) as client:
        bad = client.start("POST", "/chat", headers={ID: "chat-1", "Content-Type": "application/json"}, body=b"{{")
        assert (await bad.reply()).status == 422
        exchange = made.post(client, "chat-1")
        await made.run()
        await client.delete("/v1/stream/chat-1")
        await exchange.reply()
        await exchange.served()
        await settle()
    assert records.got == []


async def test_a_hook_that_fails_is_logged_and_harmless(caplog: pytest.LogCaptureFixture) -> None:
    """The stream is as complete as without it, and the hooks after it still run."""
    made = stage("decorator")

    @made.resumable.on_finish
    async def broken(record: FinishedStream) -> None:
        raise RuntimeError("disk full")

    records = Records(made)
    with caplog.at_level(logging.ERROR, logger="fastapi_resumable"):
        async with running(made.app) as client:
            body = await finished(made, client, "chat-1", "one")
            await records.first()
            replay = await client.get("/v1/stream/chat-1")
            again = await finished(made, client, "chat-2", "two")
    assert replay.body == body
    assert data_of(again) == ["two"]
    assert any("disk full" in str(record.exc_info and record.exc_info[1]) for record in caplog.records)


async def test_a_hook_may_be_a_plain_function() -> None:
    """Sync code runs too, and what it raises is as harmless; as a decorator, the hook leaves the name usable."""
    made = stage("decorator")
    got: list[str] = []

    def keep(record: FinishedStream) -> None:
        got.append(record.id)
        raise RuntimeError("harmless")

    assert made.resumable.on_finish(keep) is keep

    async with running(made.app) as client:
        await finished(made, client, "chat-1", "one")
        await until(lambda: got == ["chat-1"], "the hook")
        assert (await client.get("/v1/stream/chat-1")).status == 200


async def test_a_slow_hook_holds_up_no_request() -> None:
    """Readers end and new streams begin while the hook is still writing."""
    made = stage("decorator")
    release, entered = asyncio.Event(), asyncio.Event()

    @made.resumable.on_finish
    async def slow(record: FinishedStream) -> None:
        entered.set()
        await release.wait()

    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        run.finish()
        await exchange.rest()
        await bounded(entered.wait(), "the hook")
        replay = await client.get("/v1/stream/chat-1")
        second, again = await made.begin(client, "chat-1", "two")
        again.finish()
        assert data_of(await second.rest()) == ["two"]
        assert data_of(replay.body) == ["one"]
        release.set()


async def test_a_hook_runs_after_the_log_has_ended() -> None:
    """What it reads is the whole stream, terminal event included, and a replay at that time agrees."""
    made = stage("decorator")
    replays: list[bytes] = []
    async with running(made.app) as client:

        @made.resumable.on_finish
        async def compare(record: FinishedStream) -> None:
            replay = await client.get(f"/v1/stream/{record.id}")
            assert replay.body == b"".join(record.iter_bytes())
            replays.append(replay.body)

        body = await finished(made, client, "chat-1", "one")
        await until(lambda: bool(replays), "the hook")
    assert replays == [body]


# -- limits -------------------------------------------------------------------------------------------------------


async def user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """The owner."""
    return x_user


@every_face
async def test_the_server_takes_no_more_than_max_streams(face: str) -> None:
    """One more is refused, with a time to come back; the running ones are not touched; a place freed is a place."""
    made = stage(face, max_streams=2)
    async with running(made.app) as client:
        pairs = [await made.begin(client, f"chat-{number}", "one") for number in range(2)]
        refused = await made.post(client, "chat-2").reply()
        assert len(made.runs) == 2
        for exchange, run in pairs:
            run.put("two")
            await exchange.read_until(b"two")
        pairs[0][1].finish()
        await pairs[0][0].rest()
        await pairs[0][0].served()
        exchange, run = await made.begin(client, "chat-2", "one")
        for one in (run, pairs[1][1]):
            one.finish()
    assert (refused.status, refused.code) == (503, "too_many_streams")
    assert int(refused.headers["retry-after"]) > 0


@every_face
async def test_an_owner_has_no_more_than_max_streams_per_owner(face: str) -> None:
    """429 for the one who has too many; others, and requests without an owner, are not concerned."""
    made = stage(face, owner=user, max_streams_per_owner=1)
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one", headers={"X-User": "ann"})
        refused = await made.post(client, "chat-2", headers={"X-User": "ann"}).reply()
        second, other = await made.begin(client, "chat-2", "one", headers={"X-User": "bob"})
        run.put("two")
        await first.read_until(b"two")
        for one in (run, other):
            one.finish()
        await first.rest()
        await second.rest()
        await first.served()
        third, again = await made.begin(client, "chat-3", "one", headers={"X-User": "ann"})
        again.finish()
        await third.rest()
    assert (refused.status, refused.code) == (429, "too_many_streams")
    assert int(refused.headers["retry-after"]) > 0


async def test_queued_streams_count_against_the_limits() -> None:
    """A stampede that has not begun is a stampede."""
    made = stage("decorator", gated=True, max_streams=1)
    async with running(made.app) as client:
        waiting = made.post(client, "chat-1")
        run = await made.run()
        refused = await made.post(client, "chat-2").reply()
        run.admitted.set()
        run.put("one")
        run.finish()
        assert (await waiting.reply()).status == 200
    assert (refused.status, refused.code) == (503, "too_many_streams")


async def test_attaching_and_replaying_need_no_place() -> None:
    """Limits are for producers; readers come as they like."""
    made = stage("decorator", max_streams=1, on_conflict="attach")
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one")
        second = made.post(client, "chat-1")
        third = client.start("GET", "/v1/stream/chat-1")
        for reader in (second, third):
            await reader.read_until(b"one")
        run.finish()
        for reader in (first, second, third):
            await reader.rest()


async def test_finished_streams_make_room_oldest_first() -> None:
    """Past `max_total_bytes` the oldest answers go early; the newest stay, and live ones always do."""
    made = stage("decorator", "bytes", max_total_bytes=64 * 1024, max_stream_bytes=16 * 1024)
    async with running(made.app) as client:
        live, run = await made.begin(client, "live", "x" * 8192)
        for number in range(12):
            await finished(made, client, f"chat-{number}", "y" * 8192)
        statuses = [(await client.head_status(f"/v1/stream/chat-{number}")) for number in range(12)]
        still = await client.head_status("/v1/stream/live")
        run.put("z")
        await live.read_until(b"z")
        run.finish()
        await live.rest()
    kept = statuses.count(200)
    assert 1 <= kept <= 7
    assert statuses == [404] * (12 - kept) + [200] * kept
    assert still == 200


async def test_a_full_server_refuses_the_new_and_never_kills_the_old() -> None:
    """When live streams alone fill `max_total_bytes`, a new one is refused with a time to come back."""
    made = stage("decorator", "bytes", max_total_bytes=32 * 1024, max_stream_bytes=32 * 1024)
    async with running(made.app) as client:
        live, run = await made.begin(client, "live", "x" * 32_768)
        refused = await made.post(client, "chat-1").reply()
        run.put("z")
        run.finish()
        body = await live.rest()
    assert (refused.status, refused.code) == (503, "too_many_streams")
    assert "retry-after" in refused.headers
    assert len(body) == 32_769


async def test_runs_are_counted_once() -> None:
    """A hundred streams through one place, by every end: the count never leaks."""
    made = stage("decorator", max_streams=1)
    ends: list[Any] = ["finish", "fail", "stop", "leave"]
    async with running(made.app) as client:
        for number in range(100):
            exchange, run = await made.begin(client, "chat-1", "one")
            await _ended(client, exchange, run, ends[number % 4])
        assert len(made.runs) == 100


async def _ended(client: Client, exchange: Any, run: Run, how: str) -> None:
    match how:
        case "finish":
            run.finish()
        case "fail":
            run.fail(ValueError("no"))
        case "stop":
            await client.delete("/v1/stream/chat-1")
        case "leave":
            exchange.disconnect()
            run.finish()
    await run.wait_closed()
    await exchange.served()
