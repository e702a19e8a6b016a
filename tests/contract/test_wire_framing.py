"""The log of an event stream grows by whole events, however the application cuts and ends them."""

import itertools
import re
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.apps.player import Player, send, sends, unique, wait
from tests.support.server import Server, serve
from tests.support.ssemodel import (
    LINE,
    boundaries,
    dispatched_at_blank_lines,
    normalised,
    our_ids,
    parse,
    payloads,
    types,
    without_ids,
)

BOM = b"\xef\xbb\xbf"
ENDS = ["\n", "\r\n", "\r"]
BOUND = 65536


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60}) as running:
        yield running


@pytest.fixture(scope="module")
def bounded() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60, "max_stream_bytes": BOUND}) as running:
        yield running


@pytest.fixture(scope="module")
def untouched() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60, "event_ids": False}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


@pytest.fixture
async def bounded_player(bounded: Server) -> AsyncIterator[Player]:
    async with Player(bounded.port) as opened:
        yield opened


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def as_recorded(body: bytes) -> bytes:
    """What the contract says of the application's bytes, the ids left out: silent blocks lose their blank line."""
    out = bytearray()
    block: list[bytes] = []
    for match in LINE.finditer(body):
        line, end = match.groups()
        silent = block and all(re.match(rb"(\xef\xbb\xbf)?(:|retry(:|$))", earlier) for earlier in block)
        if line:
            block.append(line)
        else:
            block = []
        if line or not silent:
            out += line + end
    covered = max((match.end() for match in LINE.finditer(body)), default=0)
    return bytes(out) + body[covered:]


text = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=12)
data_line = text.map(lambda value: f"data: {value}") | text.map(lambda value: f"data:{value}") | st.just("data")
other_line = st.sampled_from(["event: word", "foo: bar", ": note", ":", "retry: 5", "datum: x", "idle: y", "event"])
own_id = st.sampled_from(["id: 7", "id: a b", "id:é"])
dispatched = st.builds(
    lambda before, data, after, own: [*before, *data, *after, *own],
    st.lists(other_line, max_size=2),
    st.lists(data_line, min_size=1, max_size=3),
    st.lists(other_line, max_size=2),
    st.lists(own_id, max_size=1),
)
silent = st.lists(st.sampled_from([": note", ":", "retry: 5", ": ping - now", "retry:x"]), min_size=1, max_size=3)
blocks = st.lists(dispatched | silent, min_size=1, max_size=5)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """The body of an event stream: blocks of lines, every line with an end of its own choice."""
    mixed = draw(st.booleans())
    one = draw(st.sampled_from(ENDS))
    body = BOM if draw(st.booleans()) else b""
    previous = ""
    for block in draw(blocks):
        for line in [*block, ""]:
            end = draw(st.sampled_from(ENDS)) if mixed else one
            if not line and previous == "\r" and end == "\n":
                end = "\r"  # CR LF would be one line end, and the block would not be over
            body += f"{line}{end}".encode()
            previous = end
    if draw(st.booleans()):
        body += draw(st.sampled_from([b"data: unfinished", b"data: half\n", b": left\n", "data: é".encode()[:-1]]))
    return body


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A body, and the same body in chunks."""
    body = draw(bodies())
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(body) - 1)), max_size=12)))
    edges = [0, *cuts, len(body)]
    return body, [body[begin:end] for begin, end in itertools.pairwise(edges) if begin < end]


@given(case=chunked())
async def test_any_chunking_of_any_line_ends_is_recorded_as_the_same_events(
    server: Server, case: tuple[bytes, list[bytes]]
) -> None:
    """A naive parser finds the same events in the log as in what the application sent, and the bytes are its own."""
    body, chunks = case
    async with Player(server.port) as player:
        name = unique("any")
        log = (await player.record(name, *sends(*chunks))).body
        sent, recorded = parse(body), parse(log)
        assert [(event.type, event.data) for event in recorded] == [(event.type, event.data) for event in sent]
        assert normalised(without_ids(log)) == normalised(as_recorded(body))
        for _, offset in our_ids(log):
            assert offset in boundaries(log)
        assert dispatched_at_blank_lines(log) == [event.data for event in sent]
        assert (await player.replay(name)).body == log


@given(case=chunked())
async def test_any_stream_resumes_at_each_event_wherever_it_was_cut(
    server: Server, case: tuple[bytes, list[bytes]]
) -> None:
    """After any event id of ours, a fresh parser dispatches exactly the events that follow."""
    _, chunks = case
    async with Player(server.port) as player:
        name = unique("cut")
        log = (await player.record(name, *sends(*chunks))).body
        events = parse(log)
        for epoch, offset in our_ids(log):
            done = len(parse(log[:offset]))
            rest = await player.resume(name, f"{epoch}-{offset}")
            assert rest.body == (log[offset:] if done < len(events) else b"")
            assert rest.status == (200 if done < len(events) else 204)
            assert [event.data for event in parse(rest.body)] == [event.data for event in events[done:]]


tokens = st.sampled_from(
    [
        b"data: x",
        b"data",
        b"id: 1",
        b"id",
        b":",
        b": c",
        b"retry: 1",
        b"event: e",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b" ",
        BOM,
    ]
)


@st.composite
def rubble(draw: st.DrawFn) -> list[bytes]:
    """Pieces of event streams in no order, in chunks that respect nothing."""
    body = b"".join(draw(st.lists(tokens, max_size=24)))
    cuts = sorted(draw(st.sets(st.integers(0, len(body)), max_size=10)))
    return [body[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(body)]) if begin < end]


@given(chunks=rubble())
async def test_whatever_the_app_sends_a_browser_reads_the_same_from_the_log(
    server: Server, chunks: list[bytes]
) -> None:
    """Not one event more, less, earlier or later, and every id of ours stands at the end of its event."""
    async with Player(server.port) as player:
        name = unique("rubble")
        log = (await player.record(name, *sends(*chunks))).body
        sent, recorded = parse(b"".join(chunks)), parse(log)
        assert [(event.type, event.data) for event in recorded] == [(event.type, event.data) for event in sent]
        for _, offset in our_ids(log):
            assert offset in boundaries(log)
            assert log[:offset].endswith((b"\n", b"\r"))
        assert (await player.replay(name)).body == log


@given(chunks=rubble())
async def test_without_event_ids_no_byte_is_changed_whatever_the_app_sends(
    untouched: Server, chunks: list[bytes]
) -> None:
    """`event_ids=False`: the log is the concatenation of the chunks."""
    async with Player(untouched.port) as player:
        name = unique("rubble")
        assert (await player.record(name, *sends(*chunks))).body == b"".join(chunks)
        assert (await player.replay(name)).body == b"".join(chunks)


@pytest.mark.parametrize("end", ENDS, ids=["LF", "CRLF", "CR"])
async def test_an_event_is_shown_when_its_blank_line_has_come(player: Player, end: str) -> None:
    """With every line end, an event does not wait for the next one."""
    name = unique("prompt")
    event = f"event: word{end}data: été{end}{end}".encode()
    live = await player.post(name, *sends(*one_by_one(event)), wait(name), send(event))
    seen = await live.read_until(f"data: été{end}".encode())
    await player.waits_at(name)
    log = await player.follow(name)
    (item,) = await player.lookup(name)
    assert payloads(await log.read(item["total_bytes"])) == ["été"]
    await player.open(name)
    whole = seen + await live.read_all()
    assert payloads(whole) == ["été", "été"]
    assert types(whole) == ["word", "word"]


async def test_several_lines_of_data_are_one_event_with_one_id(player: Player) -> None:
    """An id is put on an event, not on a line."""
    log = (await player.record(unique("lines"), send(b"data: a\ndata: b\ndata\ndata: c\n\n"))).body
    assert payloads(log) == ["a\nb\n\nc"]
    assert len(our_ids(log)) == 1
    assert log.endswith(b"-%d\n\n" % len(log))


async def test_many_events_in_one_chunk_get_an_id_each(player: Player) -> None:
    """Chunks are no boundaries, in this direction either."""
    log = (await player.record(unique("burst"), send(b"".join(b"data: %d\n\n" % n for n in range(50))))).body
    assert payloads(log) == [str(number) for number in range(50)]
    assert [offset for _, offset in our_ids(log)] == boundaries(log)


async def test_a_byte_order_mark_is_understood(player: Player) -> None:
    """An event right behind a BOM is an event, gets an id, and can be resumed from."""
    name = unique("bom")
    log = (await player.record(name, *sends(*one_by_one(BOM + b"data: one\n\ndata: two\n\n")))).body
    assert payloads(log) == ["one", "two"]
    assert len(our_ids(log)) == 2
    rest = await player.resume(name, parse(log)[0].id)
    assert payloads(rest.body) == ["two"]
    assert BOM not in rest.body


@pytest.mark.parametrize("first", [b"id: own\n", b": hello\n\n", b"retry: 7\n\n", b"event: word\n"])
async def test_a_byte_order_mark_hides_no_field(player: Player, first: bytes) -> None:
    """The line right behind a BOM is read as the line it is."""
    name = unique("marked")
    log = (await player.record(name, send(BOM + first + b"data: one\n\n"))).body
    (event,) = parse(log)
    assert event.data == "one"
    assert (event.id == "own") == first.startswith(b"id")
    assert len(our_ids(log)) == (0 if first.startswith(b"id") else 1)
    assert dispatched_at_blank_lines(log) == ["one"]


@pytest.mark.parametrize(
    "block", [b": ping\n\n", b":\n\n", b"retry: 3000\n\n", b": a\nretry: 1\n: b\n\n", b": x\r\n\r\n"]
)
async def test_a_block_of_comments_or_retry_loses_its_blank_line(player: Player, block: bytes) -> None:
    """Nothing that dispatches nothing ends in a blank line, while ids are injected."""
    name = unique("silent")
    log = (await player.record(name, send(b"data: one\n\n"), send(block), send(b"data: two\n\n"))).body
    line_end = b"\r\n" if b"\r" in block else b"\n"
    assert without_ids(log) == b"data: one\n\n" + block.removesuffix(line_end) + b"data: two\n\n"
    assert payloads(log) == dispatched_at_blank_lines(log) == ["one", "two"]


async def test_a_ping_of_the_app_is_shown_at_once(player: Player) -> None:
    """A block that has lost its blank line is not held back for the next event."""
    name = unique("pings")
    live = await player.post(name, send(b"data: one\n\n"), send(b": still here\n\n"), wait(name))
    assert (await live.read_until(b": still here\n")).endswith(b"\n\n: still here\n")
    await player.open(name)
    await live.read_all()


async def test_blank_lines_between_events_dispatch_nothing(player: Player) -> None:
    """Empty blocks are as harmless in the log as they are to a browser."""
    body = b"\n\ndata: one\n\n\n\n\r\n\r\ndata: two\n\n\n"
    log = (await player.record(unique("blank"), *sends(*one_by_one(body)))).body
    assert payloads(log) == dispatched_at_blank_lines(log) == ["one", "two"]


async def test_half_an_event_is_never_shown(player: Player) -> None:
    """What has come of an event waits until the rest has."""
    name = unique("held")
    live = await player.post(name, send(b"data: one\n\n"), send(b"data: TW"), wait(name), send(b"O\n"), send(b"\n"))
    await player.waits_at(name)
    (item,) = await player.lookup(name)
    seen = await live.read(item["total_bytes"])
    assert payloads(seen) == ["one"]
    # In capitals, which no epoch has.
    assert b"TW" not in seen
    await player.open(name)
    assert payloads(await live.read_all()) == ["TWO"]


async def test_a_stop_shows_no_half_event(player: Player) -> None:
    """The readers of a stopped stream get whole events and the terminal one."""
    name = unique("stopped")
    live = await player.post(name, send(b"data: one\n\ndata: TW"), wait(name))
    await player.waits_at(name)
    await player.stop(name)
    body = await live.read_all()
    assert types(body) == ["message", "cancelled"]
    assert b"TW" not in body


async def test_a_reconnect_shows_no_half_event(player: Player) -> None:
    """A reader that comes by id while an event is half sent begins at its beginning."""
    name = unique("reconnect")
    live = await player.post(name, send(b"data: one\n\ndata: tw"), wait(name), send(b"o\n\n"))
    await player.waits_at(name)
    (item,) = await player.lookup(name)
    first = parse(await live.read(item["total_bytes"]))[0]
    again = await player.follow(name, headers=[("last-event-id", first.id)])
    await player.open(name)
    assert await again.read_all() == await live.read_all()
    assert payloads(again.body) == ["two"]


@pytest.mark.parametrize("rest", [b"data: unfinished", b"data: unfinished\n", b": comment", "data: é".encode()[:-1]])
async def test_what_is_left_over_at_the_end_is_recorded_as_it_is(player: Player, rest: bytes) -> None:
    """The application has the last word, finished or not."""
    name = unique("rest")
    reply = await player.record(name, send(b"data: one\n\n"), send(rest))
    assert reply.clean
    assert reply.body.endswith(b"\n\n" + rest)
    assert (await player.replay(name)).body == reply.body
    assert payloads(reply.body) == ["one"]


async def test_an_event_that_never_ends_is_bounded(bounded: Server, bounded_player: Player) -> None:
    """A "line" of 32 MiB costs no more memory than the bound, and is still one reader's whole answer."""
    name = unique("endless")
    await bounded_player.record(unique("warm"), send(b"data: " + b"x" * BOUND), send(b"\n\n"))
    before = bounded.rss()
    piece = send(b"x" * 32768)
    response = await bounded_player.post(name, send(b"data: "), *[piece] * 64, wait(name), *[piece] * 64)
    await response.read(BOUND)
    await bounded_player.open(name)
    await response.read_all()
    assert response.clean
    assert without_ids(response.body) == b"data: " + b"x" * 32768 * 128
    (item,) = await bounded_player.lookup(name)
    assert item["total_bytes"] - item["dropped_bytes"] <= BOUND
    assert bounded.rss() - before < 64 * 1024 * 1024


async def test_an_event_larger_than_the_bound_is_followed_by_whole_events(bounded_player: Player) -> None:
    """Once it has ended after all, the next events are framed as ever."""
    name = unique("huge")
    large = b"data: " + b"x" * 3 * BOUND
    response = await bounded_player.record(name, *sends(large, b"\n\n", b"data: next\n\n", b"data: last\n\n"))
    assert payloads(response.body) == ["x" * 3 * BOUND, "next", "last"]
    ids = our_ids(response.body)
    assert [offset for _, offset in ids][-2:] == boundaries(response.body)[-2:]
    rest = await bounded_player.resume(name, f"{ids[-2][0]}-{ids[-2][1]}")
    assert payloads(rest.body) == ["last"]
