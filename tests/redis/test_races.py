"""Between two awaits: lost replies, calls given up half-way, news that come early, things that go missing.

Two stores stand for two workers. Their clients do what a test tells them to, at the one command that matters.
"""

import asyncio
import gc
import logging
import math
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha1
from itertools import pairwise
from typing import Any, cast
from uuid import uuid4

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from starlette.responses import StreamingResponse

from fastapi_resumable import RedisStore, Resumable
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.reader import Reading
from fastapi_resumable._stream.stream import Limits, is_exhausted
from fastapi_resumable.exceptions import ResumableError, StoreUnavailable, StreamCancelled
from fastapi_resumable.models import ResumableStatus, ResumableStreamItem
from fastapi_resumable.stores.redis import backend as backend_module
from fastapi_resumable.stores.redis import link as link_module
from fastapi_resumable.stores.redis import transitions as transitions_module
from fastapi_resumable.stores.redis import worker as worker_module
from fastapi_resumable.stores.redis.backend import RedisBackend
from fastapi_resumable.stores.redis.calls import Script
from fastapi_resumable.stores.redis.keys import Keys
from fastapi_resumable.stores.shared import queue
from fastapi_resumable.stores.shared.local import LocalStream
from tests.conformance.tools import KEY, TEXT, Request, begin, complete, following, terminal, write
from tests.support.asgi import LIMIT, bounded, running
from tests.support.faults import FaultyLink
from tests.support.redis_server import RedisServer
from tests.support.server import free_port
from tests.support.site import until

pytestmark = pytest.mark.redis

OTHER = StreamKey("ann", "other")

Hook = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """Do nothing."""


def digest(script: Script) -> str:
    """By what a script is called, once Redis knows it."""
    return sha1(script.text.encode(), usedforsecurity=False).hexdigest()


class Meddled(Redis):
    """A client at which a test waits for one script to go by."""

    before: dict[str, Hook]
    after: dict[str, Hook]
    sizes: list[int]
    """How many commands each pipeline has had."""

    def meddle(self, script: Script, *, before: Hook = nothing, after: Hook = nothing) -> None:
        """Run these around the next call of `script`, once."""
        self.before[digest(script)] = before
        self.after[digest(script)] = after

    def lose(self, script: Script) -> None:
        """Lose the next reply of `script`."""

        async def lost() -> None:
            raise RedisConnectionError("the reply was lost")

        self.meddle(script, after=lost)

    async def run(self, hooks: dict[str, Hook], words: Any) -> None:
        """Run the hook for a command, if there is one."""
        for word in words[1:2]:
            await hooks.pop(word, nothing)()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        await self.run(self.before, args)
        reply = await super().execute_command(*args, **options)
        await self.run(self.after, args)
        return reply

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "MeddledPipeline":
        made = MeddledPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.client = self
        return made


class MeddledPipeline(Pipeline):
    """The same for a pipeline."""

    client: Meddled

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return self.pipeline_execute_command(*args, **options)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = [_words(command) for command in self.command_stack]
        self.client.sizes.append(len(commands))
        for words in commands:
            await self.client.run(self.client.before, words)
        replies = await super().execute(raise_on_error)
        for words in commands:
            await self.client.run(self.client.after, words)
        return replies


def _words(command: Any) -> Any:
    return command.args if hasattr(command, "args") else command[0]


class Plant:
    """Stores on one Redis, under a prefix of their own."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.keys = Keys(f"races-{uuid4().hex}")
        self.stores: list[RedisStore] = []
        self.clients: list[Redis] = []

    def open(self, client: Any = None, limits: Limits | None = None, **options: Any) -> RedisStore:
        """A worker's store."""
        store = RedisStore(client or self.server.url, key_prefix=self.keys.prefix, **options)
        store.configure(limits or Limits())
        self.stores.append(store)
        return store

    def meddled(self) -> Meddled:
        """A client that can be meddled with."""
        client = cast(Meddled, Meddled.from_url(self.server.url))
        client.before, client.after, client.sizes = {}, {}, []
        self.clients.append(client)
        return client

    def hash(self, key: StreamKey = KEY) -> dict[str, str]:
        """What Redis holds of a stream."""
        found: dict[str, str] = self.server.control.hgetall(self.keys.stream(key))
        return found

    async def close(self) -> None:
        for store in self.stores:
            await store.aclose()
        for client in self.clients:
            await client.aclose()
        assert self.server.list_keys_without_expiry(f"{self.keys.prefix}*") == []


@pytest.fixture
async def plant(redis_server: RedisServer) -> AsyncIterator[Plant]:
    """Stores on a Redis that is not harmed."""
    for script in Script:
        redis_server.control.script_load(script.text)
    plant = Plant(redis_server)
    try:
        yield plant
    finally:
        await plant.close()


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that has run for a while, so that it tells the dead from the living at once."""
    monkeypatch.setattr(worker_module, "GRACE", 0.0)


def backend_of(store: RedisStore) -> RedisBackend:
    """What a store has in hand."""
    backend = store._here()
    assert isinstance(backend, RedisBackend)
    return backend


# Starting.


@pytest.mark.usefixtures("no_grace")
async def test_a_repeated_request_gets_the_answer_of_a_worker_that_has_gone(plant: Plant) -> None:
    """Its stream has ended in order: there is nothing to bury, and the answer is replayed."""
    one, two = plant.open(), plant.open()
    stream = await Request(KEY, "again").begin(one)
    await write(stream, b"data: a\n\n")
    await complete(one, stream)
    await one.aclose()
    again = await two.reserve(Request(KEY, "again").reservation, "replace")
    assert again is not None
    assert again.epoch == stream.epoch


async def test_many_requests_are_refused_together_while_redis_is_away(plant: Plant) -> None:
    """Not one after the other: each is answered within the timeout of the store and five seconds."""
    store = plant.open(f"redis://127.0.0.1:{free_port()}/0", store_timeout=0.5)
    requests = [store.reserve(Request(StreamKey(None, f"id-{number}")).reservation, "replace") for number in range(50)]
    async with asyncio.timeout(LIMIT):
        answers = await asyncio.gather(*requests, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreUnavailable}


async def test_a_request_that_is_given_up_while_it_queues_leaves_the_queue(plant: Plant) -> None:
    """The cancellation comes when Redis has the request, and the worker has not heard of it yet."""
    client, there = plant.meddled(), asyncio.Event()

    async def dawdle() -> None:
        there.set()
        await asyncio.Event().wait()

    store = plant.open(client)
    client.meddle(Script.RESERVE, after=dawdle)
    task = asyncio.ensure_future(store.reserve(Request().reservation, "replace"))
    await there.wait()
    task.cancel()
    await asyncio.wait({task})
    await until(lambda: not plant.hash(), "an empty queue")
    assert not backend_of(store).streams.queued


async def test_a_request_that_is_given_up_while_it_tells_of_itself_leaves_the_queue(plant: Plant) -> None:
    """The cancellation comes while watchers are told that it is queued."""
    client, there = plant.meddled(), asyncio.Event()

    async def dawdle() -> None:
        there.set()
        await asyncio.Event().wait()

    store = plant.open(client)
    await backend_of(store).start()
    client.meddle(Script.POST, before=dawdle)
    task = asyncio.ensure_future(store.reserve(Request().reservation, "replace"))
    await there.wait()
    task.cancel()
    await asyncio.wait({task})
    await until(lambda: not plant.hash(), "an empty queue")
    assert not backend_of(store).streams.queued


async def test_a_release_that_is_given_up_is_done_all_the_same(plant: Plant) -> None:
    """Nobody would repeat it."""
    client, there = plant.meddled(), asyncio.Event()

    async def dawdle() -> None:
        there.set()
        await asyncio.Event().wait()

    store = plant.open(client)
    request = await Request().reserve(store)
    client.meddle(Script.RELEASE, before=dawdle)
    task = asyncio.ensure_future(store.release(request.reservation))
    await there.wait()
    task.cancel()
    await asyncio.wait({task})
    await until(lambda: not plant.hash(), "an empty queue")


async def test_a_beginning_that_is_given_up_leaves_no_live_stream(plant: Plant) -> None:
    """The cancellation comes while watchers are told; the producer, which never got its stream, cannot end it."""
    client, there = plant.meddled(), asyncio.Event()

    async def dawdle() -> None:
        there.set()
        await asyncio.Event().wait()

    one, two = plant.open(client), plant.open()
    request = await Request().reserve(one)
    client.meddle(Script.POST, before=dawdle)
    task = asyncio.ensure_future(one.begin(request.reservation, TEXT))
    await there.wait()
    task.cancel()
    await asyncio.wait({task})
    await one.release(request.reservation)
    await until(lambda: plant.hash().get("status") != "in_progress", "the end of the stream")
    assert not backend_of(one).streams.local
    [item] = await two.lookup("ann", ["chat"])
    assert item.status is ResumableStatus.INTERRUPTED
    assert not plant.server.list_keys(f"{plant.keys.stream(KEY)}:*:ended"), "its worker knows"


async def test_a_stop_that_comes_before_the_request_knows_it_is_queued_is_obeyed(plant: Plant) -> None:
    """Redis has queued it, and another worker stops it before the reply is here."""
    client = plant.meddled()
    one, two = plant.open(client), plant.open()

    async def stop() -> None:
        await two.stop(KEY, None)
        await until(lambda: request.codes, "the news")

    request = Request()
    client.meddle(Script.RESERVE, after=stop)
    assert await one.reserve(request.reservation, "replace") is None
    assert request.codes == ["cancelled"]
    with pytest.raises(StreamCancelled):
        await one.begin(request.reservation, TEXT)
    await one.release(request.reservation)
    assert f"q:{request.epoch}" not in plant.hash()
    assert not backend_of(one).streams.queued


@pytest.mark.parametrize("script", [Script.RESERVE, Script.BEGIN])
async def test_a_call_whose_reply_was_lost_is_not_repeated_after_a_stop(plant: Plant, script: Script) -> None:
    """The stop comes between the two attempts, and word of it has not come yet."""
    client = plant.meddled()
    one, two = plant.open(client), plant.open()

    async def stop_and_lose() -> None:
        await two.stop(KEY, None)
        raise RedisConnectionError("the reply was lost")

    request = Request()
    client.meddle(script, after=stop_and_lose)
    assert await one.reserve(request.reservation, "replace") is None
    with pytest.raises(StreamCancelled):
        await one.begin(request.reservation, TEXT)
    await one.release(request.reservation)
    assert await two.lookup("ann", ["chat"]) == []


async def test_that_something_was_stopped_is_forgotten_after_a_minute(plant: Plant) -> None:
    """However long the stream lives that came after it, and however many are stopped."""
    store = plant.open()
    stopped, replaced = await Request().reserve(store), Request()
    await store.stop(KEY, None)
    await replaced.begin(store)
    live = await begin(store)
    marks = {f"x:{stopped.epoch}": "cancelled", f"x:{replaced.epoch}": "replaced"}
    found = {name: value.split() for name, value in plant.hash().items() if name.startswith("x:")}
    assert {name: code for name, (code, _) in found.items()} == marks
    for name, (code, at) in found.items():
        plant.server.control.hset(plant.keys.stream(KEY), name, f"{code} {int(at) - 60_000}")
    await complete(store, live)
    assert not plant.hash().keys() & marks.keys()


async def test_a_request_at_the_limit_may_replace_although_its_reply_was_lost(plant: Plant) -> None:
    """The second attempt says the same as the first."""
    client = plant.meddled()
    store = plant.open(client, Limits(max_streams=1))
    await begin(store)
    client.lose(Script.RESERVE)
    await Request().begin(store)
    assert len(backend_of(store).streams.queued) == 0


async def test_a_request_that_is_stopped_while_it_is_counted_is_counted_no_longer(plant: Plant) -> None:
    """The stop comes before the count against the owner's limit."""
    client = plant.meddled()
    limits = Limits(max_streams_per_owner=1)
    one, two = plant.open(client, limits), plant.open(limits=limits)
    await backend_of(one).start()

    async def stop() -> None:
        await two.stop(KEY, None)

    request = Request()
    client.meddle(Script.CLAIM, before=stop)
    assert await one.reserve(request.reservation, "replace") is None
    assert await request.told() == "cancelled"
    await one.release(request.reservation)
    await until(lambda: not plant.server.list_keys(f"{plant.keys.prefix}:owner:*"), "no count")


# A reply is lost, and the call repeated.


@pytest.mark.parametrize("code", ["replaced", "cancelled"])
async def test_a_silent_producer_is_stopped_although_the_reply_was_lost(plant: Plant, code: str) -> None:
    """It would not learn of it by writing; its owner may have another stream at once."""
    client, limits = plant.meddled(), Limits(max_streams_per_owner=2)
    one, two = plant.open(limits=limits), plant.open(client, limits)
    old, new = Request(), Request()
    await old.begin(one)
    if code == "replaced":
        client.lose(Script.BEGIN)
        await new.begin(two)
    else:
        client.lose(Script.STOP)
        await two.stop(KEY, None)
    async with asyncio.timeout(LIMIT):
        assert await old.told() == code
    assert old.epoch not in plant.server.control.hkeys(plant.keys.owner("ann"))


async def test_a_producer_that_writes_while_its_end_is_fetched_is_no_failure(
    plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    """It was stopped elsewhere: Starlette makes a disconnect of the refusal, and that is no error to report."""
    client, asked, go_on, fetched = plant.meddled(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    resumable, app = Resumable(store=plant.open(client)), FastAPI()

    async def dawdle() -> None:
        asked.set()
        await fetched.wait()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await go_on.wait()
        for _ in range(5):
            yield b"more"

    @app.post("/chat")
    @resumable.stream
    async def chat() -> StreamingResponse:
        return StreamingResponse(chunks(), media_type="text/plain")

    async with running(app, spec_version="2.4") as browser:
        live = browser.start("POST", "/chat", headers={"x-conversation-id": "chat"})
        await live.read_until(b"one")
        client.meddle(Script.PAGE, before=dawdle)
        await plant.open().stop(StreamKey(None, "chat"), None)
        await asked.wait()
        go_on.set()
        await until(
            lambda: not any(task.get_name().startswith("resumable producer") for task in asyncio.all_tasks()),
            "the end of the application",
        )
        fetched.set()
        await live.rest()
    assert "failed" not in caplog.text


@pytest.mark.parametrize("script", ["RESERVE", "BEGIN", "APPEND", "PAGE", "REPORT", "RELEASE", "CLAIM", "PEEK"])
async def test_a_lost_reply_changes_nothing(plant: Plant, script: str) -> None:
    """Each call is repeated, and does its work once."""
    client = plant.meddled()
    limits = Limits(max_streams_per_owner=3)
    one, two = plant.open(client, limits), plant.open(limits=limits)
    lost = Script[script]
    client.lose(lost)
    request = await Request().reserve(one)
    client.lose(lost)
    stream = await one.begin(request.reservation, TEXT)
    for number in range(3):
        client.lose(lost)
        await write(stream, b"%d" % number)
    client.lose(lost)
    await complete(one, stream)
    client.lose(lost)
    async with following(await two.find(KEY, 0.0)) as follower:
        assert await follower.end() == b"012"
    client.lose(lost)
    async with following(await one.find(KEY, 0.0)) as follower:
        assert await follower.end() == b"012"
    await until(lambda: not plant.server.control.hkeys(plant.keys.owner("ann")), "no count")


# Following.


async def test_two_who_find_a_stream_before_either_reads_both_get_it(plant: Plant) -> None:
    """They come at the same time, on a worker that follows the stream for nobody yet."""
    one, two = plant.open(), plant.open()
    stream = await begin(one, head=TEXT)
    views = await asyncio.gather(*(two.find(KEY, 0.0) for _ in range(3)))
    async with following(views[0]) as first, following(views[1]) as second, following(views[2]) as third:
        await write(stream, b"hello")
        await complete(one, stream)
        async with asyncio.timeout(LIMIT):
            assert [await each.end() for each in (first, second, third)] == [b"hello"] * 3


async def test_a_request_for_a_stream_that_has_ended_meanwhile_learns_of_it(plant: Plant) -> None:
    """Although somebody here has had it in hand since before, without reading it."""
    one, two = plant.open(), plant.open()
    stream = await begin(one, head=TEXT)
    early = await two.find(KEY, 0.0)
    await write(stream, b"hello")
    await complete(one, stream)
    late = await two.find(KEY, 0.0)
    assert late is early
    assert await is_exhausted(late, 5)
    async with following(early) as follower:
        assert await follower.end() == b"hello"


async def test_who_comes_after_an_outage_is_not_sent_away_with_those_before(plant: Plant) -> None:
    """Somebody slow still holds the view of the stream that was given up."""
    one, two = plant.open(), plant.open()
    stream = await begin(one, head=TEXT)
    await write(stream, b"one")
    view = await two.find(KEY, 0.0)
    async with following(view) as slow:
        slow.pace = asyncio.Event()
        await until(lambda: slow._reader._sending_since, "a delivery")
        backend_of(two).on_outage(StoreUnavailable("gone"))
        async with following(await two.find(KEY, 0.0)) as late:
            await write(stream, b"two")
            await complete(one, stream)
            assert await late.end() == b"onetwo"


async def test_who_leaves_after_an_outage_does_not_take_those_along_who_came_since(plant: Plant) -> None:
    """The producer goes on to wait for them."""
    one, two = plant.open(), plant.open()
    stream = await begin(one, head=TEXT)
    await write(stream, b"one")
    async with following(await two.find(KEY, 0.0)) as slow:
        slow.pace = asyncio.Event()
        await until(lambda: slow._reader._sending_since, "a delivery")
        backend_of(two).on_outage(StoreUnavailable("gone"))
        async with following(await two.find(KEY, 0.0)) as late:
            await late.reach(3)
            await backend_of(two).queue.flush()
            await slow.leave()
            await backend_of(two).queue.flush()
            assert plant.server.control.hkeys(f"{plant.keys.stream(KEY)}:{stream.epoch}:readers")
            await complete(one, stream)
            assert await late.end() == b"one"


async def test_an_answer_that_was_asked_for_before_an_end_does_not_undo_that(plant: Plant) -> None:
    """The news of the end come by another connection, and may be faster."""
    client = plant.meddled()
    one, two = plant.open(), plant.open(client)
    stream = await begin(one, head=TEXT)
    view = await two.find(KEY, 0.0)

    async def end() -> None:
        async with following(view) as follower:
            await complete(one, stream)
            await follower.end()

    client.meddle(Script.PEEK, after=end)
    assert await two.find(KEY, 0.0) is view
    assert (view.is_final, view.status) == (True, ResumableStatus.COMPLETED)


async def test_a_message_that_cannot_be_read_holds_up_no_other(plant: Plant) -> None:
    """A worker of another version may write what this one does not know."""
    one, two = plant.open(), plant.open()
    request = Request()
    await request.begin(one)
    told: list[ResumableStreamItem] = []
    remove = await one.watch("ann", ["chat"], told.append)
    plant.server.control.xadd(plant.keys.changes, {"o": "null", "i": "{}"})
    plant.server.control.xadd(plant.keys.inbox(backend_of(one).name), {"odd": "1"})
    await two.stop(KEY, None)
    async with asyncio.timeout(LIMIT):
        assert await request.told() == "cancelled"
    await until(lambda: told, "the change")
    remove()


async def test_a_change_that_cannot_be_read_hides_none_that_comes_with_it(plant: Plant) -> None:
    """Both are in one reply of Redis."""
    store, told = plant.open(), list[ResumableStreamItem]()
    request = await Request().reserve(store)
    remove = await store.watch("ann", ["chat"], told.append)
    with plant.server.control.pipeline() as together:
        together.xadd(plant.keys.changes, {"o": "null", "i": "{}"})
        together.xadd(plant.keys.changes, {"o": '"ann"', "i": request.reservation.item.model_dump_json()})
        together.execute()
    await until(lambda: told, "the change")
    remove()
    await store.release(request.reservation)


async def test_reports_of_a_reader_arrive_in_order(plant: Plant) -> None:
    """A late one does not set the reader back, nor does it come again after it has left."""
    client, go = plant.meddled(), asyncio.Event()
    one, two = plant.open(), plant.open(client)
    stream = await begin(one, head=TEXT)
    view = await two.find(KEY, 0.0)
    client.meddle(Script.REPORT, before=lambda: cast(Awaitable[None], go.wait()))
    async with following(view) as follower:
        await until(lambda: digest(Script.REPORT) not in client.before, "the first report")
        await write(stream, b"hello")
        await follower.reach(5)
    go.set()
    readers = f"{plant.keys.stream(KEY)}:{stream.epoch}:readers"
    await until(lambda: not backend_of(two).queue._dirty and not plant.server.control.exists(readers), "no reader")


# Between an outage and the next request.


async def test_a_stream_that_was_given_up_takes_its_successor_along_with_it_nowhere(plant: Plant) -> None:
    """Redis hears late that the old one is over; by then, the same worker records the next one under the same id."""
    client = plant.meddled()
    store = plant.open(client, on_store_failure="fail")
    old = await begin(store)
    new = Request()

    async def come_first() -> None:
        await new.begin(store)

    client.meddle(Script.RELEASE, before=come_first)
    old.on_outage(StoreUnavailable("gone"))
    await until(lambda: digest(Script.RELEASE) not in client.before, "the late news")
    async with asyncio.timeout(LIMIT):
        await backend_of(store).queue.flush()
    assert plant.hash()["epoch"] == new.epoch
    assert plant.hash()["status"] == "in_progress"
    assert new.codes == []


async def test_a_stream_that_begins_without_redis_goes_on_when_it_is_back(plant: Plant) -> None:
    """Redis still has an earlier answer under the id; the new one takes its place, late."""
    with FaultyLink(plant.server.port) as link:
        one = plant.open(plant.server.url_at(link.port), store_timeout=3.0)
        two = plant.open()
        await complete(one, await begin(one, head=TEXT))
        request = await Request().reserve(one)
        link.refuse()
        stream = await one.begin(request.reservation, TEXT)
        await write(stream, b"hello")
        link.accept()
        await until(lambda: plant.hash().get("epoch") == request.epoch, "the stream")
        await complete(one, stream)
        assert request.codes == []
        async with following(await two.find(KEY, 0.0)) as follower:
            assert await follower.end() == b"hello"


@pytest.mark.parametrize("is_begun", [True, False])
async def test_what_was_stopped_while_its_worker_was_cut_off_does_not_come_back(plant: Plant, is_begun: bool) -> None:
    """For so long that Redis has forgotten the stop, and all else that there was of the stream or the request."""
    with FaultyLink(plant.server.port) as link:
        one, two = plant.open(plant.server.url_at(link.port), store_timeout=2.0), plant.open()
        request = await Request().reserve(one)
        stream = await request.begin(one, TEXT) if is_begun else None
        link.refuse()
        await two.stop(KEY, None)
        await backend_of(two).queue.flush()
        name = plant.keys.stream(KEY)
        # What tells a worker that was cut off for a shorter time, too.
        plant.server.control.delete(name, f"{name}:{request.epoch}", plant.keys.inbox(backend_of(one).name))
        stream = stream or await request.begin(one, TEXT)
        await write(stream, b"more")
        await until(lambda: stream.tail == 4, "the bytes, for the readers there")
        link.accept()
        assert await bounded(request.told()) == "cancelled"
        await until(lambda: plant.hash().get("status") != "in_progress", "the end of the stream")
        await until(lambda: not plant.server.list_keys(f"{name}:*:ended"), "that its worker has heard of it")


@pytest.mark.parametrize("how", ["stopped", "replaced", "given up"])
async def test_a_request_that_left_the_queue_while_its_worker_was_cut_off_does_not_come_back(
    plant: Plant, how: str
) -> None:
    """Its endpoint is slow, and begins when Redis can be reached again, and has forgotten why."""
    with FaultyLink(plant.server.port) as link:
        one, two = plant.open(plant.server.url_at(link.port), store_timeout=2.0), plant.open()
        request = await Request().reserve(one)
        link.refuse()
        await backend_of(two).start()
        if how == "stopped":
            await two.stop(KEY, None)
        elif how == "replaced":
            await complete(two, await begin(two))
        else:
            await backend_of(two).reap([(KEY, backend_of(one).name)])
        await backend_of(two).queue.flush()
        name = plant.keys.stream(KEY)
        plant.server.control.delete(name, plant.keys.inbox(backend_of(one).name))
        link.accept()
        with pytest.raises(ResumableError):
            await one.begin(request.reservation, TEXT)
        assert request.codes == [{"stopped": "cancelled", "replaced": "replaced"}.get(how, "interrupted")]
        await one.release(request.reservation)
        await until(lambda: not plant.server.list_keys(f"{name}:*:ended"), "that its worker has heard of it")
        assert "q:" + request.epoch not in plant.hash()


async def test_a_request_that_was_stopped_in_the_queue_leaves_nothing_but_a_mark(plant: Plant) -> None:
    """What its worker has yet to hear goes when it has heard it."""
    one, two = plant.open(), plant.open()
    request = await Request().reserve(one)
    await two.stop(KEY, None)
    assert await bounded(request.told()) == "cancelled"
    await one.release(request.reservation)
    name = plant.keys.stream(KEY)
    await until(lambda: plant.server.list_keys(f"{name}*") == [name], "the mark alone")
    assert plant.server.control.pttl(name) <= 60_000


async def test_a_busy_stream_is_recorded_again_after_an_outage(plant: Plant) -> None:
    """From then on readers see what Redis has, although it never has all that was written."""
    client = plant.meddled()
    stream = await begin(plant.open(client), head=TEXT)
    assert isinstance(stream, LocalStream)

    async def write_more() -> None:
        if stream.is_detached:
            client.meddle(Script.APPEND, before=write_more)
            await write(stream, b"more")

    await write(stream, b"one")
    await until(lambda: stream.tail == 3, "the bytes")
    stream.on_outage(StoreUnavailable("gone"))
    client.meddle(Script.APPEND, before=write_more)
    await write(stream, b"two")
    await until(lambda: not stream.is_detached, "the record")


async def test_all_streams_go_on_without_redis_at_the_same_time(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are not part of what is being written when Redis is given up."""
    monkeypatch.setattr(queue, "BATCH", 1)
    with FaultyLink(plant.server.port) as link:
        store = plant.open(plant.server.url_at(link.port), store_timeout=3.0)
        streams = [await begin(store, StreamKey("ann", f"id-{number}"), TEXT) for number in range(20)]
        link.refuse()
        for stream in streams:
            await write(stream, b"hello")
        await until(lambda: any(stream.tail == 5 for stream in streams), "the first stream")
        assert all(stream.tail == 5 for stream in streams)
        link.accept()


async def test_much_that_is_to_be_written_goes_in_pieces(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart of Redis, whole logs are; all in one piece, they would not be through in time."""
    monkeypatch.setattr(queue, "BATCH_BYTES", 1000)
    client, sizes = plant.meddled(), []
    store = plant.open(client)
    streams = [await begin(store, StreamKey("ann", f"id-{number}"), TEXT) for number in range(10)]

    async def note() -> None:
        sizes.append(sum(stream.tail > 0 for stream in streams))
        client.meddle(Script.APPEND, after=note)

    client.meddle(Script.APPEND, after=note)
    for stream in streams:
        assert stream.offer(b"x" * 600, 0.0)
    await until(lambda: all(stream.tail == 600 for stream in streams), "all bytes")
    assert {after - before for before, after in pairwise(dict.fromkeys(sizes))} == {2}


async def test_a_lookup_of_many_ids_leaves_others_their_turn(plant: Plant) -> None:
    """Nothing else runs while the replies to a pipeline are read that have come."""
    client = plant.meddled()
    store = plant.open(client)
    await begin(store)
    found = await store.lookup(KEY.owner, [*(f"none-{number}" for number in range(500)), KEY.id])
    assert [item.conversation_id for item in found] == [KEY.id]
    assert sum(client.sizes) > 1000
    assert max(client.sizes) < 100


async def test_a_lookup_of_an_id_with_thousands_of_variants_leaves_others_their_turn(plant: Plant) -> None:
    """Their ids are in one reply of Redis, and most streams are over, so that nothing more is asked of them."""
    count, store = 3000, plant.open()
    await complete(store, await begin(store))
    ids = [f"{KEY.id}::{number}" for number in range(count)]
    with plant.server.control.pipeline() as together:
        for stream_id in ids:
            name = plant.keys.stream(KEY._replace(id=stream_id))
            together.hset(name, mapping=plant.hash()).expire(name, 600)
        index = plant.keys.variants(KEY)
        together.zadd(index, dict.fromkeys(ids, 0)).expire(index, 600)
        together.execute()
    looking = asyncio.ensure_future(store.lookup(KEY.owner, [KEY.id]))
    calls, most = 0, 0

    def count_call(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count_call)
    try:
        while not looking.done():
            calls = 0
            await asyncio.sleep(0)
            most = max(most, calls)
    finally:
        sys.setprofile(None)
    assert len(await looking) == count + 1
    assert most < 5 * count, "much was done in one turn of the loop"


@pytest.mark.usefixtures("no_grace")
async def test_a_lookup_of_many_live_streams_asks_once_whether_their_worker_lives(plant: Plant) -> None:
    """Not once for each part of them."""
    client, one, asked = plant.meddled(), plant.open(), 0
    stream = await begin(one)
    lease = plant.keys.worker(backend_of(one).name)
    with plant.server.control.pipeline() as together:
        for number in range(300):
            name = plant.keys.stream(KEY._replace(id=f"id-{number}"))
            together.hset(name, mapping=plant.hash()).expire(name, 600)
        together.execute()
    two = plant.open(client)
    await backend_of(two).start()

    async def count() -> None:
        nonlocal asked
        asked += 1
        client.before[lease] = count

    client.before[lease] = count
    found = await two.lookup(KEY.owner, [f"id-{number}" for number in range(300)])
    assert {item.status for item in found} == {stream.status}
    assert (len(found), asked) == (300, 1)


async def test_a_lookup_of_many_ids_is_given_up_where_redis_is_slow(plant: Plant) -> None:
    """Each reply comes in time, and all of them together do not."""
    with FaultyLink(plant.server.port) as link:
        store = plant.open(plant.server.url_at(link.port), store_timeout=0.4)
        await backend_of(store).start()
        link.latency = 0.1
        with pytest.raises(StoreUnavailable):
            await store.lookup(KEY.owner, [f"none-{number}" for number in range(1000)])
        link.latency = 0.0


async def test_a_worker_whose_lease_has_gone_in_an_outage_gets_the_time_to_renew_it(plant: Plant) -> None:
    """Although somebody had begun to ask for it before that outage."""
    client = plant.meddled()
    one, two = plant.open(), plant.open(client)
    await begin(one)
    await two.find(KEY, 0.0)
    here, name = backend_of(two), backend_of(one).name
    # It had been there for long, as far as this worker knew.
    here.outage.up_since = here.lease._late_at = -math.inf

    async def lose() -> None:
        plant.server.control.delete(plant.keys.worker(name))
        raise RedisConnectionError("the connection was lost")

    client.before[plant.keys.worker(name)] = lose
    assert await here.lease.dead([name]) == set()


async def test_a_worker_whose_lease_has_gone_before_its_time_is_alive(plant: Plant) -> None:
    """A node of a Cluster may come back empty so soon that nobody notices that it was away."""
    one, two = plant.open(), plant.open()
    await begin(one)
    await two.find(KEY, 0.0)
    here, name = backend_of(two), backend_of(one).name
    here.outage.up_since = here.lease._late_at = -math.inf
    assert await here.lease.dead([name]) == set()
    plant.server.control.delete(plant.keys.worker(name))
    assert await here.lease.dead([name]) == set()
    # Its time has come.
    here.lease._until[name] = 0.0
    assert await here.lease.dead([name]) == {name}


async def test_a_producer_may_put_its_stream_back_within_its_lease_after_redis_says_it_is_lost(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after Redis was away: a node of a Cluster may be away for longer than the others."""
    one, two = plant.open(), plant.open(lease=10.0)
    await begin(one)
    view = await two.find(KEY, 0.0)
    here, clock = backend_of(two), [1.0]
    monkeypatch.setattr(backend_module, "monotonic", lambda: clock[0])
    async with following(view):
        here._on_return()
        for now, failed in ((100.0, False), (109.0, False), (111.0, True)):
            clock[0] = now
            here._take_report(view, b"lost")
            assert isinstance(view.failure, StoreUnavailable) is failed


async def test_a_crowd_of_requests_does_not_hold_up_the_lease_and_the_streams(plant: Plant) -> None:
    """Each has to wait for its turn at Redis, but what others live on goes out at once."""
    client, go = plant.meddled(), asyncio.Event()
    store = plant.open(client)
    stream = await begin(store, head=TEXT)
    backend = backend_of(store)

    class Slow(Meddled):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            await go.wait()
            return await super().execute_command(*args, **options)

    slow = cast(Meddled, Slow.from_url(plant.server.url))
    slow.before, slow.after = {}, {}
    plant.clients.append(slow)
    backend.link.client = slow
    crowd = [asyncio.ensure_future(store.lookup("ann", ["chat"])) for _ in range(200)]
    await until(backend.link._slots.locked, "a crowd")
    backend.link.client = client
    before = backend.lease._renewed
    backend.lease.renew_now()
    assert stream.offer(b"hello", 0.0)
    await until(lambda: stream.tail == 5 and backend.lease._renewed > before, "bytes and lease")
    go.set()
    await asyncio.gather(*crowd)


async def test_a_stream_that_redis_has_forgotten_comes_back_after_the_lease_of_its_worker(plant: Plant) -> None:
    """Others would take the worker for dead, and end what has just come back: they never see one without the other."""
    store = plant.open(lease=100.0)
    stream = await begin(store, head=TEXT)
    await write(stream, b"one")
    await until(lambda: stream.tail == 3, "the bytes")
    names = [plant.keys.stream(KEY), plant.keys.worker(backend_of(store).name)]
    plant.server.control.delete(*plant.server.list_keys(f"{plant.keys.prefix}*"))
    await write(stream, b"two")
    seen = set[tuple[int, int]]()

    def is_back() -> bool:
        with plant.server.control.pipeline() as together:
            found = tuple(together.exists(names[0]).exists(names[1]).execute())
        seen.add(found)
        return found[0] == 1

    await until(is_back, "the stream")
    assert (1, 0) not in seen
    await until(lambda: stream.tail == 6, "all bytes")


@pytest.mark.parametrize("is_live", [True, False], ids=["live", "queued"])
async def test_what_ends_while_it_is_counted_anew_is_not_counted_for_good(plant: Plant, is_live: bool) -> None:
    """Redis was back, and each worker sees to it that what is live there is counted."""
    client = plant.meddled()
    store = plant.open(client, Limits(max_streams_per_owner=1))
    request = await Request().reserve(store)
    stream = await request.begin(store) if is_live else None

    async def end() -> None:
        await (store.release(request.reservation) if stream is None else complete(store, stream))

    client.meddle(Script.TOUCH, before=end)
    await backend_of(store).touch()
    await until(lambda: not plant.server.control.hkeys(plant.keys.owner(KEY.owner)), "no count")


async def test_an_ended_stream_that_was_counted_again_leaves_room_for_the_next(plant: Plant) -> None:
    """Its worker knows that it has ended, and does not refuse a request before it has taken that back."""
    store = plant.open(limits=Limits(max_streams_per_owner=1))
    stream = await begin(store)
    await complete(store, stream)
    plant.server.control.hset(plant.keys.owner(KEY.owner), stream.epoch, backend_of(store).name)
    other = await begin(store, OTHER)
    assert plant.server.control.hkeys(plant.keys.owner(KEY.owner)) == [other.epoch]


async def test_what_redis_has_forgotten_is_found_and_counted_again(plant: Plant) -> None:
    """By its short id, and against the limit of its owner: a live stream, and a request that waits."""
    limits = Limits(max_streams_per_owner=2)
    one, two = plant.open(lease=1.0, limits=limits), plant.open(limits=limits)
    stream = await begin(one, KEY._replace(id="chat::live"))
    request = await Request(KEY._replace(id="chat::queued")).reserve(one)
    plant.server.control.delete(*plant.server.list_keys(f"{plant.keys.prefix}*"))

    async def found() -> set[str]:
        return {item.conversation_id for item in await two.lookup("ann", ["chat"])}

    async with asyncio.timeout(LIMIT):
        while await found() != {"chat::live", "chat::queued"}:
            pass
    owner = plant.keys.owner("ann")
    await until(lambda: {*plant.server.control.hkeys(owner)} == {stream.epoch, request.epoch}, "the count")
    await one.release(request.reservation)


async def test_a_request_that_redis_has_forgotten_is_queued_again(plant: Plant) -> None:
    """So it can still be found, and stopped."""
    one, two = plant.open(lease=6.0), plant.open()
    request = await Request().reserve(one)
    await backend_of(two).start()
    plant.server.control.delete(plant.keys.stream(KEY), plant.keys.worker(backend_of(one).name))
    await until(plant.hash, "the queue")
    [item] = await two.lookup("ann", ["chat"])
    assert item.status is ResumableStatus.QUEUED
    await two.stop(KEY, None)
    assert await request.told() == "cancelled"
    await one.release(request.reservation)


async def test_what_redis_brings_back_from_an_older_state_ends(plant: Plant) -> None:
    """A stream has ended, and is live again after a failover; its worker lives, and knows nothing of it."""
    one, two = plant.open(), plant.open()
    for store, reader in ((one, two), (one, one)):
        stream = await begin(store)
        await write(stream, b"data: a\n\n")
        await until(lambda stream=stream: stream.tail, "the bytes")
        live, log = plant.server.control.hgetall(plant.keys.stream(KEY)), f"{plant.keys.stream(KEY)}:{stream.epoch}"
        tail = stream.tail
        await complete(store, stream)
        plant.server.control.hset(plant.keys.stream(KEY), mapping=live)
        plant.server.control.hdel(plant.keys.stream(KEY), "expires", "completed", "code")
        plant.server.control.xdel(log, f"{tail}-1")
        plant.server.control.execute_command("XSETID", log, f"{tail}-0")
        async with following(await reader.find(KEY, 0.0)) as follower, asyncio.timeout(LIMIT):
            assert terminal(await follower.end()) == ("error", "producer_lost")


@pytest.mark.parametrize("asked", ["another worker", "its own"])
async def test_a_request_that_redis_brings_back_from_an_older_state_leaves_the_queue(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """It was released, and waits again after a failover; its worker lives, and knows nothing of it."""
    monkeypatch.setattr(transitions_module, "OLD", 0.0)
    one, two = plant.open(), plant.open()
    request = await Request().reserve(one)
    waiting = plant.hash()
    await one.release(request.reservation)
    control = plant.server.control.pipeline()
    control.hset(plant.keys.stream(KEY), mapping=waiting)
    control.expire(plant.keys.stream(KEY), 600)
    control.execute()
    async with asyncio.timeout(LIMIT):
        while await (two if asked == "another worker" else one).lookup(KEY.owner, [KEY.id]):
            pass


async def test_a_look_at_a_request_that_has_just_come_costs_its_worker_no_message(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients look again and again while it waits."""
    monkeypatch.setattr(transitions_module, "OLD", 600.0)
    one, two = plant.open(), plant.open()
    request = await Request().reserve(one)
    assert await two.lookup(KEY.owner, [KEY.id])
    await backend_of(two).queue.flush()
    assert plant.server.control.xlen(plant.keys.inbox(backend_of(one).name)) == 0
    await one.release(request.reservation)


# What goes missing, and what is left.


@pytest.mark.parametrize("how", ["given up", "replaced"])
async def test_a_reader_elsewhere_of_a_stream_that_nothing_writes_any_more_ends(plant: Plant, how: str) -> None:
    """Redis has lost its state, and its worker is not going to put that back: the log stays without an end."""
    one, two = plant.open(on_store_failure="fail"), plant.open(lease=1.0)
    stream = await begin(one, head=TEXT)
    await write(stream, b"one")
    await until(lambda: stream.tail == 3, "the bytes")
    async with following(await two.find(KEY, 0.0)) as follower, asyncio.timeout(LIMIT):
        await follower.reach(3)
        plant.server.control.delete(plant.keys.stream(KEY))
        if how == "given up":
            stream.on_outage(StoreUnavailable("gone"))
        else:
            await begin(one)
        assert await follower.outcome() is Reading.LOST


async def test_an_ended_stream_whose_log_redis_has_dropped_counts_as_lost(plant: Plant) -> None:
    """And not as replaced, for a reader that has not seen its end: no other stream has taken its place."""
    one, two = plant.open(), plant.open(lease=1.0)
    stream = await begin(one, head=TEXT)
    await write(stream, b"one")
    await until(lambda: stream.tail == 3, "the bytes")
    found = await two.find(KEY, 0.0)
    await complete(one, stream)
    await until(lambda: plant.hash()["status"] == "completed", "the end")
    plant.server.control.delete(f"{plant.keys.stream(KEY)}:{stream.epoch}")
    async with following(found, 3):
        await until(lambda: found.failure is not None, "the failure")
    assert type(found.failure) is StoreUnavailable


async def test_an_end_that_was_too_late_gives_way_to_the_terminal_event(plant: Plant) -> None:
    """The stream was stopped as it completed, and how it ended cannot be read any more."""
    store = plant.open()
    stream = await begin(store)
    await write(stream, b"data: one\n\n")
    await until(lambda: stream.tail, "the bytes")
    name = plant.keys.stream(KEY)
    async with following(stream) as follower, asyncio.timeout(LIMIT):
        control = plant.server.control.pipeline()
        control.delete(name, f"{name}:{stream.epoch}")
        control.hset(name, f"x:{stream.epoch}", "cancelled 0")
        control.expire(name, 600)
        control.execute()
        await complete(store, stream)
        assert terminal(await follower.end())[0] == "cancelled"


async def test_a_log_that_redis_has_dropped_expires_all_the_same(plant: Plant) -> None:
    """It begins anew with the next bytes."""
    store = plant.open()
    stream = await begin(store, head=TEXT)
    await write(stream, b"one")
    await until(lambda: stream.tail == 3, "the bytes")
    log = f"{plant.keys.stream(KEY)}:{stream.epoch}"
    plant.server.control.delete(log)
    await write(stream, b"two")
    await until(lambda: stream.tail == 6, "the bytes")
    assert plant.server.control.pttl(log) > 0


@pytest.mark.parametrize("how", ["stop", "outage", "finish", "shutdown"])
async def test_what_streams_take_is_given_back(plant: Plant, how: str) -> None:
    """However they end, they count against the bytes that a worker may hold for as long as they are held."""
    one, two = plant.open(on_store_failure="fail"), plant.open()
    backend = backend_of(one)
    request = Request()
    stream = await request.begin(one)
    await write(stream, b"data: hello\n\n" * 1000)
    if how == "stop":
        await two.stop(KEY, None)
        await request.told()
    elif how == "outage":
        stream.on_outage(StoreUnavailable("gone"))
    elif how == "finish":
        await complete(one, stream)
    else:
        await one.aclose()
    assert stream.is_final
    assert backend.budget.used == stream.log.size > 0
    del stream
    await until(lambda: backend.budget.used == 0, "the bytes to be given back")


async def test_a_stream_that_outlives_its_store_ends(plant: Plant) -> None:
    """Its producer ignored its cancellation until the store was closed."""
    store = plant.open()
    stream = await begin(store, head=TEXT)
    await store.aclose()
    await write(stream, b"late")
    async with asyncio.timeout(LIMIT):
        await complete(store, stream)
    assert stream.is_final
    assert store._backend is None, "nothing is opened anew"


async def test_a_worker_that_was_frozen_stops_its_producers_although_redis_is_away(plant: Plant) -> None:
    """They are not to go on until Redis has been asked how their streams have ended."""
    with FaultyLink(plant.server.port) as link:
        store = plant.open(plant.server.url_at(link.port), store_timeout=20.0)
        request = Request()
        stream = await request.begin(store, TEXT)
        link.hold()
        backend_of(store)._on_lapse()
        assert await bounded(request.told(), "the end of the producer") == "interrupted"
        assert stream.closed
        link.release()
        await until(lambda: stream.is_final, "the end for its readers")
        assert stream.status is ResumableStatus.INTERRUPTED


async def test_a_worker_that_was_frozen_gives_up_its_requests(plant: Plant) -> None:
    """Others have taken them out of the queue, and a newer request may have begun: it is not to be replaced."""
    one, two = plant.open(), plant.open()
    old = await Request().reserve(one)
    await backend_of(two).reap([(KEY, backend_of(one).name)])
    new = Request()
    await new.begin(two)
    backend_of(one)._on_lapse()
    with pytest.raises(ResumableError):
        await one.begin(old.reservation, TEXT)
    await one.release(old.reservation)
    assert plant.hash()["epoch"] == new.epoch
    assert new.codes == []


async def test_a_watch_has_told_of_an_end_before_that_is_over(plant: Plant) -> None:
    """However late the news comes: a server that exits ends its last streams, and then the watches."""
    client, item = plant.meddled(), asyncio.Queue[ResumableStreamItem]()
    store = plant.open(client)
    remove = await store.watch(KEY.owner, [KEY.id], item.put_nowait)
    stream = await Request().begin(store)
    while (await item.get()).status is not ResumableStatus.IN_PROGRESS:
        pass
    held, posted = asyncio.Event(), asyncio.Event()

    async def note() -> None:
        posted.set()

    # The listener's read, by its second word.
    client.after["COUNT"] = held.wait  # type: ignore[assignment]
    client.meddle(Script.POST, after=note)
    finishing = asyncio.ensure_future(complete(store, stream))
    await posted.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    held.set()
    await finishing
    remove()
    assert item.get_nowait().status is ResumableStatus.COMPLETED
    assert item.empty()


# A client of the application's own.


async def test_a_client_that_waits_less_than_a_blocking_read_is_no_outage(
    plant: Plant, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time-out is respected."""
    monkeypatch.setattr(link_module, "BLOCK", 30.0)
    client = Redis.from_url(plant.server.url, socket_timeout=6.0)
    plant.clients.append(client)
    one, two = plant.open(client), plant.open()
    request = Request()
    await request.begin(one)
    reads = plant.server.calls("xread")
    await until(lambda: plant.server.calls("xread") >= reads + 2, "some reads without news")
    await two.stop(KEY, None)
    assert await request.told() == "cancelled"
    assert "cannot be used" not in caplog.text


async def test_a_cancellation_is_not_lost_while_a_command_is_sent(plant: Plant) -> None:
    """A client with a `socket_timeout` sends by `asyncio.wait_for`, which loses one on Python 3.11."""
    client = Redis.from_url(plant.server.url, socket_timeout=6.0)
    plant.clients.append(client)
    store = plant.open(client)
    await Request().reserve(store)
    waiting = asyncio.ensure_future(store.find(KEY, 1.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_client_serves_one_event_loop_after_the_other(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As a test client does that opens a loop for each request: what belongs to the last one is left alone."""
    # Tracebacks that are kept for the report of the test would keep the connections that are left behind.
    with warnings.catch_warnings(), caplog.at_level(logging.CRITICAL, "fastapi_resumable"):
        warnings.simplefilter("ignore", ResourceWarning)
        serve_two_loops(redis_server)
        gc.collect()


def serve_two_loops(redis_server: RedisServer) -> None:
    """Use one store in two event loops; the first ends without a word to it: its tasks are cancelled, as ever."""
    client = Redis.from_url(redis_server.url)
    store = RedisStore(client, key_prefix=f"races-{uuid4().hex}", store_timeout=10.0)
    store.configure(Limits())

    async def one() -> None:
        await complete(store, await begin(store, StreamKey(None, uuid4().hex)))

    async def last() -> None:
        await one()
        await store.aclose()
        await client.aclose()

    asyncio.run(one())
    asyncio.run(last())


async def test_a_stream_is_counted_no_longer_when_its_end_is_seen(plant: Plant) -> None:
    """Whoever has seen it may begin another at once, although the worker has not heard yet that it is written."""
    client, ended, go_on = plant.meddled(), asyncio.Event(), asyncio.Event()
    limits = Limits(max_streams_per_owner=1)
    one, two = plant.open(client, limits), plant.open(limits=limits)
    stream = await begin(one, head=TEXT)
    await write(stream, b"one")
    await until(lambda: stream.tail == 3, "the bytes")

    async def dawdle() -> None:
        ended.set()
        await go_on.wait()

    client.meddle(Script.APPEND, after=dawdle)
    finishing = asyncio.ensure_future(complete(one, stream))
    await ended.wait()
    assert plant.hash()["status"] == "completed"
    await begin(two, OTHER)
    go_on.set()
    await finishing
