"""A TCP line on 127.0.0.1 that a test cuts by hand.

with Line(server.port) as line:
    httpx.get(line.url)
    line.cut()
"""

import select
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
DEADLINE = 10.0
"""Seconds that a thread may take to end: a bound, not an expectation."""


class Line:
    """Passes connections on to `target_port` until they are cut."""

    def __init__(self, target_port: int) -> None:
        self._target = (HOST, target_port)
        self._listener = socket.create_server((HOST, 0))
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.url = f"http://{HOST}:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Cut every connection that is open now."""
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(DEADLINE)
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "the line does not stop"

    def _accept(self) -> None:
        with self._listener, suppress(OSError):
            while True:
                thread = threading.Thread(target=self._pass, args=(self._listener.accept()[0],), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            other = {client: server, server: client}
            with self._lock:
                self._sockets |= other.keys()
            try:
                while True:
                    for each in select.select(list(other), [], [])[0]:
                        data = each.recv(65536)
                        if not data:  # both ends are done with: HTTP has no use for a half-open line
                            return
                        other[each].sendall(data)
            finally:
                with self._lock:
                    self._sockets -= other.keys()
