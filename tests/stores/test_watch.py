"""`Store.watch`: each change of a stream's state reaches those who watch it, and nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from fastapi_resumable import MemoryStore, ResumableStatus, StreamExists
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._stream.stream import Head, Limits, Stream
from fastapi_resumable.models import ResumableStreamItem
from fastapi_resumable.stores.base import Reservation, Store

HEAD = Head(200, ((b"content-type", b"text/event-stream"),))
FINAL = "The stream has ended."


@dataclass
class Watcher:
    """What one watcher was told."""

    told: list[ResumableStreamItem] = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self, item: ResumableStreamItem) -> None:
        self.told.append(item)
        self._moved.set()

    async def states(self, *expected: str) -> None:
        """Wait until it was told as much as `expected`; that is what it must have been told."""
        async with asyncio.timeout(10):
            while len(self.told) < len(expected):
                self._moved.clear()
                await self._moved.wait()
        assert [f"{item.conversation_id} {item.status}" for item in self.told] == list(expected)


@pytest.fixture(params=[MemoryStore])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    made: Store = request.param()
    made.configure(Limits())
    yield made
    await made.aclose()


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def request_for(
    stream_id: str = "chat",
    epoch: str = "a" * 16,
    owner: str | None = "ann",
    on_stop: Callable[[str], None] = lambda _: None,
) -> Reservation:
    return Reservation(StreamKey(owner, stream_id), epoch, idempotency_key=None, on_stop=on_stop)


async def begun(store: Store, stream_id: str = "chat", epoch: str = "a" * 16, owner: str | None = "ann") -> Stream:
    """A live stream."""
    reservation = request_for(stream_id, epoch, owner)
    assert await store.reserve(reservation, "replace") is None
    return await store.begin(reservation, HEAD)


async def test_a_stream_is_seen_from_the_request_to_its_end(store: Store, watcher: Watcher) -> None:
    """Queued, in progress, completed; each item is the one that a lookup shows at that moment."""
    await store.watch("ann", ["chat"], watcher.notify)
    reservation = request_for()
    shown = []
    await store.reserve(reservation, "replace")
    shown += await store.lookup("ann", ["chat"])
    stream = await store.begin(reservation, HEAD)
    shown += await store.lookup("ann", ["chat"])
    assert stream.offer(b"data: one\n\n", 0.0)
    await store.finish(stream, ResumableStatus.COMPLETED, "", "")
    shown += await store.lookup("ann", ["chat"])

    await watcher.states("chat queued", "chat in_progress", "chat completed")
    assert watcher.told == shown
    assert [item.is_done for item in watcher.told] == [False, False, True]


@pytest.mark.parametrize(
    "status", [ResumableStatus.COMPLETED, ResumableStatus.FAILED, ResumableStatus.INTERRUPTED], ids=str
)
async def test_a_watch_shows_how_a_stream_ended(store: Store, watcher: Watcher, status: ResumableStatus) -> None:
    """Completed, failed or interrupted; and once, however often it is ended."""
    stream = await begun(store)
    await store.watch("ann", ["chat"], watcher.notify)
    await store.finish(stream, status, "code", FINAL)
    await store.finish(stream, ResumableStatus.FAILED, "code", FINAL)
    await begun(store, "chat::last")

    await watcher.states(f"chat {status}", "chat::last queued", "chat::last in_progress")


async def test_a_stop_is_seen_as_cancelled(store: Store, watcher: Watcher) -> None:
    """Of a live stream, and of one that is still queued."""
    await begun(store)
    await store.reserve(request_for("chat::queued"), "replace")
    await store.watch("ann", ["chat"], watcher.notify)
    await store.stop(StreamKey("ann", "chat"), None)
    await store.stop(StreamKey("ann", "chat::queued"), None)

    await watcher.states("chat cancelled", "chat::queued cancelled")
    assert all(item.is_done and item.completed_at >= item.started_at > 0 for item in watcher.told)


async def test_a_stream_that_is_replaced_is_cancelled_before_the_new_one_begins(store: Store, watcher: Watcher) -> None:
    """The epochs tell which is which; a request that was overtaken has ended, too."""
    await begun(store, epoch="a" * 16)
    await store.watch("ann", ["chat"], watcher.notify)
    overtaken, newest = request_for(epoch="b" * 16), request_for(epoch="c" * 16)
    await store.reserve(overtaken, "replace")
    await store.reserve(newest, "replace")
    await store.begin(newest, HEAD)
    await store.release(overtaken)

    await watcher.states("chat queued", "chat queued", "chat cancelled", "chat cancelled", "chat in_progress")
    assert [item.epoch[0] for item in watcher.told[:2]] == ["b", "c"]
    assert {item.epoch[0] for item in watcher.told[2:4]} == {"a", "b"}
    assert watcher.told[4].epoch[0] == "c"


async def test_a_request_that_never_begins_has_failed(store: Store, watcher: Watcher) -> None:
    """The endpoint refused it: the spinner must not turn for ever."""
    await store.watch("ann", ["chat"], watcher.notify)
    reservation = request_for()
    await store.reserve(reservation, "replace")
    await store.release(reservation)
    await store.release(reservation)
    await begun(store, "chat::last")

    await watcher.states("chat queued", "chat failed", "chat::last queued", "chat::last in_progress")
    assert watcher.told[1].is_done
    assert await store.lookup("ann", ["chat"]) != [watcher.told[1]]


async def test_after_a_request_that_never_began_a_watch_shows_the_earlier_stream_again(
    store: Store, watcher: Watcher
) -> None:
    """It is what a lookup shows, before and after."""
    await begun(store, epoch="a" * 16)
    await store.watch("ann", ["chat"], watcher.notify)
    for epoch in ("b" * 16, "c" * 16):
        await store.reserve(request_for(epoch=epoch), "replace")
    refused = request_for(epoch="d" * 16)
    await store.reserve(refused, "replace")
    await store.release(refused)
    await store.stop(StreamKey("ann", "chat"), "b" * 16)

    await watcher.states(*["chat queued"] * 3, "chat failed", "chat in_progress", "chat cancelled", "chat in_progress")
    assert [item.epoch[0] for item in watcher.told] == ["b", "c", "d", "d", "a", "b", "a"]
    assert await store.lookup("ann", ["chat"]) == [watcher.told[-1]]


async def test_after_a_stop_a_watch_shows_the_request_that_still_waits(store: Store, watcher: Watcher) -> None:
    """A stop of one epoch leaves the next alone."""
    await begun(store, epoch="a" * 16)
    await store.reserve(request_for(epoch="b" * 16), "replace")
    await store.watch("ann", ["chat"], watcher.notify)
    await store.stop(StreamKey("ann", "chat"), "a" * 16)

    await watcher.states("chat cancelled", "chat queued")
    assert await store.lookup("ann", ["chat"]) == [watcher.told[-1]]


async def test_variants_are_watched_too(store: Store, watcher: Watcher) -> None:
    """As in a lookup, also those that come later; an id that merely begins alike is another."""
    await store.watch("ann", ["chat", "chat::b"], watcher.notify)
    for stream_id in ("chat::a", "chats", "chat:b", "cha", "chat::b::c"):
        await store.reserve(request_for(stream_id), "replace")

    await watcher.states("chat::a queued", "chat::b::c queued")


async def test_the_streams_of_others_are_not_told_of(store: Store, watcher: Watcher) -> None:
    """Neither another owner's, nor those of nobody, nor ids that were not asked for."""
    nobody = Watcher()
    await store.watch("ann", ["chat", "last"], watcher.notify)
    await store.watch(None, ["chat", "last"], nobody.notify)
    await begun(store, "chat", owner="bob")
    await begun(store, "other", owner="ann")
    await store.reserve(request_for("last", owner="ann"), "replace")
    await store.reserve(request_for("last", owner=None), "replace")

    await watcher.states("last queued")
    await nobody.states("last queued")


async def test_a_watch_ends_when_it_is_ended(store: Store, watcher: Watcher) -> None:
    """It may be ended twice, and leaves others as they are."""
    other = Watcher()
    end = await store.watch("ann", ["chat", "more", "chat"], watcher.notify)
    end_other = await store.watch("ann", ["chat"], other.notify)
    end()
    end()
    await begun(store)
    await other.states("chat queued", "chat in_progress")
    end_other()
    await store.stop(StreamKey("ann", "chat"), None)

    await other.states("chat queued", "chat in_progress")
    assert watcher.told == []


async def test_a_watcher_may_end_the_watch_from_its_callback(store: Store, watcher: Watcher) -> None:
    """In the middle of being told, with others still to come."""
    ends: list[Callable[[], None]] = []

    def once(item: ResumableStreamItem) -> None:
        first.notify(item)
        ends.pop()()

    first = Watcher()
    ends.append(await store.watch("ann", ["chat"], once))
    await store.watch("ann", ["chat"], watcher.notify)
    await begun(store)

    await watcher.states("chat queued", "chat in_progress")
    await first.states("chat queued")


async def test_what_changes_nothing_is_not_told(store: Store, watcher: Watcher) -> None:
    """Neither a refusal, nor a stop of an epoch that is not there, nor the end of a stream that is forgotten."""
    stream = await begun(store)
    await store.watch("ann", ["chat", "last"], watcher.notify)
    with pytest.raises(StreamExists):
        await store.reserve(request_for(epoch="b" * 16), "reject")
    assert await store.reserve(request_for(epoch="b" * 16), "attach") is stream
    await store.stop(StreamKey("ann", "chat"), "b" * 16)
    await store.stop(StreamKey("ann", "unknown"), None)
    await store.finish(stream, ResumableStatus.COMPLETED, "", "")
    await store.stop(StreamKey("ann", "chat"), None)
    await store.reserve(request_for("last"), "replace")

    await watcher.states("chat completed", "last queued")


async def test_nothing_is_left_of_a_watch(watcher: Watcher) -> None:
    """The memory store keeps nothing for those who have gone."""
    store = MemoryStore()
    ends = [await store.watch("ann", [f"chat-{number}", "chat"], watcher.notify) for number in range(3)]
    assert store._watchers
    for end in ends:
        end()
    assert not store._watchers
