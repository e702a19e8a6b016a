"""_run/servers.py: hearing of the signal beside whoever handles it."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_resumable import MemoryStore, Resumable
from fastapi_resumable._run.servers import TerminationWatch
from tests.support.asgi import bounded, until
from tests.support.rawhttp import Connection, connect


@pytest.fixture
def server_heard():
    """A server's own handlers, put back afterwards."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: heard.append(number))
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


async def raised(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(20):
        await asyncio.sleep(0)


async def start(watch: TerminationWatch) -> None:
    watch.start()


async def start_and_raise(watch: TerminationWatch) -> None:
    watch.start()
    await raised(signal.SIGTERM)


async def test_both_hear_the_signal(server_heard):
    """The server's handler is called as before, and so are we, on the event loop."""
    ours: list[str] = []
    watch = TerminationWatch(lambda: ours.append("heard"))
    watch.start()
    watch.start()
    await raised(signal.SIGTERM)
    watch.stop()
    await raised(signal.SIGINT)

    assert server_heard == [signal.SIGTERM, signal.SIGINT]
    assert ours == ["heard"]


async def test_two_of_them_pass_signals_on_in_either_order_of_stopping(server_heard):
    """A link in the middle of the chain cannot be taken out, but it falls silent."""
    ours: list[str] = []
    first, second = TerminationWatch(lambda: ours.append("first")), TerminationWatch(lambda: ours.append("second"))
    first.start()
    second.start()
    first.stop()
    await raised(signal.SIGTERM)
    assert (ours, server_heard) == (["second"], [signal.SIGTERM])

    first.start()
    await raised(signal.SIGTERM)
    assert sorted(ours) == ["first", "second", "second"]
    first.stop()
    second.stop()
    await raised(signal.SIGTERM)

    assert len(ours) == 3
    assert len(server_heard) == 3


def test_a_watch_is_taken_along_to_a_new_event_loop(server_heard):
    """The loop of a former start may be closed."""
    ours: list[str] = []
    watch = TerminationWatch(lambda: ours.append("heard"))

    asyncio.run(start(watch))
    os.kill(os.getpid(), signal.SIGTERM)
    asyncio.run(start_and_raise(watch))
    watch.stop()

    assert ours == ["heard"]
    assert len(server_heard) == 2


def test_nothing_is_installed_where_the_signal_has_no_handler():
    """Without a server the default stays: the process dies."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        asyncio.run(start(TerminationWatch(lambda: None)))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_off_the_main_thread_nothing_is_installed(server_heard):
    """Python allows no handlers there."""
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: asyncio.run(start(TerminationWatch(lambda: None))))
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGTERM) is before


def test_a_watch_is_taken_along_to_another_thread_and_back(server_heard):
    """Tests of one application may run on a loop of their own and, by a test client, on one in a thread."""
    before = signal.getsignal(signal.SIGTERM)
    ours: list[str] = []
    watch = TerminationWatch(lambda: ours.append("heard"))

    with ThreadPoolExecutor() as threads:
        for _ in range(2):
            asyncio.run(start_and_raise(watch))
            threads.submit(asyncio.run, start(watch)).result()
    asyncio.run(start(watch))
    watch.stop()

    assert ours == ["heard", "heard"]
    assert server_heard == [signal.SIGTERM, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


class SlowStore(MemoryStore):
    """One that takes its time to reserve an id."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def reserve(self, *args, **options):
        """Wait first."""
        self.asked.set()
        await self.may_go_on.wait()
        return await super().reserve(*args, **options)


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[uvicorn.Server]:
    """A server on this event loop."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        await bounded(task)


async def connection_to(server: uvicorn.Server) -> Connection:
    return await connect(server.servers[0].sockets[0].getsockname()[1])


async def test_a_watch_learns_of_its_client_s_leaving_behind_a_middleware_that_repeats_the_body():
    """Nothing can be received there that tells of it, so the connection is looked at."""
    resumable = Resumable(ping=0.05)
    app = FastAPI()
    app.include_router(resumable.router)

    async def repeating(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            body = await receive()

            async def again() -> Message:
                return body

            await app(scope, again, send)
        else:
            await app(scope, receive, send)

    async with serving(repeating) as server:
        async with await connection_to(server) as connection:
            await connection.request("POST", "/v1/streams/watch", body=b'{"conversation_ids": ["a"]}')
            await (await connection.response()).read_until(b": ping\n")
            assert resumable.manager._watches
        await until(lambda: not resumable.manager._watches, "the end of the watch")


async def test_a_server_that_exits_by_itself_is_noticed_however_long_the_store_takes_to_begin():
    """The last look at the server may have found nothing live, while the store was asked for the first stream."""
    store = SlowStore()
    resumable = Resumable(store=store, shutdown_grace=0, stop_grace=0)
    app = FastAPI()
    app.include_router(resumable.router)

    @app.post("/chat")
    @resumable.stream
    async def chat():
        async def words():
            yield "data: one\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(words(), media_type="text/event-stream")

    async with serving(app) as server, await connection_to(server) as connection:
        await connection.request("POST", "/chat", [("x-conversation-id", "a"), ("content-length", "0")])
        await bounded(store.asked.wait())
        await until(lambda: resumable.manager.termination._timer is None)
        store.may_go_on.set()
        response = await connection.response()
        await response.read_until(b"one")
        server.should_exit = True
        body = await bounded(response.read_all())
    assert b"interrupted" in body
