"""`?starting_after=`, by which OpenAI's clients resume: only events with a higher `sequence_number`."""

import json
import random
from collections.abc import AsyncIterator, Iterator

import pytest
from openai import APIError, AsyncOpenAI, NotFoundError

from tests.support.apps.player import Player, Step, fail, send, sends, unique, wait
from tests.support.rawhttp import Reply
from tests.support.server import Server, serve
from tests.support.ssemodel import parse, types

BOUND = 65536


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 60}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


def event(number: int, text: str = "") -> bytes:
    data = json.dumps({"type": "response.output_text.delta", "sequence_number": number, "delta": text})
    return f"event: response.output_text.delta\ndata: {data}\n\n".encode()


def numbered(*numbers: int, text: str = "") -> list[Step]:
    """An event for each number."""
    return sends(*(event(number, text) for number in numbers))


def numbers(body: bytes) -> list[int]:
    """The sequence numbers in a body, in order."""
    found = [json.loads(one.data) for one in parse(body) if one.data.startswith("{")]
    return [data["sequence_number"] for data in found if "sequence_number" in data]


def refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, json.loads(reply.body)["detail"]["code"]) == (status, code), reply.body


@pytest.mark.parametrize("form", ["/v1/stream/{}?starting_after={}", "/v1/stream?conv_id={}&starting_after={}"])
async def test_only_events_after_the_number_are_sent(player: Player, form: str) -> None:
    """Both forms, for every number there is: the tail of the log, byte for byte."""
    name = unique("after")
    whole = (await player.record(name, *numbered(*range(5)))).body
    for number in range(5):
        reply = await player.fetch("GET", form.format(name, number))
        assert (reply.status, reply.clean) == (200, True)
        assert numbers(reply.body) == list(range(number + 1, 5))
        assert whole.endswith(reply.body)
    assert (await player.fetch("GET", form.format(name, ""))).body == whole


async def test_a_number_past_the_end_of_a_finished_stream_is_an_empty_body(player: Player) -> None:
    """200: the client has it all. So it has, if it asks after the last."""
    name = unique("end")
    await player.record(name, *numbered(0, 1, 2))
    for number in ("2", "3", "9" * 30):
        reply = await player.replay(name, starting_after=number)
        assert (reply.status, reply.body, reply.clean) == (200, b"", True)


async def test_a_live_stream_is_followed_from_the_number_on(player: Player) -> None:
    """What is there after it at once, then what comes, until the end."""
    name = unique("live")
    live = await player.post(name, *numbered(0, 1, 2), wait(name), *numbered(3, 4))
    await player.waits_at(name)
    behind = await player.follow(name, starting_after=0)
    latest = await player.follow(name, starting_after=2)
    await behind.read_until(b'"sequence_number": 2')
    await player.open(name)
    await behind.read_all()
    await latest.read_all()
    assert numbers(behind.body) == [1, 2, 3, 4]
    assert numbers(latest.body) == [3, 4]
    assert behind.clean
    assert latest.clean
    assert (await live.read_all()).endswith(latest.body.partition(b"event")[2])


async def test_a_live_stream_that_has_not_come_so_far_is_waited_for(player: Player) -> None:
    """Nothing up to the number is sent, whenever it comes; a line of comment keeps the client company."""
    name, later = unique("ahead"), unique("later")
    steps = [*numbered(0, 1), wait(name), *numbered(2, 3), wait(later), send(b": hm\n\n"), *numbered(4, 5, 6)]
    await player.post(name, *steps)
    await player.waits_at(name)
    ahead = await player.follow(name, starting_after=4)
    assert ahead.status == 200
    await player.open(name)
    await ahead.read_until(b": ping\n")
    await player.open(later)
    await ahead.read_all()
    assert numbers(ahead.body) == [5, 6]
    assert ahead.clean
    assert ahead.body.startswith(b": ping\n")


async def test_what_has_no_number_is_sent_where_it_stands(player: Player) -> None:
    """After the event that the client has had it is sent, before it not; `[DONE]` and the terminal event, too."""
    name = unique("between")
    first = send(b"data: first\n\n")
    await player.record(
        name, first, *numbered(0), send(b"data: between\n\n"), *numbered(1), send(b"data: [DONE]\n\n"), fail()
    )
    payloads = [one.data for one in parse((await player.replay(name, starting_after=0)).body)]
    assert payloads[0] == "between"
    assert payloads[2] == "[DONE]"
    rest = (await player.replay(name, starting_after=7)).body
    assert types(rest) == ["message", "error"]
    assert json.loads(parse(rest)[1].data)["code"] == "producer_failed"


async def test_a_live_stream_ends_with_its_terminal_event_whatever_the_number(player: Player) -> None:
    """A client that waits for a number that never comes is told so."""
    name = unique("stopped")
    await player.post(name, *numbered(0), wait(name), *numbered(1), ["forever"])
    await player.waits_at(name)
    ahead = await player.follow(name, starting_after=5)
    await player.stop(name)
    await ahead.read_all()
    assert types(ahead.body) == ["cancelled"]
    assert ahead.clean


async def test_a_stream_without_numbers_is_sent_from_its_start(player: Player) -> None:
    """Nothing in it says that the client has had it."""
    name = unique("plain")
    whole = (await player.record(name, *sends(b"data: one\n\n", b"data: [DONE]\n\n"))).body
    assert (await player.replay(name, starting_after=5)).body == whole


async def test_last_event_id_wins_over_the_number_and_the_number_over_from(player: Player) -> None:
    """A client that reconnects by itself repeats its URL; its header is newer."""
    name = unique("precedence")
    whole = (await player.record(name, *numbered(0, 1, 2, 3))).body
    ids = [one.id for one in parse(whole)]
    resumed = await player.resume(name, ids[2], starting_after=0, from_=1)
    assert numbers(resumed.body) == [3]
    assert (await player.resume(name, ids[3], starting_after="nonsense")).status == 204
    assert numbers((await player.replay(name, starting_after=1, from_=0)).body) == [2, 3]
    assert numbers((await player.replay(name, starting_after=1, from_="nonsense")).body) == [2, 3]


@pytest.mark.parametrize("value", ["-1", "+5", "1e3", "%D9%A3", "1.0", "abc", "%20", "1%0A"])
async def test_what_is_no_plain_number_is_refused(player: Player, value: str) -> None:
    """400 `invalid_offset`; by HEAD, too."""
    name = unique("bad")
    await player.record(name, *numbered(0))
    refused(await player.fetch("GET", f"/v1/stream/{name}?starting_after={value}"), 400, "invalid_offset")
    refused(await player.fetch("GET", f"/v1/stream?conv_id={name}&starting_after={value}"), 400, "invalid_offset")
    assert (await player.fetch("HEAD", f"/v1/stream/{name}?starting_after={value}")).status == 400


async def test_a_stream_that_is_no_event_stream_has_no_numbers(player: Player) -> None:
    """Whatever its lines say."""
    name = unique("json-lines")
    await player.record(name, send(b'{"sequence_number": 0}\n'), media_type="application/x-ndjson")
    refused(await player.replay(name, starting_after=0), 400, "invalid_offset")


async def test_the_other_refusals_are_those_of_any_replay(player: Player) -> None:
    """Unknown, and another epoch."""
    refused(await player.replay(unique("unknown"), starting_after=0), 404, "stream_not_found")
    name = unique("epoch")
    await player.record(name, *numbered(0))
    refused(await player.replay(name, starting_after=0, epoch="a" * 16), 409, "stream_replaced")


async def test_a_head_describes_the_replay(player: Player) -> None:
    """As for `from`."""
    name = unique("head")
    await player.record(name, *numbered(0))
    head = await player.head(name, starting_after=0)
    assert (head.status, head.header("x-stream-status")) == (200, "completed")


async def test_events_that_were_dropped_are_a_lost_offset() -> None:
    """Not a silent gap; whoever has had all that was dropped goes on."""
    with serve("tests.support.apps.scripted:app", options={"ping": 60, "max_stream_bytes": BOUND}) as server:
        async with Player(server.port) as player:
            name = unique("dropped")
            await player.record(name, *numbered(*range(200), text="x" * 1000))
            (item,) = await player.lookup(name)
            kept = numbers((await player.replay(name, from_=item["dropped_bytes"])).body)
            assert kept[0] > 100
            refused(await player.replay(name, starting_after=kept[0] - 2), 400, "offset_lost")
            for number in (kept[0] - 1, kept[0], kept[5]):
                reply = await player.replay(name, starting_after=number)
                assert numbers(reply.body) == list(range(number + 1, 200))


# OpenAI's own client, on routes of an application that answer with `resumable.replay` and `resumable.stop`.


@pytest.fixture(scope="module")
def responses() -> Iterator[Server]:
    with serve("tests.support.apps.responses:app") as running:
        yield running


@pytest.fixture
async def client(responses: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{responses.url}/v1", api_key="alice", max_retries=0) as opened:
        yield opened


async def test_openais_client_gets_every_event_once_through_many_cuts(client: AsyncOpenAI) -> None:
    """It reads some events, loses its connection, retrieves the rest, and so on to the end."""
    choose, name, until = random.Random(4), unique("cuts"), 400
    seen: list[int] = []
    said = ""
    stream = await client.responses.create(
        model="count", input=name, max_output_tokens=until, background=True, stream=True
    )
    while not seen or seen[-1] < until:
        async with stream:
            left = choose.randrange(1, 20)
            async for one in stream:
                seen.append(one.sequence_number)
                said += one.delta if one.type == "response.output_text.delta" else ""
                if not (left := left - 1):
                    break
        stream = await client.responses.retrieve(name, stream=True, starting_after=seen[-1])
    assert seen == list(range(until + 1))
    assert said.split() == [str(number) for number in range(1, until)]
    assert [one async for one in stream] == []


async def test_openais_client_cancels(client: AsyncOpenAI, responses: Server) -> None:
    """The reader is told, and the stream is gone; a stranger's cancel leaves it alone."""
    name = unique("cancel")
    stream = await client.responses.create(
        model="never-ending", input=name, max_output_tokens=3, background=True, stream=True
    )
    await anext(stream)
    async with AsyncOpenAI(base_url=f"{responses.url}/v1", api_key="bob", max_retries=0) as stranger:
        assert (await stranger.responses.cancel(name)).status == "cancelled"
        with pytest.raises(NotFoundError):
            await stranger.responses.retrieve(name, stream=True)
    followed = await client.responses.retrieve(name, stream=True, starting_after=0)
    assert (await anext(followed)).sequence_number == 1
    assert (await client.responses.cancel(name)).status == "cancelled"
    for reader in (stream, followed):
        with pytest.raises(APIError, match="stopped"):
            async for _ in reader:
                pass
    with pytest.raises(NotFoundError):
        await client.responses.retrieve(name, stream=True, starting_after=1)


async def test_a_route_of_the_applications_own_refuses_as_the_router_does(
    client: AsyncOpenAI, responses: Server
) -> None:
    """The same errors, in the same form; and it takes the same parameters."""
    name = unique("refused")
    stream = await client.responses.create(model="count", input=name, max_output_tokens=1, stream=True)
    assert [one.sequence_number async for one in stream] == [0, 1]
    route = f"/v1/responses/{name}"
    async with Player(responses.port, [("authorization", "Bearer alice")]) as player:
        whole = (await player.fetch("GET", route)).body
        assert (await player.fetch("GET", f"{route}?from=5")).body == whole[5:]
        last = parse(whole)[0].id
        resumed = await player.fetch("GET", f"{route}?starting_after=x", [("last-event-id", last)])
        assert numbers(resumed.body) == [1]
        refused(await player.fetch("GET", f"{route}?starting_after=x"), 400, "invalid_offset")
        refused(await player.fetch("GET", f"{route}?epoch={'a' * 16}"), 409, "stream_replaced")
        refused(await player.fetch("GET", "/v1/responses/unknown"), 404, "stream_not_found")
        refused(await player.fetch("POST", "/v1/responses/%09/cancel"), 400, "invalid_stream_id")
