"""The wire under every server: uvicorn with both of its HTTP parsers and loops, hypercorn, granian."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.apps.player import Player, fail, send, sends, unique, wait
from tests.support.server import Server, serve
from tests.support.ssemodel import last_ids, payloads, types

EVENTS = sends(b"data: one\n\n", "data: tvö\n\n".encode(), b"data: three\n\n")
SERVERS: dict[str, dict[str, Any]] = {
    "uvicorn-httptools-uvloop": {},
    "uvicorn-h11-asyncio": {"http": "h11", "loop": "asyncio"},
    "hypercorn": {"server": "hypercorn", "workers": 0},
    "granian": {"server": "granian"},
}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", **SERVERS[request.param], options={"ping": 60}) as running:
        yield running


@pytest.mark.servers
async def test_every_server_shows_every_client_the_same_bytes(server: Server) -> None:
    """The caller, live readers, a late one; by offset and by id."""
    async with Player(server.port) as player:
        name = unique("same")
        first = await player.post(name, EVENTS[0], wait(name), *EVENTS[1:])
        await first.read_until(b"\n\n")
        live = [await player.follow(name) for _ in range(5)]
        await player.open(name)
        await asyncio.gather(first.read_all(), *(reader.read_all() for reader in live))
        assert {reader.body for reader in live} == {first.body}
        assert payloads(first.body) == ["one", "tvö", "three"]
        for cut in range(0, len(first.body) + 1, 7):
            assert (await player.replay(name, from_=cut)).body == first.body[cut:]
        assert payloads((await player.resume(name, last_ids(first.body)[0])).body) == ["tvö", "three"]
        assert (await player.resume(name, last_ids(first.body)[-1])).status == 204
        assert (await player.head(name)).header("x-stream-total-bytes") == str(len(first.body))


@pytest.mark.servers
async def test_under_every_server_the_producer_goes_on_without_its_client(server: Server) -> None:
    """A reset connection is nothing that the application hears of."""
    async with Player(server.port) as player:
        name = unique("reset")
        first = await player.post(name, EVENTS[0], wait(name), *EVENTS[1:], name=name)
        seen = await first.read_until(b"\n\n")
        first.connection.reset()
        await player.open(name)
        await player.events(until=f"finished:{name}")
        rest = await player.resume(name, last_ids(seen)[-1])
        assert payloads(rest.body) == ["tvö", "three"]


@pytest.mark.servers
async def test_under_every_server_a_broken_download_differs_from_a_whole_one(server: Server) -> None:
    """NDJSON that fails ends uncleanly; an event stream says so in its last event; both stop when asked to."""
    async with Player(server.port) as player:
        name, events, stopped = unique("ndjson"), unique("events"), unique("stopped")
        broken = await player.record(name, send(b"{}\n"), fail(), media_type="application/x-ndjson")
        assert (broken.body, broken.clean) == (b"{}\n", False)
        assert not (await player.replay(name)).clean
        failed = await player.record(events, send(b"data: one\n\n"), fail())
        assert (types(failed.body), failed.clean) == (["message", "error"], True)
        live = await player.post(stopped, send(b"data: one\n\n"), wait(stopped))
        await live.read_until(b"\n\n")
        assert (await player.stop(stopped)).status == 204
        assert types(await live.read_all()) == ["cancelled"]
