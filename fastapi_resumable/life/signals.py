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


class TerminationWatch:
    """Calls back on the event loop when the process gets a signal to exit."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._loop: asyncio.AbstractEventLoop | None = None
        self._previous: dict[int, Any] = {}

    def start(self) -> None:
        """Listen from now on. No-op if it does already, or off the main thread, where Python allows no handlers."""
        if self._loop is not None or threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if previous not in _DEFAULTS:
                self._previous[number] = previous
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._callback)
        self._previous[number](number, frame)

    def stop(self) -> None:
        """Put the former handlers back, unless somebody has come after us; then pass signals on and do nothing else."""
        self._loop = None
        for number, previous in list(self._previous.items()):
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)
                del self._previous[number]
