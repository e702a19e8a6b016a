"""One timer for all that has to be looked at once in a while, however many there are of it.

Invariant: the timer runs while there is something to look at, and no longer.
"""

import asyncio
from itertools import islice
from math import floor
from time import monotonic
from typing import Protocol

STEPS = 64
"""Into how many steps an interval is divided; what falls due within one of them is looked at in one go, at its end."""

AT_ONCE = 100
"""How many are looked at before others get the event loop."""


class Watched(Protocol):
    """What can be looked at."""

    def look(self, now: float) -> float | None:
        """Do what is due, or return when it will be, within an interval; seconds of the monotonic clock."""


class Rounds:
    """Looks at each of many things an interval after it was last due: never early, and a step late at most."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        """Seconds between two looks."""
        self._step = interval / STEPS
        self._slots: dict[int, dict[Watched, None]] = {}
        """By the number of the step at whose end they are looked at."""
        self._places: dict[Watched, dict[Watched, None]] = {}
        """The slot that each is in."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, thing: Watched) -> None:
        """Look at `thing` an interval from now, and so on until it is discarded."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # The application was started anew: what is left of its last life has no timer any more.
            self._loop = loop
            self._stop()
        self._place(thing, self._due_in(monotonic() + self.interval))
        if self._timer is None:
            self._start()

    def discard(self, thing: Watched) -> None:
        """Look at `thing` no longer, if it is looked at."""
        slot = self._places.pop(thing, None)
        if slot is not None:
            del slot[thing]
            if not self._places:
                self._stop()

    def _due_in(self, due: float) -> int:
        return floor(due / self._step) + 1

    def _place(self, thing: Watched, number: int) -> None:
        self._places[thing] = slot = self._slots.setdefault(number, {})
        slot[thing] = None

    def _start(self) -> None:
        # What is added falls due last, so that the timer never has to be set to an earlier time.
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        number = min(self._slots)
        self._timer = self._loop.call_later(max(0.0, number * self._step - monotonic()), self._go, number)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._places.clear()

    def _go(self, number: int) -> None:
        slot = self._slots[number]
        now = monotonic()
        # From now on if the loop was held up, so that nothing is made up for.
        later = max(number, floor(now / self._step)) + STEPS
        try:
            for thing in list(islice(slot, AT_ONCE)):
                if thing in slot:
                    # Moved on before it is looked at: it may fail, and it may be discarded meanwhile.
                    del slot[thing]
                    self._place(thing, later)
                    due = thing.look(now)
                    if due is not None and (place := self._places.get(thing)) is not None:
                        del place[thing]
                        self._place(thing, self._due_in(due))
        finally:
            if not slot:
                self._slots.pop(number, None)
            if self._places:
                self._start()
