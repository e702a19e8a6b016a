"""A bad line: a TCP proxy on 127.0.0.1 that cuts connections at random bytes of what the server sends.

    with CuttingProxy(server.port, seed=7, cuts=200) as line:
        httpx.get(f"http://127.0.0.1:{line.port}/events")

It runs in a thread of its own, for synchronous tests, asynchronous ones and clients in other processes alike. Where a
connection is cut, and whether by FIN or RST, follows from the seed and from how many connections came before it. For
black holes, latency and cuts at a chosen moment there is `tests.support.faults`.
"""

import asyncio
import random
import socket
import struct
import threading
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
DEADLINE = 10.0
"""Seconds that the thread may take to stop: a bound, not an expectation."""
PIECE = 65536


class CuttingProxy:
    """Passes TCP connections on to `target_port`, and cuts them.

    Args:
        target_port: The server, on 127.0.0.1.
        seed: What all randomness follows from.
        cuts: How many connections to cut; after that, everything passes.
        least: At the earliest after so many bytes of a connection's response bodies; chunk sizes count.
        most: At the latest after so many.
        heads: Whether all bytes of the server count, so that a cut may fall within a response's head. For what is not
            HTTP, they must.
    """

    def __init__(
        self,
        target_port: int,
        *,
        seed: int = 0,
        cuts: int = 200,
        least: int = 1,
        most: int = 1000,
        heads: bool = False,
    ) -> None:
        self.target_port = target_port
        self.heads = heads
        self.cuts = 0
        """How many connections have been cut so far."""
        self.resets = 0
        """How many of them by RST."""
        self.connections = 0
        """How many connections have been accepted."""
        self.passed = 0
        """How many bytes have come through since the last cut, of those that count."""
        self._limit = cuts
        self._range = (least, most)
        self._random = random.Random(seed)
        self._open: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server((HOST, 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True, name="cutting proxy")

    @property
    def spent(self) -> bool:
        """Whether all cuts have been made."""
        return self.cuts >= self._limit

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the proxy does not stop"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            server = runner.run(asyncio.start_server(self._accept, sock=self._listener))
            self._loop.run_forever()
            self._loop.remove_reader(self._listener)  # first: a server that closes drops whom it has just accepted
            runner.run(end_all_tasks())
            server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Drawn for each connection, cut or not, so that what the third one meets is the same in every run.
        after, reset = self._random.randint(*self._range), self._random.random() < 0.5
        self.connections += 1
        connection = _Connection(self, reader, writer, after, reset)
        # A task that waits for a connection which reads nothing more is held by nobody else, and would be collected.
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await connection.run()
        except* OSError:
            connection.end(reset=True)
        finally:
            self._tasks.discard(task)
            connection.end(reset=False)


async def end_all_tasks() -> None:
    """Cancel all tasks of the loop but this one, those of connections included that were accepted a moment ago.

    Such a connection gets its task some turns later, when nobody else would cancel it any more, and closes its socket
    only if it has begun. What is left open spoils whichever test the garbage collector runs in.
    """
    while True:
        for _ in range(10):
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class _Connection:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(
        self, proxy: CuttingProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, after: int, reset: bool
    ) -> None:
        self._proxy = proxy
        self._client = reader, writer
        self._writers = [writer]
        self._after = after
        self._reset = reset
        self._asked = False
        self._head: bytes | None = None
        """What has come of the head of a response; none, while its body comes."""

    async def run(self) -> None:
        """Pass on what comes, either way, until both sides have finished or the connection is cut."""
        client_reader, client_writer = self._client
        server_reader, server_writer = await asyncio.open_connection(HOST, self._proxy.target_port)
        self._writers.append(server_writer)
        for writer in self._writers:
            writer.transport.set_write_buffer_limits(0)  # `drain` returns when the system has all of it
        async with asyncio.TaskGroup() as group:
            requests = group.create_task(self._pass_requests(client_reader, server_writer))
            await self._pass_responses(server_reader, client_writer)
            if client_writer.is_closing():
                requests.cancel()

    def end(self, *, reset: bool) -> None:
        """End the client's connection by RST or FIN, and then the server's."""
        client, *server = self._writers
        if reset and not client.is_closing():
            raw = client.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.transport.abort()
        client.close()
        for writer in server:
            writer.transport.abort()

    async def _pass_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            self._asked = True
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async def _pass_responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(PIECE):
            count = len(piece) if self._proxy.heads else self._count_body(piece)
            cut = 0 < count >= self._after and not self._proxy.spent
            writer.write(piece[: len(piece) - count + self._after] if cut else piece)
            await writer.drain()
            self._after -= count
            self._proxy.passed += count
            if cut:
                self._proxy.cuts += 1
                self._proxy.resets += self._reset
                self._proxy.passed = 0
                self.end(reset=self._reset)
                return
        writer.write_eof()

    def _count_body(self, piece: bytes) -> int:
        """How many bytes of `piece`, all at its end, belong to a body."""
        # Not every request is a new one: a server may answer before it has had all of the last.
        if self._asked and piece.startswith(b"HTTP/1."):
            self._head = b""
        self._asked = False
        if self._head is None:
            return len(piece)
        self._head += piece
        _head, blank, body = self._head.partition(b"\r\n\r\n")
        if not blank:
            return 0
        self._head = None
        return len(body)
