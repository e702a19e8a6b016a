"""How long to wait before the next attempt, and how often to try."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential back-off with full jitter: a random part of `initial`, `2 * initial`, `4 * initial` ... seconds.

    What the server asks for (`Retry-After`, or `retry:` in the stream) comes on top, as the least.

    Args:
        initial: Upper bound of the first wait, in seconds.
        maximum: Upper bound of every wait.
        retries: How many attempts in a row may fail before the client gives up; `None`: it never does. An attempt that
            brings a byte begins a new row.
        random: Returns a number from 0 to 1.
    """

    initial: float = 0.5
    maximum: float = 30.0
    retries: int | None = 10
    random: Callable[[], float] = random.random

    def exhausted(self, failures: int) -> bool:
        """Whether so many failures in a row are too many."""
        return self.retries is not None and failures > self.retries

    def delay(self, failures: int, at_least: float = 0.0) -> float:
        """Seconds to wait after so many failures in a row."""
        return at_least + self.random() * min(self.maximum, self.initial * 2.0 ** min(failures - 1, 64))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait (RFC 9110 §10.2.3); a date counts from the answer's own `Date`."""
    value = headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        # No dates; or one of them does not name its time zone.
        return 0.0
    return max(0.0, wait.total_seconds())
