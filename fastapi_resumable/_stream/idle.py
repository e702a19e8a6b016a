"""Noticing that something has been silent for too long, at the price of one timer and none for each event."""

import asyncio
from collections.abc import Callable
from time import monotonic


class IdleTimer:
    """Calls `on_idle` whenever `interval` seconds have passed since `touched`, until it is stopped.

    The timer is not moved by each event: it looks at `touched` when it is due, and is set again for what is left.
    """

    __slots__ = ("_handle", "_interval", "_on_idle", "touched")

    def __init__(self, interval: float, on_idle: Callable[[], None]) -> None:
        self.touched = monotonic()
        """When there last was a sign of life; seconds of the monotonic clock."""
        self._interval = interval
        self._on_idle = on_idle
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Count from now on; no-op if it is running."""
        if self._handle is None:
            self.touched = monotonic()
            self._handle = asyncio.get_running_loop().call_later(self._interval, self._look)

    def stop(self) -> None:
        """Stop for good, or until it is started again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        left = self.touched + self._interval - monotonic()
        if left <= 0:
            left, self.touched = self._interval, monotonic()
            self._on_idle()
        if self._handle is not None:
            self._handle = asyncio.get_running_loop().call_later(left, self._look)
