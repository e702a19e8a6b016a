"""Since when a backend cannot be used, and how long to go on trying."""

import asyncio
import logging
import random
from collections.abc import Callable
from time import monotonic

logger = logging.getLogger("fastapi_resumable")

UNAVAILABLE = "The store of streams cannot be used. Try again in a moment."
"""What clients get; what is wrong goes to the log."""

FIRST_PAUSE = 0.02
"""Seconds before a failed attempt is repeated; each further failure doubles them."""
LONGEST_PAUSE = 0.5
RECHECK = 1.0
"""Seconds after which what waits for another worker looks again, should it have missed the message."""


class Outage:
    """What is known of a backend that may be away."""

    def __init__(self, timeout: float, lost: str, back: str, on_up: Callable[[], object]) -> None:
        """`lost` and `back` are logged, with the reason and with the seconds; `on_up` is called when it is back."""
        self.timeout = timeout
        # So that a request that hangs is tried again a few times before the timeout.
        self.attempt = max(0.5, timeout / 4)
        """Seconds after which one attempt is taken for lost."""
        self.up_since = monotonic()
        self._lost = lost
        self._back = back
        self._on_up = on_up
        self._since: float | None = None

    @property
    def is_too_long(self) -> bool:
        """Whether the backend has been away for longer than the timeout."""
        return self._since is not None and monotonic() - self._since > self.timeout

    def note_down(self, reason: str, failure: BaseException | None = None) -> float:
        """Note that the backend does not answer, and return since when. The traceback of `failure` is logged."""
        if self._since is None:
            self._since = monotonic()
            logger.warning(self._lost, reason, exc_info=failure)
        return self._since

    def note_up(self) -> None:
        """Note that the backend answers."""
        if self._since is not None:
            self.up_since = monotonic()
            logger.warning(self._back, self.up_since - self._since)
            self._since = None
            self._on_up()

    async def pause(self, begun: float, since: float, attempts: int) -> bool:
        """Wait before the next attempt at what was `begun` then; return whether there is to be one."""
        delay = min(FIRST_PAUSE * 2 ** min(attempts, 10), LONGEST_PAUSE)
        # While the backend is known to be away, one attempt is enough.
        if monotonic() + delay > max(min(since, begun) + self.timeout, begun + self.attempt):
            return False
        # Spread, so that workers do not come back to a backend that restarts at the same moment.
        await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  # no secret
        return True
