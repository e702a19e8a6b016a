"""Faults and bounds: what goes wrong with workers, with Redis and between them, done to real processes.

In each case a reader gets all bytes once, or is told within the bound; the generator runs once; the workers recover.
"""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.redis.plant import ANSWERED, BACK, BUSY, LEASE, MIB, SEEN_DEAD, STORE_TIMEOUT, Plant, Took, plant, timed
from tests.support.apps.player import forever, numbered, send, unique, wait
from tests.support.faults import FaultyLink
from tests.support.params import representatives
from tests.support.rawhttp import Reply, Response
from tests.support.site import code_of, drain, outcome, until, whole
from tests.support.ssemodel import without_ids

pytestmark = pytest.mark.redis

Redises = Callable[..., Any]
STEADY = ["paced", 200, 60, 0.02]
"""Four seconds of a stream."""
WHOLE = whole(200, 60)
LONG = ["paced", 30_000, 60, 0.01]
"""Longer than any test."""
LONG_WHOLE = whole(30_000, 60)
TWO_PARTS = [["paced", 100, 60, 0.02], wait("second part"), ["paced", 100, 60, 0.02]]
TOLD = {"producer_lost", "interrupted", "store_unavailable", "replaced", "cancelled", "offset_lost", "cut"}


def check_whole(*readers: Reply, expected: bytes = WHOLE) -> None:
    """Every reader has everything, once, and knows it."""
    assert [outcome(reader, expected) for reader in readers] == ["whole"] * len(readers)


# Workers.


async def test_a_killed_worker_is_seen_by_all_others(own_redis: Redises, tmp_path: Path, took: Took) -> None:
    """Readers get `producer_lost`, all the same; a lookup says `interrupted`; the ids can be used again."""
    name, text, queued = unique("id"), unique("text"), unique("queued")
    rooms = {"": {"pending_timeout": 0.3}, "owned": {"owned": True, "max_streams_per_owner": 1}}
    with own_redis() as redis:
        async with plant(redis, tmp_path, workers=3, rooms=rooms) as line:
            site = line.site
            live, *readers = await line.begin(name, numbered(5, 60), forever(), readers=(1, 2))
            plain = await line.player(0).post(text, send(b"text"), forever(), media_type="text/plain")
            await plain.read(4)
            plain_reader = await line.player(1).follow(text)
            waiting = asyncio.create_task(line.player(0).post(queued, before=[wait("never")]))
            await line.player(0).waits_at("never")
            user = [("x-user", "ann")]
            owned = await line.player(0, "owned", headers=user).post("mine", send(b"data: 1\n\n"), forever())
            await owned.read_until(b"\n\n")
            site.servers[0].kill()
            _, seconds = await timed(
                asyncio.gather(*(reader.read_all() for reader in (*readers, plain_reader))), SEEN_DEAD, "being told"
            )
            took("readers told", seconds)
            await asyncio.gather(waiting, return_exceptions=True)
            await live.read_all()
            assert [code_of(reader.body) for reader in readers] == ["producer_lost"] * 2
            assert readers[0].body == readers[1].body
            assert readers[0].body.startswith(live.body)
            assert without_ids(readers[0].body).startswith(whole(5, 60))
            assert (plain_reader.body, plain_reader.clean) == (b"text", False)
            for worker in (1, 2):
                assert (await line.player(worker).replay(name)).body == readers[0].body
                async with asyncio.timeout(SEEN_DEAD):
                    while len(items := await line.player(worker).lookup(name, text, queued)) > 2:
                        pass
                assert [item["status"] for item in items] == ["interrupted", "interrupted"]
                assert (await line.player(worker).replay(queued)).status == 404
            for reused in (name, queued):
                again = await line.player(1).record(reused, send(b"data: again\n\n"))
                assert without_ids(again.body) == b"data: again\n\n"
                assert (await line.player(2).replay(reused)).body == again.body
            async with asyncio.timeout(SEEN_DEAD):
                while (await line.player(2, "owned", headers=user).record("other", send(b"data: 1\n\n"))).status != 200:
                    pass
            assert site.count(f"called:{name}") == 1
            assert redis.list_keys_without_expiry() == []


async def test_a_killed_worker_is_noticed_without_readers(own_redis: Redises, tmp_path: Path, took: Took) -> None:
    """A lookup, a request under `reject` and a reader that comes later all learn of it within the bound."""
    name = unique("id")
    rooms = {"": {"on_conflict": "reject"}}
    with own_redis() as redis:
        async with plant(redis, tmp_path, workers=3, rooms=rooms) as line:
            await line.begin(name, numbered(5, 60), forever(), readers=())
            line.site.servers[0].kill()
            begun = time.monotonic()

            async def seen() -> None:
                while (await line.player(1).lookup(name))[0]["status"] != "interrupted":
                    pass

            await timed(seen(), SEEN_DEAD, "being seen")
            took("lookup says so", time.monotonic() - begun)
            late = await line.player(2).replay(name)
            assert code_of(late.body) == "producer_lost"
            assert (await line.player(1).record(name, numbered(3, 60))).status == 200


async def test_a_watch_hears_of_a_killed_worker_by_itself(own_redis: Redises, tmp_path: Path) -> None:
    """Nothing reads or looks up its streams: one that is live, one that is queued, and one that was there before."""
    early, live, queued = unique("early"), unique("live"), unique("queued")
    body = json.dumps({"conversation_ids": [early, live, queued]}).encode()
    with own_redis() as redis:
        async with plant(redis, tmp_path) as line:
            await line.begin(early, numbered(5, 60), forever(), readers=())
            watch = await line.player(1).open_request("POST", "/v1/streams/watch", body=body)
            await watch.read_until(b"stream.in_progress")
            await line.begin(live, numbered(5, 60), forever(), readers=())
            waiting = asyncio.create_task(line.player(0).post(queued, before=[wait("never")]))
            await line.player(0).waits_at("never")
            await told_of(watch, (live, "in_progress"), (queued, "queued"))
            line.site.servers[0].kill()
            await asyncio.gather(waiting, return_exceptions=True)
            async with asyncio.timeout(SEEN_DEAD):
                await told_of(watch, (early, "interrupted"), (live, "interrupted"), (queued, "failed"))


async def told_of(watch: Response, *changes: tuple[str, str]) -> None:
    """Read a watch until each of these streams has been in that state."""
    while not all(f'"conversation_id":"{name}","status":"{status}"'.encode() in watch.body for name, status in changes):
        assert await watch.read_some()


async def test_the_first_to_ask_for_a_dead_workers_id_gets_it(own_redis: Redises, tmp_path: Path) -> None:
    """Under `replace` the id is usable at once, and under `attach` a follower of the dead is told, not left to wait."""
    rooms = {"": {}, "attach": {"on_conflict": "attach"}}
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, rooms=rooms) as line:
            await line.begin(name, numbered(5, 60), forever(), readers=())
            attached = await line.player(0, "attach").post(name, numbered(5, 60), forever(), name=f"{name}-attach")
            await attached.read_until(b"00000004")
            line.site.servers[0].kill()
            again = await line.player(1).record(name, numbered(3, 60))
            assert without_ids(again.body) == whole(3, 60)
            follower = await line.player(1, "attach").post(name, numbered(3, 60))
            body, _ = await timed(follower.read_all(), SEEN_DEAD, "the follower's end")
            assert code_of(body) == "producer_lost" or without_ids(body) == whole(3, 60)


@pytest.mark.slow
@pytest.mark.parametrize("reused", representatives([False, True], bool), ids=["left-alone", "id-reused"])
async def test_a_worker_that_wakes_after_its_lease_writes_nothing_more(
    own_redis: Redises, tmp_path: Path, took: Took, reused: bool
) -> None:
    """It was declared dead: its producer is cancelled, its own client told, its late appends are refused."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, workers=3) as line:
            live, reader = await line.begin(name, LONG)
            line.freeze(0)
            _, seconds = await timed(reader.read_all(), SEEN_DEAD, "being told")
            took("readers told", seconds)
            assert outcome(reader, LONG_WHOLE) == "producer_lost"
            newer = None
            if reused:
                newer = await line.player(1).post(name, ["paced", 100, 60, 0.02])
                await newer.read_until(b"00000005")
            line.thaw(0)
            begun = time.monotonic()
            await line.site.until_noted(f"ended:{name}", deadline=BACK)
            took("producer cancelled", time.monotonic() - begun)
            assert not line.site.count(f"finished:{name}")
            await timed(live.read_all(), BACK, "the end for its own client")
            assert outcome(live, LONG_WHOLE) in TOLD
            if newer is None:
                assert (await line.player(2).replay(name)).body == reader.body
            else:
                await newer.read_all()
                check_whole(newer, expected=whole(100, 60))
                assert (await line.player(0).replay(name)).body == newer.body
            took("all workers take streams", await line.works_again(0, 1, 2))
            assert line.site.count(f"called:{name}") == 1
            assert "Traceback" not in line.site.servers[0].output


async def test_a_worker_frozen_for_less_than_its_lease_goes_on(own_redis: Redises, tmp_path: Path) -> None:
    """Nobody takes it for dead, and its stream is whole."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, lease=15.0) as line:
            readers = await line.begin(name, ["paced", 100, 60, 0.01])
            line.freeze(0)
            await asyncio.sleep(1.5)
            line.thaw(0)
            await asyncio.gather(*(reader.read_all() for reader in readers))
            check_whole(*readers, expected=whole(100, 60))


async def test_a_stop_is_obeyed_by_a_worker_that_was_cut_off(own_redis: Redises, tmp_path: Path, took: Took) -> None:
    """It was sent while the producer's worker could not reach Redis, and waits for it."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, lease=10.0, store_timeout=10.0) as line:
            live, reader = await line.begin(name, numbered(5, 60), forever())
            line.links[0].refuse()
            assert (await line.player(1).stop(name)).status == 204
            assert (await line.player(1).replay(name)).status == 404
            await reader.read_all()
            assert code_of(reader.body) == "cancelled"
            line.links[0].accept()
            begun = time.monotonic()
            await line.site.until_noted(f"CancelledError:{name}", deadline=BACK)
            took("producer cancelled", time.monotonic() - begun)
            await live.read_all()
            assert outcome(live, whole(5, 60)) in TOLD


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["degrade", "fail"])
async def test_a_worker_that_alone_cannot_reach_redis_is_taken_for_dead(
    own_redis: Redises, tmp_path: Path, took: Took, rule: str
) -> None:
    """Others see it within the bound and use the id; what it had under way is refused when the line is back."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, workers=3, on_store_failure=rule, store_timeout=6.0) as line:
            live, reader = await line.begin(name, LONG)
            line.links[0].hold()
            _, seconds = await timed(reader.read_all(), SEEN_DEAD, "being told")
            took("readers told", seconds)
            assert outcome(reader, LONG_WHOLE) == "producer_lost"
            newer = await line.player(1).record(name, numbered(20, 60))
            assert without_ids(newer.body) == whole(20, 60)
            line.links[0].release()
            begun = time.monotonic()
            await line.site.until_noted(f"ended:{name}", deadline=BACK)
            took("producer cancelled", time.monotonic() - begun)
            assert not line.site.count(f"finished:{name}")
            await timed(live.read_all(), BACK, "the end for its own client")
            assert outcome(live, LONG_WHOLE) in TOLD
            assert (await line.player(2).replay(name)).body == newer.body
            took("all workers take streams", await line.works_again(0, 1, 2))
            assert "Traceback" not in line.site.servers[0].output


# Redis, for a few seconds.


@pytest.mark.slow
async def test_redis_frozen_for_three_seconds_costs_nothing(own_redis: Redises, tmp_path: Path, took: Took) -> None:
    """No byte is lost or doubled, the generation goes on."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, lease=10.0, store_timeout=10.0) as line:
            readers = await line.begin(name, STEADY)
            async with line.staying_healthy(0, 1):
                redis.freeze()
                await asyncio.sleep(3)
                redis.thaw()
                begun = time.monotonic()
                await asyncio.gather(*(reader.read_until(b"00000050") for reader in readers))
                took("bytes that were held", time.monotonic() - begun)
                await asyncio.gather(*(reader.read_all() for reader in readers))
            check_whole(*readers, await line.player(1).replay(name))
            took("all workers take streams", await line.works_again(0, 1))
            assert line.site.count(f"called:{name}") == 1


@pytest.mark.slow
async def test_redis_frozen_for_longer_than_the_lease_is_no_death_of_a_worker_that_lives(
    own_redis: Redises, tmp_path: Path
) -> None:
    """All bytes once, or the readers are told and the producer ends; nothing between the two."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, lease=LEASE, store_timeout=10.0) as line:
            readers = await line.begin(name, STEADY)
            redis.freeze()
            await asyncio.sleep(LEASE + 1)
            redis.thaw()
            await asyncio.gather(*(reader.read_all() for reader in readers))
            found = {outcome(reader, WHOLE) for reader in readers}
            assert found == {"whole"} or found <= TOLD
            await line.works_again(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kill", representatives([False, True], bool), ids=["in-order", "killed"])
async def test_redis_restarted_with_its_data_costs_nothing(
    own_redis: Redises, tmp_path: Path, took: Took, kill: bool
) -> None:
    """With an append-only file that is written at once, no byte is lost or doubled, and no live stream ends."""
    name, finished = unique("id"), unique("finished")
    with own_redis(appendonly=True) as redis:
        async with plant(redis, tmp_path, lease=10.0, store_timeout=10.0) as line:
            earlier = await line.player(0).record(finished, numbered(20, 60))
            readers = await line.begin(name, STEADY)
            async with line.staying_healthy(0, 1):
                await asyncio.to_thread(redis.restart, kill=kill)
                begun = time.monotonic()
                await asyncio.gather(*(reader.read_until(b"00000015") for reader in readers))
                took("bytes that were held", time.monotonic() - begun)
                await asyncio.gather(*(reader.read_all() for reader in readers))
            check_whole(*readers, await line.player(1).replay(name))
            assert (await line.player(1).replay(finished)).body == earlier.body
            took("all workers take streams", await line.works_again(0, 1))
            assert line.site.count(f"called:{name}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["degrade", "fail"])
async def test_a_redis_restarted_empty_is_reported_or_mended(
    own_redis: Redises, tmp_path: Path, took: Took, rule: str
) -> None:
    """Readers get all bytes once or a clear end within the bound; finished streams are 404; new ones work."""
    name, finished = unique("id"), unique("finished")
    with own_redis() as redis:
        async with plant(redis, tmp_path, on_store_failure=rule) as line:
            await line.player(0).record(finished, numbered(20, 60))
            readers = await line.begin(name, STEADY)
            async with line.staying_healthy(0, 1):
                await asyncio.to_thread(redis.restart, kill=True, empty=True)
                _, seconds = await timed(
                    asyncio.gather(*(reader.read_all() for reader in readers)), 4 + ANSWERED, "the readers' end"
                )
                took("readers at their end", seconds)
            found = [outcome(reader, WHOLE) for reader in readers]
            assert {*found} <= {"whole", *TOLD}
            took(f"own client: {found[0]}, elsewhere: {found[1]}", seconds)
            assert (await line.player(1).replay(finished)).status == 404
            await line.site.until_noted(f"ended:{name}")
            took("all workers take streams", await line.works_again(0, 1))
            assert line.site.count(f"called:{name}") == 1
            assert redis.list_keys_without_expiry() == []


# The line between them.


@pytest.mark.slow
async def test_connections_that_are_cut_every_second_cost_nothing(
    own_redis: Redises, tmp_path: Path, took: Took
) -> None:
    """Three streams go through, every byte once, here and there."""
    names = [unique("id") for _ in range(3)]
    with own_redis() as redis:
        async with plant(redis, tmp_path, lease=10.0, store_timeout=10.0) as line:
            for link in line.links:
                link.cut_every(1.0)
            async with line.staying_healthy(0, 1):
                begun = time.monotonic()
                readers = [reader for name in names for reader in await line.begin(name, STEADY)]
                await asyncio.gather(*(reader.read_all() for reader in readers))
                took("four seconds of three streams", time.monotonic() - begun)
            check_whole(*readers)
            for link in line.links:
                link.cut_every(None)
            took("all workers take streams", await line.works_again(0, 1))
            assert [line.site.count(f"called:{name}") for name in names] == [1, 1, 1]


@pytest.mark.slow
async def test_a_slow_line_slows_a_stream_by_its_latency_only(own_redis: Redises, tmp_path: Path, took: Took) -> None:
    """With 200 ms each way added, 200 events at 100 a second come through in a few seconds; a stop in about one."""
    name, stopped = unique("id"), unique("stopped")
    with own_redis() as redis:
        async with plant(redis, tmp_path, lease=10.0, store_timeout=10.0) as line:
            for link in line.links:
                link.latency = 0.1  # each way
            async with line.staying_healthy(0, 1):
                begun = time.monotonic()
                readers = await line.begin(name, ["paced", 200, 60, 0.01])
                await timed(asyncio.gather(*(reader.read_all() for reader in readers)), 10 + BUSY, "the stream")
                took("two seconds of a stream", time.monotonic() - begun)
                check_whole(*readers)
                await line.begin(stopped, numbered(5, 60), forever(), readers=())
                begun = time.monotonic()
                assert (await line.player(1).stop(stopped)).status == 204
                await line.site.until_noted(f"CancelledError:{stopped}")
                took("a stop", time.monotonic() - begun)


def break_line(line: Plant, kind: str) -> None:
    """Make Redis unreachable for all."""
    for link in line.links:
        if kind == "refused":
            link.refuse()
        else:
            link.hold("answers" if kind == "answers-lost" else "everything")


def mend_line(line: Plant, kind: str) -> None:
    """Make it reachable again."""
    for link in line.links:
        if kind == "refused":
            link.accept()
        else:
            link.release()


KINDS = pytest.mark.parametrize("kind", representatives(["black-hole", "answers-lost", "refused"], "refused".__ne__))


async def ask_everything(line: Plant, name: str, took: Took) -> Reply:
    """Send every kind of request while Redis is gone: each is answered in time. Returns the answer to a new POST."""
    requests = {
        "POST": line.player(0).record(unique("new"), numbered(3, 60)),
        "GET": line.player(1).replay(unique("unknown")),
        "HEAD": line.player(1).head(name),
        "DELETE": line.player(1).stop(unique("unknown")),
        "lookup": line.player(1).lookup_raw(b'{"conversation_ids": ["a"]}'),
        "conflict": line.player(1).record(unique("new"), numbered(3, 60), headers=[("idempotency-key", "k")]),
    }
    answers = await asyncio.gather(*(timed(asked, ANSWERED, method) for method, asked in requests.items()))
    took("slowest answer meanwhile", max(seconds for _, seconds in answers))
    replies = dict(zip(requests, (answer for answer, _ in answers), strict=True))
    assert replies["GET"].status in (404, 503)
    assert replies["HEAD"].status in (200, 404, 503)
    assert replies["DELETE"].status in (204, 503)
    assert replies["lookup"].status in (200, 503)
    for method in ("GET", "lookup"):
        if replies[method].status == 503:
            assert b'"store_unavailable"' in replies[method].body
            assert replies[method].header("retry-after")
    return replies["POST"]


@pytest.mark.slow
@KINDS
async def test_without_redis_for_long_the_strict_rule_refuses_and_ends(
    own_redis: Redises, tmp_path: Path, took: Took, kind: str
) -> None:
    """`fail`: a new request gets 503, a live stream ends with `store_unavailable`, readers elsewhere are told."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, on_store_failure="fail") as line:
            live, reader = await line.begin(name, LONG)
            async with line.staying_healthy(0, 1):
                break_line(line, kind)
                asking = asyncio.create_task(ask_everything(line, name, took))
                _, mine = await timed(live.read_all(), ANSWERED, "the end for its own client")
                _, others = await timed(reader.read_all(), ANSWERED, "the end for others")
                took("own client told", mine)
                took("readers elsewhere told", max(mine, others))
                refused = await asking
                assert outcome(live, LONG_WHOLE) == "store_unavailable"
                assert outcome(reader, LONG_WHOLE) == "cut"
                assert refused.status == 503
                assert b'"store_unavailable"' in refused.body
                assert refused.header("retry-after")
                await line.site.until_noted(f"ended:{name}")
                assert line.site.count(f"finished:{name}") == 0
            mend_line(line, kind)
            took("all workers take streams", await line.works_again(0, 1))
            assert line.site.count(f"called:{name}") == 1
            await line.output_names("(?i)redis")
            late = await line.player(1).replay(name)
            assert late.status == 404 or outcome(late, LONG_WHOLE) in TOLD
            assert redis.list_keys_without_expiry() == []


@pytest.mark.slow
@KINDS
async def test_without_redis_for_long_the_lenient_rule_goes_on_for_those_who_are_there(
    own_redis: Redises, tmp_path: Path, took: Took, kind: str
) -> None:
    """`degrade`: a new request gets a plain stream, a live one goes on for its own client; others are told."""
    name = unique("id")
    expected = whole(100, 60) * 2
    with own_redis() as redis:
        async with plant(redis, tmp_path, on_store_failure="degrade") as line:
            live, reader = await line.begin(name, *TWO_PARTS)
            async with line.staying_healthy(0, 1):
                break_line(line, kind)
                asking = asyncio.create_task(ask_everything(line, name, took))
                _, others = await timed(reader.read_all(), ANSWERED, "the end for others")
                took("readers elsewhere told", others)
                assert outcome(reader, expected) == "cut"
                plain = await asking
                assert (plain.status, plain.body, plain.clean) == (200, whole(3, 60), True)
                assert plain.header("x-stream-epoch") is None
                await line.player(0).open("second part")
                await live.read_all()
                check_whole(live, expected=expected)
            mend_line(line, kind)
            took("all workers take streams", await line.works_again(0, 1))
            assert line.site.count(f"called:{name}") == 1
            await line.output_names("(?i)redis")
            late = await line.player(1).replay(name)
            assert late.status == 404 or outcome(late, expected) in {*TOLD, "whole"}
            assert redis.list_keys_without_expiry() == []


@pytest.mark.slow
async def test_a_reader_whose_own_worker_is_cut_off_resumes_on_another(
    own_redis: Redises, tmp_path: Path, took: Took
) -> None:
    """It is told within the bound; from where it was, the rest is on any other worker; the stream itself is whole."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, workers=3) as line:
            live, reader, other = await line.begin(name, ["paced", 400, 60, 0.02], readers=(1, 2))
            line.links[1].hold()
            _, seconds = await timed(reader.read_all(), ANSWERED, "being told")
            took("reader told", seconds)
            assert outcome(reader, whole(400, 60)) == "cut"
            resumed = await line.player(2).follow(name, from_=len(reader.body))
            await asyncio.gather(*(each.read_all() for each in (live, other, resumed)))
            check_whole(live, other, expected=whole(400, 60))
            assert reader.body + resumed.body == live.body
            line.links[1].release()
            took("all workers take streams", await line.works_again(0, 1, 2))


@pytest.mark.slow
async def test_the_bounds_hold_for_the_default_timeouts_too(own_redis: Redises, tmp_path: Path, took: Took) -> None:
    """A black hole with `lease` and `store_timeout` as they are: everybody is told within fifteen seconds."""
    name = unique("id")
    with own_redis() as redis:
        async with plant(redis, tmp_path, lease=10.0, store_timeout=10.0, on_store_failure="fail") as line:
            readers = await line.begin(name, LONG)
            async with line.staying_healthy(0, 1):
                break_line(line, "black-hole")
                told = asyncio.gather(*(timed(reader.read_all(), 15 + BUSY, "being told") for reader in readers))
                refused, seconds = await timed(
                    line.player(1).record(unique("new"), numbered(3, 60)), 15 + BUSY, "a POST"
                )
                took("slowest told", max(each for _, each in await told))
                took("a POST answered", seconds)
            assert refused.status == 503
            assert [outcome(each, LONG_WHOLE) for each in readers] == ["store_unavailable", "cut"]
            mend_line(line, "black-hole")
            took("all workers take streams", await line.works_again(0, 1))


@pytest.mark.slow
async def test_a_worker_keeps_little_while_redis_is_gone(own_redis: Redises, tmp_path: Path, took: Took) -> None:
    """80 MB go to the local client of a stream whose Redis is a black hole; the worker's memory stays as it was."""
    name = unique("id")
    steps = (numbered(3, 60), wait("go"), numbered(20_000, 4096))
    rooms = {"": {"max_stream_bytes": MIB}}
    with own_redis() as redis:
        async with plant(redis, tmp_path, rooms=rooms, workers=1) as line:
            [live] = await line.begin(name, *steps, readers=())
            before = line.site.servers[0].rss()
            break_line(line, "black-hole")
            await line.player(0).open("go")
            body = await drain(live)
            assert without_ids(body) == whole(3, 60) + whole(20_000, 4096)
            grown = line.site.servers[0].rss() - before
            took(f"grown by {grown / MIB:.0f} MiB", 0)
            assert grown < 40 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["degrade", "fail"])
async def test_a_full_redis_is_named_in_the_log(own_redis: Redises, tmp_path: Path, took: Took, rule: str) -> None:
    """`maxmemory` with `noeviction`: no write is taken. As without Redis; the log names the cause; it recovers."""
    name = unique("id")
    expected = whole(100, 60) * 2
    with own_redis("--maxmemory-policy noeviction") as redis:
        async with plant(redis, tmp_path, on_store_failure=rule) as line:
            live, reader = await line.begin(name, *TWO_PARTS)
            async with line.staying_healthy(0, 1):
                redis.control.config_set("maxmemory", 1)
                asking = asyncio.create_task(ask_everything(line, name, took))
                _, others = await timed(reader.read_all(), ANSWERED, "the end for others")
                took("readers elsewhere told", others)
                assert outcome(reader, expected) in TOLD
                new = await asking
                await line.player(0).open("second part")
                await live.read_all()
                if rule == "fail":
                    assert (new.status, outcome(live, expected)) == (503, "store_unavailable")
                    await line.site.until_noted(f"ended:{name}")
                    assert line.site.count(f"finished:{name}") == 0
                else:
                    assert (new.status, new.body) == (200, whole(3, 60))
                    check_whole(live, expected=expected)
            redis.control.config_set("maxmemory", 0)
            took("all workers take streams", await line.works_again(0, 1))
            await line.output_names("(?i)maxmemory|out of memory|OOM")
            assert line.site.count(f"called:{name}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["degrade", "fail"])
async def test_a_failover_to_a_replica_that_lacks_the_last_entries(
    own_redis: Redises, tmp_path: Path, took: Took, rule: str
) -> None:
    """Readers get every byte once, or are told: never a gap, never a byte twice; new streams work."""
    name = unique("id")
    with own_redis() as primary, own_redis(name="replica") as replica, FaultyLink(primary.port) as replication:
        replica.follow(replication.port)
        async with plant(primary, tmp_path, on_store_failure=rule) as line:
            readers = await line.begin(name, STEADY)
            await until(lambda: bool(replica.list_keys(f"*{name}*")), "the replica's first entries")
            replication.hold()
            for reader in readers:
                await reader.read_until(b"00000050")
            primary.kill()
            replica.promote()
            begun = time.monotonic()
            for link in line.links:
                link.lead_to(replica.port)
                link.cut()
            _, seconds = await timed(
                asyncio.gather(*(reader.read_all() for reader in readers)), 4 + ANSWERED, "the readers' end"
            )
            found = [outcome(reader, WHOLE) for reader in readers]
            assert {*found} <= {"whole", *TOLD}
            took(f"own client: {found[0]}, elsewhere: {found[1]}", seconds)
            late = await line.player(1).replay(name)
            assert late.status == 404 or outcome(late, WHOLE) in {*TOLD, "whole"}
            await line.site.until_noted(f"ended:{name}")
            took("all workers take streams", await line.works_again(0, 1))
            took("recovered", time.monotonic() - begun)
            assert line.site.count(f"called:{name}") == 1


@pytest.mark.slow
async def test_all_keys_expire_after_all_workers_were_killed_at_once(own_redis: Redises, tmp_path: Path) -> None:
    """Every key has an expiry; a worker that is started afterwards tells of what was lost."""
    name = unique("id")
    rooms = {"": {"retention": 1.0}}
    with own_redis() as redis:
        async with plant(redis, tmp_path, rooms=rooms) as line:
            await line.begin(name, numbered(5, 60), forever())
            for server in line.site.servers:
                server.kill()
        assert redis.list_keys_without_expiry() == []
        async with plant(redis, tmp_path, rooms=rooms, workers=1) as line:
            async with asyncio.timeout(SEEN_DEAD + STORE_TIMEOUT):
                body = (await line.player(0).replay(name)).body
            assert code_of(body) == "producer_lost" or b"stream_not_found" in body
            await line.works_again(0)
