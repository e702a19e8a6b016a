"""What the tests of the suite act with: requests that begin streams, readers that follow them, events to write."""

import asyncio
import json
import math
import random
import re
import secrets
import types
from collections.abc import AsyncIterator, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, TypeVar

from fastapi_resumable._core.ids import EPOCH_BYTES, StreamKey, format_epoch
from fastapi_resumable._core.lifecycle import OnConflict
from fastapi_resumable._core.sse import events
from fastapi_resumable._stream.reader import Message, Reader, Reading
from fastapi_resumable._stream.stream import Head, Stream, WritableStream
from fastapi_resumable.models import ResumableStatus
from fastapi_resumable.stores.base import Reservation, Store
from fastapi_resumable.stores.shared.local import LocalStream

KEY = StreamKey("ann", "chat")
EVENTS = Head(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))
TEXT = Head(200, ((b"content-type", b"text/plain"),))

T = TypeVar("T")

_ID_LINE = re.compile(rb"id: ([a-z2-7]{16})-([0-9]+)\n")


class Request:
    """A request that names a stream: its reservation, and what it is told."""

    def __init__(self, key: StreamKey = KEY, idempotency_key: str | None = None) -> None:
        self.codes: list[str] = []
        self.epoch = format_epoch(secrets.token_bytes(EPOCH_BYTES))
        self.reservation = Reservation(key, self.epoch, idempotency_key=idempotency_key, on_stop=self._on_stop)
        self._stopped = asyncio.Event()
        self._queued = False

    def _on_stop(self, code: str) -> None:
        self.codes.append(code)
        self._stopped.set()

    async def told(self) -> str:
        """Wait to be told to stop."""
        await self._stopped.wait()
        return self.codes[0]

    async def reserve(self, store: Store, rule: OnConflict = "replace") -> "Request":
        """Queue it, where nothing is to be followed instead."""
        assert await store.reserve(self.reservation, rule) is None
        self._queued = True
        return self

    async def begin(self, store: Store, head: Head = EVENTS) -> WritableStream:
        """Begin the stream; queue it before, unless it is."""
        if not self._queued:
            await self.reserve(store)
        return await store.begin(self.reservation, head)


async def begin(store: Store, key: StreamKey = KEY, head: Head = EVENTS) -> WritableStream:
    """Begin a stream that nobody is going to stop."""
    return await Request(key).begin(store, head)


async def write(stream: WritableStream, *chunks: bytes) -> None:
    """Write as a producer does: piece by piece, and each waits for the room it needs."""
    for chunk in chunks:
        for start in range(0, len(chunk), stream.piece):
            piece = chunk[start : start + stream.piece]
            while not stream.offer(piece, monotonic()):
                assert not stream.closed
                await stream.wait_for_room(len(piece))


async def known_to_have_readers(stream: WritableStream) -> None:
    """Wait until the producer's worker knows of a reader elsewhere, which it hears of soon after that has begun."""
    if isinstance(stream, LocalStream):
        while await stream.backend.slowest_reader(stream) == math.inf:
            pass


async def complete(store: Store, stream: WritableStream) -> None:
    """End a stream in order."""
    await store.finish(stream, ResumableStatus.COMPLETED, "", "")


async def written(store: Store, *chunks: bytes, key: StreamKey = KEY, head: Head = EVENTS) -> WritableStream:
    """A finished stream of `chunks`."""
    stream = await begin(store, key, head)
    await write(stream, *chunks)
    await complete(store, stream)
    return stream


@types.coroutine
def in_turn(call: Coroutine[Any, Any, T], turn: asyncio.Event) -> Generator[Any, Any, T]:
    """Run `call`, which goes on, whenever it has waited, only when `turn` is set."""
    error: BaseException | None = None
    while True:
        try:
            awaited = call.send(None) if error is None else call.throw(error)
        except StopIteration as done:
            result: T = done.value
            return result
        error = None
        try:
            yield awaited
        except BaseException as exc:  # it is the call's to handle
            error = exc
        while not turn.is_set():
            try:
                yield from turn.wait().__await__()
            except BaseException as exc:
                error = exc


class Follower:
    """A client that follows a stream, and keeps what it is sent."""

    def __init__(self, stream: Stream, offset: int) -> None:
        self.data = b""
        self.pace: asyncio.Event | None = None
        """What it waits for before it takes anything."""
        self._reader = Reader(stream, offset, stall_timeout=60.0, drain_on_cancel=lambda: False)
        self._grown = asyncio.Event()
        self._task = asyncio.ensure_future(self._reader.run(self._send, {}))
        self._task.add_done_callback(lambda _: self._grown.set())

    async def _send(self, message: Message) -> None:
        if message and self.pace is not None:
            await self.pace.wait()
        self.data += message.get("body", b"")
        self._grown.set()

    async def reach(self, size: int) -> bytes:
        """Wait for so many bytes."""
        while len(self.data) < size:
            assert not self._task.done(), f"the stream ended after {len(self.data)} of {size} bytes"
            self._grown.clear()
            await self._grown.wait()
        return self.data

    async def events(self, count: int) -> bytes:
        """Wait for so many whole events."""
        while self.data.count(b"\n\n") < count or not self.data.endswith(b"\n\n"):
            await self.reach(len(self.data) + 1)
        return self.data

    async def end(self) -> bytes:
        """Read to the end."""
        assert await asyncio.shield(self._task) is Reading.FINISHED
        return self.data

    async def outcome(self) -> Reading:
        """How the reading ended."""
        return await asyncio.shield(self._task)

    async def leave(self) -> None:
        """Hang up."""
        self._reader.leave()
        if self.pace is not None:
            self.pace.set()
        await asyncio.wait({self._task})


@asynccontextmanager
async def following(stream: Stream, offset: int = 0) -> AsyncIterator[Follower]:
    """Follow a stream within a block."""
    follower = Follower(stream, offset)
    try:
        yield follower
    finally:
        await follower.leave()


async def content(stream: Stream, offset: int = 0) -> bytes:
    """All bytes of a stream from `offset` to its end."""
    async with following(stream, offset) as follower:
        return await follower.end()


def fields(event: bytes) -> dict[str, str]:
    """The fields of an event."""
    lines = [line for line in event.decode().splitlines() if line and not line.startswith(":")]
    return {name: value.removeprefix(" ") for name, _, value in (line.partition(":") for line in lines)}


def terminal(data: bytes) -> tuple[str, str]:
    """The type and the code of the last event in `data`."""
    last = fields(list(events([data]))[-1])
    return last.get("event", "message"), json.loads(last["data"])["code"]


def places(data: bytes, epoch: str) -> list[int]:
    """The position after each event that has an id of the epoch; an id that names another place is an error."""
    found = []
    for match in _ID_LINE.finditer(data):
        assert match[1].decode() == epoch
        assert int(match[2]) == match.end() + 1
        found.append(int(match[2]))
    return found


def without_ids(data: bytes) -> bytes:
    """The events as the application sent them."""
    return _ID_LINE.sub(b"", data)


def some_events(count: int, seed: int = 1) -> list[bytes]:
    """Events of various shapes, the same each time."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        kind = rng.choice([b"", b"event: token\n", b": a comment\n", b"retry: 1000\n"])
        lines = [rng.choice(["word", "naïve ☕ 😀", "x" * rng.randrange(200), ""]) for _ in range(rng.randint(1, 3))]
        made.append(kind + b"".join(f"data: {number} {line}\n".encode() for line in lines) + b"\n")
    return made


def cut(data: bytes, seed: int = 1, largest: int = 400) -> list[bytes]:
    """`data` in chunks that end anywhere."""
    rng = random.Random(seed)
    chunks = []
    while data:
        size = rng.randint(1, largest)
        chunks.append(data[:size])
        data = data[size:]
    return chunks


def sample(values: Sequence[Any], count: int, seed: int = 1) -> list[Any]:
    """Some of the values, with the first and the last among them."""
    rng = random.Random(seed)
    return [values[0], values[-1], *rng.sample(list(values), min(count, len(values)))]
