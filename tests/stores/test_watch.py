"""`MemoryStore.watch`: exactly what is told, and in which order; that it is told at all is in the conformance suite."""

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


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = MemoryStore()
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
