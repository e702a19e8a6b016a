"""How long a byte takes from a producer on worker A to a client of worker B.

    python -m tests.benchmarks.redis_latency --streams 200 --rate 50

Two real uvicorn processes on one real Redis, without a reader on A. Each event carries the time at which it was
yielded, by the clock that all processes of a machine share; the client takes its own when the bytes come out of the
socket. For comparison, the same with all clients on A.
"""

import argparse
import asyncio
import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic, monotonic_ns

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable
from tests.support.redis_server import RedisServer
from tests.support.server import HOST, Server


def build() -> FastAPI:
    """The application: one stream, at a steady pace."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)

    async def ticks(rate: float, seconds: float) -> AsyncIterator[bytes]:
        yield b": begun\n\n"
        start = monotonic() + 2 + random.random() / rate  # when the readers are there, and not all at once
        for number in range(int(rate * seconds)):
            await asyncio.sleep(start + number / rate - monotonic())
            yield b"data: %d\n\n" % monotonic_ns()

    @app.post("/ticks")
    @resumable.stream
    async def post_ticks(rate: float, seconds: float) -> StreamingResponse:
        return StreamingResponse(ticks(rate, seconds), media_type="text/event-stream")

    return app


class Client(asyncio.Protocol):
    """Sends one request, and takes the age of every event when it comes."""

    def __init__(self, request: str, ages: list[float]) -> None:
        self.over = asyncio.get_running_loop().create_future()
        self.got = 0
        self._request = request
        self._ages = ages
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"{self._request} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        # Without the lengths of the chunks of HTTP, which may stand within an event.
        data = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", self._rest + data)
        done = 0
        for match in re.finditer(rb"data: (\d+)\n", data):
            self.got += 1
            self._ages.append((now - int(match[1])) / 1e6)
            done = match.end()
        self._rest = data[done:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)


async def measure(producer: Server, reader: Server, streams: int, rate: float, seconds: float) -> list[float]:
    """The ages, in milliseconds, of all events."""
    loop = asyncio.get_running_loop()
    ages: list[float] = []
    following = []
    for number in range(streams):
        name = f"{monotonic_ns()}-{number}"
        begin = f"POST /ticks?rate={rate}&seconds={seconds}"
        headers = f"HTTP/1.1\r\nHost: {HOST}\r\nX-Conversation-Id: {name}\r\nPrefer: respond-async\r\nConnection: close"
        there, here = await asyncio.open_connection(HOST, producer.port)
        here.write(f"{begin} {headers}\r\n\r\n".encode())
        assert b" 202 " in (await there.read())[:20]
        here.close()
        _, client = await loop.create_connection(
            lambda name=name: Client(f"GET /v1/stream/{name}", ages), HOST, reader.port
        )
        following.append(client)
    async with asyncio.timeout(seconds + 20):
        await asyncio.gather(*(client.over for client in following))
    assert [client.got for client in following] == [int(rate * seconds)] * streams, "not every event has come"
    return ages


async def main(streams: int, rate: float, seconds: float) -> None:
    """Print the table."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "tests.benchmarks.redis_latency:build", "--host", HOST]
    with TemporaryDirectory() as folder, RedisServer(Path(folder)) as redis, ExitStack() as stack:
        servers = []
        for _ in range(2):
            server = Server([*command, "--port", "0", "--no-access-log"], {"FASTAPI_RESUMABLE_STORE": redis.url})
            stack.callback(server.kill)
            servers.append(server)
        for server in servers:
            server.wait_ready()
        one, other = servers
        print(f"{streams} streams, {rate:g} events/s each, {seconds:g} s; milliseconds from yield to client\n")
        print("reader on                  median      p99      max")
        for label, reader in (("another worker", other), ("the producer's worker", one)):
            ages = await measure(one, reader, streams, rate, seconds)
            p99 = quantiles(ages, n=100)[98]
            print(f"{label:<24} {median(ages):8.1f} {p99:8.1f} {max(ages):8.1f}   {len(ages)} events")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.redis_latency", description=main.__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0, help="events a second of each stream")
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    asyncio.run(main(options.streams, options.rate, options.seconds))
