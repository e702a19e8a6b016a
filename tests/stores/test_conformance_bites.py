"""tests/conformance: a store that breaks one promise does not pass. Each class here breaks one."""

import asyncio
from typing import Any, ClassVar

import pytest

from fastapi_resumable import MemoryStore, ResumableStatus, StreamExists
from fastapi_resumable._core import lifecycle
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.lifecycle import OnConflict, Outcome, Queued, Verdict
from fastapi_resumable._stream.fanout import NO_READERS
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.stream import Head, Limits
from fastapi_resumable.stores.base import Reservation
from tests.conformance import SharedStoreConformance, StoreConformance


class StreamStore(MemoryStore):
    """A memory store whose streams are of another class."""

    stream_class: type[MemoryStream]

    async def begin(self, reservation, head):
        stream = await super().begin(reservation, head)
        stream.__class__ = self.stream_class
        return stream


def stream_store(broken: type[MemoryStream]) -> type[MemoryStore]:
    return type(broken.__name__, (StreamStore,), {"stream_class": broken})


@stream_store
class LosesAByte(MemoryStream):
    __slots__ = ()

    def offer(self, chunk, now):
        loses = self.log.tail > 5000 and b"<" not in chunk and len(chunk) > 100
        return super().offer(chunk[:-1] if loses else chunk, now)


@stream_store
class SendsBytesTwice(MemoryStream):
    __slots__ = ()

    def read(self, offset):
        return super().read(offset) * (2 if offset > 5000 else 1)


@stream_store
class CountsIdsFromEachWrite(MemoryStream):
    __slots__ = ()

    def offer(self, chunk, now):
        framer = self.framer
        self._keep(chunk if framer is None else framer.feed(chunk, 0), now)
        return True


@stream_store
class ShowsHalfAnEvent(MemoryStream):
    __slots__ = ()

    def offer(self, chunk, now):
        self._keep(chunk, now)
        return True


@stream_store
class BeginsInMidEvent(MemoryStream):
    __slots__ = ()

    @property
    def earliest(self):
        return max(0, self.log.tail - self.bound)


@stream_store
class NeverDropsAnything(MemoryStream):
    __slots__ = ()

    @property
    def earliest(self):
        return 0


@stream_store
class WaitsForNobody(MemoryStream):
    __slots__ = ()

    def has_room(self, size):
        self.fanout = NO_READERS
        return True


@stream_store
class WaitsForThoseWhoLeft(MemoryStream):
    __slots__ = ()

    def detach(self, cursor):
        pass


@stream_store
class EndsWithoutAWord(MemoryStream):
    __slots__ = ()

    def end(self, status, code, message, now):
        self.framer = None
        super().end(status, code, message, now)


@stream_store
class PingsInOtherMedia(MemoryStream):
    __slots__ = ()

    def ping(self):
        if not self.closed:
            self._keep(b": ping\n", 0.0)


class ForgetsTheOwner(MemoryStore):
    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in ("find", "stop"):
            return lambda key, argument: value(StreamKey(None, key.id), argument)
        if name == "lookup":
            return lambda owner, ids: value(None, ids)
        if name == "reserve":

            def reserve(reservation, rule):
                reservation.key = StreamKey(None, reservation.key.id)
                return value(reservation, rule)

            return reserve
        return value


class ForgetsCase(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        reservation.key = StreamKey(reservation.key.owner, reservation.key.id.lower())
        return await super().reserve(reservation, on_conflict)


class DoublesALookup(MemoryStore):
    async def lookup(self, owner, ids):
        return [item for asked in ids for item in await super(DoublesALookup, self).lookup(owner, [asked])]


class LooksUpPrefixes(MemoryStore):
    async def lookup(self, owner, ids):
        wanted = [key.id for asked in ids for key in self._streams if key.owner == owner and key.id.startswith(asked)]
        return await super().lookup(owner, wanted)


class SortsALookup(MemoryStore):
    async def lookup(self, owner, ids):
        return await super().lookup(owner, sorted(ids))


class NeverExpires(MemoryStore):
    def _slot(self, key, now=0.0):
        return super()._slot(key, now)


class ExpiresWhatIsLive(MemoryStore):
    async def begin(self, reservation, head):
        stream = await super().begin(reservation, head)
        expires_at = self._clock() + self._limits.retention
        stream.state = stream.state._replace(status=ResumableStatus.COMPLETED, expires_at=expires_at)
        self._ended.add(stream)
        return stream


class CallsAllCompleted(MemoryStore):
    async def finish(self, stream, status, code, message):
        await super().finish(stream, ResumableStatus.COMPLETED, code, message)


class EndsTwice(MemoryStore):
    async def finish(self, stream, status, code, message):
        stream.status = status
        await super().finish(stream, status, code, message)


class ForgetsRepeatedHeaders(MemoryStore):
    async def begin(self, reservation, head):
        return await super().begin(reservation, Head(head.status_code, tuple(dict(head.headers).items())))


class ForgetsIdempotencyKeys(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        reservation.idempotency_key = None
        return await super().reserve(reservation, on_conflict)


class AttachesToWhatHasEnded(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        if on_conflict == "attach" and reservation.key in self._streams:
            return self._streams[reservation.key]
        return await super().reserve(reservation, on_conflict)


class RejectsOnlyWhatIsLive(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        queued = reservation.key not in self._streams and reservation.key in self._queued
        return await super().reserve(reservation, "replace" if on_conflict == "reject" and queued else on_conflict)


def asks(store: MemoryStore, reservation: Reservation, on_conflict: OnConflict) -> Outcome:
    """What a store would say to a request."""
    request = Queued(reservation.epoch, idempotency_key=reservation.idempotency_key)
    return lifecycle.reserve(store._slot(reservation.key), request, on_conflict)


class BeginsTwiceAtOnce(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        outcome = asks(self, reservation, on_conflict)
        await asyncio.sleep(0)
        if outcome.verdict is Verdict.EXISTS:
            raise StreamExists
        follows = outcome.verdict is Verdict.FOLLOW
        return self._streams[reservation.key] if follows else await super().reserve(reservation, "replace")


class AsksAgainAfterItHasWaited(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        while (outcome := asks(self, reservation, on_conflict)).verdict is Verdict.WAIT:
            await self._requests[outcome.rival].settled()
        return await super().reserve(reservation, on_conflict)


class ForgetsWhatWasReleased(MemoryStore):
    async def release(self, reservation):
        await super().release(reservation)
        reservation.stop_code = None


class LetsTheOvertakenBegin(MemoryStore):
    async def begin(self, reservation, head):
        if reservation.stop_code == "replaced":
            await super().reserve(reservation, "replace")
        return await super().begin(reservation, head)


class ReplacesWhenAsked(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        if on_conflict == "replace":
            await self.stop(reservation.key, None)
        return await super().reserve(reservation, on_conflict)


class StopsAnyEpoch(MemoryStore):
    async def stop(self, key, epoch):
        await super().stop(key, None)


class StopsOnlyWhatIsLive(MemoryStore):
    async def stop(self, key, epoch):
        if key in self._streams:
            await super().stop(key, epoch)


class TellsNobody(MemoryStore):
    async def begin(self, reservation, head):
        stream = await super().begin(reservation, head)
        stream.on_stop = lambda code: None
        return stream


class KeepsTheReplacedOpen(MemoryStore):
    def _stop(self, stream, code):
        if code != "replaced":
            super()._stop(stream, code)


class NeverReleases(MemoryStore):
    async def release(self, reservation):
        pass


class WaitsForNoBeginning(MemoryStore):
    async def find(self, key, timeout):
        return await super().find(key, 0)


class KnowsNoLimits(MemoryStore):
    def configure(self, limits):
        super().configure(Limits())


class CountsWhatHasEnded(MemoryStore):
    def _end(self, stream, status, code, message):
        super()._end(stream, status, code, message)
        self._capacity.count(stream.key.owner, 1)


class LeavesATask(MemoryStore):
    async def reserve(self, reservation, on_conflict):
        self._task = asyncio.ensure_future(asyncio.sleep(3600))
        return await super().reserve(reservation, on_conflict)


class ShowsNobodyTheEnd(MemoryStore):
    async def watch(self, owner, ids, notify):
        return await super().watch(owner, ids, lambda item: item.is_done or notify(item))


class WatchesForEver(MemoryStore):
    async def watch(self, owner, ids, notify):
        await super().watch(owner, ids, notify)
        return lambda: None


class View:
    """One of several that look at the same memory store."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class SharesNothing(View):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__(MemoryStore())


class StopsInSilence(View):
    async def stop(self, key, epoch):
        if key in self.store._streams:
            self.store._streams[key].on_stop = lambda code: None
        await self.store.stop(key, epoch)


class NotFenced(View):
    async def begin(self, reservation, head):
        replaced = self.store._streams.get(reservation.key)
        stream = await self.store.begin(reservation, head)
        if replaced is not None:
            WritesIntoTheNextEpoch.successors[replaced] = stream
            replaced.__class__ = WritesIntoTheNextEpoch
        return stream


class WritesIntoTheNextEpoch(MemoryStream):
    __slots__ = ()
    successors: ClassVar[dict[MemoryStream, MemoryStream]] = {}

    @property
    def closed(self):
        return self not in self.successors

    def offer(self, chunk, now):
        return self.successors.pop(self).offer(chunk, now)


class Suite(SharedStoreConformance):
    """All tests, on a broken store."""

    now = 1000.0
    memory: MemoryStore | None = None

    def __init__(self, store: type[MemoryStore] | type[View]) -> None:
        self.store = store
        # A broken one may hang; the one that is not has the time that a busy machine needs.
        self.deadline = SharedStoreConformance.deadline if store is MemoryStore else 1.0

    async def open_store(self):
        if self.memory is None:
            of = MemoryStore if issubclass(self.store, View) else self.store
            self.memory = of(clock=lambda: self.now, wall_clock=lambda: self.now)
        return self.store(self.memory) if issubclass(self.store, View) else self.memory

    async def pass_time(self, seconds):
        self.now += seconds


EVENTS = {"head": Head(200, ((b"content-type", b"text/event-stream"),))}
TEXT = {"head": Head(200, ((b"content-type", b"text/plain"),))}


@pytest.mark.parametrize(
    ("store", "test", "parameters"),
    [
        (LosesAByte, "test_who_follows_a_live_stream_gets_every_byte_once", TEXT),
        (SendsBytesTwice, "test_a_finished_stream_is_read_from_any_offset", TEXT),
        (CountsIdsFromEachWrite, "test_events_have_ids_that_name_the_place_right_after_them", {}),
        (ShowsHalfAnEvent, "test_an_event_is_shown_when_it_is_whole", {}),
        (BeginsInMidEvent, "test_without_readers_the_log_keeps_the_newest_events", {}),
        (NeverDropsAnything, "test_without_readers_the_log_keeps_the_newest_bytes", {}),
        (WaitsForNobody, "test_a_slow_reader_loses_nothing", TEXT),
        (WaitsForThoseWhoLeft, "test_a_slow_reader_loses_nothing", EVENTS),
        (EndsWithoutAWord, "test_a_stopped_stream_is_over_and_gone", {}),
        (PingsInOtherMedia, "test_a_keep_alive_is_a_comment_line_of_the_log", {}),
        (ForgetsTheOwner, "test_owners_of_every_form_never_meet", {}),
        (ForgetsTheOwner, "test_a_lookup_shows_what_was_asked_for_and_its_variants_once", {}),
        (ForgetsCase, "test_ids_of_every_form_are_streams_of_their_own", {}),
        (DoublesALookup, "test_a_lookup_shows_what_was_asked_for_and_its_variants_once", {}),
        (LooksUpPrefixes, "test_a_lookup_shows_what_was_asked_for_and_its_variants_once", {}),
        (SortsALookup, "test_a_lookup_shows_what_was_asked_for_and_its_variants_once", {}),
        (NeverExpires, "test_a_finished_stream_stays_for_the_retention_and_goes_then", {}),
        (ExpiresWhatIsLive, "test_a_finished_stream_stays_for_the_retention_and_goes_then", {}),
        (
            CallsAllCompleted,
            "test_a_stream_that_fails_ends_with_a_terminal_event",
            {"status": ResumableStatus.INTERRUPTED, "code": "interrupted"},
        ),
        (EndsTwice, "test_only_the_first_end_counts", {}),
        (ForgetsRepeatedHeaders, "test_the_head_is_recorded_as_it_was", {"headers": ((b"a", b"1"), (b"a", b"2"))}),
        (ForgetsIdempotencyKeys, "test_a_repeated_idempotency_key_gets_the_stream_of_the_first", {"rule": "attach"}),
        (ForgetsIdempotencyKeys, "test_of_many_retries_at_once_one_begins", {}),
        (AttachesToWhatHasEnded, "test_a_free_id_is_taken_under_any_rule", {"rule": "attach"}),
        (RejectsOnlyWhatIsLive, "test_reject_refuses_an_id_with_a_live_or_queued_stream", {}),
        (BeginsTwiceAtOnce, "test_of_many_requests_at_once_one_stream_comes", {"rule": "attach"}),
        (BeginsTwiceAtOnce, "test_of_many_requests_at_once_one_stream_comes", {"rule": "reject"}),
        (
            AsksAgainAfterItHasWaited,
            "test_a_request_gets_the_stream_that_it_has_waited_for_even_if_that_is_over",
            {"rule": "attach", "key": None, "fate": "complete"},
        ),
        (
            AsksAgainAfterItHasWaited,
            "test_a_request_there_gets_the_stream_here_that_it_has_waited_for_even_if_that_is_over",
            {"rule": "replace", "key": "k", "fate": "stop"},
        ),
        (
            ForgetsWhatWasReleased,
            "test_a_request_that_waits_is_stopped_with_the_other_however_soon_that_is_let_go",
            {"rule": "attach", "key": None, "fate": "stop"},
        ),
        (LetsTheOvertakenBegin, "test_a_request_that_was_overtaken_cannot_begin", {}),
        (ReplacesWhenAsked, "test_what_was_there_stays_until_the_new_stream_begins", {}),
        (StopsAnyEpoch, "test_a_stop_of_one_epoch_leaves_the_others", {}),
        (StopsOnlyWhatIsLive, "test_a_request_that_is_stopped_while_it_waits_never_begins", {}),
        (TellsNobody, "test_a_stopped_stream_is_over_and_gone", {}),
        (KeepsTheReplacedOpen, "test_a_new_stream_replaces_the_live_one", {}),
        (NeverReleases, "test_a_request_that_is_released_leaves_nothing", {}),
        (WaitsForNoBeginning, "test_who_asks_for_a_queued_stream_waits_for_what_becomes_of_it", {"outcome": "begin"}),
        (KnowsNoLimits, "test_an_owner_has_so_many_streams_at_once", {}),
        (CountsWhatHasEnded, "test_an_owner_has_so_many_streams_at_once", {}),
        (CountsWhatHasEnded, "test_all_together_have_so_many_streams_at_once", {}),
        (LeavesATask, "test_a_request_is_queued_until_it_begins", {}),
        (ShowsNobodyTheEnd, "test_a_watch_tells_of_a_stream_from_its_request_to_its_end", {}),
        (ShowsNobodyTheEnd, "test_a_watch_tells_of_a_replacement", {}),
        (WatchesForEver, "test_a_watch_that_was_ended_tells_no_more", {}),
        (SharesNothing, "test_a_stream_is_the_same_there_as_here", {}),
        (SharesNothing, "test_of_many_retries_here_and_there_one_begins", {}),
        (SharesNothing, "test_the_limit_of_an_owner_counts_the_streams_here_and_there", {}),
        (StopsInSilence, "test_a_stop_there_reaches_the_producer_here", {}),
        (NotFenced, "test_a_stream_here_is_replaced_by_one_there", {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_store_that_breaks_a_promise_is_caught(store, test, parameters):
    """By the test of that promise; the store as it is passes with the same parameters."""
    getattr(Suite(MemoryStore), test)(**parameters)

    with pytest.raises(BaseException) as caught:  # noqa: PT011  # whatever makes pytest call a test failed
        getattr(Suite(store), test)(**parameters)
    assert not isinstance(caught.value, (KeyboardInterrupt, TypeError))


def test_a_suite_without_a_store_says_what_to_fill_in():
    """Not an error of attributes somewhere inside."""
    with pytest.raises(NotImplementedError, match="open_store"):
        StoreConformance().test_a_free_id_is_taken_under_any_rule(rule="replace")
