"""The suite for stores that share a backing: two of them stand for two workers, `here` and `there`."""

import asyncio
from collections.abc import Awaitable, Callable
from operator import attrgetter

import pytest

from fastapi_resumable._core.ids import EventId, StreamKey
from fastapi_resumable._core.lifecycle import OnConflict
from fastapi_resumable._stream.reader import Reading
from fastapi_resumable._stream.stream import Head, find_position, is_exhausted
from fastapi_resumable.exceptions import (
    OffsetLost,
    OffsetOutOfRange,
    ShuttingDown,
    StoreUnavailable,
    StreamCancelled,
    StreamExists,
    StreamNotFound,
    StreamPending,
    StreamReplaced,
    TooManyStreamsOfOwner,
    UnknownEventId,
)
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.base import Store
from fastapi_resumable.stores.shared.local import LocalStream
from fastapi_resumable.stores.shared.remote import RemoteStream
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
from .ending import FAILURES
from .naming import HEADS, IDS
from .reading import BOUND, MEDIA, first_place, follow_from_everywhere, waits_for_the_slow
from .scenario import scenario
from .suite import StoreConformance
from .tools import (
    KEY,
    TEXT,
    Request,
    begin,
    complete,
    content,
    cut,
    following,
    known_to_have_readers,
    places,
    sample,
    some_events,
    terminal,
    without_ids,
    write,
    written,
)
from .watching import watch_a_life, watch_a_release, watch_a_replacement, watch_a_stop, watch_variants

MIB = 1024 * 1024


class SharedStoreConformance(StoreConformance):
    """`StoreConformance`, and what makes several workers act as one: each test has two stores on one backing."""

    @scenario(1)
    async def test_a_first_request_is_refused_if_the_worker_closes_meanwhile(self, here: Store) -> None:
        """A worker makes itself known to the others at its first request."""
        request = asyncio.create_task(Request().reserve(here))
        await asyncio.sleep(0)
        await here.aclose()
        with pytest.raises(ShuttingDown):
            await request

    @scenario(2)
    async def test_a_stream_is_the_same_there_as_here(self, here: Store, there: Store) -> None:
        """While it is queued, live and finished; in a lookup, too."""
        request = await Request().reserve(here)
        with pytest.raises(StreamPending):
            await there.find(KEY, 0)
        [queued] = await there.lookup(KEY.owner, [KEY.id])
        assert (queued.status, queued.epoch) == (ResumableStatus.QUEUED, request.epoch)

        stream = await request.begin(here)
        found = await there.find(KEY, 0)
        async with following(found) as follower:
            await write(stream, b"data: one\n\n")
            await follower.events(1)
            [item] = await there.lookup(KEY.owner, [KEY.id])
            assert (found.key, found.epoch, found.head) == (stream.key, stream.epoch, stream.head)
            assert (item.status, item.is_done) == (ResumableStatus.IN_PROGRESS, False)
            assert item.total_bytes == len(follower.data)
            assert not found.is_final
            await complete(here, stream)
            seen = await follower.end()
        [item] = await there.lookup(KEY.owner, [KEY.id])
        assert (found.is_final, found.status) == (True, ResumableStatus.COMPLETED)
        assert found.completed_at == stream.completed_at
        assert item == stream.item == found.item == (await there.find(KEY, 0)).item
        assert item.total_bytes == len(seen)

    @scenario(2)
    async def test_what_a_client_has_got_can_be_replayed_there_at_once(self, here: Store, there: Store) -> None:
        """No byte is shown before it is safe."""
        stream = await begin(here)
        async with following(stream) as follower:
            for number in range(30):
                await write(stream, b"data: %d\n\n" % number)
                seen = await follower.events(number + 1)
                found = await there.find(KEY, 0)
                assert await find_position(found, len(seen), None) == len(seen)
                place = places(seen, stream.epoch)[-1]
                assert await find_position(found, None, str(EventId(stream.epoch, place))) == place
                async with following(found) as other:
                    assert (await other.reach(len(seen)))[: len(seen)] == seen

    @MEDIA
    @scenario(2)
    async def test_who_follows_there_what_is_written_here_gets_every_byte_once(
        self, here: Store, there: Store, head: Head
    ) -> None:
        """Whenever one comes, and wherever one begins."""
        await follow_from_everywhere(here, there, head)

    @MEDIA
    @scenario(2)
    async def test_a_finished_stream_is_read_there_from_any_place(self, here: Store, there: Store, head: Head) -> None:
        """By offset, and by event id."""
        stream = await written(here, *cut(b"".join(some_events(60))), head=head)
        seen = await content(stream)
        found = await there.find(KEY, 0)

        for offset in sample(range(len(seen) + 1), 20):
            assert await find_position(found, offset, None) == offset
            assert await content(found, offset) == seen[offset:]
        for place in sample(places(seen, stream.epoch) or [0], 20):
            assert await find_position(found, None, str(EventId(stream.epoch, place))) == place
        assert await is_exhausted(found, len(seen))
        assert not await is_exhausted(found, 0)

    @scenario(2)
    async def test_a_place_that_is_not_in_the_log_is_an_error_there(self, here: Store, there: Store) -> None:
        """Past the tail, of another epoch, of an unknown id; the application's own ids are found."""
        stream = await begin(here)
        found = await there.find(KEY, 0)
        async with following(found) as follower:
            await write(stream, b"id: own\ndata: one\n\n", b"data: two\n\n")
            size = len(await follower.events(2))
            assert await find_position(found, None, "own") == len(b"id: own\ndata: one\n\n")
            with pytest.raises(OffsetOutOfRange) as past:
                await find_position(found, size + 1, None)
            assert past.value.tail == size
            with pytest.raises(StreamReplaced):
                await find_position(found, 0, str(EventId(Request().epoch, 1)))
            with pytest.raises(UnknownEventId):
                await find_position(found, 0, "unknown")
            assert not await is_exhausted(found, size)

    @scenario(2, max_stream_bytes=BOUND)
    async def test_a_log_that_has_lost_its_head_says_so_there(self, here: Store, there: Store) -> None:
        """What is left is the same."""
        stream = await begin(here, head=TEXT)
        sent = b"".join(b"%d " % number for number in range(10_000))
        await write(stream, *cut(sent))
        await complete(here, stream)
        found = await there.find(KEY, 0)

        assert found.earliest == stream.earliest == await first_place(found) > 0
        with pytest.raises(OffsetLost):
            await find_position(found, 0, None)
        assert await content(found, found.earliest) == sent[found.earliest :]

    @pytest.mark.parametrize("headers", HEADS.values(), ids=HEADS)
    @scenario(2)
    async def test_the_head_is_the_same_there(
        self, here: Store, there: Store, headers: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        """Status and headers: order, repetition and every byte."""
        await written(here, b"x", head=Head(206, headers))

        assert (await there.find(KEY, 0)).head == Head(206, headers)

    @scenario(2)
    async def test_ids_of_every_form_are_the_same_there(self, here: Store, there: Store) -> None:
        """Variants, and what merely looks alike."""
        for stream_id in IDS:
            await written(here, stream_id.encode(), key=StreamKey("ann", stream_id), head=TEXT)
        for stream_id in IDS:
            assert await content(await there.find(StreamKey("ann", stream_id), 0)) == stream_id.encode()
        assert await there.lookup("ann", IDS) == await here.lookup("ann", IDS)
        assert len(await there.lookup("ann", IDS)) == len(IDS)
        assert await there.lookup(None, IDS) == []

    @spread(FOLLOWS, OUTCOMES)
    @scenario(2)
    async def test_a_request_there_waits_for_the_queued_one_here(
        self, here: Store, there: Store, rule: OnConflict, key: str | None, outcome: str
    ) -> None:
        """It follows it, takes its place if that one gives up, and is stopped together with it."""
        await waits_for_another(here, there, rule, key, outcome)

    @spread(FOLLOWS, FATES)
    @scenario(2)
    async def test_a_request_there_gets_the_stream_here_that_it_has_waited_for_even_if_that_is_over(
        self, here: Store, there: Store, rule: OnConflict, key: str | None, fate: str
    ) -> None:
        """It begins and ends here before word of it is there."""
        await misses_the_stream(here, there, rule, key, fate)

    @spread(FOLLOWS, STOPS)
    @scenario(2)
    async def test_a_request_that_waits_there_is_stopped_with_the_other_however_soon_that_is_let_go_here(
        self, here: Store, there: Store, rule: OnConflict, key: str | None, fate: str
    ) -> None:
        """The other has left the queue for good before word of it is there."""
        await misses_the_stop(here, there, rule, key, fate)

    @OUTCOMES
    @scenario(2)
    async def test_who_asks_there_for_what_is_queued_here_waits(self, here: Store, there: Store, outcome: str) -> None:
        """For what becomes of it."""
        await finds_what_is_queued(here, there, outcome)

    @RULES
    @scenario(2)
    async def test_of_many_requests_here_and_there_one_stream_comes(
        self, here: Store, there: Store, rule: OnConflict
    ) -> None:
        """At the same instant; one live epoch, whatever the rule."""
        await one_of_many([here, there], rule)

    @scenario(2)
    async def test_of_many_retries_here_and_there_one_begins(self, here: Store, there: Store) -> None:
        """The others follow it."""
        await one_of_many_retries([here, there])

    @scenario(2)
    async def test_the_rules_hold_there(self, here: Store, there: Store) -> None:
        """A live stream is followed or in the way; a finished one is neither, but for its idempotency key."""
        request = Request(idempotency_key="k")
        stream = await request.begin(here)
        with pytest.raises(StreamExists):
            await there.reserve(Request().reservation, "reject")
        followed = await there.reserve(Request().reservation, "attach")
        repeated = await there.reserve(Request(idempotency_key="k").reservation, "replace")
        await write(stream, b"data: one\n\n")
        await complete(here, stream)
        finished = await there.reserve(Request(idempotency_key="k").reservation, "reject")
        for other in (followed, repeated, finished):
            assert other is not None
            assert other.epoch == stream.epoch
            assert await content(other) == await content(stream)
        assert request.codes == []
        await Request().reserve(there, "reject")

    @scenario(2)
    async def test_a_stop_there_reaches_the_producer_here(self, here: Store, there: Store) -> None:
        """Readers on both sides get the terminal event; the stream is gone on both."""
        request = Request()
        stream = await request.begin(here)
        async with following(stream) as near, following(await there.find(KEY, 0)) as far:
            await write(stream, b"data: one\n\n")
            await far.events(1)
            await there.stop(KEY, None)
            assert await request.told() == "cancelled"
            assert stream.closed
            assert await near.end() == await far.end()
        assert terminal(near.data) == ("cancelled", "cancelled")
        for store in (here, there):
            with pytest.raises(StreamNotFound):
                await store.find(KEY, 0)
            assert await store.lookup(KEY.owner, [KEY.id]) == []

    @scenario(2)
    async def test_a_stop_there_reaches_the_request_that_waits_here(self, here: Store, there: Store) -> None:
        """It never begins."""
        request = await Request().reserve(here)
        await there.stop(KEY, Request().epoch)
        assert (await there.lookup(KEY.owner, [KEY.id]))[0].epoch == request.epoch
        await there.stop(KEY, request.epoch)

        assert await request.told() == "cancelled"
        with pytest.raises(StreamCancelled):
            await request.begin(here)
        assert await there.lookup(KEY.owner, [KEY.id]) == []

    @scenario(2)
    async def test_a_stop_there_of_another_epoch_does_nothing(self, here: Store, there: Store) -> None:
        """Nor does one of another owner's."""
        request = Request()
        stream = await request.begin(here)
        await there.stop(KEY, Request().epoch)
        await there.stop(StreamKey("bob", "chat"), None)
        async with following(stream) as follower:
            await write(stream, b"data: one\n\n")
            await follower.events(1)
        assert request.codes == []

        await complete(here, stream)
        await there.stop(KEY, stream.epoch)
        with pytest.raises(StreamNotFound):
            await here.find(KEY, 0)
        assert request.codes == []

    @FAILURES
    @scenario(2)
    async def test_how_a_stream_ends_here_is_seen_there(
        self, here: Store, there: Store, status: ResumableStatus, code: str
    ) -> None:
        """The terminal event, and the status."""
        stream = await begin(here)
        found = await there.find(KEY, 0)
        async with following(found) as follower:
            await write(stream, b"data: one\n\n")
            await here.finish(stream, status, code, "It broke.")
            assert terminal(await follower.end()) == ("error", code)
        assert found.status is status
        assert (await there.lookup(KEY.owner, [KEY.id]))[0].status is status

    @scenario(2)
    async def test_a_stream_here_is_replaced_by_one_there(self, here: Store, there: Store) -> None:
        """Its producer is told and refused; its readers get to an end; not one byte of it is in the new epoch."""
        old = Request()
        stream = await old.begin(here)
        async with following(stream) as near, following(await there.find(KEY, 0)) as far:
            await write(stream, b"data: old\n\n")
            await far.events(1)
            new = await begin(there)
            # As a producer does that has not heard of it yet.
            if not stream.closed:
                stream.offer(b"data: late\n\n", 0.0)
            await write(new, b"data: new\n\n")
            assert await old.told() == "replaced"
            assert stream.closed
            await here.finish(stream, ResumableStatus.COMPLETED, "", "")
            assert await near.end() == await far.end()
        assert terminal(near.data) == ("cancelled", "replaced")
        await complete(there, new)
        for store in (here, there):
            found = await store.find(KEY, 0)
            assert found.epoch == new.epoch
            assert without_ids(await content(found)) == b"data: new\n\n"
            with pytest.raises(StreamReplaced):
                await find_position(found, None, str(EventId(stream.epoch, 1)))

    @scenario(2)
    async def test_a_request_here_that_is_overtaken_there_cannot_begin(self, here: Store, there: Store) -> None:
        """In the order in which they were queued, whoever queued them."""
        older, younger = await Request().reserve(here), await Request().reserve(there)
        stream = await younger.begin(there)
        assert await older.told() == "replaced"
        with pytest.raises(StreamReplaced):
            await older.begin(here)
        assert (await here.find(KEY, 0)).epoch == stream.epoch

        older, younger = await Request().reserve(there), await Request().reserve(here)
        await older.begin(there)
        assert (await younger.begin(here)).epoch == younger.epoch
        assert await older.told() == "replaced"

    @pytest.mark.parametrize(
        "watch",
        [watch_a_life, watch_a_stop, watch_a_replacement, watch_a_release, watch_variants],
        ids=attrgetter("__name__"),
    )
    @scenario(2)
    async def test_a_watch_there_tells_of_what_happens_here(
        self, here: Store, there: Store, watch: Callable[[Store, Store], Awaitable[None]]
    ) -> None:
        """As if it had happened there."""
        await watch(here, there)

    @scenario(2, max_streams_per_owner=2)
    async def test_the_limit_of_an_owner_counts_the_streams_here_and_there(self, here: Store, there: Store) -> None:
        """What ends on one makes room on the other."""
        stream = await begin(here, StreamKey("ann", "a"))
        await Request(StreamKey("ann", "b")).reserve(there)
        for store in (here, there):
            with pytest.raises(TooManyStreamsOfOwner):
                await store.reserve(Request(StreamKey("ann", "c")).reservation, "replace")
        await complete(here, stream)
        await begin(there, StreamKey("ann", "c"))

    @scenario(2, retention=0)
    async def test_a_stream_that_ended_here_expires_there(self, here: Store, there: Store) -> None:
        """A live one does not, however silent it is."""
        await written(here, b"data: x\n\n")
        live = await begin(here, StreamKey("ann", "live"))
        await self.pass_time(1.5 * self.retention)
        with pytest.raises(StreamNotFound):
            await there.find(KEY, 0)
        assert [item.conversation_id for item in await there.lookup("ann", [KEY.id, "live"])] == ["live"]
        await complete(here, live)
        assert (await there.find(live.key, 0)).is_final

    @scenario(2)
    async def test_what_is_finished_outlives_the_store_that_wrote_it(self, here: Store, there: Store) -> None:
        """A worker that exits in order takes nothing with it."""
        await written(here, b"data: one\n\n", b"data: two\n\n")
        async with following(await there.find(KEY, 0)) as follower:
            await here.aclose()
            assert without_ids(await follower.end()) == b"data: one\n\ndata: two\n\n"
        assert without_ids(await content(await there.find(KEY, 0))) == b"data: one\n\ndata: two\n\n"

    @MEDIA
    @scenario(2, max_stream_bytes=BOUND)
    async def test_a_slow_reader_there_loses_nothing(self, here: Store, there: Store, head: Head) -> None:
        """The producer waits for it, wherever it is, and no longer than it reads."""
        await waits_for_the_slow(here, there, head)

    @scenario(2, max_stream_bytes=1000)
    async def test_a_reader_there_gets_an_event_that_is_larger_than_the_bound(self, here: Store, there: Store) -> None:
        """It has had all that came before, so nothing is waited for, and nothing of it is dropped before it is read."""
        sent = [b"data: %d %s\n\n" % (number, b"x" * 3000) for number in range(20)]
        stream = await begin(here)
        found = await there.find(KEY, 0)
        async with following(found) as reader:
            await write(stream, b"data: first\n\n")
            await reader.events(1)
            await known_to_have_readers(stream)
            await write(stream, *sent)
            await complete(here, stream)
            assert without_ids(await reader.end()) == b"data: first\n\n" + b"".join(sent)

    @pytest.mark.parametrize("is_over", [False, True])
    @scenario(2, max_stream_bytes=1000)
    async def test_a_reader_that_comes_when_everything_is_dropped_hears_of_it_there(
        self, here: Store, there: Store, is_over: bool
    ) -> None:
        """It has found the stream before: neither does it wait for what will not come, nor is that no end in order."""
        stream = await begin(here)
        found = await there.find(KEY, 0)
        async with following(stream) as first:
            await write(stream, b"data: %s\n\n" % (b"x" * 3000))
            await first.events(1)
            if is_over:
                await complete(here, stream)
        async with following(found) as reader:
            assert await reader.outcome() is Reading.LOST
            assert reader.data == b""

    @scenario(2, max_stream_bytes=8 * MIB)
    async def test_what_went_on_without_the_backing_is_recorded_bit_by_bit(self, here: Store, there: Store) -> None:
        """As one write, a large log would hold up all others, or not get through at all; and in whole events."""
        stream = await begin(here)
        assert isinstance(stream, LocalStream)
        stream.on_outage(StoreUnavailable("gone"))
        sent = [b"data: %d %s\n\n" % (number, b"x" * 10_000) for number in range(600)]
        await write(stream, *sent)
        while stream.is_detached:  # each write is looked at
            if (last := stream.outbox.sent) is not None and last.data:
                assert len(last.data) < 1.2 * MIB
                assert last.data.endswith(b"\n\n")
            await asyncio.sleep(0)
        await complete(here, stream)
        assert without_ids(await content(await there.find(KEY, 0))) == b"".join(sent)

    @scenario(2)
    async def test_a_reader_that_is_late_for_a_failed_reading_disturbs_none_that_began_anew(
        self, here: Store, there: Store
    ) -> None:
        """It has found the stream before the failure."""
        stream = await begin(here, head=TEXT)
        before = await there.find(KEY, 0)
        assert isinstance(before, RemoteStream)
        before.fail(StoreUnavailable("gone"))
        async with following(await there.find(KEY, 0)) as reader:
            async with following(before) as late:
                assert await late.outcome() is Reading.LOST
            await write(stream, b"one")
            await complete(here, stream)
            assert await reader.end() == b"one"

    @scenario(2)
    async def test_many_follow_there_at_once(self, here: Store, there: Store) -> None:
        """A hundred readers, each of them to the end."""
        stream = await begin(here)
        found = await there.find(KEY, 0)
        readers = [asyncio.ensure_future(content(found)) for _ in range(100)]
        await write(stream, *some_events(20))
        await complete(here, stream)

        expected = await content(stream)
        assert [each == expected for each in await asyncio.gather(*readers)] == [True] * 100
