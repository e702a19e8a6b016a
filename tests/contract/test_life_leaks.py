"""When streams are over nothing is left of them, and while they are silent they cost nothing."""

import asyncio
import gc
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi import LIMIT, Client, Exchange, running, settle, until
from tests.support.life_apps import PLACES, Run, Stage, stage
from tests.support.params import representatives

FATES = ("finished", "failed", "stopped", "replaced", "left", "cancelled", "failed first", "no id")


async def play(made: Stage, client: Client, number: int, payload: str) -> None:
    """One stream by one of the fates, to the end of its request."""
    fate = FATES[number % len(FATES)]
    stream_id = f"chat-{number}"
    if fate == "failed first":
        begun = len(made.runs)
        exchange = made.post(client, stream_id)
        run = await made.run(begun)
        run.fail(KeyError("no"))
        await over(exchange, run)
        return
    exchange, run = await made.begin(client, None if fate == "no id" else stream_id, payload)
    match fate:
        case "finished" | "no id":
            run.finish()
        case "failed":
            run.fail(ValueError("no"))
        case "stopped":
            await client.delete(f"/v1/stream/{stream_id}")
        case "replaced":
            second, other = await made.begin(client, stream_id, payload)
            other.finish()
            await over(second, other)
        case "left":
            exchange.disconnect()
            run.put(payload)
            run.finish()
        case "cancelled":
            exchange.cancel()
            run.finish()
    await over(exchange, run)


async def over(exchange: Exchange, run: Run) -> None:
    """The request and its generator are done."""
    await run.wait_closed()
    await exchange.served()


def tasks() -> set[asyncio.Task[Any]]:
    """The loop's tasks, without the one in which `until` waits."""
    return {task for task in asyncio.all_tasks() if not task.get_coro().__qualname__.startswith("until.")}  # type: ignore[union-attr]


def descriptors() -> int:
    """How many file descriptors this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("face", representatives(PLACES, PLACES[0].__eq__))
async def test_hundreds_of_streams_of_every_fate_leave_nothing_behind(
    face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task, no descriptor, and, once the retention is over, none of the 20 MB that they have said."""
    # A log record holds the exception, that its frames, and those what the stream had said.
    monkeypatch.setattr(logging.getLogger("fastapi_resumable"), "disabled", True)
    made = stage(face, retention=0.02, max_total_bytes=1 << 30)
    payload = "x" * 65_536
    async with running(made.app) as client:
        for number in range(len(FATES)):
            await play(made, client, number, payload)
        await forget(made, client)
        before, files = len(tasks()), descriptors()
        gc.collect()
        tracemalloc.start()
        try:
            for number in range(320):
                await play(made, client, number, payload)
                if number % 50 == 0:
                    await forget(made, client)
            await until(lambda: not made.resumable.store._streams, "the expiry")
            await forget(made, client)
            await until(lambda: len(tasks()) <= before, "the end of every task")
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert descriptors() <= files
        assert held < 4_000_000, held


async def forget(made: Stage, client: Client) -> None:
    """Drop what the test itself holds of streams that are over."""
    await settle()
    made.runs.clear()
    made.trace.clear()
    made._last = None
    client.exchanges[:] = [exchange for exchange in client.exchanges if not exchange.task.done()]


async def test_readers_that_come_and_go_leave_nothing_behind() -> None:
    """Three hundred followers of one live stream, half of them cancelled: no task, no waiter, is left."""
    made = stage("decorator")
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        # The first client is watched for its leaving from a moment after its response has begun.
        await until(lambda: any(task.get_name() == "resumable disconnect" for task in tasks()), "the watch")
        before = len(tasks())
        for number in range(300):
            reader = client.start("GET", "/v1/stream/chat-1")
            await reader.read_until(b"one")
            if number % 2:
                reader.disconnect()
            else:
                reader.cancel()
            await reader.served()
        await until(lambda: len(tasks()) <= before, "the end of the readers' tasks")
        run.put("two")
        await exchange.read_until(b"two")
        run.finish()
        await exchange.rest()


async def test_nothing_runs_after_the_lifespan_has_ended() -> None:
    """Neither a producer nor a timer of ours survives the app."""
    made = stage("decorator", shutdown_grace=0.05)
    before = tasks()
    async with running(made.app) as client:
        for number in range(10):
            await made.begin(client, f"chat-{number}", "one")
    await until(lambda: tasks() <= before, "the end of every task")


# uvloop does not show its timers and callbacks.
on_asyncio = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])


def pending_timers(loop: Any) -> list[Any]:
    """The loop's timers that have not been cancelled."""
    return [handle for handle in loop._scheduled if not handle.cancelled()]


@on_asyncio
@pytest.mark.parametrize("readers", [0, 1, 3])
async def test_idle_streams_cost_no_cpu(readers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred silent streams with their readers: no callback in hundreds of loop turns, and no timer that polls."""
    made = stage("decorator", ping=3600.0, stall_timeout=3600.0)
    loop = asyncio.get_running_loop()
    async with running(made.app) as client:
        runs = []
        for number in range(100):
            exchange, run = await made.begin(client, f"chat-{number}", "one")
            await exchange.read_until(b"one")
            runs.append(run)
            if readers == 0:
                exchange.disconnect()
            for _ in range(readers - 1):
                await client.start("GET", f"/v1/stream/chat-{number}").read_until(b"one")
        # A client is watched for its leaving from a moment after its response has begun.
        watches = 100 * readers
        await until(
            lambda: [task.get_name() for task in tasks()].count("resumable disconnect") == watches, "the watches"
        )
        called: list[Any] = []
        call_soon = loop.call_soon

        def counted(callback: Any, *args: Any, **options: Any) -> Any:
            called.append(callback)
            return call_soon(callback, *args, **options)

        async def callbacks_of_500_turns() -> int:
            called.clear()
            await settle(500)
            return len(called)

        monkeypatch.setattr(loop, "call_soon", counted)
        # One callback a turn is the `sleep(0)` of `settle` itself. What the last departures leave to do comes first.
        async with asyncio.timeout(LIMIT):
            while await callbacks_of_500_turns() > 500 + 20:
                pass
        monkeypatch.undo()

        def timers_of_the_next_minute() -> int:
            return len([timer for timer in pending_timers(loop) if timer.when() < loop.time() + 60])

        # One that waits for the moment from which a client is watched runs out.
        await until(lambda: timers_of_the_next_minute() <= 5, "the end of the other timers")
        for run in runs:
            run.finish()
        for run in runs:
            await run.wait_closed()


@on_asyncio
async def test_timers_are_one_per_stream_and_one_per_reader_at_most() -> None:
    """One for the keep-alives of a stream, one to tell whether a reader is stuck; none after the end."""
    made = stage("decorator", ping=15.0)
    loop = asyncio.get_running_loop()
    before = len(pending_timers(loop))
    async with running(made.app) as client:
        pairs = [await made.begin(client, f"chat-{number}", "one") for number in range(50)]
        followers = [client.start("GET", f"/v1/stream/chat-{number}") for number in range(50) for _ in range(3)]
        for follower in followers:
            await follower.read_until(b"one")
        await settle(200)
        # But for those that run out in a moment: from when on a client is watched for its leaving.
        during = len([timer for timer in pending_timers(loop) if timer.when() > loop.time() + 1]) - before
        for exchange, run in pairs:
            run.finish()
            await exchange.rest()
            await exchange.served()
        for follower in followers:
            await follower.rest()
            await follower.served()
        await settle(200)
        after = len(pending_timers(loop)) - before
    assert during <= 50 + 200 + 10
    assert after <= 10


async def test_an_event_costs_one_wake_up_per_reader() -> None:
    """No per-event task, and a bounded number of callbacks for each event in and out."""
    made = stage("decorator")
    loop = asyncio.get_running_loop()
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        await exchange.read_until(b"one")
        tasks: list[Any] = []
        factory = loop.get_task_factory()

        def counting(loop: Any, coroutine: Any, **options: Any) -> Any:
            tasks.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **options)

        loop.set_task_factory(counting)
        try:
            for number in range(200):
                run.put(str(number))
                await until(lambda number=number: exchange.body_messages > number + 1, "the event")  # type: ignore[misc]
        finally:
            loop.set_task_factory(factory)
        run.finish()
        await exchange.rest()
    # `until` is a task of its own each time (`wait_for`), and nothing else is.
    assert len(tasks) <= 200 + 5


@pytest.mark.parametrize("face", ["decorator", "dependency", "route_class", "middleware"])
@pytest.mark.parametrize("fate", ["finished", "left"])
async def test_a_request_is_freed_as_soon_as_it_is_over(face: str, fate: str) -> None:
    """Nothing of it waits for the garbage collector, which on a busy server comes late."""
    made = stage(face)
    async with running(made.app) as client:
        for number in range(2):
            await play(made, client, number * len(FATES) + FATES.index(fate), "x")
        await forget(made, client)
        gc.collect()
        gc.disable()
        try:
            for number in range(2, 12):
                await play(made, client, number * len(FATES) + FATES.index(fate), "x")
            await forget(made, client)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [thing for thing in gc.garbage if type(thing).__module__.startswith("fastapi_resumable")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    # An exception that is caught at an unlucky point holds the frames it came through: one in ten may.
    assert sum(type(thing).__name__ == "Producer" for thing in left) <= 1, left
