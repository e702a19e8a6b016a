"""GET and HEAD of a stream: offsets, event ids, the ends of it, and what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.apps.player import Player, fail, numbered, send, sends, unique, wait
from tests.support.rawhttp import Reply
from tests.support.server import Server, serve
from tests.support.ssemodel import boundaries, last_ids, our_ids, payloads, types

EVENTS = sends(b"data: one\n\n", b"data: two\n\n", b"data: three\n\n")
BOUND = 65536


@pytest.fixture(scope="module", params=["httptools", "h11"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", http=request.param, options={"ping": 60}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


@pytest.fixture(scope="module")
def bounded() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60, "max_stream_bytes": BOUND}) as running:
        yield running


@pytest.fixture
async def bounded_player(bounded: Server) -> AsyncIterator[Player]:
    async with Player(bounded.port) as opened:
        yield opened


def refused(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """Check that a reply is this refusal, in FastAPI's form; its detail."""
    body = json.loads(reply.body)
    assert (reply.status, body["detail"]["code"]) == (status, code), (reply.status, body)
    assert set(body) == {"detail"}
    assert isinstance(body["detail"]["message"], str)
    assert body["detail"]["message"]
    assert reply.header("content-type") == "application/json"
    return body["detail"]


async def truncated(player: Player) -> tuple[str, str, int, int]:
    """A finished stream whose head was dropped: name, epoch, earliest offset, tail."""
    name = unique("truncated")
    reply = await player.record(name, numbered(200, 2048))
    (item,) = await player.lookup(name)
    assert item["dropped_bytes"] > 0
    return name, reply.header("x-stream-epoch") or "", item["dropped_bytes"], item["total_bytes"]


@pytest.mark.parametrize("form", ["path", "query"])
async def test_a_replay_begins_at_from_and_ends_with_the_stream(player: Player, form: str) -> None:
    """Both forms give the bytes from N on, and then what is still to come."""
    name = unique("from")
    live = await player.post(name, *EVENTS, wait(name), send(b"data: four\n\n"))
    target = f"/v1/stream/{name}?from=3" if form == "path" else f"/v1/stream?conv_id={name}&from=3"
    follower = await player.open_request("GET", target)
    assert follower.status == 200
    await follower.read_until(b"data: three\n")
    await player.open(name)
    await follower.read_all()
    whole = await live.read_all()
    assert follower.body == whole[3:]
    assert follower.clean
    assert (await player.fetch("GET", target)).body == whole[3:]


async def test_without_from_or_event_id_a_replay_begins_at_the_start(player: Player) -> None:
    """As `from=0`."""
    name = unique("start")
    whole = (await player.record(name, *EVENTS)).body
    assert (await player.replay(name)).body == (await player.replay(name, from_=0)).body == whole


@pytest.mark.parametrize("target", ["/v1/stream/{}?from=", "/v1/stream?conv_id={}&from=", "/v1/stream/{}?from"])
async def test_from_without_a_value_is_as_if_absent(player: Player, target: str) -> None:
    """So a client that has no offset yet may say so."""
    name = unique("blank")
    whole = (await player.record(name, *EVENTS)).body
    reply = await player.fetch("GET", target.format(name))
    assert (reply.status, reply.body) == (200, whole)


async def test_from_the_tail_of_a_finished_stream_is_an_empty_body(player: Player) -> None:
    """200 and nothing: the client has it all."""
    name = unique("tail")
    whole = (await player.record(name, *EVENTS)).body
    reply = await player.replay(name, from_=len(whole))
    assert (reply.status, reply.body, reply.clean) == (200, b"", True)


async def test_from_the_tail_of_a_live_stream_waits_for_more(player: Player) -> None:
    """There the rest is still to come."""
    name = unique("live-tail")
    await player.post(name, *EVENTS, wait(name), send(b"data: four\n\n"))
    await player.waits_at(name)
    (item,) = await player.lookup(name)
    follower = await player.follow(name, from_=item["total_bytes"])
    assert follower.status == 200
    await player.open(name)
    assert payloads(await follower.read_all()) == ["four"]


@pytest.mark.parametrize(
    "value",
    ["-1", "-0", "%2B5", "+5", "1e3", "%D9%A3", "1_000", "0x10", "5.0", "5,6", "abc", "%20", "5%20", "%205", "NaN", "٣",
     "½", "5%00", "5%0A", "null", "--1", "%F0%9D%9F%99"],
)  # fmt: skip
async def test_a_from_that_is_no_plain_number_is_refused(player: Player, value: str) -> None:
    """ASCII digits and nothing else, however generous `int()` is."""
    name = unique("number")
    await player.record(name, *EVENTS)
    value = quote(value, safe="%+")
    refused(await player.fetch("GET", f"/v1/stream/{name}?from={value}"), 400, "invalid_offset")
    refused(await player.fetch("GET", f"/v1/stream?conv_id={name}&from={value}"), 400, "invalid_offset")
    assert (await player.fetch("HEAD", f"/v1/stream/{name}?from={value}")).status == 400


@pytest.mark.parametrize("beyond", ["1", "9" * 18, "9" * 20, "9" * 5000], ids=["one", "18", "20", "5000"])
async def test_an_offset_past_the_tail_is_out_of_range(player: Player, beyond: str) -> None:
    """By one, or by five thousand digits; also while the stream is live."""
    name = unique("beyond")
    live = await player.post(name, *EVENTS, wait(name))
    await player.waits_at(name)
    (item,) = await player.lookup(name)
    offset = item["total_bytes"] + int(beyond) if len(beyond) < 4000 else beyond
    refused(await player.replay(name, from_=offset), 416, "offset_out_of_range")
    await player.open(name)
    await live.read_all()
    refused(await player.replay(name, from_=offset), 416, "offset_out_of_range")


async def test_leading_zeros_are_digits(player: Player) -> None:
    """`from=0010` is ten."""
    name = unique("zeros")
    whole = (await player.record(name, *EVENTS)).body
    assert (await player.replay(name, from_="0010")).body == whole[10:]


async def test_last_event_id_wins_over_from(player: Player) -> None:
    """A reconnecting client repeats its URL, and its header is the newer word, even if `from` is nonsense."""
    name = unique("wins")
    whole = (await player.record(name, *EVENTS)).body
    first = last_ids(whole)[0]
    for offset in (0, 3, len(whole)):
        assert payloads((await player.resume(name, first, from_=offset)).body) == ["two", "three"]
    assert (await player.resume(name, first, from_="nonsense")).status == 200
    assert (await player.resume(name, first, from_="99999")).status == 200


async def test_a_finished_stream_with_nothing_left_to_dispatch_answers_204(player: Player) -> None:
    """So that an `EventSource` stops coming back."""
    name = unique("nothing")
    whole = (await player.record(name, *EVENTS)).body
    reply = await player.resume(name, last_ids(whole)[-1])
    assert (reply.status, reply.body) == (204, b"")


@pytest.mark.parametrize(
    "rest", [b": bye\n\n", b"data: half", b"data: half\n", b"retry: 5\n\n", b"event: x\n\n", b"foo: bar\n\n"]
)
async def test_what_no_client_would_dispatch_is_nothing(player: Player, rest: bytes) -> None:
    """Comments, half events and events without data do not keep a client coming back."""
    name = unique("rest")
    whole = (await player.record(name, *EVENTS, send(rest))).body
    assert (await player.resume(name, last_ids(whole)[-1])).status == 204
    assert (await player.resume(name, last_ids(whole)[-2])).status == 200


async def test_something_left_to_dispatch_is_answered_200(player: Player) -> None:
    """An event whose data is empty is still an event."""
    name = unique("something")
    whole = (await player.record(name, *EVENTS, send(b"data\n\n"))).body
    reply = await player.resume(name, last_ids(whole)[-2])
    assert (reply.status, payloads(reply.body)) == (200, [""])


async def test_a_live_stream_with_nothing_left_waits(player: Player) -> None:
    """204 is for finished streams alone."""
    name = unique("waits")
    live = await player.post(name, *EVENTS, wait(name))
    await player.waits_at(name)
    (item,) = await player.lookup(name)
    past = await live.read(item["total_bytes"])
    follower = await player.follow(name, headers=[("last-event-id", last_ids(past)[-1])])
    assert follower.status == 200
    await player.open(name)
    assert await follower.read_all() == b""
    assert follower.clean


async def test_from_at_the_tail_is_never_204(player: Player) -> None:
    """A client that counts bytes gets 200, as the table says, and only `Last-Event-ID` 204."""
    name = unique("never")
    whole = (await player.record(name, *EVENTS)).body
    assert (await player.replay(name, from_=len(whole))).status == 200


async def test_from_may_be_any_byte(player: Player) -> None:
    """Also in the middle of an event, of a line, of a character."""
    name = unique("any")
    whole = (await player.record(name, send("data: þú 🐍\n\n".encode()))).body
    for cut in range(len(whole)):
        assert (await player.replay(name, from_=cut)).body == whole[cut:]


async def test_head_is_the_head_of_the_same_get(player: Player) -> None:
    """Status and headers of a GET, no body, and what the stream is: finished, live or failed."""
    done, live_name, failed = unique("done"), unique("live"), unique("failed")
    await player.record(done, *EVENTS)
    live = await player.post(live_name, *EVENTS, wait(live_name))
    await player.waits_at(live_name)
    await player.record(failed, *EVENTS, fail())
    for name, status in ((done, "completed"), (live_name, "in_progress"), (failed, "failed")):
        (item,) = await player.lookup(name)
        for target in (f"/v1/stream/{name}", f"/v1/stream?conv_id={name}"):
            head = await player.fetch("HEAD", target)
            get = await player.open_request("GET", target)
            get.connection.reset()
            assert (head.status, head.body) == (get.status, b"") == (200, b"")
            assert head.header("x-stream-status") == status == item["status"]
            assert head.header("x-stream-epoch") == item["epoch"]
            assert head.header("x-stream-total-bytes") == str(item["total_bytes"])
            assert head.header("x-stream-dropped-bytes") == str(item["dropped_bytes"])
            for header in (
                "content-type",
                "content-location",
                "x-conversation-id",
                "cache-control",
                "x-accel-buffering",
            ):
                assert head.header(header) == get.header(header) is not None
    await player.open(live_name)
    await live.read_all()


async def test_head_answers_with_the_status_that_get_would(player: Player) -> None:
    """Its refusals and its 204 included."""
    name = unique("heads")
    whole = (await player.record(name, *EVENTS)).body
    old = last_ids(whole)[0]
    whole = (await player.record(name, *EVENTS)).body
    assert (await player.head(unique("unknown"))).status == 404
    assert (await player.head(name, from_="x")).status == 400
    assert (await player.head(name, from_=len(whole) + 1)).status == 416
    assert (await player.head(name, headers=[("last-event-id", old)])).status == 409
    assert (await player.head(name, headers=[("last-event-id", "nobody's")])).status == 400
    assert (await player.head(name, headers=[("last-event-id", last_ids(whole)[-1])])).status == 204
    assert (await player.head(name, headers=[("last-event-id", last_ids(whole)[0])])).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize(
    "target", ["/v1/stream", "/v1/stream?conv_id=", "/v1/stream?conv_id=%20%20", "/v1/stream?from=0", "/v1/stream/%20"]
)
async def test_a_request_without_any_id_is_refused(player: Player, method: str, target: str) -> None:
    """400 `invalid_stream_id`, DELETE included."""
    reply = await player.fetch(method, target)
    assert reply.status == 400
    if method != "HEAD":
        refused(reply, 400, "invalid_stream_id")


async def test_an_unknown_stream_is_not_found(player: Player) -> None:
    """404, with or without a place."""
    refused(await player.replay(unique("unknown")), 404, "stream_not_found")
    refused(await player.replay(unique("unknown"), from_=5), 404, "stream_not_found")
    refused(await player.resume(unique("unknown"), "abcdefghijklmnop-5"), 404, "stream_not_found")


async def test_an_expired_stream_is_not_found() -> None:
    """After `retention` it is as if it had never been: in replay, head, lookup."""
    with serve("tests.support.apps.scripted:app", options={"retention": 0.2}) as server:
        async with Player(server.port) as player, asyncio.timeout(60):
            name = unique("expired")
            live = await player.post(name, *EVENTS, wait(name))
            await player.open(name)
            await live.read_all()
            while (await player.replay(name)).status != 404:
                pass
            refused(await player.replay(name), 404, "stream_not_found")
            assert (await player.head(name)).status == 404
            assert await player.lookup(name) == []


async def test_an_offset_that_was_dropped_is_lost(bounded_player: Player) -> None:
    """400 `offset_lost`, and the body names the earliest that is there; no `from` is `from=0`."""
    name, _, earliest, tail = await truncated(bounded_player)
    for offset in (0, 1, earliest - 1):
        detail = refused(await bounded_player.replay(name, from_=offset), 400, "offset_lost")
        assert earliest in detail.values()
    refused(await bounded_player.replay(name), 400, "offset_lost")
    assert (await bounded_player.head(name)).status == 400
    kept = await bounded_player.replay(name, from_=earliest)
    assert (kept.status, len(kept.body)) == (200, tail - earliest)


async def test_an_event_id_whose_place_was_dropped_is_lost(bounded_player: Player) -> None:
    """An id says the same as its offset."""
    name, epoch, earliest, tail = await truncated(bounded_player)
    refused(await bounded_player.resume(name, f"{epoch}-{earliest - 1}"), 400, "offset_lost")
    assert len((await bounded_player.resume(name, f"{epoch}-{earliest}")).body) == tail - earliest


async def test_a_large_stream_resumes_at_every_event_that_is_left(bounded_player: Player) -> None:
    """What the log still holds is as good as ever."""
    name, _, earliest, _ = await truncated(bounded_player)
    kept = (await bounded_player.replay(name, from_=earliest)).body
    for epoch, offset in our_ids(kept)[:-1]:
        assert (await bounded_player.resume(name, f"{epoch}-{offset}")).body == kept[offset - earliest :]


async def test_an_event_id_past_the_tail_is_out_of_range(player: Player) -> None:
    """Nobody was given that id."""
    name = unique("past")
    epoch = (await player.record(name, *EVENTS)).header("x-stream-epoch")
    refused(await player.resume(name, f"{epoch}-999999"), 416, "offset_out_of_range")


async def test_a_place_in_an_earlier_epoch_was_replaced(player: Player) -> None:
    """409 by event id and by `epoch=`, while the newer stream is live and after; the current epoch is served."""
    name = unique("epochs")
    old = await player.record(name, *EVENTS)
    old_epoch = old.header("x-stream-epoch")
    live = await player.post(name, *EVENTS, wait(name))
    new_epoch = live.header("x-stream-epoch")
    assert new_epoch != old_epoch
    for _ in range(2):
        for last_event_id in last_ids(old.body):
            refused(await player.resume(name, last_event_id), 409, "stream_replaced")
        refused(await player.replay(name, epoch=old_epoch), 409, "stream_replaced")
        refused(await player.replay(name, epoch=old_epoch, from_=0), 409, "stream_replaced")
        assert (await player.head(name, epoch=old_epoch)).status == 409
        assert (await player.head(name, epoch=new_epoch)).status == 200
        await player.open(name)
        await live.read_all()
    assert (await player.replay(name, epoch=new_epoch)).body == live.body


async def test_an_unknown_id_of_the_apps_own_is_refused(player: Player) -> None:
    """400 `unknown_event_id`, for anything that is no id of ours and not in the log."""
    name = unique("foreign")
    await player.record(name, send(b"id: 1\ndata: one\n\n"), *EVENTS)
    for unknown in ("2", "x", "é", "abc-5", "ABCDEFGHIJKLMNOP-5", "abcdefghijklmnop-", "0-0", "-1", "one"):
        refused(await player.resume(name, unknown), 400, "unknown_event_id")


async def test_an_id_of_the_apps_own_that_was_dropped_is_unknown(bounded_player: Player) -> None:
    """The log does not hold it any more."""
    name = unique("gone")
    await bounded_player.record(name, send(b"id: early\ndata: one\n\n"), numbered(200, 2048))
    refused(await bounded_player.resume(name, "early"), 400, "unknown_event_id")


async def test_a_stream_that_is_still_queued_is_pending() -> None:
    """503 `stream_pending` with `Retry-After`, and the stream once it has begun."""
    with serve("tests.support.apps.scripted:app", options={"pending_timeout": 0.3}) as hasty:
        async with Player(hasty.port) as player:
            name, gate = unique("pending"), unique("gate")
            starting = asyncio.create_task(player.post(name, *EVENTS, before=[wait(gate)]))
            await player.waits_at(gate)
            reply = await player.replay(name)
            refused(reply, 503, "stream_pending")
            assert int(reply.header("retry-after") or "") >= 1
            assert (await player.head(name)).status == 503
            (item,) = await player.lookup(name)
            assert (item["status"], item["is_done"], item["total_bytes"]) == ("queued", False, 0)
            await player.open(gate)
            live = await starting
            await live.read_all()
            assert (await player.replay(name)).body == live.body


async def test_a_reader_that_waits_for_a_queued_stream_gets_it(player: Player) -> None:
    """Within `pending_timeout` a replay holds on, and follows the stream when it begins."""
    name, gate = unique("patient"), unique("gate")
    starting = asyncio.create_task(player.post(name, *EVENTS, before=[wait(gate)]))
    await player.waits_at(gate)
    connection = await player.connect()
    await connection.request("GET", player.target(name))
    await player.lookup(name)
    await player.open(gate)
    follower = await connection.response()
    live = await starting
    assert follower.status == 200
    assert await follower.read_all() == await live.read_all()


async def test_other_methods_are_not_allowed(player: Player) -> None:
    """Replay routes never start work: nothing can be posted there."""
    name = unique("method")
    await player.record(name, *EVENTS)
    for method in ("POST", "PUT", "PATCH"):
        assert (await player.fetch(method, f"/v1/stream/{name}", body=b"")).status == 405


async def test_there_is_no_listing_route(player: Player) -> None:
    """Who does not know an id finds no stream."""
    name = unique("hidden")
    await player.record(name, *EVENTS)
    for target in ("/v1/streams", "/v1/streams/", "/v1/streams/lookup", "/v1/stream", "/v1/stream/", "/v1/", "/v1"):
        reply = await player.fetch("GET", target)
        assert reply.status in {400, 404, 405}, target
        assert name.encode() not in reply.body


async def test_a_replay_on_a_connection_that_is_kept_alive_frames_every_answer(player: Player) -> None:
    """Replays, refusals, 204 and HEAD one after another on one socket."""
    name = unique("alive")
    whole = (await player.record(name, *EVENTS)).body
    connection = await player.connect()
    for _ in range(3):
        for method, headers, target, status in (
            ("GET", [], player.target(name), 200),
            ("HEAD", [], player.target(name), 200),
            ("GET", [("last-event-id", last_ids(whole)[-1])], player.target(name), 204),
            ("GET", [], player.target(name, from_="x"), 400),
            ("GET", [], player.target(name, from_=len(whole)), 200),
            ("DELETE", [], player.target(unique("nothing")), 204),
        ):
            await connection.request(method, target, headers)
            response = await connection.response()
            await response.read_all()
            assert (response.status, response.clean) == (status, True)


async def test_boundaries_of_a_replay_are_those_of_the_log(player: Player) -> None:
    """A failed stream's replay has its terminal event, from every place."""
    name = unique("failed")
    whole = (await player.record(name, *EVENTS, fail())).body
    for boundary in boundaries(whole)[:-1]:
        assert types((await player.replay(name, from_=boundary)).body)[-1] == "error"
