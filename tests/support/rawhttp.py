"""HTTP/1.1 over a bare socket: send in pieces, read in pieces, and see how the other side ended the answer.

    async with await connect(port) as connection:
        await connection.request("GET", "/v1/stream/a")
        response = await connection.response()
        await response.read(10)      # ten bytes of the body, the chunked coding taken off
        connection.reset()           # a lift, a tunnel, a dead battery

Every wait is bounded by `TIMEOUT`.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.asgi import without_epochs

HOST = "127.0.0.1"
TIMEOUT = 60.0
"""Seconds that anything may take: a bound, not an expectation."""

Headers = Iterable[tuple[str, str | bytes]]


@dataclass
class Reply:
    """A whole answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    clean: bool
    """Whether the body ended as HTTP says it must, not merely because the socket closed."""

    def header(self, name: str) -> str | None:
        """The value of a header that may be there once; `None` if it is not there."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times: {values}"
        return values[0] if values else None

    def values(self, name: str) -> list[str]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key == name.lower()]


class Response(Reply):
    """An answer whose body is read bit by bit."""

    def __init__(self, connection: "Connection", status: int, headers: list[tuple[str, str]], *, bare: bool) -> None:
        """Read from `connection`, which stands right behind the head; `bare`: the answer has no body."""
        super().__init__(status, headers, b"", clean=bare)
        self.connection = connection
        self._reader = connection.reader
        self._ended = bare
        self._pending = bytearray()
        self._left = 0
        """Bytes that are still to come: of the chunk, or of the whole body if it has a length."""
        self._first_chunk = True
        length = self.header("content-length")
        self.chunked = (self.header("transfer-encoding") or "").lower() == "chunked"
        self.until_close = not bare and not self.chunked and length is None
        if length is not None and not self.chunked:
            self._left = int(length)

    async def read_some(self) -> bytes:
        """Whatever comes next of the body, at least one byte; `b""` once it has ended."""
        if not self._pending:
            async with asyncio.timeout(TIMEOUT):
                await self._fill()
        data = bytes(self._pending)
        self._pending.clear()
        self.body += data
        return data

    async def read(self, count: int) -> bytes:
        """Exactly `count` bytes of the body; fewer only if it ends before."""
        async with asyncio.timeout(TIMEOUT):
            while len(self._pending) < count and not self._ended:
                await self._fill()
        data = bytes(self._pending[:count])
        del self._pending[:count]
        self.body += data
        return data

    async def read_until(self, marker: bytes) -> bytes:
        """The body up to and with `marker`; an error if it ends before."""
        async with asyncio.timeout(TIMEOUT):
            while (found := without_epochs(self._pending).find(marker)) < 0:
                if self._ended:
                    raise AssertionError(f"the body ended without {marker!r}: {bytes(self._pending)!r}")
                await self._fill()
        return await self.read(found + len(marker))

    async def read_all(self) -> bytes:
        """The rest of the body; `clean` then says how it ended."""
        data = bytearray()
        while some := await self.read_some():
            data += some
        return bytes(data)

    async def _fill(self) -> None:
        """Add what has come to `_pending`, or note the end."""
        if self._ended:
            return
        try:
            if self.chunked and not self._left and not await self._next_chunk():
                return
            data = await self._reader.read(min(self._left, 65536) if not self.until_close else 65536)
        except (ConnectionError, asyncio.IncompleteReadError):
            self._ended = True
            return
        if not data:
            self._ended = True
            self.clean = self.until_close or (not self.chunked and not self._left)
            return
        self._pending += data
        self._left -= len(data)
        if not self.chunked and not self.until_close and not self._left:
            self._ended = self.clean = True

    async def _next_chunk(self) -> bool:
        if not self._first_chunk:
            await self._reader.readexactly(2)
        self._first_chunk = False
        line = await self._reader.readuntil(b"\r\n")
        self._left = int(line.split(b";")[0], 16)
        if self._left:
            return True
        while await self._reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
        self._ended = self.clean = True
        return False


@dataclass
class Connection:
    """One TCP connection to a server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    port: int
    _method: str = field(default="GET", init=False)

    async def send(self, *pieces: bytes) -> None:
        """Write the pieces one by one, each in its own packet."""
        for piece in pieces:
            self.writer.write(piece)
            async with asyncio.timeout(TIMEOUT):
                await self.writer.drain()

    async def request(self, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> None:
        """Send a request; `target` goes on the wire as it is, a `str` value of a header as UTF-8."""
        self._method = method
        await self.send(encode_request(method, target, headers, body, port=self.port))

    async def response(self) -> Response:
        """Read the head of the answer."""
        async with asyncio.timeout(TIMEOUT):
            head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head[:-4].split(b"\r\n")
        status = int(status_line.split(b" ", 2)[1])
        headers = []
        for line in lines:
            name, _, value = line.partition(b":")
            headers.append((name.decode("ascii").lower(), value.strip().decode("utf-8", "surrogateescape")))
        bare = self._method == "HEAD" or status in {204, 304}
        return Response(self, status, headers, bare=bare)

    def half_close(self) -> None:
        """Say that nothing more will be sent; go on reading."""
        self.writer.write_eof()

    def reset(self) -> None:
        """Close with a TCP reset, as a client that vanishes."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close in good order."""
        self.writer.close()
        try:
            async with asyncio.timeout(TIMEOUT):
                await self.writer.wait_closed()
        except ConnectionError:
            pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def connect(port: int, *, receive_buffer: int | None = None) -> Connection:
    """Open a connection; a small `receive_buffer` makes a reader whose server soon finds the socket full."""
    raw = socket.socket()
    raw.setblocking(False)
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.get_running_loop().sock_connect(raw, (HOST, port))
            reader, writer = await asyncio.open_connection(sock=raw, limit=receive_buffer or 65536)
    except BaseException:
        raw.close()
        raise
    return Connection(reader, writer, port)


async def fetch(port: int, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> Reply:
    """One request on its own connection; the whole answer."""
    async with await connect(port) as connection:
        await connection.request(method, target, headers, body)
        response = await connection.response()
        await response.read_all()
        return response


def encode_request(method: str, target: str, headers: Headers = (), body: bytes | None = None, *, port: int) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/1.1".encode(), f"host: {HOST}:{port}".encode()]
    for name, value in headers:
        lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()))
    if body is not None:
        lines.append(f"content-length: {len(body)}".encode())
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")
