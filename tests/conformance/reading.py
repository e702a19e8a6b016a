"""What is read: every byte, in order, once, from any place, at any time; and what a bounded log still has."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from fastapi_resumable._core.ids import EventId
from fastapi_resumable._stream.stream import Head, Stream, find_position, is_exhausted
from fastapi_resumable.exceptions import OffsetLost, OffsetOutOfRange, StreamReplaced, UnknownEventId
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.base import Store

from .scenario import Conformance, scenario
from .tools import (
    EVENTS,
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
    without_ids,
    write,
    written,
)

BOUND = 8192

MEDIA = pytest.mark.parametrize("head", [EVENTS, TEXT], ids=["events", "text"])


class Reading(Conformance):
    """The log is what every client sees."""

    @scenario()
    async def test_events_have_ids_that_name_the_place_right_after_them(self, store: Store) -> None:
        """Counted over all writes of the epoch, wherever the chunks are cut; else the bytes are the application's."""
        sent = some_events(60)
        stream = await written(store, *cut(b"".join(sent)))
        seen = await content(stream)

        assert without_ids(seen) == b"".join(sent)
        assert len(places(seen, stream.epoch)) == len(sent)

    @scenario(event_ids=False)
    async def test_without_event_ids_the_bytes_are_the_applications(self, store: Store) -> None:
        """Not one is changed."""
        sent = b": hello\n\n\r\n\r\n" + b"".join(some_events(20)) + b"data: half"
        stream = await written(store, *cut(sent))

        assert await content(stream) == sent

    @pytest.mark.parametrize("media_type", [b"application/x-ndjson", b"text/plain", b"audio/mpeg"])
    @scenario()
    async def test_other_media_types_are_recorded_as_they_come(self, store: Store, media_type: bytes) -> None:
        """All bytes that there are, and things that look like events."""
        sent = bytes(range(256)) * 4 + b"data: x\n\n" + b"\xff" * 10
        stream = await written(store, *cut(sent), head=Head(200, ((b"content-type", media_type),)))

        assert await content(stream) == sent
        assert (await store.find(KEY, 0)).item.total_bytes == len(sent)

    @scenario()
    async def test_an_event_is_shown_when_it_is_whole(self, store: Store) -> None:
        """Its last byte makes it an event; the half of the next one is not shown."""
        stream = await begin(store)
        async with following(stream) as follower:
            await write(stream, b"da", b"ta: o", b"ne\n\nda")
            first = await follower.events(1)
            await write(stream, b"ta: two\n\n")
            both = await follower.events(2)
        assert without_ids(first) == b"data: one\n\n"
        assert without_ids(both) == b"data: one\n\ndata: two\n\n"

    @scenario()
    async def test_a_keep_alive_is_a_comment_line_of_the_log(self, store: Store) -> None:
        """Readers get it like any other bytes; other media types have none, nor has a stream that is over."""
        text = await begin(store, KEY._replace(id="text"), TEXT)
        text.ping()
        await write(text, b"x")
        await complete(store, text)
        stream = await begin(store)
        stream.ping()
        await write(stream, b"data: one\n\n")
        stream.ping()
        await complete(store, stream)
        stream.ping()
        seen = await content(stream)

        assert await content(text) == b"x"
        assert without_ids(seen) == b": ping\ndata: one\n\n: ping\n"
        assert places(seen, stream.epoch) == [len(seen) - len(b": ping\n")]

    @MEDIA
    @scenario()
    async def test_a_finished_stream_is_read_from_any_offset(self, store: Store, head: Head) -> None:
        """Also in the middle of an event or of a character."""
        stream = await written(store, *cut(b"".join(some_events(60))), head=head)
        found = await store.find(KEY, 0)
        seen = await content(stream)

        for offset in sample(range(len(seen) + 1), 40):
            assert await find_position(found, offset, None) == offset
            assert await content(found, offset) == seen[offset:]

    @scenario()
    async def test_a_stream_is_read_from_any_event_id(self, store: Store) -> None:
        """From the event after it; the id wins over the offset."""
        stream = await written(store, *cut(b"".join(some_events(60))))
        seen = await content(stream)

        for place in sample(places(seen, stream.epoch), 20):
            assert await find_position(stream, 3, str(EventId(stream.epoch, place))) == place
            assert await content(stream, place) == seen[place:]

    @scenario()
    async def test_a_stream_is_read_from_an_event_id_of_the_applications_own(self, store: Store) -> None:
        """It keeps it, live and finished; one that the log does not have is an error."""
        stream = await begin(store)
        like_ours = str(EventId(Request().epoch, 7))
        names = ["a", "ö-1", "0", like_ours]
        sent = [b"id: %s\ndata: %d\n\n" % (name.encode(), index) for index, name in enumerate(names)]
        async with following(stream) as follower:
            await write(stream, b"data: first\n\n", *sent, b"data: last\n\n")
            await follower.events(6)
            for _ in range(2):
                found = await store.find(KEY, 0)
                for index, name in enumerate(names):
                    place = await find_position(found, None, name)
                    assert follower.data[:place].endswith(sent[index])
                for unknown in ["b", "A", "00", "a "]:
                    with pytest.raises(UnknownEventId):
                        await find_position(found, None, unknown)
                await complete(store, stream)
            seen = await follower.end()
        assert seen.count(b"id: ") == 6

    @MEDIA
    @scenario()
    async def test_a_place_that_is_not_in_the_log_is_an_error(self, store: Store, head: Head) -> None:
        """Past the tail, of another epoch, of an unknown id; live and finished."""
        stream = await begin(store, head=head)
        async with following(stream) as follower:
            await write(stream, b"data: one\n\n")
            await follower.events(1)
            for _ in range(2):
                size = len(follower.data)
                assert await find_position(stream, None, None) == 0
                assert await find_position(stream, size, None) == size
                for call in [(size + 1, None), (0, str(EventId(stream.epoch, 2**62)))]:
                    with pytest.raises(OffsetOutOfRange) as past:
                        await find_position(stream, *call)
                    assert past.value.tail == size
                with pytest.raises(StreamReplaced):
                    await find_position(stream, 0, str(EventId(Request().epoch, 1)))
                with pytest.raises(UnknownEventId):
                    await find_position(stream, 0, "unknown")
                await complete(store, stream)
                await follower.end()

    @MEDIA
    @scenario()
    async def test_a_stream_is_exhausted_when_it_is_over_and_no_event_is_left(self, store: Store, head: Head) -> None:
        """A live one never is; a keep-alive is no event."""
        stream = await begin(store, head=head)
        async with following(stream) as follower:
            await write(stream, b"data: one\n\n")
            place = len(await follower.events(1))
            assert not await is_exhausted(stream, place)
            stream.ping()
            await complete(store, stream)
            size = len(await follower.end())

        assert await is_exhausted(stream, size)
        assert await is_exhausted(stream, place)
        assert not await is_exhausted(stream, 0)

    @MEDIA
    @scenario()
    async def test_who_follows_a_live_stream_gets_every_byte_once(self, store: Store, head: Head) -> None:
        """Whenever one comes, and wherever one begins."""
        await follow_from_everywhere(store, store, head)

    @MEDIA
    @scenario(max_stream_bytes=BOUND)
    async def test_a_slow_reader_loses_nothing(self, store: Store, head: Head) -> None:
        """The producer waits for it, however little fits into the log; not for one that has left."""
        await waits_for_the_slow(store, store, head)

    @scenario(max_stream_bytes=BOUND)
    async def test_without_readers_the_log_keeps_the_newest_events(self, store: Store) -> None:
        """As many as fit; it can be resumed from the first of them, and an older place is lost."""
        sent = [b"data: %d %s\n\n" % (number, b"x" * 100) for number in range(400)]
        stream = await begin(store)
        await write(stream, *sent)
        await complete(store, stream)
        found = await store.find(KEY, 0)
        kept = await content(found, found.earliest)
        tail = found.item.total_bytes

        assert tail - found.earliest == len(kept)
        assert BOUND - 200 <= len(kept) <= BOUND
        assert found.item.dropped_bytes == found.earliest
        assert b"".join(sent).endswith(without_ids(kept))
        assert kept.startswith(b"data: ")
        assert await find_position(found, found.earliest, None) == found.earliest
        assert await find_position(found, None, str(EventId(found.epoch, tail))) == tail
        for call in [(0, None), (None, None), (found.earliest - 1, None), (None, str(EventId(found.epoch, 150)))]:
            with pytest.raises(OffsetLost) as lost:
                await find_position(found, *call)
            assert lost.value.earliest == found.earliest

    @scenario(max_stream_bytes=BOUND)
    async def test_without_readers_the_log_keeps_the_newest_bytes(self, store: Store) -> None:
        """Of what is not made of events; while it is live, too."""
        sent = random.Random(1).randbytes(BOUND * 5 + 123)
        stream = await begin(store, head=TEXT)
        await write(stream, *cut(sent))
        async with following(stream, await first_place(stream)) as follower:
            await follower.reach(1000)
            await write(stream, b"more")
            await complete(store, stream)
            assert (sent + b"more").endswith(await follower.end())

        kept = await content(stream, stream.earliest)
        assert BOUND - 500 <= len(kept) == stream.item.total_bytes - stream.earliest <= BOUND
        assert (sent + b"more").endswith(kept)

    @scenario()
    async def test_a_large_event_is_one_event(self, store: Store) -> None:
        """Larger than what goes over a socket at once, and than the blocks of a log."""
        line = b"data: " + b"x" * 300_000 + b"\n\n"
        stream = await written(store, b"data: before\n\n", *cut(line, largest=50_000), b"data: after\n\n")
        seen = await content(stream)

        assert without_ids(seen) == b"data: before\n\n" + line + b"data: after\n\n"
        assert len(places(seen, stream.epoch)) == 3

    @scenario(max_stream_bytes=BOUND)
    async def test_an_event_that_is_larger_than_the_log_is_still_followed_to_its_end(self, store: Store) -> None:
        """It goes through the log in parts; the next one is whole again."""
        event = b"data: " + b"x" * (4 * BOUND) + b"\n\n"
        stream = await begin(store)
        async with following(stream) as follower:
            await write(stream, *cut(event, largest=1000), b"data: next\n\n")
            await store.finish(stream, ResumableStatus.FAILED, "producer_failed", "It broke.")
            seen = await follower.end()

        assert without_ids(seen).startswith(event + b"data: next\n\nevent: error\n")
        assert len(places(seen, stream.epoch)) == 3


async def first_place(stream: Stream) -> int:
    """Where to begin with a log that has lost its head."""
    try:
        return await find_position(stream, 0, None)
    except OffsetLost as lost:
        return lost.earliest


async def follow_from_everywhere(here: Store, there: Store, head: Head) -> None:
    """Write on `here`, while readers that found the stream on `there` come at every moment."""
    rng = random.Random(2)
    stream = await begin(here, head=head)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(following(stream))
        readings = [(0, first)]
        for number, chunk in enumerate(cut(b"".join(some_events(150)), largest=300)):
            await write(stream, chunk)
            if number % 6 == 0:
                # What it has seen before it asks: more may come while it does.
                size = len(first.data)
                found = await there.find(KEY, 0)
                offset = await find_position(found, rng.randint(0, size), None)
                readings.append((offset, await stack.enter_async_context(following(found, offset))))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        await complete(here, stream)
        seen = await first.end()
        for offset, follower in readings:
            assert await follower.end() == seen[offset:]
    assert without_ids(seen) == b"".join(some_events(150))


async def waits_for_the_slow(here: Store, there: Store, head: Head) -> None:
    """Write much on `here` while one reader on `there` takes nothing for a time, and another one leaves."""
    sent = [b"data: %d %s\n\n" % (number, b"x" * 500) for number in range(100)]
    stream = await begin(here, head=head)
    found = await there.find(KEY, 0)
    async with following(found) as slow:
        async with following(found) as gone:
            await write(stream, b"data: first\n\n")
            for follower in (slow, gone):
                await follower.events(1)
                follower.pace = asyncio.Event()
            if there is not here:
                await known_to_have_readers(stream)
            writing = asyncio.ensure_future(write(stream, *sent))
            done, _ = await asyncio.wait({writing}, timeout=0.05)
            assert not done
        assert not writing.done()
        assert slow.pace is not None
        slow.pace.set()
        await writing
        await complete(here, stream)
        assert without_ids(await slow.end()) == b"data: first\n\n" + b"".join(sent)
