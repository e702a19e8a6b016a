"""Shutdown, in process: new streams are refused, live ones finish or are interrupted, and nobody hangs."""

import asyncio

import pytest

from fastapi_resumable import FinishedStream
from tests.support.asgi import bounded, data_of, running, settle, terminal_of, until
from tests.support.life_apps import PLACES, stage

every_face = pytest.mark.parametrize("face", PLACES)


@every_face
async def test_new_streams_are_refused_during_a_shutdown(face: str) -> None:
    """503, a code, and a time to come back; the endpoint does not run."""
    made = stage(face, shutdown_grace=30.0)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        closing = asyncio.ensure_future(made.resumable.shutdown())
        await settle()
        refused = await made.post(client, "chat-2").reply()
        run.finish()
        await exchange.rest()
        await bounded(closing, "the shutdown")
        later = await made.post(client, "chat-3").reply()
    assert (refused.status, refused.code) == (503, "shutting_down")
    assert "retry-after" in refused.headers
    assert (later.status, later.code) == (503, "shutting_down")
    assert len(made.runs) == 1


@every_face
async def test_live_streams_may_finish_within_the_grace(face: str) -> None:
    """They go on, readers read on, and the shutdown is done as soon as they are."""
    made = stage(face, shutdown_grace=30.0)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        closing = asyncio.ensure_future(made.resumable.shutdown())
        await settle()
        assert not closing.done()
        follower = client.start("GET", "/v1/stream/chat-1")
        run.put("two")
        await exchange.read_until(b"two")
        run.finish()
        rest = await exchange.rest()
        assert data_of(await follower.rest()) == ["one", "two"]
        await bounded(closing, "the shutdown")
    assert exchange.clean
    assert terminal_of(b"\n\n" + rest) is None
    assert run.endings == ["finished"]


@every_face
async def test_a_stream_past_the_grace_is_interrupted(face: str) -> None:
    """Its readers get the terminal event and end; its generator's finally runs."""
    made = stage(face, shutdown_grace=0.05)
    records: list[FinishedStream] = []
    made.resumable.on_finish(records.append)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        reader = client.start("GET", "/v1/stream/chat-1")
        await reader.read_until(b"one")
        await bounded(made.resumable.shutdown(), "the shutdown")
        bodies = [await exchange.rest(), await reader.rest()]
        await run.wait_closed()
    for body in bodies:
        end = terminal_of(b"\n\n" + body)
        assert (end.event, end.json()["code"]) == ("error", "interrupted")
    assert [record.status for record in records] == ["interrupted"]
    assert "finished" not in run.endings


@every_face
async def test_the_apps_own_lifespan_shuts_the_streams_down(face: str) -> None:
    """Including the router is enough: with no client left, the lifespan's end interrupts what is live."""
    made = stage(face, shutdown_grace=0.05)
    async with running(made.app) as client:
        _, run = await made.begin(client, "chat-1", "one")
    assert run.closed.is_set()
    assert "finished" not in run.endings


async def test_a_stream_without_readers_may_finish_within_the_grace() -> None:
    """The drain is waited for although its client has gone."""
    made = stage("decorator", shutdown_grace=30.0)
    records: list[FinishedStream] = []
    made.resumable.on_finish(records.append)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        await settle()
        closing = asyncio.ensure_future(made.resumable.shutdown())
        await settle()
        assert not closing.done()
        run.put("two")
        run.finish()
        await bounded(closing, "the shutdown")
    assert [record.status for record in records] == ["completed"]
    assert data_of(b"".join(records[0].iter_bytes())) == ["one", "two"]


async def test_a_queued_request_is_answered_by_the_shutdown() -> None:
    """An endpoint that never begins does not keep the process alive, and its client is told."""
    made = stage("decorator", gated=True, shutdown_grace=0.05)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        await settle()
        await bounded(made.resumable.shutdown(), "the shutdown")
        reply = await exchange.reply()
        await until(lambda: bool(run.endings), "the endpoint's cancellation")
    assert (reply.status, reply.code) == (503, "shutting_down")


async def test_a_producer_that_ignores_its_cancellation_does_not_hold_the_shutdown_up() -> None:
    """A generator in a thread cannot be interrupted: its readers end all the same, and the shutdown is over in time."""
    made = stage("decorator", "sync generator", shutdown_grace=0.05, stop_grace=0.05)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await bounded(made.resumable.shutdown(), "the shutdown")
        end = terminal_of(await exchange.rest())
        assert end.json()["code"] == "interrupted"
        run.finish()
        await run.wait_closed()


async def test_shutting_down_twice_is_as_good_as_once() -> None:
    """By hand and by the lifespan, at the same time or one after the other."""
    made = stage("decorator", shutdown_grace=0.05)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await bounded(asyncio.gather(made.resumable.shutdown(), made.resumable.shutdown()), "both shutdowns")
        await made.resumable.shutdown()
        body = await exchange.rest()
        await run.wait_closed()
    assert body.count(b"event: error") == 1


async def test_finished_streams_can_be_replayed_during_a_shutdown() -> None:
    """Refused are new streams only."""
    made = stage("decorator", shutdown_grace=30.0)
    async with running(made.app) as client:
        first, done = await made.begin(client, "chat-1", "one")
        done.finish()
        body = await first.rest()
        second, run = await made.begin(client, "chat-2", "one")
        closing = asyncio.ensure_future(made.resumable.shutdown())
        await settle()
        replay = await client.get("/v1/stream/chat-1")
        stop = await client.delete("/v1/stream/chat-2")
        await second.rest()
        await bounded(closing, "the shutdown")
        await run.wait_closed()
    assert replay.body == body
    assert stop.status == 204


async def test_on_finish_hooks_are_awaited_by_the_shutdown() -> None:
    """The answer that was interrupted is persisted before the process exits."""
    made = stage("decorator", shutdown_grace=5.0)
    written: list[str] = []

    @made.resumable.on_finish
    async def persist(record: object) -> None:
        await settle(20)
        written.append("written")

    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        run.finish()
        await exchange.rest()
        await bounded(made.resumable.shutdown(), "the shutdown")
        assert written == ["written"]
