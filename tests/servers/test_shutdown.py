"""Shutdown, under real servers: on SIGTERM nobody hangs, nobody is cut off silently, and the process goes."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.support.asgi import parse_events
from tests.support.params import representatives
from tests.support.rawhttp import Connection, Response, connect
from tests.support.server import Server, serve, wait_until

APP = "tests.servers.shutdown_app:app"
UVICORNS = [
    pytest.param({"http": "httptools", "loop": "uvloop"}, id="uvicorn-httptools"),
    pytest.param({"http": "h11", "loop": "asyncio"}, id="uvicorn-h11"),
    pytest.param({"http": "httptools", "args": ["--timeout-graceful-shutdown", "60"]}, id="uvicorn-graceful-60"),
]
GRANIAN = pytest.param({"server": "granian", "loop": "asyncio"}, id="granian", marks=pytest.mark.servers)
HYPERCORN = pytest.param(
    {"server": "hypercorn", "loop": "asyncio", "workers": 0, "args": ["--graceful-timeout", "60"]},
    id="hypercorn",
    marks=pytest.mark.servers,
)
PATIENCE = [
    pytest.param({"args": ["--timeout-graceful-shutdown", "1"]}, id="uvicorn"),
    pytest.param(
        {"server": "granian", "loop": "asyncio", "args": ["--workers-kill-timeout", "2"]},
        id="granian",
        marks=pytest.mark.servers,
    ),
]
every_uvicorn = pytest.mark.parametrize("how", UVICORNS)
every_server = pytest.mark.parametrize("how", [*UVICORNS, GRANIAN, HYPERCORN])


class Site:
    """A running server and the notes that its application takes."""

    def __init__(self, server: Server, notes: Path, connections: AsyncExitStack) -> None:
        self.server = server
        self.notes = notes
        self._connections = connections

    def noted(self, text: str) -> bool:
        """Whether the application has taken a note."""
        return text in self.notes.read_text().splitlines()

    def wait_noted(self, text: str) -> None:
        """Wait for a note."""
        wait_until(lambda: self.noted(text), f"the note {text!r}, where {self.notes.read_text()!r} are")

    async def connect(self, *, receive_buffer: int | None = None) -> Connection:
        """A connection that is closed with the site."""
        return await self._connections.enter_async_context(
            await connect(self.server.port, receive_buffer=receive_buffer)
        )

    async def post(self, path: str, stream_id: str, *, receive_buffer: int | None = None) -> Response:
        """Begin a stream; returns with its head."""
        connection = await self.connect(receive_buffer=receive_buffer)
        await connection.request("POST", path, [("x-conversation-id", stream_id), ("content-length", "0")])
        return await connection.response()

    async def open_tap(self) -> Connection:
        """A request whose body ends when the test says so, already with the application."""
        connection = await self.connect()
        await connection.request("PUT", "/tap", [("transfer-encoding", "chunked")])
        self.wait_noted("tap open")
        return connection


@asynccontextmanager
async def running(tmp_path: Path, how: dict[str, object], **options: object) -> AsyncIterator[Site]:
    """The application under one server."""
    notes = tmp_path / "notes"
    notes.touch()
    env = {"RESUMABLE_TEST_NOTES": str(notes), **how.get("env", {})}  # type: ignore[dict-item]
    with serve(APP, options=options, **{**how, "env": env}) as server:  # type: ignore[arg-type]
        async with AsyncExitStack() as connections:
            yield Site(server, notes, connections)


def code_of(body: bytes) -> str | None:
    """The code of the terminal event, if the body ends with one."""
    events = parse_events(body)
    if not events or events[-1].event not in ("error", "cancelled"):
        return None
    return str(json.loads(events[-1].data)["code"])


@every_uvicorn
async def test_live_streams_finish_within_the_grace(how: dict[str, object], tmp_path: Path) -> None:
    """What comes after the SIGTERM still reaches the readers; they end cleanly, and the process goes."""
    async with running(tmp_path, how, shutdown_grace=30.0) as site:
        stream = await site.post("/chat", "chat-1")
        await stream.read_until(b"begun")
        tap = await site.open_tap()
        site.server.terminate()
        site.server.wait_for_output("Shutting down")
        await tap.send(b"2\r\nab\r\n", b"0\r\n\r\n")
        body = await stream.read_all()
        site.server.wait()
    assert [event.data for event in parse_events(body)][-2:] == ["a", "b"]
    assert stream.clean
    assert code_of(body) is None
    assert site.noted("finished chat-1 completed")


@every_uvicorn
async def test_a_stream_without_readers_finishes_within_the_grace(how: dict[str, object], tmp_path: Path) -> None:
    """The drain is waited for, although uvicorn itself has nobody left to wait for."""
    async with running(tmp_path, how, shutdown_grace=30.0) as site:
        stream = await site.post("/chat", "chat-1")
        await stream.read_until(b"begun")
        tap = await site.open_tap()
        stream.connection.reset()
        site.server.terminate()
        site.server.wait_for_output("Shutting down")
        await tap.send(b"1\r\na\r\n", b"0\r\n\r\n")
        site.server.wait()
    assert site.noted("generator finished")
    assert site.noted("finished chat-1 completed")


@every_server
@pytest.mark.parametrize("number", representatives([signal.SIGTERM, signal.SIGINT], signal.SIGTERM.__eq__))
async def test_streams_past_the_grace_are_interrupted(
    how: dict[str, object], number: signal.Signals, tmp_path: Path
) -> None:
    """Readers get the terminal event and a clean end; the finally blocks run; the process goes.

    Where no event can say it, the connection closes uncleanly. All this is no error of the application: the log stays
    readable.
    """
    async with running(tmp_path, how, shutdown_grace=0.2) as site:
        stream = await site.post("/chat", "chat-1")
        await stream.read_until(b"begun")
        text = await site.post("/chat?media_type=text/plain", "chat-2")
        await text.read_until(b"begun\n\n")
        reader = await site.connect()
        await reader.request("GET", "/v1/stream/chat-1")
        replay = await reader.response()
        await replay.read_until(b"begun")
        site.server.process.send_signal(number)
        bodies = [await stream.read_all(), await replay.read_all()]
        rest = await text.read_all()
        site.server.wait()
    assert [code_of(body) for body in bodies] == ["interrupted", "interrupted"]
    assert stream.clean
    assert replay.clean
    assert not rest.replace(b"data: begun\n\n", b"")
    assert not text.clean
    assert site.noted("generator closed")
    assert not site.noted("generator finished")
    assert site.noted("finished chat-1 interrupted")
    assert site.noted("finished chat-2 interrupted")
    assert "Traceback" not in site.server.output, site.server.output


@every_server
async def test_a_stream_without_readers_is_interrupted_past_the_grace(how: dict[str, object], tmp_path: Path) -> None:
    """With its client long gone, too."""
    async with running(tmp_path, how, shutdown_grace=0.2) as site:
        stream = await site.post("/chat", "chat-1")
        await stream.read_until(b"begun")
        stream.connection.reset()
        site.server.terminate()
        site.server.wait()
    assert site.noted("generator closed")
    assert site.noted("finished chat-1 interrupted")


@every_uvicorn
async def test_new_streams_are_refused_once_the_server_shuts_down(how: dict[str, object], tmp_path: Path) -> None:
    """A request that was already on its way is told to come back; the endpoint does not run."""
    async with running(tmp_path, how, shutdown_grace=30.0) as site:
        stream = await site.post("/chat", "chat-1")
        await stream.read_until(b"begun")
        tap = await site.open_tap()
        late = await site.connect()
        # Half a head: the server cannot take the connection for an idle one, and has not seen the request.
        await late.send(b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n")
        site.server.terminate()
        site.server.wait_for_output("Shutting down")
        refused = None
        try:
            await late.send(b"x-conversation-id: chat-2\r\n\r\n")
            refused = await late.response()
            body = await refused.read_all()
        except (ConnectionError, EOFError):
            body = b""  # the server has closed the connection: refused as well
        await tap.send(b"0\r\n\r\n")
        await stream.read_all()
        site.server.wait()
    if refused is not None:
        assert refused.status == 503
        assert json.loads(body)["detail"]["code"] == "shutting_down"
        assert refused.header("retry-after")
    assert not site.noted("finished chat-2 completed")


@pytest.mark.parametrize(
    ("how", "path"),
    [
        pytest.param(*how.values, path, id=f"{how.id}-{path[1:]}", marks=how.marks)
        for how in (*UVICORNS, GRANIAN, HYPERCORN)
        for path in ("/deaf", "/thread")
        # Hypercorn runs under `asyncio.run`, which itself waits for every task that it has cancelled.
        if (how, path) != (HYPERCORN, "/deaf")
    ],
)
async def test_a_producer_that_cannot_be_cancelled_does_not_keep_the_process(
    how: dict[str, object], path: str, tmp_path: Path
) -> None:
    """Its readers are told, and after `stop_grace` it is left behind."""
    async with running(tmp_path, how, shutdown_grace=0.2, stop_grace=0.5) as site:
        stream = await site.post(path, "chat-1")
        await stream.read_until(b"begun")
        site.server.terminate()
        body = await stream.read_all()
        site.server.wait()
    assert code_of(body) == "interrupted"


@pytest.mark.parametrize("how", PATIENCE)
async def test_a_reader_that_takes_nothing_does_not_keep_the_process(how: dict[str, object], tmp_path: Path) -> None:
    """A socket that is full and stays full: let go in time. (Without a limit, uvicorn itself waits for the socket.)"""
    async with running(tmp_path, how, shutdown_grace=0.2, stop_grace=0.5, stall_timeout=600.0) as site:
        response = await site.post("/flood", "chat-1", receive_buffer=4096)
        await response.read_until(b"xxx")
        site.server.terminate()
        site.server.wait()
    assert site.noted("finished chat-1 interrupted")


@every_server
async def test_an_idle_server_exits_at_once(how: dict[str, object], tmp_path: Path) -> None:
    """With no stream live, finished ones in the log, the grace is not waited for."""
    async with running(tmp_path, how, shutdown_grace=600.0) as site:
        tap = await site.open_tap()
        stream = await site.post("/chat", "chat-1")
        await tap.send(b"0\r\n\r\n")
        await stream.read_all()
        await (await tap.response()).read_all()
        for connection in (tap, stream.connection):
            await connection.close()
        site.server.terminate()
        site.server.wait()
    assert site.noted("finished chat-1 completed")


@every_uvicorn
async def test_a_response_that_ends_itself_at_the_exit_is_interrupted(how: dict[str, object], tmp_path: Path) -> None:
    """sse-starlette ends its responses on SIGTERM, in mid-answer: nobody may take that for a whole one."""
    async with running(tmp_path, how, shutdown_grace=30.0) as site:
        stream = await site.post("/starlette", "chat-1")
        await stream.read_until(b"begun")
        site.server.terminate()
        body = await stream.read_all()
        site.server.wait()
    assert code_of(body) == "interrupted"
    assert site.noted("generator closed")
    assert site.noted("finished chat-1 interrupted")


@pytest.mark.servers
@pytest.mark.parametrize("path", ["/chat", "/thread"])
@pytest.mark.parametrize("timeout", ["1", "600"])
async def test_a_server_that_gives_no_signal_exits_in_time(path: str, timeout: str, tmp_path: Path) -> None:
    """Hypercorn's workers get none, and wait for open connections: with a long timeout, or always on Python 3.12.

    The reader's response ends, the producer is interrupted, and the process goes.
    """
    how = {"server": "hypercorn", "loop": "asyncio", "args": ["--graceful-timeout", timeout]}
    async with running(tmp_path, how, shutdown_grace=0.2, stop_grace=0.5) as site:
        stream = await site.post(path, "chat-1")
        await stream.read_until(b"begun")
        site.server.terminate()
        body = await stream.read_all()
        site.server.wait()
    assert site.noted("finished chat-1 interrupted")
    assert not stream.clean or code_of(body) == "interrupted"


@pytest.mark.parametrize(("path", "bases"), [("/chat", "0"), ("/chat", "1"), ("/routed", "1")])
async def test_uvicorns_own_timeout_before_our_grace_interrupts(path: str, bases: str, tmp_path: Path) -> None:
    """A grace of ten minutes: the server's patience counts, and readers are told.

    A `BaseHTTPMiddleware` cancels in its own way, and drops what is sent then: so the stream ends just before.
    """
    how: dict[str, object] = {"args": ["--timeout-graceful-shutdown", "3"], "env": {"RESUMABLE_TEST_BASES": bases}}
    async with running(tmp_path, how, shutdown_grace=600.0) as site:
        stream = await site.post(path, "chat-1")
        await stream.read_until(b"begun")
        site.server.terminate()
        body = await stream.read_all()
        site.server.wait()
    assert code_of(body) == "interrupted"
    assert stream.clean
    assert site.noted("generator closed")


@pytest.mark.parametrize("reads", [True, False])
async def test_a_worker_that_recycles_itself_interrupts_what_is_live(reads: bool, tmp_path: Path) -> None:
    """`--limit-max-requests`: no signal says so, but uvicorn serves no more."""
    how: dict[str, object] = {"args": ["--limit-max-requests", "3"]}
    async with running(tmp_path, how, shutdown_grace=0.2) as site:
        stream = await site.post("/chat", "chat-1")
        await stream.read_until(b"begun")
        if not reads:
            stream.connection.reset()
        with suppress(ConnectionError, EOFError):  # it may have gone before the last of them
            for _ in range(3):
                other = await site.connect()
                await other.request("GET", "/v1/stream/unknown")
                await (await other.response()).read_all()
        body = await stream.read_all() if reads else b""
        site.server.wait()
    assert site.noted("generator closed")
    assert site.noted("finished chat-1 interrupted")
    if reads:
        assert code_of(body) == "interrupted"
        assert stream.clean


async def test_a_worker_that_recycles_itself_ends_a_watch(tmp_path: Path) -> None:
    """Also where nothing else is live."""
    async with running(tmp_path, {"args": ["--limit-max-requests", "3"]}, shutdown_grace=0.2) as site:
        connection = await site.connect()
        await connection.request("POST", "/v1/streams/watch", body=b'{"conversation_ids": ["chat-1"]}')
        watch = await connection.response()
        with suppress(ConnectionError, EOFError):  # it may have gone before the last of them
            for _ in range(3):
                other = await site.connect()
                await other.request("GET", "/v1/stream/unknown")
                await (await other.response()).read_all()
        await watch.read_all()
        site.server.wait()
    assert watch.status == 200
    assert watch.clean
