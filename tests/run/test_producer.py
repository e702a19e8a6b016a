"""The corners of producers, readers and the manager that a server seldom turns."""

import asyncio
import logging

import pytest

from fastapi_resumable import MemoryStore, ResumableStatus
from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._run.body import RequestBody
from fastapi_resumable._run.errors import StreamStopped
from fastapi_resumable._run.manager import StreamManager
from fastapi_resumable._run.producer import Producer, reserve
from fastapi_resumable._run.recorder import Recorder
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.reader import Reader, Reading
from fastapi_resumable._stream.recording import EVENT_PIECE
from fastapi_resumable._stream.stream import Head
from fastapi_resumable.exceptions import ShuttingDown
from fastapi_resumable.settings import ResumableSettings
from fastapi_resumable.stores.base import Reservation
from tests.support.asgi import bounded

HEAD = Head(200, ((b"content-type", b"text/plain"),))
EVENTS = b"text/event-stream"
KEY = StreamKey(None, "chat")


def make_manager(**options) -> StreamManager:
    settings = {"ping": 0, "stop_grace": 0.05, "shutdown_grace": 0.05} | options
    return StreamManager(MemoryStore(), ResumableSettings.load(settings))


async def started(manager: StreamManager) -> Producer:
    producer = await reserve(manager, KEY, None)
    assert isinstance(producer, Producer)
    return producer


async def never(*_args: object):
    """What is not called."""
    raise AssertionError


async def test_a_loop_that_is_torn_down_interrupts_the_stream():
    """Who reads the log afterwards is not left with an open end."""
    manager = make_manager()
    producer = await started(manager)
    running = asyncio.Event()

    async def application() -> None:
        await producer.begin(HEAD, lambda stream: None)
        running.set()
        await asyncio.Event().wait()

    producer.start(application)
    await bounded(running.wait())
    assert producer._task is not None
    producer._task.cancel()
    await bounded(producer.done())

    assert producer.stream is not None
    assert producer.stream.status is ResumableStatus.INTERRUPTED


async def test_what_is_raised_while_stopping_is_logged_as_such(caplog):
    """A clean-up that fails is worth a warning; the stream is over all the same."""
    manager = make_manager()
    producer = await started(manager)
    running = asyncio.Event()

    async def application() -> None:
        await producer.begin(HEAD, lambda stream: None)
        running.set()
        try:
            await producer.disconnected()
        finally:
            raise LookupError("clean-up failed")

    producer.start(application)
    await bounded(running.wait())
    await manager.store.stop(KEY, None)
    producer.stop("cancelled")
    await bounded(producer.done())
    await producer.disconnected()

    assert "raised while it was being stopped" in caplog.text


async def test_a_request_does_not_wait_for_a_producer_whose_abandoning_cannot_be_logged():
    """A handler of the application's that sends log records elsewhere may raise."""
    manager = make_manager(stop_grace=0)
    producer = await started(manager)
    running, may_end = asyncio.Event(), asyncio.Event()

    async def application() -> None:
        running.set()
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    def refuse(record: logging.LogRecord) -> bool:
        if "was abandoned" in record.getMessage():
            raise OSError("no connection")
        return True

    logger = logging.getLogger("fastapi_resumable")
    logger.addFilter(refuse)
    try:
        producer.start(application)
        await bounded(running.wait())
        producer.stop("cancelled")
        await bounded(producer.done())
    finally:
        logger.removeFilter(refuse)
        may_end.set()
    await producer.release()


async def test_beginning_twice_is_beginning_once():
    """The head's timer and the first byte may come together."""
    manager = make_manager()
    producer = await started(manager)
    begun = []
    await producer.begin(HEAD, begun.append)
    await producer.begin(HEAD, begun.append)

    assert begun == [producer.stream]
    await producer.release()


async def test_a_task_that_fails_is_reported(caplog):
    """No exception of ours is lost with its task."""
    manager = make_manager()

    async def fail() -> None:
        raise LookupError("lost")

    task = manager.tasks.spawn(fail(), name="a task")
    await bounded(asyncio.wait({task}))
    await asyncio.sleep(0)

    assert "a task failed" in caplog.text


async def test_a_hook_may_return_something_to_await():
    """A callable object, or a function that returns a coroutine, is awaited too."""
    manager = make_manager()
    seen = []

    async def record(finished) -> None:
        seen.append(finished.id)

    manager.hooks.add(lambda finished: record(finished))  # noqa: PLW0108  # not a coroutine function itself
    producer = await started(manager)
    await producer.begin(HEAD, lambda stream: None)
    await producer.end(ResumableStatus.COMPLETED)
    await manager.hooks.wait(60)

    assert seen == ["chat"]
    await producer.release()
    await manager.store.aclose()


async def test_a_shutdown_interrupts_what_is_live_and_lets_stuck_readers_go(caplog):
    """No reader ever hangs: not one whose client takes nothing."""
    caplog.set_level(logging.INFO)
    manager = make_manager()
    producer = await started(manager)
    readers = []
    running = asyncio.Event()

    async def application() -> None:
        await producer.begin(HEAD, lambda stream: readers.append(manager.reader(stream, 0)))
        assert producer.stream is not None
        assert producer.stream.offer(b"abc", 0.0)
        running.set()
        await asyncio.Event().wait()

    async def stuck(message: dict) -> None:
        if message:
            await asyncio.Event().wait()

    producer.start(application)
    await bounded(running.wait())
    reading = asyncio.ensure_future(readers[0].run(stuck, {}))
    idle = manager.reader(readers[0].stream, 3)
    shutdown = asyncio.ensure_future(manager.shutdown())
    await bounded(producer.done())
    await producer.release()
    await bounded(shutdown)

    assert await bounded(reading) is Reading.STALLED
    assert readers[0].stream.status is ResumableStatus.INTERRUPTED
    for reader in (readers[0], idle):
        manager.dismiss(reader)
    manager.reopen()
    assert not manager.closing


class StoreOfManyEnds(MemoryStore):
    """One that ends streams together, as a shared store does: none before it has two; and the first one fails."""

    def __init__(self) -> None:
        super().__init__()
        self.ending: list[str] = []
        self.has_two = asyncio.Event()

    async def finish(self, stream, status, code, message):
        """Wait for the other one."""
        self.ending.append(stream.key.id)
        is_first = len(self.ending) == 1
        if len(self.ending) == 2:
            self.has_two.set()
        await self.has_two.wait()
        if is_first:
            raise RuntimeError("of the store's own")
        await super().finish(stream, status, code, message)


async def test_a_shutdown_interrupts_all_streams_at_the_same_time(caplog):
    """It takes as long as one does, and one that fails does not keep the others from their end."""
    store = StoreOfManyEnds()
    settings = ResumableSettings.load({"ping": 0, "stop_grace": 0, "shutdown_grace": 0})
    manager = StreamManager(store, settings)
    producers = {}
    for name in ("a", "b"):
        producer = producers[name] = await reserve(manager, StreamKey(None, name), None)
        assert isinstance(producer, Producer)
        await producer.begin(HEAD, lambda stream: None)

    await bounded(manager.shutdown())

    first, second = store.ending
    assert producers[second].stream.status is ResumableStatus.INTERRUPTED
    assert producers[first].stream.status is ResumableStatus.IN_PROGRESS
    assert "of the store's own" in caplog.text
    for producer in producers.values():
        await producer.release()


async def read_from_start(manager: StreamManager) -> tuple[Producer, Reader]:
    """A producer whose stream has begun, and its first reader."""
    producer = await started(manager)
    readers = []
    await producer.begin(HEAD, lambda stream: readers.append(manager.reader(stream, 0)))
    return producer, readers[0]


async def test_a_timeout_of_the_deliverers_own_is_not_taken_for_a_stall():
    """Only our own deadline means that the client took nothing."""
    manager = make_manager()
    producer, reader = await read_from_start(manager)

    async def timing_out(message: dict) -> None:
        raise TimeoutError("of the server's own")

    with pytest.raises(TimeoutError, match="of the server's own"):
        # Without a bound of the test's own, which would raise one as well.
        await reader.run(timing_out, {})
    manager.dismiss(reader)
    reader.evict()
    await producer.release()


async def test_a_reader_that_is_cancelled_outside_a_shutdown_just_ends():
    """A cancellation is put off only to deliver the last event."""
    manager = make_manager()
    producer, reader = await read_from_start(manager)

    async def nothing(message: dict) -> None:
        return None

    reading = asyncio.ensure_future(reader.run(nothing, {}))
    for _ in range(5):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(reading)
    manager.dismiss(reader)
    await producer.release()


@pytest.mark.parametrize("end", ["end", "stop", "interrupt"])
async def test_keep_alives_have_no_timer_once_the_stream_has_ended(end: str) -> None:
    """However it ends."""
    manager = make_manager(ping=15.0)
    producer = await started(manager)
    await producer.begin(Head(200, ((b"content-type", b"text/event-stream"),)), lambda stream: None)
    timer = producer._idle_timer
    assert timer is not None
    if end == "end":
        await producer.end(ResumableStatus.COMPLETED)
    elif end == "stop":
        producer.stop("cancelled")
    else:
        await producer.interrupt()

    assert timer.cancelled()


async def test_a_large_chunk_lets_others_run():
    """It may be thousands of events, so it is recorded piece by piece."""
    manager = make_manager()
    producer = await started(manager)
    body = RequestBody(never)
    recorder = Recorder(producer, body, on_begin=lambda stream: None, pass_on=never, end_delay=0)
    await recorder.send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", EVENTS)]})
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    await asyncio.sleep(0)
    chunk = b": x\n\n" * 25_000
    await bounded(recorder.send({"type": "http.response.body", "body": chunk, "more_body": True}))
    task.cancel()

    assert producer.stream is not None
    assert producer.stream.tail == 100_000
    assert turns >= len(chunk) / EVENT_PIECE
    await producer.end(ResumableStatus.COMPLETED)
    await producer.release()


class Lapsed(MemoryStore):
    """A store whose worker was taken for dead while a stream was about to begin."""

    async def begin(self, reservation: Reservation, head: Head) -> MemoryStream:
        raise ShuttingDown


async def test_a_stream_that_is_interrupted_as_it_begins_is_stopped() -> None:
    """The application sees what it would see if its client had left, and no error of ours."""
    manager = StreamManager(Lapsed(), ResumableSettings.load({"ping": 0, "shutdown_grace": 0, "stop_grace": 0.1}))
    producer = await started(manager)
    recorder = Recorder(producer, RequestBody(never), on_begin=lambda stream: None, pass_on=never, end_delay=0)
    await recorder.send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", EVENTS)]})
    with pytest.raises(StreamStopped):
        await recorder.send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
    await manager.shutdown()
