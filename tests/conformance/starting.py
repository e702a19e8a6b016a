"""How a stream starts: reservations, rules for a conflict, idempotency keys."""

import asyncio

import pytest

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.lifecycle import OnConflict
from fastapi_resumable.exceptions import StreamExists, StreamNotFound, StreamPending, StreamReplaced
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.base import Store
from tests.support.params import spread

from .contests import (
    FATES,
    FOLLOWS,
    OUTCOMES,
    RULES,
    STOPS,
    finds_what_is_queued,
    misses_the_stop,
    misses_the_stream,
    one_of_many,
    one_of_many_retries,
    waits_for_another,
)
from .scenario import Conformance, scenario
from .tools import KEY, Request, begin, complete, content, following, terminal, write, written


class Starting(Conformance):
    """Who may begin, and who follows."""

    @scenario()
    async def test_a_request_is_queued_until_it_begins(self, store: Store) -> None:
        """A lookup shows it; to find it takes patience."""
        request = await Request().reserve(store)
        [queued] = await store.lookup(KEY.owner, [KEY.id])
        with pytest.raises(StreamPending):
            await store.find(KEY, 0)

        assert (queued.conversation_id, queued.epoch) == (KEY.id, request.epoch)
        assert (queued.status, queued.is_done) == (ResumableStatus.QUEUED, False)
        assert (queued.total_bytes, queued.dropped_bytes, queued.content_type) == (0, 0, None)
        assert queued.started_at > 0 and queued.completed_at == 0
        assert request.codes == []

    @scenario()
    async def test_a_request_that_begins_is_the_current_epoch(self, store: Store) -> None:
        """It is found under its id, with what it has recorded."""
        request = await Request().reserve(store)
        stream = await request.begin(store)
        await write(stream, b"data: one\n\n")
        async with following(stream) as follower:
            size = len(await follower.events(1))
        found = await store.find(KEY, 0)
        [item] = await store.lookup(KEY.owner, [KEY.id])

        assert (stream.key, stream.epoch) == (found.key, found.epoch) == (KEY, request.epoch)
        assert not (found.is_final or stream.is_final or stream.closed)
        assert (item.status, item.is_done, item.epoch) == (ResumableStatus.IN_PROGRESS, False, request.epoch)
        assert (item.total_bytes, item.dropped_bytes) == (size, 0)
        assert item.content_type == "text/event-stream; charset=utf-8"
        assert item.started_at > 0 and item.completed_at == 0
        assert item == found.item

    @scenario()
    async def test_a_request_that_is_released_leaves_nothing(self, store: Store) -> None:
        """As often as one likes; and once it has begun, releasing it does nothing."""
        request = await Request().reserve(store)
        await store.release(request.reservation)
        await store.release(request.reservation)
        with pytest.raises(StreamNotFound):
            await store.find(KEY, 0)
        assert await store.lookup(KEY.owner, [KEY.id]) == []

        second = await Request().reserve(store)
        stream = await second.begin(store)
        await store.release(second.reservation)
        assert (await store.find(KEY, 0)).epoch == stream.epoch
        assert not stream.is_final

    @scenario()
    async def test_a_request_that_was_overtaken_cannot_begin(self, store: Store) -> None:
        """The one that came later has begun: the older is told, and refused."""
        older, younger = await Request().reserve(store), await Request().reserve(store)
        stream = await younger.begin(store)

        assert await older.told() == "replaced"
        with pytest.raises(StreamReplaced):
            await older.begin(store)
        assert (await store.find(KEY, 0)).epoch == stream.epoch == younger.epoch
        assert younger.codes == []

    @scenario()
    async def test_a_younger_request_waits_while_the_older_one_begins_and_replaces_it_then(self, store: Store) -> None:
        """In the order in which they were queued, both begin."""
        older, younger = await Request().reserve(store), await Request().reserve(store)
        first = await older.begin(store)
        assert younger.codes == []
        assert (await store.find(KEY, 0)).epoch == first.epoch

        second = await younger.begin(store)
        assert await older.told() == "replaced"
        assert (await store.find(KEY, 0)).epoch == second.epoch

    @scenario()
    async def test_what_was_there_stays_until_the_new_stream_begins(self, store: Store) -> None:
        """Live or finished; and for good, if the new one never begins."""
        live, ended = StreamKey("ann", "live"), StreamKey("ann", "ended")
        epochs = [(await begin(store, live)).epoch, (await written(store, b"data: x\n\n", key=ended)).epoch]
        requests = [await Request(key).reserve(store) for key in (live, ended)]
        for _ in range(2):
            items = await store.lookup("ann", ["live", "ended"])
            assert [item.epoch for item in items] == epochs
            assert [item.is_done for item in items] == [False, True]
            assert [(await store.find(key, 0)).epoch for key in (live, ended)] == epochs
            for request in requests:
                await store.release(request.reservation)

    @scenario()
    async def test_a_new_stream_replaces_the_live_one(self, store: Store) -> None:
        """Who reads the old one is told so, and gets to an end; who writes it may not go on."""
        old = Request()
        stream = await old.begin(store)
        async with following(stream) as follower:
            await write(stream, b"data: old\n\n")
            await follower.events(1)
            new = await begin(store)
            seen = await follower.end()

        assert await old.told() == "replaced"
        assert seen.startswith(b"data: old\n")
        assert terminal(seen) == ("cancelled", "replaced")
        assert stream.closed and stream.is_final
        assert stream.status is ResumableStatus.CANCELLED
        await store.finish(stream, ResumableStatus.COMPLETED, "", "")
        [item] = await store.lookup(KEY.owner, [KEY.id])
        assert (item.epoch, item.status, item.total_bytes) == (new.epoch, ResumableStatus.IN_PROGRESS, 0)

    @scenario()
    async def test_a_new_stream_replaces_the_finished_one(self, store: Store) -> None:
        """Nothing of the old one is found any more; its producer, long gone, hears of nothing."""
        old = Request()
        stream = await old.begin(store)
        await write(stream, b"data: old\n\n")
        await complete(store, stream)
        new = await written(store, b"data: new\n\n")

        found = await store.find(KEY, 0)
        assert found.epoch == new.epoch != stream.epoch
        assert b"data: new" in await content(found) and b"data: old" not in await content(found)
        assert old.codes == []

    @RULES
    @scenario()
    async def test_a_free_id_is_taken_under_any_rule(self, store: Store, rule: OnConflict) -> None:
        """No stream at all, or one that has ended, is no conflict."""
        for _ in range(2):
            stream = await (await Request().reserve(store, rule)).begin(store)
            await complete(store, stream)

    @scenario()
    async def test_reject_refuses_an_id_with_a_live_or_queued_stream(self, store: Store) -> None:
        """What is there stays as it is."""
        first = await Request().reserve(store)
        with pytest.raises(StreamExists):
            await store.reserve(Request().reservation, "reject")
        stream = await first.begin(store)
        with pytest.raises(StreamExists):
            await store.reserve(Request().reservation, "reject")

        assert first.codes == []
        assert (await store.find(KEY, 0)).epoch == stream.epoch

    @scenario()
    async def test_attach_follows_the_live_stream(self, store: Store) -> None:
        """From its start."""
        stream = await begin(store)
        await write(stream, b"data: one\n\n")
        followed = await store.reserve(Request().reservation, "attach")
        assert followed is not None
        await complete(store, stream)

        assert followed.epoch == stream.epoch
        assert await content(followed) == await content(stream)

    @spread(FOLLOWS, OUTCOMES)
    @scenario()
    async def test_a_request_waits_for_the_queued_one_that_it_is_to_follow(
        self, store: Store, rule: OnConflict, key: str | None, outcome: str
    ) -> None:
        """It follows it, takes its place if that one gives up, and is stopped together with it."""
        await waits_for_another(store, store, rule, key, outcome)

    @spread(FOLLOWS, FATES)
    @scenario()
    async def test_a_request_gets_the_stream_that_it_has_waited_for_even_if_that_is_over(
        self, store: Store, rule: OnConflict, key: str | None, fate: str
    ) -> None:
        """It is over before the request has its turn: that is no reason to run the endpoint again."""
        await misses_the_stream(store, store, rule, key, fate)

    @spread(FOLLOWS, STOPS)
    @scenario()
    async def test_a_request_that_waits_is_stopped_with_the_other_however_soon_that_is_let_go(
        self, store: Store, rule: OnConflict, key: str | None, fate: str
    ) -> None:
        """The other has left the queue for good before the request has its turn."""
        await misses_the_stop(store, store, rule, key, fate)

    @OUTCOMES
    @scenario()
    async def test_who_asks_for_a_queued_stream_waits_for_what_becomes_of_it(self, store: Store, outcome: str) -> None:
        """Its beginning is found; a stop or a refusal ends the wait."""
        await finds_what_is_queued(store, store, outcome)

    @scenario()
    async def test_who_asks_for_a_stream_that_was_overtaken_finds_the_other(self, store: Store) -> None:
        """It asked for an id, not for an epoch."""
        older, younger = await Request().reserve(store), await Request().reserve(store)
        waiting = asyncio.ensure_future(store.find(KEY, self.deadline))
        stream = await younger.begin(store)

        assert (await waiting).epoch == stream.epoch
        assert await older.told() == "replaced"

    @RULES
    @scenario()
    async def test_a_repeated_idempotency_key_gets_the_stream_of_the_first(
        self, store: Store, rule: OnConflict
    ) -> None:
        """Running or finished, whatever the rule: a retry never starts again."""
        request = Request(idempotency_key="retry")
        stream = await request.begin(store)
        running = await store.reserve(Request(idempotency_key="retry").reservation, rule)
        await write(stream, b"data: one\n\n")
        await complete(store, stream)
        finished = await store.reserve(Request(idempotency_key="retry").reservation, rule)

        assert running is not None and finished is not None
        assert running.epoch == finished.epoch == stream.epoch
        assert await content(running) == await content(finished)
        assert request.codes == []

    @scenario()
    async def test_an_idempotency_key_counts_for_the_current_epoch_of_its_id_alone(self, store: Store) -> None:
        """Not for another id, another owner, or an epoch that is no longer there; no key is like no other."""
        stream = await Request(idempotency_key="k").begin(store)
        for key in (StreamKey("ann", "other"), StreamKey("bob", "chat"), StreamKey(None, "chat")):
            await Request(key, idempotency_key="k").reserve(store, "reject")
        with pytest.raises(StreamExists):
            await store.reserve(Request(idempotency_key="other").reservation, "reject")
        with pytest.raises(StreamExists):
            await store.reserve(Request().reservation, "reject")

        await complete(store, stream)
        await Request().begin(store)
        again = await Request(idempotency_key="k").begin(store)
        assert (await store.find(KEY, 0)).epoch == again.epoch

    @RULES
    @scenario()
    async def test_of_many_requests_at_once_one_stream_comes(self, store: Store, rule: OnConflict) -> None:
        """One live epoch, whatever the rule."""
        await one_of_many([store], rule)

    @scenario()
    async def test_of_many_retries_at_once_one_begins(self, store: Store) -> None:
        """The others, with the same idempotency key, follow it."""
        await one_of_many_retries([store])

    @scenario()
    async def test_who_gives_up_waiting_disturbs_nobody(self, store: Store) -> None:
        """A wait that is cancelled leaves the others as they were."""
        request = await Request().reserve(store)
        waits = [
            asyncio.ensure_future(store.find(KEY, self.deadline)),
            asyncio.ensure_future(store.reserve(Request().reservation, "attach")),
        ]
        staying = asyncio.ensure_future(store.find(KEY, self.deadline))
        await asyncio.sleep(0)
        for waiting in waits:
            waiting.cancel()
        stream = await request.begin(store)

        for waiting in waits:
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert (await staying).epoch == stream.epoch
        assert request.codes == []
