"""DELETE of a stream: 204, always, and it tells nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import Player, forever, send, unique, wait
from tests.support.server import Server, serve
from tests.support.ssemodel import parse, payloads, types


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


async def test_a_stop_of_another_epoch_does_nothing(player: Player) -> None:
    """A late click cannot kill the next answer; a click of this epoch stops it."""
    name = unique("late")
    old = (await player.record(name, send(b"data: one\n\n"))).header("x-stream-epoch")
    live = await player.post(name, send(b"data: two\n\n"), wait(name), send(b"data: three\n\n"), wait(f"{name}-2"))
    await live.read_until(b"\n\n")
    assert (await player.stop(name, epoch=old)).status == 204
    assert (await player.fetch("DELETE", f"/v1/stream/{name}?epoch={old}")).status == 204
    assert (await player.stop(name, epoch="nonsense")).status == 204
    await player.open(name)
    await live.read_until(b"data: three\n")
    assert (await player.stop(name, epoch=live.header("x-stream-epoch"))).status == 204
    assert types(await live.read_all())[-1] == "cancelled"
    assert (await player.replay(name)).status == 404


async def test_a_stopped_id_can_be_used_again(player: Player) -> None:
    """With a new epoch."""
    name = unique("again")
    live = await player.post(name, send(b"data: one\n\n"), forever())
    await live.read_until(b"\n\n")
    await player.stop(name)
    again = await player.record(name, send(b"data: two\n\n"))
    assert again.header("x-stream-epoch") != live.header("x-stream-epoch")
    assert payloads((await player.replay(name)).body) == ["two"]


async def test_a_stop_while_the_stream_is_queued_cancels_the_request(player: Player) -> None:
    """The caller that waits is told so."""
    name, gate = unique("queued"), unique("gate")
    starting = asyncio.create_task(player.post(name, before=[wait(gate)], name=name))
    await player.waits_at(gate)
    assert (await player.stop(name)).status == 204
    waiting = await starting
    assert waiting.status == 400
    assert json.loads(await waiting.read_all())["detail"]["code"] == "cancelled"
    assert (await player.replay(name)).status == 404
    assert f"started:{name}" not in await player.events()


async def test_a_stop_does_not_stop_variants(player: Player) -> None:
    """Ids are compared byte for byte; only a lookup knows of variants."""
    name = unique("variant")
    live = await player.post(f"{name}::v", send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"))
    await live.read_until(b"\n\n")
    await player.stop(name)
    await player.open(name)
    assert payloads(await live.read_all()) == ["two"]


async def test_two_stops_at_once_are_one(player: Player) -> None:
    """Both are answered 204, and there is one terminal event."""
    name = unique("both")
    live = await player.post(name, send(b"data: one\n\n"), forever())
    await live.read_until(b"\n\n")
    replies = await asyncio.gather(*(player.stop(name) for _ in range(5)))
    assert {reply.status for reply in replies} == {204}
    assert types(await live.read_all()).count("cancelled") == 1
