"""How far the producer of a shared stream may run ahead: of its readers, here and elsewhere, and of its backend."""

import math
from typing import Any

from ..._stream.fanout import Fanout
from ..._stream.recording import Recording
from ...exceptions import StoreUnavailable
from .writes import WriterBackend

RECHECK = 1.0
"""Seconds after which a producer that waits for readers elsewhere looks again, should it have missed the message."""


class Room:
    """The room that a stream has for more bytes."""

    __slots__ = ("_ahead", "_backend", "_fanout", "_recording", "_slowest_elsewhere")

    def __init__(self, recording: Recording, fanout: Fanout, backend: WriterBackend[Any], ahead: int) -> None:
        """`ahead` is the most bytes that may be written before the backend has acknowledged them."""
        self._recording = recording
        self._fanout = fanout
        self._backend = backend
        self._ahead = ahead
        self._slowest_elsewhere: float = math.inf

    def note_slowest(self, slowest: int | None) -> None:
        """Note where the slowest reader on another worker is."""
        self._slowest_elsewhere = math.inf if slowest is None else slowest

    def has(self, stream: object, size: int) -> bool:
        """Whether `size` more bytes leave in place what readers need, here and elsewhere, and what is to be written."""
        tail, bound, visible = self._recording.log.tail, self._recording.bound, self._fanout.tail
        ahead = tail + size - visible
        if ahead > self._ahead // 2 and tail > visible:
            # Enough to be written at once, so that the producer need not wait for that.
            self._backend.mark(stream)
            if ahead > self._ahead:
                return False
        if self._is_held_elsewhere(size):
            return False
        if tail + size - self._fanout.slowest <= bound:
            return True
        slowest = self._fanout.find_slowest()
        return tail + size - slowest <= bound or slowest >= tail

    def _is_held_elsewhere(self, size: int) -> bool:
        slowest, tail = self._slowest_elsewhere, self._recording.log.tail
        return slowest < tail and tail + size - slowest > self._recording.bound

    async def wait(self, stream: object, size: int) -> None:
        """Wait until there is room, or nothing may be written any more."""
        recording = self._recording
        while not recording.closed and not self.has(stream, size):
            timeout = None
            if self._is_held_elsewhere(size):
                timeout = RECHECK
                try:
                    self.note_slowest(await self._backend.slowest_reader(stream))
                except StoreUnavailable:
                    pass
                if recording.closed or self.has(stream, size):
                    return
            await self._fanout.wait_for_room(timeout)
