"""Noticing that the server is about to exit, beside the server that handles it.

Servers tell an application of a shutdown only once all its responses have ended, which live streams prevent. So we
look for it in two ways. The handler of a signal that is in place is called as before; where there is none, nothing is
installed. And a uvicorn that exits without a signal, as with `--limit-max-requests`, is noticed by polling its state.
"""

import asyncio
import math
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from uvicorn import Server

from .servers import is_exiting, running_servers

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DEFAULTS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)
POLL_INTERVAL = 0.25
"""Seconds between two looks at the server, while there is something live."""


class _Handler:
    """One link of a chain of signal handlers. A retired link may have to stay in it; then it only passes on."""

    def __init__(self, previous: Any, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self.previous = previous
        self._loop = loop
        self._callback = callback
        self.retired = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.retired and not self._loop.is_closed():
            # A signal handler may run between any two bytecodes, so it only schedules the callback.
            self._loop.call_soon_threadsafe(self._callback)
        self.previous(number, frame)


class TerminationWatch:
    """Calls back on the event loop when the server is about to exit.

    Args:
        callback: What to call.
        is_busy: Whether there is anything live; while there is not, nothing looks at the server.
    """

    def __init__(self, callback: Callable[[], object], is_busy: Callable[[], bool] = lambda: False) -> None:
        self._callback = callback
        self._is_busy = is_busy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handlers: dict[int, _Handler] = {}
        self.servers: list[Server] = []
        """The uvicorns of this event loop."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def server_timeout(self) -> float:
        """Seconds that the server waits for responses from its exit on, less what it takes to end them in order."""
        timeouts = [found.config.timeout_graceful_shutdown for found in self.servers]
        return min((timeout - min(0.5, timeout / 5) for timeout in timeouts if timeout), default=math.inf)

    def start(self) -> None:
        """Listen from now on; call it again when something has become live."""
        loop = asyncio.get_running_loop()
        # The application may be started anew on another loop in the same process, as test clients do.
        if self._loop is not loop:
            self.stop()
            self._loop = loop
            self.servers = running_servers()
            if threading.current_thread() is threading.main_thread():
                # Off the main thread, Python allows no handlers.
                self._chain(loop)
        if self.servers and self._timer is None:
            self._timer = loop.call_later(POLL_INTERVAL, self._look, loop)

    def _chain(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            # Where there is no handler, no server handles the signal, and it ends the process.
            if previous not in _DEFAULTS:
                handler = self._handlers[number] = _Handler(previous, loop, self._callback)
                signal.signal(number, handler)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        # Several may run on one loop; requests come as long as one of them takes any.
        if all(map(is_exiting, self.servers)):
            self._callback()
        elif self._is_busy():
            self._timer = loop.call_later(POLL_INTERVAL, self._look, loop)

    def stop(self) -> None:
        """Put the former handlers back, unless a later handler still calls ours."""
        self._loop = None
        self.servers = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for number, handler in self._handlers.items():
            # Another library may have put its handler on top of ours, and calls it. It cannot be taken out then.
            handler.retired, previous = True, handler.previous
            if signal.getsignal(number) == handler:
                signal.signal(number, previous)
        self._handlers.clear()
