"""A reader that waits is delivered to by whoever appends; one that cannot take it at once goes on by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_resumable._core.ids import StreamKey
from fastapi_resumable._core.log import Budget
from fastapi_resumable._stream.fanout import Fanout, Traffic
from fastapi_resumable._stream.memory import MemoryStream
from fastapi_resumable._stream.reader import MAX_SEND, Message, Reader, Reading
from fastapi_resumable._stream.stream import Head, Limits
from fastapi_resumable.exceptions import StoreUnavailable
from fastapi_resumable.models import ResumableStatus
from tests.support.asgi import bounded, settle

TEXT = Head(200, ((b"content-type", b"text/plain"),))
EVENTS = Head(200, ((b"content-type", b"text/event-stream"),))


def make_stream(bound: int = 1 << 20, head: Head = TEXT, traffic: Traffic | None = None) -> MemoryStream:
    return MemoryStream(
        StreamKey(None, "s"),
        "a" * 16,
        head,
        limits=Limits(max_stream_bytes=bound),
        budget=Budget(),
        started_at=0.0,
        on_stop=lambda _code: None,
        traffic=traffic,
    )


def write(stream: MemoryStream, chunk: bytes) -> None:
    """Record a chunk, for which there is room; all of them at the same time, however busy the machine is."""
    assert stream.offer(chunk, 0.0)


def fanout(stream: MemoryStream) -> Fanout:
    """The readers of a stream."""
    return stream.fanout


def fail(stream: MemoryStream, failure: StoreUnavailable) -> None:
    """Send the readers of a stream away."""
    stream.failure = failure
    fanout(stream).notify()


def flush(stream: MemoryStream) -> None:
    """Deliver what has come, now."""
    fanout(stream).flush()


def deliver(stream: MemoryStream, chunk: bytes) -> None:
    """Record a chunk, and deliver it."""
    write(stream, chunk)
    flush(stream)


class Client:
    """What a reader delivers to; `gate` is what it waits for before it takes anything."""

    def __init__(
        self, stream: MemoryStream, stall_timeout: float = 60.0, drain_on_cancel: Callable[[], bool] = lambda: False
    ) -> None:
        self.taken: list[bytes] = []
        self.tasks: list[asyncio.Task[object] | None] = []
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.on_take: Callable[[], None] = lambda: None
        self.reader = Reader(stream, 0, stall_timeout=stall_timeout, drain_on_cancel=drain_on_cancel)
        self.task = asyncio.create_task(self.reader.run(self._send, {}))

    async def _send(self, message: Message) -> None:
        if not message:
            # The head of the response.
            return
        self.tasks.append(asyncio.current_task())
        self.on_take()
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.taken.append(message["body"])


@asynccontextmanager
async def reading(stream: MemoryStream, **options: float) -> AsyncIterator[Client]:
    client = Client(stream, **options)  # type: ignore[arg-type]
    await settle()
    try:
        yield client
    finally:
        client.reader.leave()
        if client.gate is not None:
            client.gate.set()
        await asyncio.wait({client.task})


async def test_what_a_stream_writes_by_itself_has_been_delivered_when_the_append_returns() -> None:
    """In the name of the reader's task, which is not woken for it."""
    stream = make_stream()
    async with reading(stream) as client:
        write(stream, b"one")
        assert client.taken == [b"one"]
        assert client.tasks == [client.task]


async def test_what_several_streams_write_in_one_turn_is_delivered_in_the_next() -> None:
    """All but the first; and what one of them has written by then goes out in one piece."""
    traffic = Traffic()
    streams = [make_stream(traffic=traffic) for _ in range(2)]
    async with reading(streams[0]) as first, reading(streams[1]) as second:
        write(streams[0], b"one")
        write(streams[1], b"two")
        write(streams[1], b"three")
        assert (first.taken, second.taken) == ([b"one"], [])
        await asyncio.sleep(0)
        assert second.taken == [b"twothree"]
        assert second.tasks == [second.task]


async def test_a_send_that_has_to_wait_holds_up_no_other_reader() -> None:
    """The append returns; the reader's task goes on with it, and with what has come meanwhile in one piece."""
    stream = make_stream()
    async with reading(stream) as client:
        client.gate = asyncio.Event()
        deliver(stream, b"one")
        write(stream, b"two")
        write(stream, b"three")
        assert client.taken == []
        client.gate.set()
        await settle()
        assert client.taken == [b"one", b"twothree"]
        assert set(client.tasks) == {client.task}


async def test_more_than_a_block_is_delivered_to_the_end() -> None:
    """Of what has piled up, one piece goes with the append and the task does the rest."""
    stream = make_stream()
    async with reading(stream) as client:
        fanout(stream).is_due = True
        for number in range(10):
            write(stream, bytes([number]) * 30_000)
        flush(stream)
        await settle()
        assert b"".join(client.taken) == b"".join(bytes([number]) * 30_000 for number in range(10))


@pytest.mark.parametrize("is_live", [True, False])
async def test_a_large_event_is_sent_in_pieces_that_a_slow_client_takes_in_time(is_live: bool) -> None:
    """Of a whole one, it would have to take 4 MiB within `stall_timeout`; and an event is not resumed from within."""
    stream = make_stream(head=EVENTS)
    event = b"data: " + b"x" * 800_000
    async with reading(stream) as client:
        for start in range(0, len(event), stream.piece):
            write(stream, event[start : start + stream.piece])
        write(stream, b"\n\n")
        async with reading(stream) as late:
            await settle()
            taken = client.taken if is_live else late.taken
            assert b"".join(taken).startswith(event)
            assert max(map(len, taken)) == MAX_SEND


async def test_readers_that_keep_up_share_what_they_are_given() -> None:
    """A thousand of them cost no copy: not of an event that goes out alone, nor of those that piled up."""
    stream = make_stream()
    async with reading(stream) as first, reading(stream) as second:
        deliver(stream, b"one")
        write(stream, b"two")
        deliver(stream, b"three")
        assert first.taken == [b"one", b"twothree"]
        assert all(mine is other for mine, other in zip(first.taken, second.taken, strict=True))


async def test_a_reader_that_is_further_behind_gets_what_it_has_not_had() -> None:
    """Not only what others get."""
    stream = make_stream()
    async with reading(stream) as fast, reading(stream) as slow:
        slow.gate = asyncio.Event()
        deliver(stream, b"one")
        deliver(stream, b"two")
        slow.gate.set()
        slow.gate = None
        await settle()
        deliver(stream, b"three")
        assert b"".join(fast.taken) == b"".join(slow.taken) == b"onetwothree"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from([8, 8, 8, 12])),
        st.tuples(st.sampled_from(["hold", "let go"]), st.integers(0, 3)),
        st.just(("pulse", 0)),
        st.just(("turns", 0)),
    ),
    max_size=60,
)


@given(STEPS, st.sampled_from([16, 32, 1 << 16]))
@example([("hold", 0), ("write", 8), ("write", 8), ("let go", 0), ("turns", 0), ("write", 8), ("pulse", 0)], 16)
def test_every_reader_gets_every_byte_in_order(steps: list[tuple[str, int]], block_size: int) -> None:
    """However they fall behind and catch up, and wherever the log's blocks end."""

    async def play() -> None:
        stream = make_stream()
        stream.log.block_size = block_size
        clients = [Client(stream) for _ in range(4)]
        gates = [asyncio.Event() for _ in clients]
        await settle(3)
        written = 0
        for step, argument in steps:
            if step == "write":
                write(stream, bytes((written + n) % 251 for n in range(argument)))
                written += argument
            elif step == "hold" and clients[argument].gate is None:
                gates[argument] = clients[argument].gate = asyncio.Event()
            elif step == "let go":
                clients[argument].gate = None
                gates[argument].set()
            elif step == "pulse" and fanout(stream).is_due:
                flush(stream)
            elif step == "turns":
                await settle(3)
        for client, gate in zip(clients, gates, strict=True):
            client.gate = None
            gate.set()
        stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
        for client in clients:
            assert await bounded(client.task) is Reading.FINISHED
            assert b"".join(client.taken) == bytes(n % 251 for n in range(written))

    asyncio.run(play())


async def test_a_delivery_that_appends_to_its_own_stream_delivers_that_too() -> None:
    """After, not within, itself: in order."""
    stream = make_stream()
    async with reading(stream) as client:

        def append_once() -> None:
            client.on_take = lambda: None
            fanout(stream)._quiet_until = 0.0
            write(stream, b"two")

        client.on_take = append_once
        write(stream, b"one")
        await settle()
        assert client.taken == [b"one", b"two"]


async def test_a_failure_of_a_delivery_ends_that_reader_alone() -> None:
    """The append does not raise it, and other readers have what was appended."""
    stream = make_stream()
    async with reading(stream) as broken, reading(stream) as whole:
        broken.failure = OSError("gone")
        deliver(stream, b"one")
        assert whole.taken == [b"one"]
        with pytest.raises(OSError, match="gone"):
            await bounded(broken.task)
        deliver(stream, b"two")
        assert whole.taken == [b"one", b"two"]


async def test_a_client_that_leaves_within_a_delivery_has_left() -> None:
    """Its reader's task ends."""
    stream = make_stream()
    async with reading(stream) as client:
        client.on_take = client.reader.leave
        deliver(stream, b"one")
        assert await bounded(client.task) is Reading.LEFT


async def test_a_client_that_leaves_with_the_end_of_the_body_has_everything() -> None:
    """Servers report a disconnect once a response is complete."""
    stream = make_stream()
    write(stream, b"one")
    stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
    client = Client(stream)
    client.on_take = client.reader.leave
    assert await bounded(client.task) is Reading.FINISHED
    assert client.taken == [b"one"]
    assert client.reader.has_sent_end


async def test_a_stream_that_ends_within_a_delivery_has_ended() -> None:
    """For its reader too."""
    stream = make_stream()
    async with reading(stream) as client:
        client.on_take = lambda: stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
        deliver(stream, b"one")
        assert await bounded(client.task) is Reading.FINISHED


async def test_a_stream_that_fails_within_a_delivery_sends_its_reader_away() -> None:
    """As lost, with the reason."""
    stream = make_stream()
    failure = StoreUnavailable("gone")
    async with reading(stream) as client:
        client.on_take = lambda: fail(stream, failure)
        deliver(stream, b"one")
        assert await bounded(client.task) is Reading.LOST
        assert client.reader.failure is failure


async def test_a_delivery_that_is_stuck_is_given_up_on_in_time() -> None:
    """Although it was not the reader's task that began it."""
    stream = make_stream()
    async with reading(stream, stall_timeout=0.05) as client:
        client.gate = asyncio.Event()
        deliver(stream, b"one")
        assert await bounded(client.task) is Reading.STALLED
        assert client.taken == []


async def test_a_cancellation_between_a_delivery_and_its_taking_over_ends_the_delivery() -> None:
    """The task is cancelled in the same turn in which the append has begun what has to wait."""
    stream = make_stream()
    async with reading(stream) as client:
        client.gate = asyncio.Event()
        deliver(stream, b"one")
        client.task.cancel()
        await bounded(asyncio.wait({client.task}))
        assert client.task.cancelled()
        assert client.taken == []


async def test_a_reader_that_goes_on_when_cancelled_still_delivers() -> None:
    """As at a shutdown: the rest is delivered, and the cancellation raised by whoever awaits the reading."""
    stream = make_stream()
    client = Client(stream, drain_on_cancel=lambda: True)
    await settle()
    client.task.cancel()
    await settle()
    write(stream, b"one")
    stream.end(ResumableStatus.COMPLETED, "", "", 1.0)
    with pytest.raises(asyncio.CancelledError):
        await bounded(client.task)
    assert client.taken == [b"one"]


async def test_a_producer_that_waits_for_room_goes_on_when_a_delivery_makes_it() -> None:
    """Also where the reader has been waiting for the end of a pulse."""
    stream = make_stream(bound=1000)
    async with reading(stream) as client:
        deliver(stream, b"x" * 400)
        write(stream, b"y" * 400)
        assert client.taken == [b"x" * 400]
        await bounded(stream.wait_for_room(900))
        assert client.taken == [b"x" * 400, b"y" * 400]
