"""One command that Redis refuses is not silence: those whom it concerns are told, and everything else goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fastapi_resumable import RedisStore
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.stream import Limits
from fastapi_resumable.exceptions import StoreUnavailable
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.redis import worker
from fastapi_resumable.stores.redis.backend import RedisBackend
from fastapi_resumable.stores.redis.calls import Call, Calls
from fastapi_resumable.stores.redis.keys import Keys, log_key
from fastapi_resumable.stores.redis.link import Link, is_passing
from fastapi_resumable.stores.shared.local import LocalStream
from fastapi_resumable.stores.shared.writes import Sync
from tests.conformance.tools import (
    TEXT,
    Request,
    begin,
    complete,
    content,
    following,
    known_to_have_readers,
    terminal,
    write,
)
from tests.support.asgi import bounded
from tests.support.faults import FaultyLink
from tests.support.redis_server import RedisServer, free_port
from tests.support.server import HOST
from tests.support.site import until

pytestmark = pytest.mark.redis

STORE_TIMEOUT = 3.0
ONE, OTHER = StreamKey(None, "one"), StreamKey(None, "other")
OpenStore = Callable[..., RedisStore]


@pytest.fixture
def server(own_redis: Callable[..., RedisServer]) -> Iterator[RedisServer]:
    """A Redis with a user whose rights a test may take away."""
    with own_redis() as server:
        server.control.execute_command("ACL SETUSER", "user", "on", ">secret", "~*", "&*", "+@all")
        yield server


@pytest.fixture
def keys() -> Keys:
    """The names under the prefix of one test."""
    return Keys(f"refusals-{uuid4().hex}")


@pytest.fixture
async def open_store(server: RedisServer, keys: Keys) -> AsyncIterator[OpenStore]:
    """Opens the store of a worker that is that user."""
    stores: list[RedisStore] = []

    def open_store(on_store_failure: str = "fail") -> RedisStore:
        url = server.url_at(server.port, "user:secret@")
        store = RedisStore(
            url, key_prefix=keys.prefix, store_timeout=STORE_TIMEOUT, lease=5.0, on_store_failure=on_store_failure
        )
        store.configure(Limits())
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.aclose()


async def test_readers_elsewhere_are_sent_away_when_reading_alone_is_refused(
    server: RedisServer, open_store: OpenStore
) -> None:
    """`XREAD` is refused by an access list while other commands work; with the right back, reading works again."""
    here, there = open_store(), open_store()
    stream = await begin(here, ONE, TEXT)
    found = await there.find(ONE, 1)
    async with following(found) as reader:
        await write(stream, b"one")
        await reader.reach(3)
        server.control.execute_command("ACL SETUSER", "user", "-xread")
        begun = monotonic()
        await until(lambda: found.failure is not None, "the end for the reader")
        assert monotonic() - begun > STORE_TIMEOUT / 2, "a refusal may pass"
        assert found.failure is not None
        assert found.failure.code == "store_unavailable"
    server.control.execute_command("ACL SETUSER", "user", "+xread")
    async with following(await there.find(ONE, 1)) as reader:
        await write(stream, b"two")
        await complete(here, stream)
        assert await reader.end() == b"onetwo"


@pytest.mark.parametrize("rule", ["degrade", "fail"])
async def test_a_log_that_is_no_log_is_dropped_alone(
    server: RedisServer, open_store: OpenStore, keys: Keys, caplog: pytest.LogCaptureFixture, rule: str
) -> None:
    """Its reader elsewhere is sent away, its producer does as the rule says; the stream beside it goes on."""
    here, there = open_store(rule), open_store(rule)
    request = Request(ONE)
    broken, intact = await request.begin(here, TEXT), await begin(here, OTHER, TEXT)
    found = await there.find(ONE, 1)
    async with following(found), following(await there.find(OTHER, 1)) as reader, following(broken) as local:
        for stream in (broken, intact):
            await write(stream, b"one")
        await reader.reach(3)
        await local.reach(3)
        await until(lambda: found.tail == 3, "what was written")
        log = log_key(keys.stream(ONE), broken.epoch)
        server.control.delete(log)
        server.control.set(log, "no log", ex=60)
        for stream in (broken, intact):
            await write(stream, b"two")
        await until(lambda: found.failure is not None, "the end for the reader of the broken one")
        if rule == "degrade":
            assert await local.reach(6) == b"onetwo"
        else:
            assert await request.told() == "interrupted"
        assert await reader.reach(6) == b"onetwo"
        await complete(here, intact)
        assert await reader.end() == b"onetwo"
    [refusal] = [record for record in caplog.records if "cannot be read" in record.message]
    assert (vars(refusal)["stream_id"], vars(refusal)["epoch"]) == (ONE.id, broken.epoch)


async def test_messages_arrive_although_something_else_lay_in_their_place(
    server: RedisServer, open_store: OpenStore, keys: Keys
) -> None:
    """A worker whose inbox is no stream any more makes a new one, and a stop reaches its producer."""
    here, there = open_store(), open_store()
    request = Request(ONE)
    await request.begin(here, TEXT)
    [worker] = [key for key in server.list_keys(f"{keys.prefix}:worker:*") if not key.endswith("inbox")]
    inbox = f"{worker}:inbox"
    server.control.delete(inbox)
    server.control.set(inbox, "no inbox", ex=60)
    await until(lambda: server.control.type(inbox) != "string", "a new inbox")
    await there.stop(ONE, None)
    assert await bounded(request.told()) == "cancelled"


async def test_a_message_that_cannot_be_posted_holds_up_nothing(
    server: RedisServer, open_store: OpenStore, keys: Keys
) -> None:
    """The key of the changes is taken by something else: streams are written all the same."""
    server.control.set(keys.changes, "no changes", ex=60)
    here, there = open_store(), open_store()
    stream = await begin(here, ONE, TEXT)
    await write(stream, b"one")
    await complete(here, stream)
    assert await content(await there.find(ONE, 1)) == b"one"


async def test_what_is_refused_again_and_again_is_logged_once_for_each_reason(
    server: RedisServer, open_store: OpenStore, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that meet different ones by turns fill no log."""
    store = open_store()
    await store.lookup(None, ["another"])
    server.control.set(keys.stream(ONE), "something else", ex=60)
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await store.find(ONE, 0)
        with pytest.raises(StoreUnavailable):
            await store.stop(ONE, None)
    logged = [record.getMessage() for record in caplog.records if "WRONGTYPE" in record.getMessage()]
    # Valkey does not name the script, so that both reasons read alike.
    assert len(logged) == len(set(logged)) in (1, 2)


async def test_a_primary_that_has_become_a_replica_is_left_for_the_new_one(
    own_redis: Callable[..., Any], keys: Keys
) -> None:
    """It refuses to write, and keeps its connections: the address leads to the new primary by then."""
    with own_redis() as old, own_redis(name="new") as new, FaultyLink(old.port) as link:
        new.follow(old.port)
        store = RedisStore(old.url_at(link.port), key_prefix=keys.prefix, store_timeout=30.0, on_store_failure="fail")
        store.configure(Limits())
        stream = await begin(store, ONE, TEXT)
        await write(stream, b"one")
        await until(lambda: new.control.hget(keys.stream(ONE), "tail") == "3", "the bytes on the new primary")
        new.promote()
        link.lead_to(new.port)
        old.control.replicaof(HOST, free_port())
        await write(stream, b"two")
        await complete(store, stream)
        assert stream.status is ResumableStatus.COMPLETED
        assert await content(await store.find(ONE, 1)) == b"onetwo"
        await store.aclose()


async def test_a_connection_to_what_was_the_primary_is_left(own_redis: Callable[..., Any]) -> None:
    """It stays open, and is the only one that the client has: the next attempt makes another."""
    with own_redis() as old, own_redis(name="new") as new, FaultyLink(old.port) as line:
        client = Redis.from_url(old.url_at(line.port))
        link = Link(client, Calls(Keys("any"), "worker", Limits(), 10.0), 30.0, on_up=lambda: None)
        await link.run(Call("SET", ["key"], ["one"]))
        line.lead_to(new.port)
        old.control.replicaof(HOST, free_port())
        await link.run(Call("SET", ["key"], ["two"]))
        assert new.control.get("key") == "two"
        await client.aclose()


async def test_no_worker_is_dead_while_redis_takes_no_writes(
    own_redis: Callable[..., Any], keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker can renew its lease then, and each would take all others for dead; what is there can still be read."""
    monkeypatch.setattr(worker, "GRACE", 0.0)
    with own_redis() as redis:
        one, two = (
            RedisStore(redis.url, key_prefix=keys.prefix, lease=1.0, store_timeout=30.0, on_store_failure="fail")
            for _ in range(2)
        )
        for store in (one, two):
            store.configure(Limits())
        stream = await begin(one, ONE, TEXT)
        await write(stream, b"one")
        await until(lambda: stream.tail == 3, "the bytes")
        assert [item.status for item in await two.lookup(None, [ONE.id])] == [ResumableStatus.IN_PROGRESS]
        redis.control.config_set("min-replicas-to-write", 1)
        await until(lambda: not redis.list_keys(f"{keys.prefix}:worker:{'?' * 16}"), "the end of all leases")
        assert [item.status for item in await two.lookup(None, [ONE.id])] == [ResumableStatus.IN_PROGRESS]
        redis.control.config_set("min-replicas-to-write", 0)
        await write(stream, b"two")
        await complete(one, stream)
        assert stream.status is ResumableStatus.COMPLETED
        await one.aclose()
        await two.aclose()


async def test_readers_elsewhere_are_sent_away_while_redis_takes_no_writes(
    server: RedisServer, open_store: OpenStore
) -> None:
    """Nothing of their stream comes any more, although what is there can be read; they go on when they come back."""
    here, there = open_store("degrade"), open_store("degrade")
    stream = await begin(here, ONE, TEXT)
    found = await there.find(ONE, 1)
    async with following(found) as reader:
        await write(stream, b"one")
        await reader.reach(3)
        server.control.config_set("min-replicas-to-write", 1)
        await until(lambda: found.failure is not None, "the end for the reader")
    server.control.config_set("min-replicas-to-write", 0)
    async with following(await there.find(ONE, 1)) as reader:
        await write(stream, b"two")
        await complete(here, stream)
        assert await reader.end() == b"onetwo"


async def test_a_write_that_was_refused_half_way_is_made_again(server: RedisServer, open_store: OpenStore) -> None:
    """The bytes, and then the end, were added without the right to note that: with the right back, all is recorded."""
    here, there = open_store("degrade"), open_store("degrade")
    stream = await begin(here, ONE, TEXT)
    assert isinstance(stream, LocalStream)
    async with following(await there.find(ONE, 1)) as reader:
        await write(stream, b"one")
        await reader.reach(3)
        server.control.execute_command("ACL SETUSER", "user", "-hset")
        await write(stream, b"two")
        await reader.reach(6)
        server.control.execute_command("ACL SETUSER", "user", "+hset")
        await until(lambda: not stream.is_detached, "the record")
        server.control.execute_command("ACL SETUSER", "user", "-hset")
        await complete(here, stream)
        server.control.execute_command("ACL SETUSER", "user", "+hset")
        assert await bounded(reader.end()) == b"onetwo"
    async with asyncio.timeout(60):
        while not (await there.lookup(None, [ONE.id]))[0].is_done:
            pass
    assert await content(await there.find(ONE, 1)) == b"onetwo"


async def test_a_stream_that_redis_refuses_to_end_is_ended_when_it_may_be(
    server: RedisServer, open_store: OpenStore
) -> None:
    """Its worker has given it up, and has no right to say so: with the right back, it is over for those elsewhere."""
    here, there = open_store("fail"), open_store("fail")
    request = Request(ONE)
    stream = await request.begin(here, TEXT)
    async with following(await there.find(ONE, 1)) as reader:
        await write(stream, b"one")
        await reader.reach(3)
        server.control.execute_command("ACL SETUSER", "user", "-xadd")
        await write(stream, b"two")
        assert await bounded(request.told()) == "interrupted"
        # The attempt to end it, which is refused.
        assert here._backend is not None
        await bounded(here._backend.queue.flush())
        server.control.execute_command("ACL SETUSER", "user", "+xadd")
        assert await bounded(reader.end()) == b"one"
    assert [item.status for item in await there.lookup(None, [ONE.id])] == [ResumableStatus.INTERRUPTED]


async def test_a_stop_while_redis_is_away_is_the_only_end_under_fail(
    server: RedisServer, open_store: OpenStore
) -> None:
    """A reader that is slow to see it sees no error after it, and it is what is recorded once Redis is back."""
    here, there = open_store("fail"), open_store("fail")
    request = Request(ONE)
    stream = await request.begin(here)
    assert isinstance(stream, LocalStream)
    outbox = stream.outbox
    async with following(stream) as reader:
        reader.pace = asyncio.Event()
        await write(stream, b"data: one\n\n")
        await until(lambda: stream.tail == stream.log.tail, "the record")
        server.freeze()
        await here.stop(ONE, None)
        assert await bounded(request.told()) == "cancelled"
        await until(lambda: outbox.renew and outbox.sent is not None and outbox.sent.ending is not None, "the outage")
        server.thaw()
        reader.pace.set()
        seen = await bounded(reader.end())
    assert terminal(seen)[0] == "cancelled"
    assert seen.count(b"event: ") == 1
    # Others may take this worker for dead until it has renewed its lease, so they look afterwards.
    await until(lambda: outbox.sync is Sync.LEFT, "the record")
    assert [item.status for item in await there.lookup(None, [ONE.id])] == [ResumableStatus.CANCELLED]


async def test_a_reader_elsewhere_holds_no_producer_while_redis_is_away(
    server: RedisServer, open_store: OpenStore
) -> None:
    """It cannot read on, and has been sent away: the stream goes on for the reader on its own worker."""
    here, there = open_store("degrade"), open_store("degrade")
    here.configure(Limits(max_stream_bytes=4096))
    stream = await begin(here, ONE, TEXT)
    async with following(await there.find(ONE, 1)) as far, following(stream) as near:
        far.pace = asyncio.Event()
        await known_to_have_readers(stream)
        producer = asyncio.create_task(write(stream, *[b"x" * 1024] * 12))
        await bounded(near.reach(4096))
        server.freeze()
        await bounded(producer)
        assert len(await bounded(near.reach(12288))) == 12288
        server.thaw()


async def test_one_stream_that_cannot_be_looked_for_keeps_no_other_from_it(
    server: RedisServer, open_store: OpenStore, keys: Keys
) -> None:
    """Its state is something else when Redis is back, and its log is intact; another stream is gone altogether."""
    here, there = open_store(), open_store()
    async with AsyncExitStack() as stack:
        found = []
        for key in (ONE, OTHER):
            stream = await begin(here, key, TEXT)
            await write(stream, b"one")
            found.append(await there.find(key, 1))
            reader = await stack.enter_async_context(following(found[-1]))
            await reader.reach(3)
        server.control.delete(*server.list_keys(f"{keys.stream(OTHER)}*"), keys.stream(ONE))
        server.control.set(keys.stream(ONE), "no state", ex=600)
        assert isinstance(there._backend, RedisBackend)
        there._backend._on_return()
        await until(lambda: all(stream.failure is not None for stream in found), "the end of both readings")


@pytest.mark.parametrize(
    "refusal",
    [
        "Script attempted to access a non local key in a cluster node script: 7fc72754, on @user_script:201.",
        "Script attempted to access a slot not served script: 7fc72754, on @user_script:201.",
        "Script attempted to execute a write command while the cluster is down and readonly script: 7fc72754",
    ],
)
def test_what_a_cluster_refuses_while_it_moves_a_slot_is_asked_again(refusal: str) -> None:
    """Once the rest of a stream's keys are at the new node, the call goes there."""
    assert is_passing(ResponseError(refusal))


class ForgetfulRedis(Redis):  # type: ignore[type-arg]  # generic in some versions of its stubs only
    """A client whose server forgets each script some times, right after it was loaded."""

    left = 3

    async def script_load(self, script: str) -> Any:
        """Load it, and have it forgotten."""
        sha = await super().script_load(script)
        if self.left:
            self.left -= 1
            await self.script_flush()
        return sha


async def test_scripts_that_are_flushed_again_and_again_are_loaded_again(server: RedisServer, keys: Keys) -> None:
    """Also between loading one and running it: no request is refused for that."""
    client = ForgetfulRedis(host=HOST, port=server.port)
    store = RedisStore(client, key_prefix=keys.prefix, store_timeout=60.0, on_store_failure="fail")
    store.configure(Limits())
    try:
        stream = await begin(store, ONE, TEXT)
        await write(stream, b"one")
        client.left = 3
        await client.script_flush()
        await complete(store, stream)
        assert client.left == 0
        assert await content(await store.find(ONE, 1)) == b"one"
    finally:
        await store.aclose()
        await client.aclose()
