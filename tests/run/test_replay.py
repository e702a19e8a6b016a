"""How a reading that lost its place ends, and a response that is broken off."""

import asyncio

import pytest

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.log import Budget
from fastapi_resumable._run.breaking import StreamBroken, break_off
from fastapi_resumable._run.manager import StreamManager
from fastapi_resumable._run.replay import ReplayResponse, replay, serve
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.stream import Head, Limits, WritableStream
from fastapi_resumable.exceptions import StoreUnavailable
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.settings import ResumableSettings
from fastapi_resumable.stores.base import Reservation
from fastapi_resumable.stores.memory import MemoryStore


def overtaken(media_type: bytes, bound: int = 64) -> tuple[StreamManager, MemoryStream]:
    """A stream whose head is gone, if that is more than `bound`."""
    manager = StreamManager(MemoryStore(), ResumableSettings.load({"ping": 0}))
    stream = MemoryStream(
        StreamKey(None, "s"),
        "abcdefghijklmnop",
        Head(200, ((b"content-type", media_type),)),
        limits=Limits(max_stream_bytes=bound),
        budget=Budget(),
        started_at=1.0,
        on_stop=lambda code: None,
    )
    for _ in range(40):
        stream.offer(b"data: 0123456789\n\n", 0.0)
    return manager, stream


async def served(media_type: bytes) -> list[dict]:
    """What a reader gets that was attached too late."""
    manager, stream = overtaken(media_type)
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def never() -> None:
        await asyncio.Event().wait()

    try:
        await serve(manager.reader(stream, 0), manager, [], {"headers": []}, send, never)
    finally:
        assert not manager._readers
    return sent


async def test_an_event_stream_says_that_the_place_is_lost():
    """Never a silent gap, never a clean end without a word."""
    sent = await served(b"text/event-stream")

    assert b"event: error" in sent[1]["body"]
    assert b"offset_lost" in sent[1]["body"]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_reading_that_loses_its_place_has_had_whole_events():
    """Else what says so would be a part of half an event."""
    manager, stream = overtaken(b"text/event-stream", 1024 * 1024)
    while stream.tail < 200_000:
        stream.offer(b"data: 0123456789\n\n", 0.0)
    body = b""

    async def send(message: dict) -> None:
        nonlocal body
        if "body" in message:
            body += message["body"]
            # A newer request replaces the stream, and the store is full.
            stream.discard("replaced")
            stream.shrink(0)

    await serve(manager.reader(stream, 0), manager, [], {"headers": []}, send, never)
    events, _, end = body.partition(b"event: error")

    assert events.endswith(b"\n\n")
    assert b"offset_lost" in end


async def test_a_stream_that_is_stopped_after_its_place_was_found_shows_that_it_was():
    """Its log is dropped before the first byte: that is no loss of the reader's place."""
    manager, client = make_manager(), Client()
    stream = await begun(manager)
    response = await replay(manager, stream, 3, None, None)
    await manager.store.stop(stream.key, None)
    await response({}, never, client.send)

    assert b"event: cancelled" in client.body


async def test_a_place_that_has_become_too_old_is_served_as_long_as_its_bytes_are_there():
    """A client may ask for the earliest offset of a busy stream, which has grown by the time the response begins."""
    manager, stream = overtaken(b"text/event-stream", 64 * 1024)
    while stream.tail < 200_000:
        stream.offer(b"data: 0123456789\n\n", 0.0)
    client, offset = Client(), stream.earliest
    response = await replay(manager, stream, offset, None, None)
    stream.offer(b"data: 0123456789\n\n", 0.0)
    stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
    assert stream.earliest > offset
    await response({}, never, client.send)

    assert len(client.body) == stream.tail - offset


async def test_other_media_types_break_off():
    """There is no other way to tell."""
    with pytest.raises(StreamBroken, match="lost its place"):
        await served(b"application/x-ndjson")


async def test_a_client_that_can_come_back_for_the_rest_gets_no_byte_that_is_not_in_the_log():
    """It is cut off when the store cannot be reached: an event about that would move its place."""
    manager, client = make_manager(), Client()
    stream = await begun(manager)
    stream.failure = StoreUnavailable("gone")
    with pytest.raises(StreamBroken, match="lost its place"):
        await ReplayResponse(manager, stream, 0, None)({}, never, client.send)

    assert b"data: 1\n\n".startswith(client.body)
    assert all(message["more_body"] for message in client.messages if "more_body" in message)


async def begun(manager: StreamManager, media_type: bytes = b"text/event-stream") -> WritableStream:
    """A stream with an event in it."""
    reservation = Reservation(StreamKey(None, "s"), "a" * 16, idempotency_key=None, on_stop=lambda code: None)
    await manager.store.reserve(reservation, "replace")
    stream = await manager.store.begin(reservation, Head(200, ((b"content-type", media_type),)))
    stream.offer(b"data: 1\n\n", 0.0)
    return stream


async def finished(
    manager: StreamManager, status: ResumableStatus, media_type: bytes = b"text/event-stream"
) -> WritableStream:
    """A stream that has ended, of one block."""
    stream = await begun(manager, media_type)
    await manager.store.finish(stream, status, "producer_failed", "No.")
    return stream


def make_manager(stall_timeout: float = 30) -> StreamManager:
    store = MemoryStore()
    store.configure(Limits(event_ids=False))
    settings = {"ping": 0, "stall_timeout": stall_timeout, "stop_grace": 0.1, "shutdown_grace": 0.1}
    return StreamManager(store, ResumableSettings.load(settings))


async def never() -> dict:
    """A client that stays."""
    await asyncio.Event().wait()
    raise AssertionError


class Client:
    """Takes messages; of the body's nothing, if it is `stuck`."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.messages: list[dict] = []
        self.waits = asyncio.Event()
        self._stuck = stuck

    async def send(self, message: dict) -> None:
        if self._stuck and message["type"] == "http.response.body":
            self.waits.set()
            await asyncio.Event().wait()
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages if "body" in message)


async def test_what_is_left_of_an_answer_that_has_ended_goes_out_in_one_piece():
    """A start and a body that says that it is all: no task, no other message."""
    manager, client = make_manager(), Client()
    stream = await finished(manager, ResumableStatus.COMPLETED)
    tasks = asyncio.all_tasks()
    await ReplayResponse(manager, stream, 0, None)({}, never, client.send)

    assert [message["type"] for message in client.messages] == ["http.response.start", "http.response.body"]
    assert client.messages[-1] == {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": False}
    assert asyncio.all_tasks() == tasks
    assert not manager._readers


async def test_an_answer_that_failed_ends_like_one_only_if_it_says_so():
    """An event stream ends with the terminal event; of other media types the end must not look like one."""
    manager, client, other = make_manager(), Client(), Client()
    stream = await finished(manager, ResumableStatus.FAILED)
    await ReplayResponse(manager, stream, 0, None)({}, never, client.send)
    text = await finished(manager, ResumableStatus.FAILED, b"text/plain")
    with pytest.raises(StreamBroken, match="ended as failed"):
        await ReplayResponse(manager, text, 0, None)({}, never, other.send)

    assert b"producer_failed" in client.body
    assert client.messages[-1]["more_body"] is False
    assert other.body == b"data: 1\n\n"
    assert all(message["more_body"] for message in other.messages if "more_body" in message)


async def test_a_client_that_takes_nothing_of_an_answer_that_has_ended_is_disconnected():
    """After `stall_timeout`, uncleanly, as from a live one."""
    manager, client = make_manager(stall_timeout=0.01), Client(stuck=True)
    stream = await finished(manager, ResumableStatus.COMPLETED)
    with pytest.raises(StreamBroken, match="too long"):
        async with asyncio.timeout(10):
            await ReplayResponse(manager, stream, 0, None)({}, never, client.send)

    assert not manager._readers


async def test_a_shutdown_does_not_wait_for_a_client_that_takes_nothing_of_an_answer_that_has_ended():
    """It is let go when the graces are over, long before `stall_timeout`."""
    manager, client = make_manager(stall_timeout=1000), Client(stuck=True)
    stream = await finished(manager, ResumableStatus.COMPLETED)
    serving = asyncio.ensure_future(ReplayResponse(manager, stream, 0, None)({}, never, client.send))
    async with asyncio.timeout(10):
        await client.waits.wait()
        await manager.shutdown()
        with pytest.raises(StreamBroken, match="the server exits"):
            await serving


async def test_a_client_that_has_left_gets_no_error():
    """Servers of ASGI 2.4 raise from `send`."""
    manager = make_manager()
    stream = await finished(manager, ResumableStatus.COMPLETED)

    async def gone(_message: dict) -> None:
        raise OSError

    await ReplayResponse(manager, stream, 0, None)({}, never, gone)

    assert not manager._readers


async def test_a_stalled_client_of_granian_is_not_waited_for() -> None:
    """Its response is left without an end, and nothing is sent to it any more."""
    # As granian runs an application on asyncio's loop, which is told by the file of the task's coroutine.
    source = "async def run(awaitable):\n    await awaitable\n"
    namespace: dict = {}
    exec(compile(source, "site-packages/granian/_futures.py", "exec"), namespace)
    manager, _ = overtaken(b"text/plain")

    async def send(_message: object) -> None:
        raise AssertionError

    scope = {"type": "http", "headers": [], "state": {}}
    await asyncio.create_task(namespace["run"](break_off("it stalled", manager, scope, send, at_once=True)))
