"""A stream whose log is in this process and nowhere else: the shortest way for an event."""

from typing import Any

from ..models import ResumableStatus
from .stream import Cursor, Limits, Stream


class MemoryStream(Stream):
    """Takes most events without a look at what need not be looked at for each: bound, budget, readers that are behind.

    That is done in steps of some bytes, before the next of which nothing can go wrong.
    """

    __slots__ = ("_care_at", "_step")

    def __init__(self, *about: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*about, limits=limits, **more)
        # Often enough for both bounds.
        self._step = max(1, min(4096, limits.max_stream_bytes // 8, limits.max_total_bytes // 1024))
        self._care_at = 0

    def offer(self, chunk: bytes, now: float) -> bool:
        """Record a chunk if that can be done at once: the log is open, and there is room."""
        log = self.log
        if log.tail + len(chunk) > self._care_at:
            return self._offer_with_care(chunk, now)
        # `write`, short: each call less can be measured.
        if self._framer is not None:
            chunk = self._framer.feed(chunk, log.tail)
        if chunk:
            log.append(chunk)
            if self._cursors and not self._is_due:
                self._announce(chunk, now)
        return True

    def _offer_with_care(self, chunk: bytes, now: float) -> bool:
        if not super().offer(chunk, now):
            return False
        if not self.closed:
            self._care_at = self.log.tail + self._step
            if self._care_at > self._slowest + self._bound:
                self._care_at = int(self._slowest) + self._bound
        return True

    def attach(self, cursor: Cursor) -> None:
        """Keep what `cursor` has yet to read."""
        super().attach(cursor)
        self._care_at = 0

    def _close(self, status: ResumableStatus, code: str, message: str) -> None:
        self._care_at = 0
        super()._close(status, code, message)
