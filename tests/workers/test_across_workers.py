"""Three workers that share a store are, to their clients, one: on Redis, and on a SQLite file."""

import asyncio
import json

import pytest

from tests.support.apps.player import Player, fail, forever, numbered, send, sends, unique, wait
from tests.support.params import representatives
from tests.support.rawhttp import Response
from tests.support.site import Site, code_of, until, whole
from tests.support.ssemodel import last_ids, our_ids, without_ids

several_attempts = pytest.mark.parametrize("attempt", representatives(range(5), (0).__eq__))
DISPATCHED = [b"data: one\n\n", b"data: \xe2\x98\x83\n\n", b"event: x\ndata: two\ndata: lines\n\n", b"data: four\n\n"]


async def closed(*responses: Response) -> None:
    """Leave, as clients do."""
    for response in responses:
        await response.connection.close()


async def test_what_one_worker_streams_another_replays_and_follows(site: Site) -> None:
    """Byte for byte, head included, from the start and live to the end."""
    name, gate = unique("id"), unique("gate")
    here, there = site.player(0), site.player(1)
    live = await here.post(name, *sends(*DISPATCHED[:2]), wait(gate), *sends(*DISPATCHED[2:]))
    begun = await live.read_until(b"\xe2\x98\x83")
    reader = await there.follow(name)
    assert await reader.read(len(begun)) == begun
    await here.open(gate)
    await live.read_all()
    await reader.read_all()
    assert reader.body == live.body
    assert without_ids(live.body) == b"".join(DISPATCHED)
    assert live.clean
    assert reader.clean
    for header in ("content-type", "x-conversation-id", "x-stream-epoch", "content-location", "cache-control"):
        assert reader.header(header) == live.header(header), header
    assert reader.header("x-worker") != live.header("x-worker")


async def test_what_another_worker_has_shown_the_producers_own_knows(site: Site) -> None:
    """A client that reads on one worker and resumes on the other, again and again, is never past the end."""
    names = [unique("id") for _ in range(24)]

    async def hop(name: str) -> None:
        live = await site.player(0).post(name, ["paced", 60, 60, 0.005])
        await live.read_until(b"\n\n")
        got = b""
        while True:
            reader = await site.player(1).follow(name, from_=len(got))
            assert reader.status == 200, await reader.read_all()
            some = await reader.read_some()
            await reader.connection.close()
            if not some:
                break
            got += some
            back = await site.player(0).follow(name, from_=len(got))
            assert back.status == 200, await back.read_all()
            await back.connection.close()
        await live.read_all()
        assert got == live.body

    async with asyncio.TaskGroup() as hops:
        for name in names:
            hops.create_task(hop(name))


async def test_lookup_and_head_say_the_same_everywhere(site: Site) -> None:
    """While queued, live and finished; variants included."""
    name, before, gate = unique("id"), unique("before"), unique("gate")
    here, others = site.player(0), [site.player(1), site.player(2)]
    posting = asyncio.create_task(here.post(name, send(DISPATCHED[0]), wait(gate), before=[wait(before)]))
    await here.waits_at(before)
    for other in others:
        assert [item["status"] for item in await other.lookup(name)] == ["queued"]
    await here.open(before)
    live = await posting
    await live.read_until(b"\n\n")
    variant = f"{name}::model"
    await here.record(variant, send(b"data: variant\n\n"))
    [item] = [each for each in await here.lookup(name) if each["conversation_id"] == name]
    assert item["status"] == "in_progress" and item["total_bytes"] == len(live.body)
    for other in others:
        items = {each["conversation_id"]: each for each in await other.lookup(name, unique("unknown"))}
        assert items[name] == item
        assert items[variant]["status"] == "completed"
        assert len(items) == 2
        head = await other.head(name)
        assert (head.status, head.body) == (200, b"")
        assert head.header("x-stream-epoch") == item["epoch"]
    await here.open(gate)
    await live.read_all()
    [item] = [each for each in await here.lookup(name) if each["conversation_id"] == name]
    assert item["is_done"] and item["status"] == "completed" and item["completed_at"] >= item["started_at"] > 0
    for other in others:
        assert item in await other.lookup(name)
        assert (await other.head(name)).status == 200


async def test_a_stop_from_any_worker_reaches_the_producer(site: Site) -> None:
    """Its generator is cancelled, readers everywhere get the same last event, and the stream is gone everywhere."""
    name = unique("id")
    live = await site.player(0).post(name, send(DISPATCHED[0]), forever(), name=name)
    await live.read_until(b"\n\n")
    reader = await site.player(1).follow(name)
    await reader.read_until(b"\n\n")
    assert (await site.player(2).stop(name)).status == 204
    await site.until_noted(f"CancelledError:{name}")
    for worker in range(3):
        assert (await site.player(worker).replay(name)).status == 404
        assert await site.player(worker).lookup(name) == []
    await live.read_all()
    await reader.read_all()
    assert code_of(live.body) == "cancelled"
    assert reader.body == live.body
    assert live.clean and reader.clean


async def test_an_earlier_stream_is_served_while_the_next_is_queued_elsewhere(site: Site) -> None:
    """It is touched only when the new one begins; a request that fails before that leaves it as it was."""
    name, before = unique("id"), unique("before")
    first = await site.player(0).record(name, send(DISPATCHED[0]))
    posting = asyncio.create_task(
        site.player(1).record(name, send(DISPATCHED[3]), before=[wait(before), ["http_error", 422]])
    )
    await site.player(1).waits_at(before)
    assert (await site.player(2).replay(name)).body == first.body
    await site.player(1).open(before)
    assert (await posting).status == 422
    assert (await site.player(2).replay(name)).body == first.body


async def live_streams(first: Player, second: Player, name: str, gate: str) -> tuple[Response, Response]:
    """Two requests on one id at the same instant."""
    one, other = await asyncio.gather(
        first.post(name, send(b"data: begun\n\n"), wait(gate), send(b"data: end\n\n"), name=name),
        second.post(name, send(b"data: begun\n\n"), wait(gate), send(b"data: end\n\n"), name=name),
    )
    return one, other


@several_attempts
async def test_of_two_simultaneous_requests_one_replaces_the_other(site: Site, attempt: int) -> None:
    """Under `replace` exactly one epoch lives on; the other's readers are told, and its generator is cancelled."""
    name, gate = unique("id"), unique("gate")
    one, other = await live_streams(site.player(0), site.player(1), name, gate)
    [item] = await site.player(2).lookup(name)
    answers = {answer.header("x-stream-epoch"): answer for answer in (one, other)}
    winner = answers.pop(item["epoch"])
    [loser] = answers.values()
    await loser.read_all()
    if loser.status == 200:
        assert code_of(loser.body) == "replaced"
        await site.until_noted(f"CancelledError:{name}")
    else:
        assert (loser.status, json.loads(loser.body)["detail"]["code"]) == (409, "stream_replaced")
    await site.player(0).open(gate)
    await site.player(1).open(gate)
    await winner.read_all()
    assert without_ids(winner.body) == b"data: begun\n\ndata: end\n\n"
    assert (await site.player(2).replay(name)).body == winner.body
    assert site.count(f"finished:{name}") == 1


@several_attempts
@pytest.mark.parametrize("room", ["attach", ""])
async def test_a_request_that_waits_for_another_follows_it_however_short_it_is(
    site: Site, room: str, attempt: int
) -> None:
    """By the rule or by its key: a stream that has ended before the one who waits has looked is not run again."""
    name, before = unique("id"), unique("before")
    key = [("idempotency-key", name)] if not room else []
    steps = {"before": [wait(before)], "name": name, "headers": key}
    first = asyncio.create_task(site.player(0, room).record(name, *sends(*DISPATCHED), **steps))
    await site.player(0).waits_at(before)
    second = asyncio.create_task(site.player(1, room).record(name, *sends(*DISPATCHED), **steps))
    # The first three to come on that worker, one after the other, so the second has come, too.
    for _ in range(3):
        assert [item["status"] for item in await site.player(1, room).lookup(name)] == ["queued"]
    await site.player(1).open(before)
    await site.player(0).open(before)
    assert (await first).body == (await second).body
    assert site.count(f"called:{name}") == 1


@pytest.mark.parametrize("room", ["", "attach", "reject"])
async def test_a_repeated_request_runs_once_for_its_idempotency_key(site: Site, room: str) -> None:
    """Whatever the rule: at the same instant, while it runs, and after its end, on any worker."""
    name, gate = unique("id"), unique("gate")
    key = [("idempotency-key", unique("key"))]
    steps = (send(DISPATCHED[0]), wait(gate), send(DISPATCHED[3]))
    first, second = await asyncio.gather(
        *(site.player(worker, room).post(name, *steps, headers=key, name=name) for worker in (0, 1))
    )
    third = await site.player(2, room).post(name, *steps, headers=key, name=name)
    for worker in (0, 1, 2):
        await site.player(worker).open(gate)
    bodies = await asyncio.gather(first.read_all(), second.read_all(), third.read_all())
    late = await site.player(2, room).record(name, *steps, headers=key, name=name)
    assert {*bodies, late.body} == {bodies[0]}
    assert without_ids(bodies[0]) == DISPATCHED[0] + DISPATCHED[3]
    assert site.count(f"called:{name}") == 1


async def test_a_foreign_owners_stream_does_not_exist_on_any_worker(site: Site) -> None:
    """Not to read, to look up or to stop; the same id is another stream."""
    name, gate = unique("id"), unique("gate")
    ann, bob = [("x-user", unique("ann"))], [("x-user", unique("bob"))]
    live = await site.player(0, "owned", ann).post(name, send(DISPATCHED[0]), wait(gate))
    stranger = site.player(1, "owned", bob)
    assert (await stranger.replay(name)).status == 404
    assert await stranger.lookup(name) == []
    assert (await stranger.stop(name)).status == 204
    other = await stranger.record(name, send(DISPATCHED[3]))
    assert without_ids(other.body) == DISPATCHED[3]
    assert [item["status"] for item in await site.player(2, "owned", ann).lookup(name)] == ["in_progress"]
    await site.player(0).open(gate)
    await live.read_all()
    assert (await site.player(2, "owned", ann).replay(name)).body == live.body
    assert without_ids(live.body) == DISPATCHED[0]


async def test_a_stream_that_its_client_has_left_is_found_elsewhere(site: Site) -> None:
    """`Prefer: respond-async` answers 202 with an address that is good on every worker."""
    name, gate = unique("id"), unique("gate")
    accepted = await site.player(0).record(
        name, send(DISPATCHED[0]), wait(gate), headers=[("prefer", "respond-async")], name=name
    )
    assert accepted.status == 202
    location = accepted.header("location")
    assert location
    reader = await site.player(1).open_request("GET", location)
    await reader.read_until(b"\n\n")
    await site.player(0).open(gate)
    await reader.read_all()
    assert reader.clean
    assert without_ids(reader.body) == DISPATCHED[0]


async def test_a_request_that_names_an_event_resumes_and_never_runs(site: Site) -> None:
    """`Last-Event-ID` at the endpoint itself, on another worker than the stream's."""
    name = unique("id")
    first = await site.player(0).record(name, *sends(*DISPATCHED), name=name)
    epoch, offset = our_ids(first.body)[1]
    again = await site.player(1).record(
        name, send(b"data: never\n\n"), headers=[("last-event-id", f"{epoch}-{offset}")]
    )
    assert again.body == first.body[offset:]


async def test_a_failure_of_what_has_no_events_ends_uncleanly_elsewhere(site: Site) -> None:
    """NDJSON resumes by offset, and its readers see that it broke off."""
    name, gate = unique("id"), unique("gate")
    lines = [b'{"n":1}\n', b'{"n":2}\n']
    media = {"media_type": "application/x-ndjson"}
    live = await site.player(0).post(name, send(lines[0]), wait(gate), send(lines[1]), fail(), **media)
    await live.read(len(lines[0]))
    reader = await site.player(1).follow(name, from_=3)
    assert await reader.read(5) == lines[0][3:]
    await site.player(0).open(gate)
    await live.read_all()
    await reader.read_all()
    late = await site.player(2).replay(name)
    assert live.body == late.body == b"".join(lines)
    assert reader.body == b"".join(lines)[3:]
    assert not live.clean and not reader.clean and not late.clean


async def test_many_streams_at_once_are_whole_everywhere(site: Site) -> None:
    """Sixty at a time, each begun on one worker and followed on another."""
    names = [unique("many") for _ in range(60)]

    async def one(number: int) -> tuple[bytes, bytes]:
        live = await site.player(number % 3).post(names[number], ["paced", 40, 60, 0.01])
        reader = await site.player((number + 1) % 3).follow(names[number])
        await asyncio.gather(live.read_all(), reader.read_all())
        assert live.clean and reader.clean
        return live.body, reader.body

    for live, followed in await asyncio.gather(*map(one, range(len(names)))):
        assert followed == live
        assert without_ids(live) == whole(40, 60)


async def test_every_worker_answers_for_the_others_streams_under_one_address(site: Site) -> None:
    """What a browser does: post, cut, reload, each through another worker, until the end."""
    name, gates = unique("id"), [unique("gate") for _ in range(5)]
    steps = [step for gate in gates for step in (numbered(3, 40), wait(gate))]
    live = await site.player(0).post(name, *steps, name=name)
    got = await live.read_until(b"00000002")
    got += await live.read_until(b"\n\n")
    live.connection.reset()
    for number, gate in enumerate(gates):
        reader = await site.player(1 + number % 2).follow(name, headers=[("last-event-id", last_ids(got)[-1])])
        await site.player(0).open(gate)
        if number < len(gates) - 1:
            got += await reader.read_until(b"00000002")
            got += await reader.read_until(b"\n\n")
            reader.connection.reset()
        else:
            got += await reader.read_all()
            assert reader.clean
    assert without_ids(got) == whole(3, 40) * 5
    assert got == (await site.player(2).replay(name)).body
    await until(lambda: site.count(f"finished:{name}") == 1, "the end of the generator")
    assert site.count(f"called:{name}") == 1
