"""The streams that have ended and are kept for the retention, in the order in which they expire."""

import asyncio
from collections.abc import Callable, Iterator

from .._stream.memory import MemoryStream


class EndedStreams:
    """Iterates over `(when it expires, stream)`, oldest first; `retire` is called with each that expires.

    `retire` has to `discard` the stream.
    """

    def __init__(self, clock: Callable[[], float], retire: Callable[[MemoryStream], None]) -> None:
        self._clock = clock
        self._retire = retire
        # Retention is one constant, so streams expire in the order in which they ended.
        self._deadlines: dict[MemoryStream, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def __iter__(self) -> Iterator[tuple[float, MemoryStream]]:
        return ((deadline, stream) for stream, deadline in self._deadlines.items())

    def add(self, stream: MemoryStream, retention: float) -> None:
        """Keep a stream for `retention` seconds."""
        self._deadlines[stream] = self._clock() + retention
        self._arm()

    def discard(self, stream: MemoryStream) -> None:
        """Keep a stream no longer."""
        self._deadlines.pop(stream, None)

    def expire(self) -> None:
        """Retire the streams whose time has come."""
        now = self._clock()
        while self._deadlines and next(iter(self._deadlines.values())) <= now:
            self.retire_oldest()

    def retire_oldest(self) -> None:
        """Retire one stream, whether its time has come or not."""
        self._retire(next(iter(self._deadlines)))

    def _arm(self) -> None:
        """Set a timer, so that memory is freed even if no request comes."""
        loop = asyncio.get_running_loop()
        if self._deadlines and (self._timer is None or self._timer_loop is not loop):
            left = next(iter(self._deadlines.values())) - self._clock()
            self._timer = loop.call_later(max(0.0, left) + 0.01, self._on_timer)
            self._timer_loop = loop

    def _on_timer(self) -> None:
        self._timer = None
        self.expire()
        self._arm()

    def close(self) -> None:
        """Stop the timer and retire every stream."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_loop = None
        while self._deadlines:
            self.retire_oldest()
