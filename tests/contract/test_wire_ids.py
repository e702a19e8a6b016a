"""The id that each event gets, the ids that the application sets, and bytes that are left untouched."""

import re
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.apps.player import Player, fail, send, sends, unique, wait
from tests.support.server import Server, serve
from tests.support.ssemodel import OUR_ID, our_ids, parse, payloads, types


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60}) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"event_ids": False, "ping": 60}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


@pytest.fixture
async def plain_player(plain: Server) -> AsyncIterator[Player]:
    async with Player(plain.port) as opened:
        yield opened


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
async def test_an_event_gets_an_id_as_its_last_line(player: Player, end: bytes) -> None:
    """`id: <epoch>-<offset>`, the last line of the event, with the offset right after the blank line."""
    name = unique("last")
    reply = await player.record(name, send(b"event: word" + end + b"data: x" + end + b": note" + end + end))
    log = reply.body
    epoch = reply.header("x-stream-epoch")
    assert epoch
    lines = re.split(rb"\r\n|\n|\r", log)
    assert lines == [b"event: word", b"data: x", b": note", f"id: {epoch}-{len(log)}".encode(), b"", b""]


async def test_every_event_with_data_gets_the_offset_right_after_itself(player: Player) -> None:
    """Also where the count of digits changes: 9 to 10, 99 to 100, 999 to 1000."""
    reply = await player.record(unique("digits"), *(send(b"data:" + b"x" * (n % 7) + b"\n\n") for n in range(400)))
    epoch = reply.header("x-stream-epoch")
    ends = [match.end() for match in re.finditer(rb"\n\n", reply.body)]
    assert our_ids(reply.body) == [(epoch, end) for end in ends]
    assert len(ends) == 400


async def test_an_epoch_is_sixteen_lowercase_base32_characters(player: Player) -> None:
    """So that no id of an application is mistaken for one of ours."""
    name = unique("epoch")
    first = (await player.record(name, send(b"data: 1\n\n"))).header("x-stream-epoch")
    second = (await player.record(name, send(b"data: 1\n\n"))).header("x-stream-epoch")
    assert first
    assert second
    assert re.fullmatch("[a-z2-7]{16}", first)
    assert re.fullmatch("[a-z2-7]{16}", second)
    assert first != second


async def test_an_event_without_data_gets_no_id(player: Player) -> None:
    """It would dispatch nothing, so there is nothing to resume after."""
    log = (await player.record(unique("no-data"), send(b"event: word\n\n"), send(b"data: x\n\n"))).body
    assert log.startswith(b"event: word\n\ndata: x\nid: ")
    assert len(our_ids(log)) == 1


async def test_fields_that_only_look_like_ours_are_not_taken_for_them(player: Player) -> None:
    """`idle:`, `data` in a value, `database:`: a field is its whole name, at the start of a line."""
    name = unique("look")
    body = b"idle: x\ndata: id: 5\ndatabase: y\n\n", b"database: only\n\n", b": data: x\n\n", b"data\n\n"
    log = (await player.record(name, *sends(*body))).body
    assert payloads(log) == ["id: 5", ""]
    assert len(our_ids(log)) == 2


@pytest.mark.parametrize(
    "own", ["7", "msg_1", "a b c", "é🐍", "0", "x" * 300, "a-1", "abcdefghijklmnop-x", "ABCDEFGHIJKLMNOP-5"]
)
async def test_an_id_of_the_apps_own_is_kept_and_resumed_by(player: Player, own: str) -> None:
    """It stays as it is, no second one is added, and `Last-Event-ID` finds it."""
    name = unique("own")
    events = b"data: one\n\n", f"id: {own}\ndata: two\n\n".encode(), b"data: three\n\n", b"data: four\n\n"
    log = (await player.record(name, *sends(*events))).body
    assert parse(log)[1].id == own
    assert OUR_ID.search(log[: log.index(b"data: three")].split(b"data: one")[1].split(b"\n\n")[1]) is None
    assert len(our_ids(log)) == 3
    rest = await player.resume(name, own)
    assert rest.status == 200
    assert payloads(rest.body) == ["three", "four"]
    assert log.endswith(rest.body)


@pytest.mark.parametrize(
    "line", [b"id:7\ndata: x\n\n", b"data: x\nid: 7\n\n", b"id: 7\r\ndata: x\r\n\r\n", b"data: x\rid:7\r\r"]
)
async def test_an_own_id_may_stand_anywhere_in_its_event(player: Player, line: bytes) -> None:
    """First line or last, with a space or without, with any line end."""
    name = unique("anywhere")
    log = (await player.record(name, send(line), send(b"data: y\n\n"))).body
    assert log.startswith(line)
    rest = await player.resume(name, "7")
    assert payloads(rest.body) == ["y"]


async def test_a_stream_of_own_ids_resumes_at_each(player: Player) -> None:
    """Numbered by the application, as many do: 1 is not 10."""
    name = unique("numbers")
    log = (await player.record(name, *(send(b"id: %d\ndata: <%d>\n\n" % (n, n)) for n in range(1, 21)))).body
    assert our_ids(log) == []
    for number in range(1, 20):
        rest = await player.resume(name, str(number))
        assert payloads(rest.body) == [f"<{later}>" for later in range(number + 1, 21)]
    assert (await player.resume(name, "20")).status == 204


async def test_an_own_id_that_comes_without_data_is_resumed_by(player: Player) -> None:
    """An event that only primes the client's id is a place too."""
    name = unique("priming")
    log = (await player.record(name, send(b"id: start\n\n"), send(b"data: one\n\n"))).body
    assert log.startswith(b"id: start\n\ndata: one\nid: ")
    assert payloads((await player.resume(name, "start")).body) == ["one"]


async def test_a_live_stream_resumes_by_an_own_id(player: Player) -> None:
    """The rest comes when it comes."""
    name = unique("live-own")
    live = await player.post(name, send(b"id: 1\ndata: one\n\n"), wait(name), send(b"id: 2\ndata: two\n\n"))
    await live.read_until(b"\n\n")
    again = await player.follow(name, headers=[("last-event-id", "1")])
    await player.open(name)
    assert payloads(await again.read_all()) == ["two"]


async def test_without_event_ids_the_bytes_are_the_applications_own(plain_player: Player) -> None:
    """`event_ids=False`: comments keep their blank lines, line ends and a BOM stay, nothing is added."""
    body = (
        b"\xef\xbb\xbfdata: one\n\n: ping\n\nretry: 5\n\n\n\ndata: two\r\n\r\n",
        b"data: th",
        b"ree\r",
        b"\r\n\n",
        b"id: own\ndata: four\n\ndata: unfinished",
    )
    name = unique("untouched")
    reply = await plain_player.record(name, *sends(*body))
    assert reply.body == b"".join(body)
    assert (await plain_player.replay(name)).body == b"".join(body)
    for cut in range(len(reply.body) + 1):
        assert (await plain_player.replay(name, from_=cut)).body == reply.body[cut:]


async def test_without_event_ids_own_ids_resume_still(plain_player: Player) -> None:
    """The application's ids are its clients' places, whatever we do about ours."""
    name = unique("untouched-own")
    await plain_player.record(name, send(b"id: 1\ndata: one\n\nid: 2\ndata: two\n\n"))
    assert (await plain_player.resume(name, "1")).body == b"id: 2\ndata: two\n\n"


async def test_without_event_ids_the_log_still_grows_by_whole_events(plain_player: Player) -> None:
    """Half an event is held back here as well."""
    name = unique("untouched-half")
    live = await plain_player.post(name, send(b"data: one\n\ndata: tw"), wait(name))
    await plain_player.waits_at(name)
    assert (await plain_player.lookup(name))[0]["total_bytes"] == len(b"data: one\n\n")
    await plain_player.stop(name)
    body = await live.read_all()
    assert types(body) == ["message", "cancelled"]
    assert b"tw" not in body


async def test_a_failed_stream_resumes_after_its_terminal_event_with_204(player: Player) -> None:
    """An `EventSource` that has seen the failure is told to stay away."""
    name = unique("after")
    log = (await player.record(name, send(b"data: one\n\n"), fail())).body
    one, error = parse(log)
    assert types((await player.resume(name, one.id)).body) == ["error"]
    assert error.id != one.id
    assert (await player.resume(name, error.id)).status == 204
