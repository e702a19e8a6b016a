"""Every client sees exactly the bytes of the log, in order, from its offset."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import Player, fail, numbered, send, sends, unique, wait
from tests.support.server import Server, serve
from tests.support.ssemodel import boundaries, last_ids, our_ids, parse, payloads, types

FIVE = (
    b"data: one\n\n",
    b": a comment\n\n",
    b"event: word\ndata: tw\xc3\xb6\ndata: lines\n\n",
    b"retry: 10\n\n",
    b"data: \xf0\x9f\x90\x8d three\r\n\r\n",
    b"id: own\ndata: four\n\n",
    b"data: five\r\r",
)
BOUND = 65536


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


@pytest.fixture(scope="module")
def bounded() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"max_stream_bytes": BOUND, "ping": 60}) as running:
        yield running


@pytest.fixture
async def bounded_player(bounded: Server) -> AsyncIterator[Player]:
    async with Player(bounded.port) as opened:
        yield opened


async def test_the_first_answer_a_replay_ten_live_readers_and_a_late_one_are_the_same_bytes(player: Player) -> None:
    """Whoever reads, and whenever: the same bytes."""
    name = unique("same")
    first = await player.post(name, *sends(*FIVE[:3]), wait(name), *sends(*FIVE[3:]))
    await player.waits_at(name)
    live = [await player.follow(name) for _ in range(10)]
    assert {reader.status for reader in live} == {200}
    await player.open(name)
    bodies = await asyncio.gather(first.read_all(), *(reader.read_all() for reader in live))
    bodies += [(await player.replay(name)).body, (await player.replay(name, from_=0)).body]
    assert set(bodies) == {bodies[0]}
    assert payloads(bodies[0]) == ["one", "twö\nlines", "🐍 three", "four", "five"]
    assert first.clean
    assert all(reader.clean for reader in live)


async def test_a_reader_that_starts_in_mid_stream_gets_the_past_and_then_the_present(player: Player) -> None:
    """Replay and tail are one: nothing is missing or doubled where they meet."""
    name = unique("middle")
    first = await player.post(name, *sends(*FIVE[:3]), wait(name), *sends(*FIVE[3:]))
    past = await first.read_until(b"lines\n")
    await player.waits_at(name)
    late = await player.follow(name)
    assert (await late.read(len(past))) == past
    await player.open(name)
    assert await late.read_all() == await first.read_all()


async def test_the_first_response_is_no_more_than_a_reader(player: Player) -> None:
    """The caller may go, and the others do not notice; its bytes are theirs."""
    name = unique("caller")
    first = await player.post(name, send(FIVE[0]), wait(name), *sends(*FIVE[1:]))
    seen = await first.read_until(b"\n\n")
    other = await player.follow(name)
    first.connection.reset()
    await player.open(name)
    body = await other.read_all()
    assert body.startswith(seen)
    assert payloads(body)[-1] == "five"
    assert body == (await player.replay(name)).body


async def test_a_stream_cut_at_every_byte_goes_on_from_that_byte(player: Player) -> None:
    """Whatever the count of bytes that a client has, `from` gives it the rest."""
    name = unique("bytes")
    whole = (await player.record(name, *sends(*FIVE))).body
    for cut in range(len(whole) + 1):
        rest = await player.replay(name, from_=cut)
        assert (rest.status, whole[:cut] + rest.body, rest.clean) == (200, whole, True), cut


async def test_a_connection_reset_at_every_byte_of_a_live_stream_loses_nothing(player: Player) -> None:
    """A client that counts bytes, and loses its connection after each possible count, has the whole in the end."""
    name = unique("resets")
    first = await player.post(name, *sends(*FIVE), wait(name), send(b"data: six\n\n"))
    await player.waits_at(name)
    length = (await player.lookup(name))[0]["total_bytes"]
    cut_off = []
    for cut in range(1, length + 1):
        reader = await player.follow(name)
        seen = await reader.read(cut)
        reader.connection.reset()
        cut_off.append((cut, seen))
    resumed = [await player.follow(name, from_=cut) for cut, _ in cut_off[::25]]
    await player.open(name)
    whole = await first.read_all()
    for (_, seen), reader in zip(cut_off[::25], resumed, strict=True):
        assert seen + await reader.read_all() == whole
    for cut, seen in cut_off:
        assert seen == whole[:cut]


async def test_an_event_stream_resumes_at_each_of_its_events(player: Player) -> None:
    """`Last-Event-ID` of any event gives the bytes right after that event."""
    name = unique("events")
    whole = (await player.record(name, *sends(*FIVE))).body
    events = parse(whole)
    for number, event in enumerate(events[:-1], start=1):
        rest = await player.resume(name, event.id)
        assert rest.status == 200
        assert whole.endswith(rest.body)
        assert [again.data for again in parse(rest.body)] == [later.data for later in events[number:]]


async def test_offset_and_event_id_name_the_same_place(player: Player) -> None:
    """`?from=<offset>` and `Last-Event-ID: <epoch>-<offset>` give the same bytes."""
    name = unique("place")
    whole = (await player.record(name, *sends(*FIVE), send(b"data: six\n\n"))).body
    ids = our_ids(whole)
    assert len(ids) == 5
    for epoch, offset in ids[:-1]:
        assert offset in boundaries(whole)
        by_id = await player.resume(name, f"{epoch}-{offset}")
        by_offset = await player.replay(name, from_=offset)
        assert by_id.body == by_offset.body == whole[offset:]


async def test_a_live_stream_resumes_by_id_and_by_offset_alike(player: Player) -> None:
    """Both ways work before the end, too, and both wait for what is still to come."""
    name = unique("live")
    first = await player.post(name, *sends(*FIVE), wait(name), send(b"data: six\n\n"))
    await player.waits_at(name)
    tail = (await player.lookup(name))[0]["total_bytes"]
    past = await first.read(tail)
    by_id = await player.follow(name, headers=[("last-event-id", last_ids(past)[-1])])
    by_offset = await player.follow(name, from_=tail)
    await player.open(name)
    rest = await first.read_all()
    assert payloads(rest) == ["six"]
    assert await by_id.read_all() == await by_offset.read_all() == rest


async def test_a_byte_that_was_shown_can_be_replayed_at_once(player: Player) -> None:
    """At the moment that a client holds an event, the log holds it."""
    name = unique("shown")
    steps = [step for number in range(20) for step in (send(b"data: %d\n\n" % number), wait(f"{name}-{number}"))]
    first = await player.post(name, *steps)
    for number in range(20):
        await first.read_until(f"data: {number}\n".encode())
        seen = first.body
        again = await player.follow(name)
        assert await again.read(len(seen)) == seen
        again.connection.reset()
        at_tail = await player.follow(name, from_=len(seen))
        assert at_tail.status == 200
        at_tail.connection.reset()
        await player.open(f"{name}-{number}")
    await first.read_all()


async def test_the_terminal_event_is_part_of_the_log(player: Player) -> None:
    """Whoever comes after a failure reads the same last event as those who were there."""
    name = unique("terminal")
    first = await player.post(name, *sends(*FIVE), wait(name), fail())
    await player.waits_at(name)
    other = await player.follow(name)
    await player.open(name)
    whole = await first.read_all()
    assert types(whole)[-1] == "error"
    assert await other.read_all() == whole == (await player.replay(name)).body
    assert (await player.lookup(name))[0]["total_bytes"] == len(whole)
    before = last_ids(whole)[-2]
    assert types((await player.resume(name, before)).body) == ["error"]


async def test_readers_of_different_pace_of_a_large_stream_see_the_same_bytes(bounded_player: Player) -> None:
    """The slowest attached reader sets the pace, and nobody loses a byte."""
    name = unique("paces")
    first = await bounded_player.post(name, send(b"data: begin\n\n"), wait(name), numbered(200, 2048))
    slow = await bounded_player.follow(name, receive_buffer=4096)
    await bounded_player.open(name)

    async def trickle() -> bytes:
        body = bytearray()
        while piece := await slow.read(97):
            body += piece
        return bytes(body)

    fast, slowly = await asyncio.gather(first.read_all(), trickle())
    assert fast == slowly
    assert len(payloads(fast)) == 201


async def test_only_the_reader_that_lost_its_place_gets_the_error() -> None:
    """A reader that stood still for too long ends uncleanly or with `offset_lost`; the log knows nothing of it."""
    name = unique("stalled")
    count, size = 4000, 8192
    steps = send(b"data: begin\n\n"), wait(name), numbered(count, size)
    options = {"max_stream_bytes": BOUND, "stall_timeout": 1.0, "ping": 60}
    with serve("tests.support.apps.scripted:app", options=options) as server:
        async with Player(server.port) as player:
            stalled = await player.post(name, *steps, receive_buffer=4096, name=name)
            await stalled.read_until(b"\n\n")
            await player.open(name)
            await player.events(until=f"ended:{name}")
            seen = parse(await stalled.read_all())
            if seen[-1].type == "error":
                assert json.loads(seen.pop().data)["code"] == "offset_lost"
            else:
                assert not stalled.clean
            assert [event.data.split()[0] for event in seen] == [f"{number:08d}" for number in range(len(seen))]
            assert 0 < len(seen) < count
            (item,) = await player.lookup(name)
            await player.replay(name, from_=item["total_bytes"])
            (item,) = await player.lookup(name)
            assert item["status"] == "completed"
            kept = await player.replay(name, from_=item["dropped_bytes"])
    assert b"offset_lost" not in kept.body
    assert payloads(kept.body)[-1].startswith(f"{count - 1:08d}")


async def test_a_client_that_only_half_closed_its_socket_reads_on(player: Player) -> None:
    """A client that will send no more can still listen, or comes back for the same bytes."""
    name = unique("half")
    first = await player.post(name, send(FIVE[0]), wait(name), *sends(*FIVE[1:]))
    await first.read_until(b"\n\n")
    first.connection.half_close()
    await player.open(name)
    seen = first.body + await first.read_all()
    whole = (await player.replay(name)).body
    assert whole.startswith(seen)
    assert payloads(whole)[-1] == "five"


async def test_a_request_that_comes_in_pieces_starts_one_stream(player: Player) -> None:
    """Bytes of the request may arrive one by one."""
    from tests.support.apps.player import script_body, script_headers
    from tests.support.rawhttp import encode_request

    name = unique("pieces")
    body = script_body(*sends(*FIVE), name=name)
    request = encode_request("POST", "/script", script_headers(name), body, port=player.port)
    connection = await player.connect()
    await connection.send(*(request[at : at + 7] for at in range(0, len(request), 7)))
    response = await connection.response()
    assert (await response.read_all()) == (await player.replay(name)).body
    assert (await player.events()).count(f"called:{name}") == 1
