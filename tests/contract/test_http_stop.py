"""DELETE of a stream: 204, always, and it tells nothing."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import Player, forever, send, unique, wait
from tests.support.server import Server, serve
from tests.support.ssemodel import parse, payloads


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60, "owned": True}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port, [("x-user", "alice")]) as opened:
        yield opened


@pytest.fixture
async def stranger(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port, [("x-user", "bob")]) as opened:
        yield opened


@pytest.mark.parametrize("form", ["/v1/stream/{}", "/v1/stream?conv_id={}"])
async def test_a_live_stream_is_stopped(player: Player, form: str) -> None:
    """204; the producer ends, readers get the terminal event, and the stream is gone."""
    name = unique("live")
    live = await player.post(name, send(b"data: one\n\n"), forever(), name=name)
    await live.read_until(b"\n\n")
    reply = await player.fetch("DELETE", form.format(name))
    assert (reply.status, reply.body) == (204, b"")
    body = live.body + await live.read_all()
    *_, last = parse(body)
    assert last.type == "cancelled"
    detail = json.loads(last.data)
    assert detail["code"] == detail["error"]["code"] == "cancelled"
    assert live.clean
    await player.events(until=f"ended:{name}")
    assert (await player.replay(name)).status == 404


async def test_whatever_the_stream_the_answer_is_the_same(player: Player, stranger: Player) -> None:
    """Live, finished, unknown, foreign, stopped before: the same status, the same headers, no body."""
    live_name, finished, foreign = unique("a"), unique("b"), unique("c")
    live = await player.post(live_name, send(b"data: one\n\n"), wait(live_name))
    await live.read_until(b"\n\n")
    await player.record(finished, send(b"data: one\n\n"))
    await stranger.record(foreign, send(b"data: one\n\n"))
    replies = [
        await player.stop(live_name),
        await player.stop(finished),
        await player.stop(foreign),
        await player.stop(unique("unknown")),
        await player.stop(live_name),
    ]
    assert {(reply.status, reply.body) for reply in replies} == {(204, b"")}
    assert len({tuple(sorted(key for key, _ in reply.headers)) for reply in replies}) == 1


async def test_a_foreign_stream_is_not_touched(player: Player, stranger: Player) -> None:
    """It does not exist for who does not own it."""
    name = unique("foreign")
    live = await player.post(name, send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"))
    await live.read_until(b"\n\n")
    assert (await stranger.stop(name)).status == 204
    await player.open(name)
    assert payloads(await live.read_all()) == ["two"]
