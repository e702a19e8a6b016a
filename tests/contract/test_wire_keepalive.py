"""A keep-alive is a line of the log like any other."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import Player, fail, numbered, send, sends, unique, wait
from tests.support.server import Server, serve
from tests.support.ssemodel import boundaries, dispatched_at_blank_lines, our_ids, parse, payloads, without_ids

PING = b": ping\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 0.2}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


async def test_a_keep_alive_is_one_comment_line_without_blank_line_or_id(player: Player) -> None:
    """`: ping` and one newline, again and again while the application is silent."""
    name = unique("line")
    live = await player.post(name, send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"))
    await live.read_until(PING * 3)
    await player.open(name)
    await live.read_all()
    assert re.fullmatch(rb"data: one\n\n(: ping\n){3,}data: two\n\n", without_ids(live.body))
    assert len(our_ids(live.body)) == 2


async def test_keep_alives_are_the_same_bytes_for_every_reader(player: Player) -> None:
    """They are appended to the log, so that counts and ids hold for those who saw them and those who did not."""
    name = unique("every")
    first = await player.post(name, send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"))
    await first.read_until(PING)
    live = [await player.follow(name) for _ in range(10)]
    for reader in live:
        await reader.read_until(PING * 2)
    await player.open(name)
    await asyncio.gather(first.read_all(), *(reader.read_all() for reader in live))
    assert {reader.body for reader in live} == {first.body}
    assert (await player.replay(name)).body == first.body
    assert [offset for _, offset in our_ids(first.body)] == boundaries(first.body)


async def test_resume_works_at_every_byte_of_a_stream_with_keep_alives(player: Player) -> None:
    """A client that counts bytes counts the keep-alives in; one that uses ids need not know of them."""
    name = unique("count")
    live = await player.post(name, send(b"data: one\n\n"), wait(name), send(b"data: two\n\n"))
    await live.read_until(PING * 2)
    await player.open(name)
    await live.read_all()
    whole = live.body
    for cut in range(len(whole) + 1):
        assert (await player.replay(name, from_=cut)).body == whole[cut:]
    rest = await player.resume(name, parse(whole)[0].id)
    assert without_ids(rest.body).removeprefix(PING * 2).endswith(b"data: two\n\n")


async def test_a_decoder_that_dispatches_at_every_blank_line_sees_no_empty_event(player: Player) -> None:
    """Neither our keep-alives nor those of the application make one, once an id has been seen."""
    name = unique("openai")
    pings = b": ping - 2024-01-01\r\n\r\n", b": ping\n\n", b"retry: 3000\n\n"
    live = await player.post(name, send(b"data: one\n\n"), *sends(*pings), wait(name), send(b"data: two\n\n"))
    await live.read_until(PING * 2)
    await player.open(name)
    await live.read_all()
    assert dispatched_at_blank_lines(live.body) == ["one", "two"]


async def test_a_keep_alive_does_not_fall_into_an_event(player: Player) -> None:
    """An application that is silent in mid-event is still one whole event in the log."""
    name = unique("mid")
    live = await player.post(name, *sends(b"data: one\n\n", b"event: word\ndata: tw"), wait(name), send(b"o\n\n"))
    await live.read_until(PING * 2)
    await player.open(name)
    await live.read_all()
    assert re.fullmatch(rb"data: one\n\n(: ping\n){2,}event: word\ndata: two\n\n", without_ids(live.body))


async def test_a_keep_alive_does_not_fall_into_a_line_end(player: Player) -> None:
    """Between the CR and the LF of an event's last line end there is no room."""
    name = unique("crlf")
    live = await player.post(name, *sends(b"data: one\r\n\r"), wait(name), send(b"\ndata: two\r\n\r\n"))
    await live.read_until(PING)
    await player.open(name)
    await live.read_all()
    assert payloads(live.body) == dispatched_at_blank_lines(live.body) == ["one", "two"]


async def test_a_keep_alive_before_a_byte_order_mark_spoils_nothing(player: Player) -> None:
    """The first event is an event though its BOM is no longer the first thing on the wire."""
    name = unique("bom")
    live = await player.post(name, wait(name), send(b"\xef\xbb\xbfdata: one\n\n"), send(b"data: two\n\n"))
    await live.read_until(PING)
    await player.open(name)
    await live.read_all()
    assert payloads(live.body) == ["one", "two"]
    assert len(our_ids(live.body)) == 2


async def test_a_stream_that_is_never_silent_has_no_keep_alive(player: Player) -> None:
    """It comes after `ping` seconds without a byte from the application, and not otherwise."""
    for _ in range(10):
        body = (await player.record(unique("busy"), numbered(300, 100))).body
        assert len(payloads(body)) == 300
        if PING not in body:  # else, on a busy machine, the process may have been silent
            break
    assert PING not in body


async def test_only_event_streams_have_keep_alives(player: Player) -> None:
    """No byte is added to NDJSON, text or audio, however long it is silent."""
    name, clock = unique("ndjson"), unique("clock")
    lines = b'{"a":1}\n', b'{"b":2}\n'
    live = await player.post(name, send(lines[0]), wait(name), send(lines[1]), media_type="application/x-ndjson")
    pinged = await player.post(clock, send(b"data: x\n\n"), wait(name))
    await pinged.read_until(PING * 3)
    assert (await player.lookup(name))[0]["total_bytes"] == len(lines[0])
    await player.open(name)
    assert [json.loads(line) for line in (await live.read_all()).splitlines()] == [{"a": 1}, {"b": 2}]


async def test_a_body_that_the_app_has_encoded_is_bytes(player: Player) -> None:
    """No keep-alive, no id and no terminal event goes into it, though its media type is that of events."""
    name, clock = unique("encoded"), unique("clock")
    encoded = gzip.compress(b"data: one\n\ndata: two\n\n")
    own = [("content-encoding", "gzip")]
    await player.prepare(name, send(encoded[:9]), wait(name), send(encoded[9:]), fail(), headers=own)
    live = await player.open_request("GET", f"/play/{name}", [("x-conversation-id", name)])
    pinged = await player.post(clock, send(b"data: x\n\n"), wait(name))
    await pinged.read_until(PING * 3)
    assert (await player.lookup(name))[0]["total_bytes"] == 9
    await player.open(name)
    assert (await live.read_all(), live.clean) == (encoded, False)
    replay = await player.replay(name, from_=4)
    assert (replay.body, replay.clean, replay.header("content-encoding")) == (encoded[4:], False, "gzip")


async def test_204_is_not_kept_back_by_keep_alives_at_the_end(player: Player) -> None:
    """Comment lines after the last event are nothing that a client would dispatch."""
    name = unique("trailing")
    live = await player.post(name, send(b"data: one\n\n"), wait(name))
    await live.read_until(PING)
    await player.open(name)
    await live.read_all()
    last = parse(live.body)[-1].id
    assert live.body.endswith(PING)
    assert (await player.resume(name, last)).status == 204


async def test_a_large_ping_leaves_a_short_silence_alone(server: Server) -> None:
    """The pause is the setting's: with the default of 15 s nothing comes while another server pings three times."""
    with serve("tests.support.apps.scripted:app") as other:
        async with Player(server.port) as pinging, Player(other.port) as quiet:
            name = unique("quiet")
            silent = await quiet.post(name, send(b"data: one\n\n"), wait(name))
            pinged = await pinging.post(name, send(b"data: one\n\n"), wait(name))
            await pinged.read_until(PING * 3)
            await quiet.open(name)
            await pinging.open(name)
            await silent.read_all()
            assert PING not in silent.body
