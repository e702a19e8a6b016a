"""How a stream ends: in order, by a failure, by a stop; and how long it stays."""

import json

import pytest

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable.exceptions import StreamCancelled, StreamNotFound
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.base import Store

from .scenario import Conformance, scenario
from .tools import (
    KEY,
    TEXT,
    Request,
    begin,
    complete,
    content,
    following,
    places,
    terminal,
    without_ids,
    write,
    written,
)

FAILURES = pytest.mark.parametrize(
    ("status", "code"),
    [(ResumableStatus.FAILED, "producer_failed"), (ResumableStatus.INTERRUPTED, "interrupted")],
)


class Ending(Conformance):
    """The end is part of the log, and happens once."""

    @scenario()
    async def test_a_stream_that_completes_ends_with_its_last_byte(self, store: Store) -> None:
        """Nothing is added; a lookup shows when it ended."""
        stream = await begin(store)
        async with following(stream) as follower:
            await write(stream, b"data: one\n\n", b"data: two\n\n")
            await complete(store, stream)
            seen = await follower.end()
        [item] = await store.lookup(KEY.owner, [KEY.id])

        assert without_ids(seen) == b"data: one\n\ndata: two\n\n"
        assert stream.is_final and stream.closed
        assert stream.status is item.status is ResumableStatus.COMPLETED
        assert (item.is_done, item.total_bytes) == (True, len(seen))
        assert item.completed_at >= item.started_at > 0
        found = await store.find(KEY, 0)
        assert (found.is_final, found.status, found.item) == (True, ResumableStatus.COMPLETED, item)
        assert await content(found) == seen

    @FAILURES
    @scenario()
    async def test_a_stream_that_fails_ends_with_a_terminal_event(
        self, store: Store, status: ResumableStatus, code: str
    ) -> None:
        """It tells of the failure, and is part of what a replay shows."""
        stream = await begin(store)
        async with following(stream) as follower:
            await write(stream, b"data: one\n\n")
            await store.finish(stream, status, code, "It broke.")
            seen = await follower.end()
        [item] = await store.lookup(KEY.owner, [KEY.id])

        assert terminal(seen) == ("error", code)
        assert item.status is stream.status is status
        assert places(seen, stream.epoch)[-1] == len(seen) == item.total_bytes
        assert await content(await store.find(KEY, 0)) == seen

    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            ("openai", b'data: {"code":"c","message":"m \xc3\xa9","error":{"code":"c","message":"m \xc3\xa9"}}\n\n'),
            ("ai-sdk", b'data: {"type":"error","errorText":"m \xc3\xa9"}\n\ndata: [DONE]\n\n'),
            (lambda *arguments: json.dumps(arguments).encode(), b'["failed", "c", "m \\u00e9"]'),
            (lambda *_: None, b""),
        ],
        ids=["openai", "ai-sdk", "function", "none"],
    )
    def test_the_terminal_event_has_the_form_that_was_asked_for(self, form: object, expected: bytes) -> None:
        """A named one, or whatever the user's function returns."""

        @scenario(terminal_event=form)
        async def test(_self: Conformance, store: Store) -> None:
            stream = await begin(store)
            await write(stream, b"data: one\n\n")
            await store.finish(stream, ResumableStatus.FAILED, "c", "m é")
            assert without_ids(await content(stream)) == b"data: one\n\n" + expected

        test(self)

    @scenario(terminal_event=lambda *_: 1 / 0)
    async def test_a_terminal_event_that_cannot_be_made_is_the_default_one(self, store: Store) -> None:
        """An error in the user's function does not keep a stream from ending."""
        stream = await begin(store)
        await store.finish(stream, ResumableStatus.FAILED, "producer_failed", "It broke.")

        assert terminal(await content(stream)) == ("error", "producer_failed")

    @scenario()
    async def test_other_media_types_end_with_their_last_byte(self, store: Store) -> None:
        """There is no event in them that could tell of a failure; the status does."""
        stream = await begin(store, head=TEXT)
        await write(stream, b"half a wo")
        await store.finish(stream, ResumableStatus.FAILED, "producer_failed", "It broke.")

        assert await content(stream) == b"half a wo"
        assert stream.status is ResumableStatus.FAILED

    @scenario()
    async def test_half_an_event_is_recorded_at_the_end_only_if_the_stream_completes(self, store: Store) -> None:
        """A failure never shows half of one."""
        whole = await written(store, b"data: one\n\ndata: tw", key=StreamKey("ann", "whole"))
        broken = await begin(store)
        await write(broken, b"data: one\n\ndata: tw")
        await store.finish(broken, ResumableStatus.FAILED, "producer_failed", "It broke.")

        assert without_ids(await content(whole)) == b"data: one\n\ndata: tw"
        assert b"data: tw" not in await content(broken)
        assert terminal(await content(broken)) == ("error", "producer_failed")

    @scenario()
    async def test_only_the_first_end_counts(self, store: Store) -> None:
        """Whatever comes later changes neither the status nor the bytes."""
        stream = await written(store, b"data: one\n\n")
        seen = await content(stream)
        await store.finish(stream, ResumableStatus.FAILED, "producer_failed", "It broke.")

        found = await store.find(KEY, 0)
        assert found.status is stream.status is ResumableStatus.COMPLETED
        assert await content(found) == seen

    @scenario()
    async def test_a_stopped_stream_is_over_and_gone(self, store: Store) -> None:
        """Its producer is told, its readers get the terminal event, nobody finds it."""
        request = Request()
        stream = await request.begin(store)
        async with following(stream) as follower:
            await write(stream, b"data: one\n\n")
            await follower.events(1)
            await store.stop(KEY, None)
            seen = await follower.end()

        assert await request.told() == "cancelled"
        assert terminal(seen) == ("cancelled", "cancelled")
        assert stream.closed and stream.is_final
        assert stream.status is ResumableStatus.CANCELLED
        await store.finish(stream, ResumableStatus.COMPLETED, "", "")
        with pytest.raises(StreamNotFound):
            await store.find(KEY, 0)
        assert await store.lookup(KEY.owner, [KEY.id]) == []
        assert request.codes == ["cancelled"]

    @scenario()
    async def test_a_request_that_is_stopped_while_it_waits_never_begins(self, store: Store) -> None:
        """All that wait under the id are."""
        requests = [await Request().reserve(store) for _ in range(2)]
        await store.stop(KEY, None)

        for request in requests:
            assert await request.told() == "cancelled"
            with pytest.raises(StreamCancelled):
                await request.begin(store)
        with pytest.raises(StreamNotFound):
            await store.find(KEY, 0)
        assert await store.lookup(KEY.owner, [KEY.id]) == []

    @scenario()
    async def test_a_finished_stream_that_is_stopped_is_forgotten(self, store: Store) -> None:
        """There is nobody to be told."""
        request = Request()
        await complete(store, await request.begin(store))
        await store.stop(KEY, None)

        with pytest.raises(StreamNotFound):
            await store.find(KEY, 0)
        assert await store.lookup(KEY.owner, [KEY.id]) == []
        assert request.codes == []

    @scenario()
    async def test_a_stop_of_one_epoch_leaves_the_others(self, store: Store) -> None:
        """Queued, live or finished; and its own epoch, it stops."""
        live, waiting = Request(), Request()
        stream = await live.begin(store)
        await waiting.reserve(store)
        await store.stop(KEY, Request().epoch)
        assert (await store.find(KEY, 0)).epoch == stream.epoch
        assert live.codes == waiting.codes == []

        await store.stop(KEY, waiting.epoch)
        assert await waiting.told() == "cancelled"
        assert (await store.find(KEY, 0)).epoch == stream.epoch
        await complete(store, stream)
        await store.stop(KEY, waiting.epoch)
        assert (await store.find(KEY, 0)).epoch == stream.epoch
        await store.stop(KEY, stream.epoch)
        with pytest.raises(StreamNotFound):
            await store.find(KEY, 0)
        assert live.codes == []

    @scenario()
    async def test_a_stop_of_a_live_epoch_leaves_what_waits_for_its_turn(self, store: Store) -> None:
        """A late click on "stop" does not stop the next answer."""
        live, waiting = Request(), Request()
        await live.begin(store)
        await waiting.reserve(store)
        await store.stop(KEY, live.epoch)

        assert await live.told() == "cancelled"
        assert (await waiting.begin(store)).epoch == waiting.epoch
        assert waiting.codes == []

    @scenario()
    async def test_a_stop_of_what_is_not_there_does_nothing(self, store: Store) -> None:
        """An unknown id, and another owner's."""
        request = Request()
        stream = await request.begin(store)
        for key in (StreamKey("ann", "other"), StreamKey("bob", "chat"), StreamKey(None, "chat")):
            await store.stop(key, None)
            await store.stop(key, stream.epoch)

        assert (await store.find(KEY, 0)).epoch == stream.epoch
        assert request.codes == []

    @scenario(retention=0)
    async def test_a_finished_stream_stays_for_the_retention_and_goes_then(self, store: Store) -> None:
        """What is queued or live stays, however long it takes; and its id can be used again."""
        live, queued = StreamKey("ann", "live"), StreamKey("ann", "queued")
        stream = await begin(store, live)
        await Request(queued).reserve(store)
        ended = Request(idempotency_key="k")
        await complete(store, await ended.begin(store))
        assert (await store.find(KEY, 0)).epoch == ended.epoch
        await self.pass_time(1.5 * self.retention)

        with pytest.raises(StreamNotFound):
            await store.find(KEY, 0)
        items = await store.lookup("ann", [KEY.id, live.id, queued.id])
        assert [item.conversation_id for item in items] == [live.id, queued.id]
        assert (await Request(idempotency_key="k").begin(store)).epoch != ended.epoch

        await write(stream, b"data: late\n\n")
        await complete(store, stream)
        assert without_ids(await content(await store.find(live, 0))) == b"data: late\n\n"
