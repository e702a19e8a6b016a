"""A TCP proxy that breaks what goes through it: in a thread of its own, so a test's event loop may be busy.

with FaultyLink(redis.port) as link:
    link.port              # connect here
    link.cut()             # every connection is reset, now
    link.latency = 0.2     # seconds added to each direction
    link.hold()            # a black hole: taken, never passed on; until `release`
    link.hold("answers")   # requests arrive, answers do not
    link.refuse()          # nobody listens; until `accept`
    link.lead_to(port)     # the next connections go elsewhere
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self, TypeVar

from tests.support.cutting import end_all_tasks
from tests.support.server import HOST, free_port

T = TypeVar("T")


class FaultyLink:
    """Passes connections on to a port of this machine, for as long as it is told to."""

    def __init__(self, target: int) -> None:
        """Listen on a free port, on the way to `target`."""
        self.latency = 0.0
        self.port = free_port()
        self.accepted = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._requests_pass = asyncio.Event()
        self._answers_pass = asyncio.Event()
        self._cutter: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.release()
        self.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut_every(None)
        self.refuse()
        asyncio.run_coroutine_threadsafe(end_all_tasks(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(60)

    # What can happen.

    def accept(self) -> None:
        """Listen, on the same port as before."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)

    def refuse(self) -> None:
        """Listen no longer, and cut what there is."""
        if self._server is not None:
            self._call(self._server.close)
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        self._call(self._cut)

    def cut_every(self, seconds: float | None) -> None:
        """Reset every connection again and again; `None`: no longer."""
        if self._cutter is not None:
            self._call(self._cutter.cancel)
            self._cutter = None
        if seconds is not None:
            self._cutter = self._call(lambda: self._loop.create_task(self._cut_again(seconds)))

    def hold(self, what: Literal["everything", "answers"] = "everything") -> None:
        """Pass nothing on, and say nothing: as a network that drops its packets."""
        self._call(self._answers_pass.clear)
        if what == "everything":
            self._call(self._requests_pass.clear)

    def release(self) -> None:
        """Pass everything on, what was held first: as a network that is back, whose packets are sent again."""
        self._call(self._requests_pass.set)
        self._call(self._answers_pass.set)

    def lead_to(self, target: int) -> None:
        """Pass the next connections on to another port."""
        self._target = target

    # How.

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._take, HOST, self.port)

    def _cut(self) -> None:
        for pair in list(self._pairs):
            pair.cut()

    async def _cut_again(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._cut()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._pass_on(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        pair = _Pair(writer)
        self._pairs.add(pair)
        try:
            there, here = await asyncio.open_connection(HOST, self._target)
            pair.ends.append(here)
            await asyncio.gather(
                self._pump(reader, here, self._requests_pass), self._pump(there, writer, self._answers_pass)
            )
        except OSError:
            pass
        finally:
            self._pairs.discard(pair)
            pair.cut()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        """Pass on one direction; raises `ConnectionError` at its end, so that the other one ends with it."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def fill() -> None:
            data = b"more"
            while data:
                try:
                    data = await reader.read(65536)
                except OSError:
                    data = b""
                queue.put_nowait((self._loop.time() + self.latency, data))

        filling = self._loop.create_task(fill())
        try:
            while True:
                due, data = await queue.get()
                if (early := due - self._loop.time()) > 0:
                    await asyncio.sleep(early)
                await gate.wait()
                if not data:
                    raise ConnectionResetError
                writer.write(data)
                await writer.drain()
        finally:
            filling.cancel()


class _Pair:
    """Both ends of one connection."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.ends = [client]

    def cut(self) -> None:
        """Reset both."""
        for end in self.ends:
            raw: socket.socket = end.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()
