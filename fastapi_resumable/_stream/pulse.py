"""How often the readers of a busy stream are woken.

A write to a socket costs more than all else that happens to an event. So a stream that has just woken its readers does
so again only `PULSE` later, and what has come meanwhile goes out in one piece. A stream with more time between its
events never waits.
"""

import asyncio
from collections.abc import Callable

PULSE = 0.002
"""Seconds between two wake-ups of a stream's readers."""


class Pulse:
    """One timer for all busy streams of an event loop."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, wake: Callable[[], None]) -> None:
        """Call `wake` when readers may be woken again."""
        loop = asyncio.get_running_loop()
        if not self._due or loop is not self._loop:
            self._loop = loop
            loop.call_later(PULSE, self._beat)
        self._due.append(wake)

    def _beat(self) -> None:
        due, self._due = self._due, []
        for wake in due:
            wake()
