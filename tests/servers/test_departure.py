"""Drain, under real servers: whatever a server does when a client leaves, it is no end of the stream."""

from pathlib import Path

import pytest

from tests.servers.test_shutdown import GRANIAN, HYPERCORN, UVICORNS, running
from tests.support.params import representatives

WORKER = pytest.param(
    {"server": "hypercorn", "loop": "asyncio", "args": ["--graceful-timeout", "1"]},
    id="hypercorn-worker",
    marks=pytest.mark.servers,
)
every_server = pytest.mark.parametrize("how", [*UVICORNS[:2], GRANIAN, HYPERCORN, WORKER])


@every_server
@pytest.mark.parametrize("path", representatives(["/chat", "/starlette"], "/chat".__eq__))
async def test_a_client_that_leaves_is_no_shutdown(how: dict[str, object], path: str, tmp_path: Path) -> None:
    """With graces far shorter than what follows, a stream outlives the client that began it, to its own end."""
    async with running(tmp_path, how, shutdown_grace=0.05, stop_grace=0.05, ping=0.1) as site:
        first = await site.post(path, "chat-1")
        await first.read_until(b"begun")
        connection = await site.connect()
        await connection.request("GET", "/v1/stream/chat-1")
        reader = await connection.response()
        await reader.read_until(b"begun")
        first.connection.reset()
        for _ in range(10):
            await reader.read_until(b": ping\n")
        tap = await site.open_tap()
        await tap.send(b"1\r\na\r\n", b"0\r\n\r\n")
        rest = await reader.read_all()
        await (await tap.response()).read_all()
        await tap.close()
        await connection.close()
    assert b"data: a" in rest
    assert b"event: error" not in rest
    assert reader.clean
    assert site.noted("finished chat-1 completed")


@every_server
async def test_a_stop_over_the_network_reaches_every_reader(how: dict[str, object], tmp_path: Path) -> None:
    """The event that says so, and a clean end."""
    async with running(tmp_path, how) as site:
        first = await site.post("/chat", "chat-1")
        await first.read_until(b"begun")
        connections = [await site.connect() for _ in range(2)]
        await connections[0].request("GET", "/v1/stream/chat-1")
        reader = await connections[0].response()
        await reader.read_until(b"begun")
        await connections[1].request("DELETE", "/v1/stream/chat-1")
        stopped = await connections[1].response()
        bodies = [await first.read_all(), await reader.read_all()]
        site.wait_noted("generator closed")
        for connection in (first.connection, *connections):
            await connection.close()
    assert stopped.status == 204
    assert all(b"event: cancelled" in body for body in bodies)
    assert first.clean
    assert reader.clean
