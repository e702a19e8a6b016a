"""What a watch tells: each change of a stream that was asked for, and what a lookup shows last."""

import asyncio
from collections.abc import Sequence

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable.models import ResumableStatus, ResumableStreamItem
from fastapi_resumable.stores.base import Store

from .scenario import Conformance, scenario
from .tools import KEY, Request, complete

LAST = StreamKey("ann", "chat::last")
"""Queued at the end of a test, so that it is known when everything before has been told."""


class Watcher:
    """What one watcher was told."""

    def __init__(self) -> None:
        self.told: list[ResumableStreamItem] = []
        self._moved = asyncio.Event()

    def notify(self, item: ResumableStreamItem) -> None:
        """Take a change."""
        self.told.append(item)
        self._moved.set()

    async def hears_of(self, *expected: tuple[Request, str]) -> None:
        """Wait for the last of these, each a request and its states; it must have been told of each state, in order.

        What it is told again does no harm: some stores have to look what it is that a lookup shows now.
        """
        final = [(request.epoch, states.split()[-1]) for request, states in expected]
        while not {(item.epoch, item.status) for item in self.told} >= set(final):
            self._moved.clear()
            await self._moved.wait()
        heard: dict[str, list[str]] = {}
        for item in self.told:
            states = heard.setdefault(item.epoch, [])
            if states[-1:] != [item.status]:
                states.append(item.status)
        assert heard == {request.epoch: states.split() for request, states in expected}

    async def agrees_with(self, store: Store) -> None:
        """Wait until what it was told last is what a lookup shows."""
        [shown] = await store.lookup(KEY.owner, [KEY.id])
        while self.told[-1] != shown:
            self._moved.clear()
            await self._moved.wait()

    def order(self, *changes: tuple[Request, str]) -> list[int]:
        """When it was first told of these."""
        told = [(item.epoch, item.status) for item in self.told]
        return [told.index((request.epoch, ResumableStatus(status))) for request, status in changes]


class Watching(Conformance):
    """Nobody has to poll."""

    @scenario()
    async def test_a_watch_tells_of_a_stream_from_its_request_to_its_end(self, store: Store) -> None:
        """Each item is the one that a lookup shows at that moment. That the stream is forgotten is no change."""
        await watch_a_life(store, store)

    @scenario()
    async def test_a_watch_has_told_of_an_end_when_that_has_been_waited_for(self, store: Store) -> None:
        """A server that exits ends its last streams, and then the watches."""
        watcher = Watcher()
        remove = await store.watch(KEY.owner, [KEY.id], watcher.notify)
        await complete(store, await Request().begin(store))
        remove()

        assert watcher.told[-1].status is ResumableStatus.COMPLETED

    @scenario()
    async def test_a_watch_tells_of_a_stop(self, store: Store) -> None:
        """Of a live stream, and of a request that waits; a stop of what is not there is no change."""
        await watch_a_stop(store, store)

    @scenario()
    async def test_a_watch_tells_of_a_replacement(self, store: Store) -> None:
        """The old stream, and a request that was overtaken, have been cancelled when the new one begins."""
        await watch_a_replacement(store, store)

    @scenario()
    async def test_a_watch_tells_of_a_request_that_never_begins(self, store: Store) -> None:
        """It has failed; and what a lookup shows instead is told again."""
        await watch_a_release(store, store)

    @scenario()
    async def test_a_watch_tells_of_what_was_asked_for_and_its_variants(self, store: Store) -> None:
        """Once; not of what merely looks alike, or is somebody else's."""
        await watch_variants(store, store)

    @scenario()
    async def test_a_watch_that_was_ended_tells_no_more(self, store: Store) -> None:
        """It may be ended twice, and others go on."""
        ended, other = Watcher(), Watcher()
        end = await store.watch("ann", ["chat", "more", "chat"], ended.notify)
        end_other = await store.watch("ann", ["chat"], other.notify)
        end()
        end()
        request = Request()
        await request.begin(store)
        await other.hears_of((request, "queued in_progress"))
        assert ended.told == []
        end_other()


async def watch_a_life(here: Store, there: Store) -> None:
    """Watch on `there` what happens on `here`."""
    watcher, request, last = Watcher(), Request(), Request(LAST)
    end = await there.watch("ann", ["chat"], watcher.notify)
    await request.reserve(here)
    shown = list(await here.lookup("ann", ["chat"]))
    await watcher.hears_of((request, "queued"))
    stream = await request.begin(here)
    shown += await here.lookup("ann", ["chat"])
    await watcher.hears_of((request, "queued in_progress"))
    await complete(here, stream)
    shown += await here.lookup("ann", ["chat"])
    await here.finish(stream, ResumableStatus.FAILED, "code", "It broke.")
    await here.stop(KEY, None)
    await last.reserve(here)

    await watcher.hears_of((request, "queued in_progress completed"), (last, "queued"))
    assert [item for item in shown if item not in watcher.told] == []
    end()


async def watch_a_stop(here: Store, there: Store) -> None:
    """Watch on `there` what is stopped on `here`."""
    watcher, live, waiting, last = Watcher(), Request(), Request(StreamKey("ann", "chat::queued")), Request(LAST)
    end = await there.watch("ann", ["chat"], watcher.notify)
    await live.begin(here)
    await waiting.reserve(here)
    await here.stop(KEY, waiting.epoch)
    await here.stop(KEY, live.epoch)
    await here.stop(waiting.reservation.key, None)
    await here.stop(StreamKey("ann", "chat::none"), None)
    await last.reserve(here)

    await watcher.hears_of((live, "queued in_progress cancelled"), (waiting, "queued cancelled"), (last, "queued"))
    ended = [item for item in watcher.told if item.is_done]
    assert {item.status for item in ended} == {ResumableStatus.CANCELLED}
    assert all(item.completed_at >= item.started_at > 0 for item in ended)
    end()


async def watch_a_replacement(here: Store, there: Store) -> None:
    """Watch on `there` what is replaced on `here`."""
    watcher, old, overtaken, new = Watcher(), Request(), Request(), Request()
    end = await there.watch("ann", ["chat"], watcher.notify)
    await old.begin(here)
    await overtaken.reserve(here)
    await new.begin(here)
    await here.release(overtaken.reservation)

    cancelled = [(old, "queued in_progress cancelled"), (overtaken, "queued cancelled")]
    await watcher.hears_of(*cancelled, (new, "queued in_progress"))
    *before, after = watcher.order((old, "cancelled"), (overtaken, "cancelled"), (new, "in_progress"))
    assert max(before) < after
    await watcher.agrees_with(here)
    end()


async def watch_a_release(here: Store, there: Store) -> None:
    """Watch on `there` what is given back on `here`."""
    watcher, refused, live, another = Watcher(), Request(), Request(), Request()
    end = await there.watch("ann", ["chat"], watcher.notify)
    await refused.reserve(here)
    await here.release(refused.reservation)
    await live.begin(here)
    await another.reserve(here)
    await here.release(another.reservation)

    await watcher.hears_of((refused, "queued failed"), (live, "queued in_progress"), (another, "queued failed"))
    assert all(item.is_done for item in watcher.told if item.status is ResumableStatus.FAILED)
    await watcher.agrees_with(here)
    end()


async def watch_variants(here: Store, there: Store) -> None:
    """Watch on `there` while streams of many names come on `here`."""
    watcher, nobody, last = Watcher(), Watcher(), Request(LAST)
    asked: Sequence[str] = ["chat", "chat::b", "chat", "x:"]
    ends = [await there.watch(owner, asked, each.notify) for owner, each in (("ann", watcher), (None, nobody))]
    variants = [Request(StreamKey("ann", stream_id)) for stream_id in ["chat::a", "chat::b::c", "x:::y"]]
    others = [Request(StreamKey("ann", stream_id)) for stream_id in ["chats", "chat:b", "cha", "other"]]
    nobodys = Request(StreamKey(None, "chat::b"))
    for request in [*variants, *others, Request(StreamKey("bob", "chat")), nobodys, last]:
        await request.reserve(here)

    await watcher.hears_of(*((request, "queued") for request in [*variants, last]))
    await nobody.hears_of((nobodys, "queued"))
    for end in ends:
        end()
