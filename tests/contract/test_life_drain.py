"""Drain and Stop: leaving is not stopping, and stopping is what leaving used to be."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from fastapi_resumable import ResumableMiddleware, ResumableStream
from tests.support.asgi import LIMIT, bounded, data_of, running, settle, terminal_of, until
from tests.support.life_apps import ID, PLACES, YIELDS, Run, Stage, app_under, closed, make, sse, stage
from tests.support.params import spread

every_face = pytest.mark.parametrize("face", PLACES)
both_specs = pytest.mark.parametrize("spec", ["2.3", "2.4"])
KINDS = [("decorator", kind) for kind in ("async generator", "sync generator", "sse-starlette")] + [
    ("route_class", kind) for kind in YIELDS
]
every_kind = pytest.mark.parametrize(("face", "kind"), KINDS)


async def _listening(run: Run) -> AsyncIterator[str]:
    """Yields, for each value put, whether the request says that its client has left."""
    try:
        async for _ in run.frames(str):
            yield sse(str(await run.request.is_disconnected()))
    finally:
        with anyio.CancelScope(shield=True):
            run.trace.append(f"disconnected: {await run.request.is_disconnected()}")


def _listening_app(face: str, made: Stage) -> Any:
    async def chat(request: Request) -> Any:
        return StreamingResponse(_listening(made.new_run(request)), media_type="text/event-stream")

    return app_under(face, chat)


asking_faces = pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])


@spread(both_specs, asking_faces)
async def test_the_app_never_sees_the_disconnect(face: str, spec: str) -> None:
    """`request.is_disconnected()` stays false after the client has left, to the end."""
    made = Stage()
    async with running(_listening_app(face, made), spec_version=spec) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run = await made.run()
        run.put("?")
        await exchange.read_until(b"False")
        exchange.disconnect()
        await settle()
        run.put("?", "?")
        run.finish()
        await run.wait_closed()
        await exchange.served()
        replay = await client.get("/v1/stream/chat-1")
    assert data_of(replay.body) == ["False"] * 3


@spread(both_specs, asking_faces)
async def test_the_app_sees_a_disconnect_on_stop(face: str, spec: str) -> None:
    """After DELETE, `request.is_disconnected()` is true where the generator's finally asks."""
    made = Stage()
    async with running(_listening_app(face, made), spec_version=spec) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        run = await made.run()
        run.put("?")
        await exchange.read_until(b"False")
        await client.delete("/v1/stream/chat-1")
        await run.wait_closed()
        await exchange.served()
        await until(lambda: any(note.startswith("disconnected") for note in run.trace), "the generator's finally")
    assert "disconnected: True" in run.trace


async def test_a_stop_is_a_disconnect_first_and_then_a_cancellation() -> None:
    """A raw ASGI app gets `http.disconnect` and may end by itself; only if it does not is it cancelled."""
    seen: list[str] = []
    polite = asyncio.Event()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
            seen.append("disconnect")
            polite.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    resumable = make(stop_grace=0.5)
    app = FastAPI()
    app.include_router(resumable.router)
    app.mount("/raw", inner)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/raw/chat"])
    async with running(app) as client:
        exchange = client.start("POST", "/raw/chat", headers={ID: "chat-1"})
        await exchange.read_until(b"one")
        await client.delete("/v1/stream/chat-1")
        await bounded(polite.wait(), "the disconnect")
        await exchange.served()
        await until(lambda: seen[-1] == "cancelled", "the cancellation")
    assert seen == ["disconnect", "cancelled"]


@spread(both_specs, every_face)
async def test_a_client_that_leaves_before_the_stream_begins_changes_nothing(face: str, spec: str) -> None:
    """Gone while the endpoint still thinks: it thinks on, and the answer is there afterwards."""
    made = stage(face, gated=True)
    async with running(made.app, spec_version=spec) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        exchange.disconnect()
        await settle()
        assert run.endings == []
        run.admitted.set()
        run.put("one")
        run.finish()
        await run.wait_closed()
        await exchange.served()
        replay = await client.get("/v1/stream/chat-1")
    assert data_of(replay.body) == ["one"]


@spread(both_specs, every_kind)
async def test_the_servers_cancellation_does_not_reach_the_producer(face: str, kind: str, spec: str) -> None:
    """A cancelled request task is a client that left: the generator ends in its own time."""
    made = stage(face, kind)
    async with running(made.app, spec_version=spec) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        exchange.cancel()
        await settle()
        run.put("two")
        await settle()
        assert run.endings == []
        run.finish()
        await run.wait_closed()
        await exchange.served()
        replay = await client.get("/v1/stream/chat-1")
    assert run.endings == ["finished"]
    assert b"two" in replay.body


@every_face
async def test_a_readers_departure_or_cancellation_never_touches_the_producer(face: str) -> None:
    """Readers own nothing."""
    made = stage(face)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        leaver, cancelled = (client.start("GET", "/v1/stream/chat-1") for _ in range(2))
        for reader in (leaver, cancelled):
            await reader.read_until(b"one")
        leaver.disconnect()
        cancelled.cancel()
        await leaver.served()
        await cancelled.served()
        run.put("two")
        await exchange.read_until(b"two")
        run.finish()
        await exchange.rest()
        await run.wait_closed()
    assert run.endings == ["finished"]


# -- stop ---------------------------------------------------------------------------------------------------------


@every_face
async def test_a_stop_reaches_every_reader_at_once(face: str) -> None:
    """The terminal event is the last thing each of them reads, and their responses end cleanly."""
    made = stage(face)
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one")
        readers = [first, *(client.start("GET", "/v1/stream/chat-1") for _ in range(3))]
        for reader in readers:
            await reader.read_until(b"one")
        reply = await client.delete("/v1/stream/chat-1")
        ends = [terminal_of(b"\n\n" + await reader.rest()) for reader in readers]
        await run.wait_closed()
    assert reply.status == 204
    assert all(reader.clean for reader in readers)
    for end in ends:
        assert end.event == "cancelled"
        assert end.json()["code"] == end.json()["error"]["code"] == "cancelled"


@every_face
async def test_a_stopped_stream_is_gone(face: str) -> None:
    """404 afterwards, unknown to lookups, and the id is free."""
    made = stage(face)
    async with running(made.app) as client:
        _, run = await made.begin(client, "chat-1", "one")
        await client.delete("/v1/stream/chat-1")
        replay = await client.get("/v1/stream/chat-1")
        found = await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})
        again = await client.delete("/v1/stream/chat-1")
        await run.wait_closed()
        second, new = await made.begin(client, "chat-1", "two")
        new.finish()
        await second.rest()
        assert (await client.get("/v1/stream/chat-1")).status == 200
    assert (replay.status, replay.code) == (404, "stream_not_found")
    assert found.json() == []
    assert again.status == 204


@every_face
async def test_a_stop_of_a_finished_stream_forgets_it(face: str) -> None:
    """DELETE on what has ended: 204, and 404 afterwards."""
    made = stage(face)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        run.finish()
        await exchange.rest()
        assert (await client.delete("/v1/stream/chat-1")).status == 204
        assert (await client.get("/v1/stream/chat-1")).status == 404


@every_face
async def test_a_late_click_cannot_stop_the_next_answer(face: str) -> None:
    """`?epoch=` of an earlier answer is a no-op; of the running one, it stops it."""
    made = stage(face)
    async with running(made.app) as client:
        first, old = await made.begin(client, "chat-1", "old")
        old_epoch = (await first.head()).headers["x-stream-epoch"]
        old.finish()
        await first.rest()
        second, new = await made.begin(client, "chat-1", "new")
        epoch = (await second.head()).headers["x-stream-epoch"]
        late = await client.delete(f"/v1/stream/chat-1?epoch={old_epoch}")
        await settle()
        assert new.endings == []
        assert not second.over
        right = await client.delete(f"/v1/stream?conv_id=chat-1&epoch={epoch}")
        await second.rest()
        await new.wait_closed()
    assert (late.status, right.status) == (204, 204)
    assert "finished" not in new.endings


@every_face
async def test_a_stop_of_a_queued_stream_cancels_the_waiting_request(face: str) -> None:
    """The endpoint's wait is cancelled, and its client told why."""
    made = stage(face, gated=True)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        await settle()
        stopped = await client.delete("/v1/stream/chat-1")
        reply = await exchange.reply()
        await exchange.served()
        missing = await client.get("/v1/stream/chat-1")
        await until(lambda: bool(run.endings), "the endpoint's cancellation")
    assert stopped.status == 204
    assert (reply.status, reply.code) == (400, "cancelled")
    assert run.endings == ["CancelledError while queued"]
    assert missing.status == 404


async def test_a_stop_of_a_queued_stream_closes_its_dependencies() -> None:
    """What the waiting request had opened is closed, once."""
    made = stage("decorator", gated=True)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        await made.run()
        await client.delete("/v1/stream/chat-1")
        await exchange.reply()
        await until(lambda: "session closed" in made.trace, "the session's close")
        await exchange.served()
    assert made.trace.count("session closed") == 1


@every_face
async def test_a_stop_while_the_head_is_held_cancels_the_waiting_request(face: str) -> None:
    """The generator is at work but has said nothing: still `queued`, and stopped like the endpoint before it."""
    made = stage(face, head_timeout=60.0)
    async with running(made.app) as client:
        exchange = made.post(client, "chat-1")
        run = await made.run()
        await bounded(run.started.wait(), "the generator's start")
        stopped = await client.delete("/v1/stream/chat-1")
        reply = await exchange.reply()
        await run.wait_closed()
        await exchange.served()
    assert stopped.status == 204
    assert (reply.status, reply.code) == (400, "cancelled")
    assert run.endings == ["CancelledError"]


async def test_a_stop_of_a_queued_stream_reaches_those_who_wait_with_it() -> None:
    """Under `attach`, a second request that waits for the first is told the same, and does not start anew."""
    made = stage("decorator", gated=True, on_conflict="attach")
    async with running(made.app) as client:
        first = made.post(client, "chat-1")
        await made.run()
        second = made.post(client, "chat-1")
        await settle()
        await client.delete("/v1/stream/chat-1")
        replies = [await first.reply(), await second.reply()]
    assert [(reply.status, reply.code) for reply in replies] == [(400, "cancelled")] * 2
    assert len(made.runs) == 1


@pytest.mark.parametrize("kind", ["async generator", "sync generator"])
@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])
async def test_a_stop_closes_dependencies_after_the_generator(face: str, kind: str) -> None:
    """In order, and once."""
    made = stage(face, kind)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await client.delete("/v1/stream/chat-1")
        await exchange.rest()
        # A generator in a thread sees the stop when a value comes, some turns of the event loop after the stop.
        run.put(*["two"] * 100)
        await run.wait_closed()
        await exchange.served()
        await until(lambda: "session closed" in made.trace, "the session's close")
    assert made.trace.index("generator closed") < made.trace.index("session closed")
    assert made.trace.count("session closed") == 1


async def _stubborn(run: Run, release: asyncio.Event) -> AsyncIterator[str]:
    """A generator that will not be cancelled."""
    yield sse("one")
    while not release.is_set():
        try:
            await release.wait()
        except asyncio.CancelledError:
            run.trace.append("ignored")
    run.trace.append("ended")


def _stubborn_app(made: Stage, run: Run, release: asyncio.Event, **settings: Any) -> FastAPI:
    resumable = make(**settings)
    made.app.include_router(resumable.router)

    @made.app.post("/chat")
    @resumable.stream
    async def chat() -> Any:
        return StreamingResponse(_stubborn(run, release), media_type="text/event-stream")

    app: FastAPI = made.app
    return app


async def test_a_producer_that_ignores_cancellation_is_abandoned_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody waits for it longer than `stop_grace`: neither DELETE, nor the reader, nor the request."""
    made = Stage()
    run = made.new_run()
    release = asyncio.Event()
    with caplog.at_level(logging.WARNING, logger="fastapi_resumable"):
        async with running(_stubborn_app(made, run, release, stop_grace=0.05)) as client:
            exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
            await exchange.read_until(b"one")
            stopped = await client.delete("/v1/stream/chat-1")
            rest = await exchange.rest()
            missing = await client.get("/v1/stream/chat-1")
            await until(lambda: bool(caplog.records), "the warning")
            again = client.start("POST", "/chat", headers={ID: "chat-1"})
            await again.read_until(b"one")
            release.set()
            await until(lambda: run.trace.count("ended") == 2, "the generators' end")
            await again.rest()
    assert stopped.status == 204
    assert terminal_of(b"\n\n" + rest) is not None
    assert missing.status == 404
    assert "ignored" in run.trace
    assert caplog.records[0].levelno == logging.WARNING
    assert "chat-1" in caplog.records[0].getMessage()


async def test_what_an_abandoned_producer_still_sends_goes_nowhere() -> None:
    """After its stop, a stream's log has ended: late bytes change neither it nor the id's next stream."""
    made = stage("decorator", "sync generator", stop_grace=0.05)
    async with running(made.app) as client:
        first, old = await made.begin(client, "chat-1", "old")
        await client.delete("/v1/stream/chat-1")
        ended = await first.rest()
        second, new = await made.begin(client, "chat-1", "new")
        old.put("late", "later")
        await first.served()
        await closed(old, "sync generator")
        new.finish()
        body = await second.rest()
    assert b"late" not in ended + body
    assert data_of(body) == ["new"]


async def test_a_sync_generator_can_ask_whether_it_was_stopped() -> None:
    """`stream.stopped`, read from the generator's own thread, turns true: in a thread nothing else could tell it."""
    seen: list[Any] = []
    beaten = threading.Event()
    resumable = make(stop_grace=LIMIT)
    app = FastAPI()
    app.include_router(resumable.router)

    @app.post("/chat")
    def chat(stream: Annotated[ResumableStream, Depends(resumable)]) -> Any:
        def tokens() -> Iterator[str]:
            yield sse("one")
            seen.append(stream.stopped)
            beaten.set()
            waiter = threading.Event()
            while not stream.stopped:
                waiter.wait(0.002)  # work
            seen.append(stream.stopped)

        return stream(StreamingResponse(tokens(), media_type="text/event-stream"))

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        await exchange.read_until(b"one")
        await until(beaten.is_set, "the generator's loop")
        await client.delete("/v1/stream/chat-1")
        await exchange.rest()
        await exchange.served()
        await until(lambda: len(seen) == 2, "the generator's end")
    assert seen == [False, True]


@pytest.mark.parametrize("face", ["dependency", "both"])
async def test_stream_stopped_is_false_until_a_stop_and_without_a_stream(face: str) -> None:
    """A client that leaves is no stop; a request that names no stream has nothing to be stopped."""
    made = stage(face)
    async with running(made.app) as client:
        bare, first = await made.begin(client, None, "one")
        assert first.stream.stopped is False
        first.finish()
        await bare.rest()
        exchange, run = await made.begin(client, "chat-1", "one")
        exchange.disconnect()
        await settle()
        assert run.stream.stopped is False
        await client.delete("/v1/stream/chat-1")
        assert run.stream.stopped is True
        await run.wait_closed()


async def test_a_stop_does_not_wait_for_the_producer() -> None:
    """Readers get the terminal event although the generator's finally takes its time."""
    made = Stage()
    run = made.new_run()
    release = asyncio.Event()
    async with running(_stubborn_app(made, run, release, stop_grace=LIMIT)) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        await exchange.read_until(b"one")
        reader = client.start("GET", "/v1/stream/chat-1")
        await reader.read_until(b"one")
        stopping = client.start("DELETE", "/v1/stream/chat-1")
        assert terminal_of(b"\n\n" + await reader.rest()) is not None
        assert (await client.get("/v1/stream/chat-1")).status == 404
        assert "ended" not in run.trace
        release.set()
        assert (await stopping.reply()).status == 204
        await exchange.rest()


@every_kind
async def test_stopping_twice_at_once_is_as_good_as_once(face: str, kind: str) -> None:
    """Two clicks: both 204, one terminal event."""
    made = stage(face, kind)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        clicks = [client.start("DELETE", "/v1/stream/chat-1") for _ in range(2)]
        replies = [await click.reply() for click in clicks]
        rest = await exchange.rest()
        run.put("two")
        await exchange.served()
        await closed(run, kind)
    assert [reply.status for reply in replies] == [204, 204]
    assert rest.count(b"event: cancelled") == (1 if kind not in ("yield json lines", "yield raw") else 0)


async def test_cancel_scopes_of_the_app_run_on_stop() -> None:
    """A task group inside the generator unwinds, its children's finally blocks included."""
    trace: list[str] = []
    resumable = make()
    app = FastAPI()
    app.include_router(resumable.router)
    ready = asyncio.Event()

    async def child() -> None:
        try:
            ready.set()
            await anyio.sleep_forever()
        finally:
            trace.append("child closed")

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(child)
                await anyio.sleep_forever()
        finally:
            trace.append("app closed")

    app.mount("/raw", respond)
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/raw/chat"])
    async with running(app) as client:
        exchange = client.start("POST", "/raw/chat", headers={ID: "chat-1"})
        await exchange.read_until(b"one")
        await bounded(ready.wait())
        await client.delete("/v1/stream/chat-1")
        await exchange.rest()
        await exchange.served()
        await until(lambda: len(trace) == 2, "both closes")
    assert trace == ["child closed", "app closed"]


async def test_stopping_one_stream_leaves_its_neighbours_alone() -> None:
    """A stop names one id (and, unlike a lookup, not its variants)."""
    made = stage("decorator")
    async with running(made.app) as client:
        kept, run = await made.begin(client, "chat::a", "one")
        _, stopped = await made.begin(client, "chat", "one")
        await client.delete("/v1/stream/chat")
        await stopped.wait_closed()
        run.put("two")
        await kept.read_until(b"two")
        run.finish()
        await kept.rest()
    assert run.endings == ["finished"]
