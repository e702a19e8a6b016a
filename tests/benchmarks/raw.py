"""The floor: a socket server without HTTP or a framework, which does the least that a silent stream needs.

It answers every request with one event, and then writes a ping to each connection, those that are due in one turn.
"""

import asyncio
import time
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nb\r\ndata: one\n\n\r\n"
PING = b"7\r\n: ping\n\r\n"
ALIVE = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
STEPS = 64
"""Into how many turns the pings of an interval are divided."""


async def serve(port: int, ping: float) -> None:
    """Serve until killed."""
    live: list[asyncio.Transport] = []

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if data.startswith(b"GET /alive"):
                self.transport.write(ALIVE)
            else:
                self.transport.write(HEAD)
                live.append(self.transport)

    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    print(f"Uvicorn running on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    begun = time.monotonic()
    step = 0
    while True:
        step += 1
        await asyncio.sleep(max(0.0, begun + step * ping / STEPS - time.monotonic()))
        for transport in live[step % STEPS :: STEPS]:
            transport.write(PING)
