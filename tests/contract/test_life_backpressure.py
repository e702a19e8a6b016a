"""Backpressure: a reader is waited for while it reads, never for ever, and never at the cost of memory."""

import asyncio
import hashlib
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from tests.support.asgi import LIMIT, Client, Exchange, bounded, data_of, parse_events, running, settle, until
from tests.support.life_apps import ID, make
from tests.support.params import representatives

KIB = 1024
BOUND = 64 * KIB
SLACK = 32 * KIB
"""What may be on its way beside the bound: an event being written, a piece being sent."""


class Tap:
    """A producer that runs as fast as it is let, and counts."""

    def __init__(self, pieces: list[bytes] | None = None, **settings: Any) -> None:
        self.produced = 0
        self.done = asyncio.Event()
        self.pieces = pieces if pieces is not None else [b"%07d\n" % n * 128 for n in range(1024)]  # 1 MiB
        self.resumable = resumable = make(**{"max_stream_bytes": BOUND, "stall_timeout": 600.0} | settings)
        app = self.app = FastAPI()
        app.include_router(resumable.router)

        @app.post("/chat")
        @resumable.stream
        async def chat(media_type: str = "text/plain") -> Any:
            return StreamingResponse(self.run(), media_type=media_type)

    async def run(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                yield piece
                self.produced += len(piece)
        finally:
            self.done.set()

    def hold_at(self, count: int) -> asyncio.Event:
        """Let it wait, after that many pieces, for the event that is returned."""
        gate = asyncio.Event()
        run = self.run

        async def gated() -> AsyncIterator[bytes]:
            produced = 0
            async for piece in run():
                if produced == count:
                    await gate.wait()
                yield piece
                produced += 1

        self.run = gated  # type: ignore[method-assign]
        return gate

    @property
    def whole(self) -> bytes:
        return b"".join(self.pieces)

    def start(self, client: Client, media_type: str = "text/plain") -> Exchange:
        return client.start("POST", f"/chat?media_type={media_type}", headers={ID: "chat-1"})

    async def at_rest(self) -> int:
        """How much has been produced once the producer has come to wait."""
        before = -1
        while before != self.produced:
            before = self.produced
            await settle(200)
        return before

    async def dropped(self, client: Client) -> int:
        """The earliest offset that can be read."""
        reply = await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})
        return int(reply.json()[0]["dropped_bytes"])

    async def kept(self, client: Client) -> int:
        """How many bytes the log holds."""
        reply = await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})
        item = reply.json()[0]
        return int(item["total_bytes"] - item["dropped_bytes"])


async def stalled(exchange: Exchange) -> Exchange:
    """A reader that has taken the head and stops there, or little further on."""
    await exchange.head()
    exchange.stall()
    return exchange


async def test_a_reader_that_does_not_even_take_the_head_is_disconnected() -> None:
    """A socket may be full before the first byte of the response."""
    tap = Tap(stall_timeout=0.05)
    async with running(tap.app) as client:
        exchange = tap.start(client)
        exchange.stall()
        await bounded(tap.done.wait(), "the producer's end")
    assert tap.produced == len(tap.whole)


async def test_a_producer_waits_for_its_only_reader_at_the_bound() -> None:
    """It runs ahead by the log's bound, then waits; nothing is lost when the reader reads on."""
    tap = Tap()
    async with running(tap.app) as client:
        exchange = tap.start(client)
        exchange.stall()
        await until(lambda: tap.produced > 0, "a first piece")
        ahead = await tap.at_rest()
        exchange.resume()
        body = await exchange.rest()
    assert BOUND // 4 <= ahead <= BOUND + SLACK
    assert exchange.clean
    assert body == tap.whole


async def test_a_producer_waits_for_the_slowest_of_its_readers() -> None:
    """A fast reader gets no further ahead of a slow one than the bound, and neither loses a byte."""
    tap = Tap()
    async with running(tap.app) as client:
        fast = await stalled(tap.start(client))
        await tap.at_rest()
        dropped = await tap.dropped(client)
        slow = await stalled(client.start("GET", f"/v1/stream/chat-1?from={dropped}"))
        before = dropped + slow.received_bytes
        fast.resume()
        ahead = await tap.at_rest()
        read = fast.received_bytes
        slow.resume()
        bodies = [await fast.rest(), await slow.rest()]
    assert ahead <= before + BOUND + SLACK
    assert read <= before + BOUND + SLACK
    assert before < len(tap.whole)
    assert bodies[0] == tap.whole
    assert bodies[1] == tap.whole[dropped:]
    assert fast.clean
    assert slow.clean


async def test_a_producer_waits_at_the_bound_in_an_event_stream_too() -> None:
    """The same with events and their ids."""
    tap = Tap([b"data: %07d\n\n" % n for n in range(20_000)])
    async with running(tap.app) as client:
        exchange = tap.start(client, "text/event-stream")
        exchange.stall()
        await until(lambda: tap.produced > 0, "a first piece")
        ahead = await tap.at_rest()
        exchange.resume()
        body = await exchange.rest()
    assert ahead <= BOUND + SLACK
    assert data_of(body) == [f"{n:07d}" for n in range(20_000)]


async def test_a_reader_that_leaves_is_no_longer_waited_for() -> None:
    """The producer stood at the bound for it; now it goes on to its end."""
    tap = Tap()
    async with running(tap.app) as client:
        exchange = await stalled(tap.start(client))
        await tap.at_rest()
        exchange.disconnect()
        await bounded(tap.done.wait(), "the producer's end")
        kept = await tap.kept(client)
    assert tap.produced == len(tap.whole)
    assert kept <= BOUND + SLACK


async def test_with_no_reader_the_producer_runs_free_and_the_newest_bytes_are_kept() -> None:
    """Nobody reads: nobody is waited for, and the log is its own last `max_stream_bytes`."""
    tap = Tap()
    async with running(tap.app) as client:
        exchange = tap.start(client)
        exchange.stall()
        exchange.disconnect()
        await bounded(tap.done.wait(), "the producer's end")
        await exchange.served()
        kept = await tap.kept(client)
        tail = await client.get(f"/v1/stream/chat-1?from={len(tap.whole) - 1000}")
        oldest = await client.get(f"/v1/stream/chat-1?from={len(tap.whole) - kept}")
        lost = await client.get("/v1/stream/chat-1?from=0")
    assert BOUND // 2 <= kept <= BOUND + SLACK
    assert tail.body == tap.whole[-1000:]
    assert oldest.body == tap.whole[-kept:]
    assert (lost.status, lost.code) == (400, "offset_lost")


async def test_a_stalled_reader_is_disconnected_and_never_sees_a_clean_end() -> None:
    """After `stall_timeout` without progress the producer goes on; the reader, should it wake, learns of its loss."""
    tap = Tap(stall_timeout=0.05)
    async with running(tap.app) as client:
        exchange = await stalled(tap.start(client))
        await bounded(tap.done.wait(), "the producer's end")
        exchange.resume()
        body = await exchange.rest()
        kept = await tap.kept(client)
    assert tap.produced == len(tap.whole)
    assert tap.whole.startswith(body)
    assert len(body) < len(tap.whole)
    assert not exchange.clean
    assert kept <= BOUND + SLACK


async def test_a_stalled_reader_of_an_event_stream_gets_an_error() -> None:
    """Its response has no silent gap: a prefix of the stream, then `offset_lost` or an unclean close."""
    tap = Tap([b"data: %07d\n\n" % n for n in range(20_000)], stall_timeout=0.05)
    async with running(tap.app) as client:
        exchange = await stalled(tap.start(client, "text/event-stream"))
        await bounded(tap.done.wait(), "the producer's end")
        exchange.resume()
        body = await exchange.rest()
    events = parse_events(body)
    numbers = [event.data for event in events if event.event == "message"]
    assert numbers == [f"{n:07d}" for n in range(len(numbers))]
    assert len(numbers) < 20_000
    if exchange.clean:
        assert events[-1].event == "error"
        assert events[-1].json()["code"] == "offset_lost"


async def test_other_readers_do_not_wait_for_a_stalled_one_that_was_disconnected() -> None:
    """One phone in a tunnel costs the others at most `stall_timeout`."""
    tap = Tap(stall_timeout=0.05)
    go = tap.hold_at(512)
    async with running(tap.app) as client:
        good = tap.start(client)
        await until(lambda: tap.produced == 512 * KIB, "the first half")
        bad = await stalled(client.start("GET", f"/v1/stream/chat-1?from={await tap.dropped(client)}"))
        assert (await bad.head()).status == 200
        go.set()
        body = await good.rest()
    assert good.clean
    assert body == tap.whole


async def test_a_slow_reader_that_makes_progress_stays_connected() -> None:
    """Read in small sips, each sip within `stall_timeout`: it gets every byte."""
    tap = Tap(stall_timeout=60.0)
    async with running(tap.app) as client:
        exchange = tap.start(client)
        sips = 0
        body = b""
        while not exchange.over:
            exchange.stall()
            await settle(5)
            exchange.resume()
            sips += 1
            body += await exchange.read()
        body += await exchange.rest()
    assert sips > 3
    assert exchange.clean
    assert body == tap.whole


async def test_a_stalled_first_reader_does_not_hold_the_end_up() -> None:
    """`DELETE` reaches a producer that waits at the bound for a reader that does not read."""
    tap = Tap()
    async with running(tap.app) as client:
        exchange = await stalled(tap.start(client))
        await tap.at_rest()
        stopped = await client.delete("/v1/stream/chat-1")
        await bounded(tap.done.wait(), "the producer's end")
        exchange.resume()
        await exchange.rest()
    assert stopped.status == 204
    assert tap.produced < len(tap.whole)
    assert not exchange.clean


@pytest.mark.parametrize("attached", [True, False])
async def test_a_chunk_of_100_mb_passes_through_a_log_of_4_mib(attached: bool) -> None:
    """An attached reader gets every byte; with none, the newest bytes stay. The log holds no more than its bound."""
    size = 100 * KIB * KIB
    chunk = bytes(range(256)) * (size // 256)
    tap = Tap([chunk], max_stream_bytes=4 * KIB * KIB)
    async with running(tap.app) as client:
        exchange = tap.start(client)
        if not attached:
            exchange.disconnect()
        digest = hashlib.sha256()
        total = 0
        while attached and (piece := await exchange.read()):
            digest.update(piece)
            total += len(piece)
            exchange.messages.clear()
        await bounded(tap.done.wait(), "the producer's end")
        await exchange.served()
        kept = await tap.kept(client)
        tail = await client.get(f"/v1/stream/chat-1?from={size - 10}")
    assert kept <= 4 * KIB * KIB + SLACK
    assert tail.body == chunk[-10:]
    if attached:
        assert total == size
        assert digest.digest() == hashlib.sha256(chunk).digest()
        assert exchange.clean


def resident() -> int:
    """Bytes of memory that this process holds at this moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.parametrize("reader", representatives(["none", "attached", "stalled"], "stalled".__eq__))
async def test_a_million_events_cost_bounded_memory(reader: str) -> None:
    """Small events without end: what is held at any time is the log's bound, whoever reads."""
    count, batch = 1_000_000, 500
    sizes: list[int] = []
    objects: list[int] = []

    class Endless(Tap):
        async def run(self) -> AsyncIterator[bytes]:
            try:
                for start in range(0, count, batch):
                    yield b"".join([b"data: %d\n\n" % n for n in range(start, start + batch)])
                    self.produced += batch
                    if start % 100_000 == 0:
                        sizes.append(resident())
                        objects.append(sys.getallocatedblocks())
            finally:
                self.done.set()

    tap = Endless([], max_stream_bytes=256 * KIB, stall_timeout=0.05)
    async with running(tap.app) as client:
        exchange = tap.start(client, "text/event-stream")
        exchange.count_only()
        if reader == "stalled":
            await stalled(exchange)
        if reader == "none":
            exchange.disconnect()
        async with asyncio.timeout(3 * LIMIT):
            await tap.done.wait()
        exchange.resume()
        await exchange.served()
        kept = await tap.kept(client)
    assert tap.produced == count
    assert kept <= 256 * KIB + SLACK
    assert max(sizes[1:]) - sizes[1] < 16 * KIB * KIB
    assert max(objects[1:]) - objects[1] < 20_000
    if reader == "attached":
        assert exchange.clean
        assert exchange.received_bytes > count * 8


async def test_an_event_that_never_ends_is_bounded() -> None:
    """A "line" without end does not fill the memory, and an attached reader gets it all the same."""
    pieces = [b"data: ", *([b"=" * KIB] * 512), b"\n\n"]
    tap = Tap(pieces)
    async with running(tap.app) as client:
        exchange = tap.start(client, "text/event-stream")
        body = await exchange.rest()
        kept = await tap.kept(client)
    assert exchange.clean
    assert body.startswith(b"data: ===")
    assert body.count(b"=") == 512 * KIB
    assert kept <= BOUND + SLACK


async def test_a_reader_that_comes_late_starts_at_the_oldest_byte_and_reads_to_the_end() -> None:
    """From `dropped_bytes` on, live, while the producer goes on."""
    tap = Tap()
    gate = tap.hold_at(512)
    async with running(tap.app) as client:
        first = tap.start(client)
        first.disconnect()
        await until(lambda: tap.produced == 512 * KIB, "the first half")
        await settle()
        dropped = await tap.dropped(client)
        late = client.start("GET", f"/v1/stream/chat-1?from={dropped}")
        await late.head()
        gate.set()
        body = await late.rest()
    assert dropped > 0
    assert body == tap.whole[dropped:]
    assert late.clean


class FromTwoTasks(StreamingResponse):
    """Sends events by one task and comments by another, as sse-starlette does its keep-alives."""

    def __init__(self, event: bytes, comments: asyncio.Event) -> None:
        super().__init__((), media_type="text/event-stream")
        self.event = event
        self.comments = comments

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send."""

        async def parts(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        async def comment() -> None:
            await self.comments.wait()
            await parts(b": ping\r\n\r\n")

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(comment())
            for _ in range(8):
                await parts(self.event)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.mark.parametrize("size", [1 * KIB, 40 * KIB])
async def test_an_application_may_send_from_several_tasks_while_a_reader_is_behind(size: int) -> None:
    """Each of its parts is recorded whole, however large, and each task goes on when the reader does."""
    resumable = make(max_stream_bytes=4 * size, stall_timeout=600.0)
    app, comments = FastAPI(), asyncio.Event()
    event = b"data: " + b"x" * size + b"\n\n"

    @app.post("/chat")
    @resumable.stream
    async def chat() -> Any:
        return FromTwoTasks(event, comments)

    async with running(app) as client:
        exchange = client.start("POST", "/chat", headers={ID: "chat-1"})
        await stalled(exchange)
        await settle(500)
        comments.set()
        await settle(500)
        exchange.resume()
        body = await exchange.rest()
    assert data_of(body) == ["x" * size] * 8
    assert body.count(b": ping\r\n") == 1
