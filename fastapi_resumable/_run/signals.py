"""Hearing that the process is asked to exit, beside the server that handles it.

Servers tell an application of a shutdown only once all its responses have ended, which live streams prevent. The
handler that is in place is called as before; where there is none, nothing is installed.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DEFAULTS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)


class _Handler:
    """One link of a chain of signal handlers. A retired link may have to stay in it; then it only passes on."""

    def __init__(self, previous: Any, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self.previous = previous
        self._loop = loop
        self._callback = callback
        self.retired = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.retired and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._callback)
        self.previous(number, frame)


class TerminationWatch:
    """Calls back on the event loop when the process gets a signal to exit."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handlers: dict[int, _Handler] = {}

    def start(self) -> None:
        """Listen from now on. No-op if it does already, or off the main thread, where Python allows no handlers."""
        loop = asyncio.get_running_loop()
        if self._loop is loop or threading.current_thread() is not threading.main_thread():
            return
        self.stop()
        self._loop = loop
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if previous not in _DEFAULTS:
                handler = self._handlers[number] = _Handler(previous, loop, self._callback)
                signal.signal(number, handler)

    def stop(self) -> None:
        """Put the former handlers back, unless somebody has come after us and will call ours."""
        self._loop = None
        for number, handler in self._handlers.items():
            handler.retired, previous = True, handler.previous
            if signal.getsignal(number) == handler:
                signal.signal(number, previous)
        self._handlers.clear()
