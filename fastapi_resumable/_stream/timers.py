"""Calls after a delay, most of which are never made: one timer of the event loop for all that have the same delay.

Nearly every stream is over before anything has to be done about its silence, its reader's stalling or its client's
leaving. To set and to cancel a timer of its own for each of these costs more than the bytes of a short answer.
"""

import asyncio
from collections.abc import Callable


class SharedTimers:
    """What is to be called back, by the delay, in the order in which that ends."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due: dict[float, dict[Callable[[], object], float]] = {}
        self._delays: dict[Callable[[], object], float] = {}

    def start(self, delay: float, callback: Callable[[], object]) -> None:
        """Call `callback` in `delay` seconds, unless that is cancelled; it is not due already."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # What waited on an event loop of before is not called on this one.
            self._loop, self._due, self._delays = loop, {}, {}
        # One delay's calls end in the order in which they began, so only the first of them needs a timer.
        waiting = self._due.get(delay)
        if waiting is None:
            waiting = self._due[delay] = {}
            loop.call_later(delay, self._call_due, delay, waiting)
        waiting[callback] = loop.time() + delay
        self._delays[callback] = delay

    def cancel(self, callback: Callable[[], object]) -> None:
        """Do not call `callback`; no-op if it is not due."""
        if (delay := self._delays.pop(callback, None)) is not None:
            del self._due[delay][callback]

    def _call_due(self, delay: float, waiting: dict[Callable[[], object], float]) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while waiting and next(iter(waiting.values())) <= now:
                callback = next(iter(waiting))
                # First, as what is called may start the same again.
                del waiting[callback]
                self._delays.pop(callback, None)
                callback()
        finally:
            if waiting:
                loop.call_later(next(iter(waiting.values())) - now, self._call_due, delay, waiting)
            elif self._due.get(delay) is waiting:
                del self._due[delay]
