"""The readers of one stream in this process: where each of them is, when they are woken, and how far the slowest is.

Invariant: a cursor that is attached is woken for every byte that becomes visible after its offset. Waking is
level-triggered (a reader looks again by itself after each delivery), so no wake-up can be lost.
"""

import asyncio
import math
from time import monotonic

from .._core.log import BLOCK_SIZE, ByteLog

FLUSH_INTERVAL = 0.005
"""Seconds for which a stream collects what it writes after it has woken its readers.

A write to a socket costs more than everything else that happens to an event, so a busy stream sends what came within
this interval in one piece. A stream with more time between its events never waits. It is several times what 64 busy
streams take for an event each: with less, a slow machine would join nothing, just when that matters.
"""

WOKEN_AT_ONCE = 500
"""How many readers of a stream are woken before the event loop does anything else."""

SAME_TURN = 0.0002
"""Seconds between two writes that are probably in the same turn of the event loop."""


class Traffic:
    """How close together the streams of a store write.

    Where many write in the same turn of the event loop, all of them are recorded first, and all are sent afterwards: a
    processor that goes through the same code again and again is much faster than one that alternates.
    """

    __slots__ = ("_last_write",)

    def __init__(self) -> None:
        self._last_write = -math.inf

    def is_dense(self, now: float) -> bool:
        """Note a write; return whether there was another just before."""
        is_dense = now - self._last_write < SAME_TURN
        self._last_write = now
        return is_dense


class Cursor:
    """A reader's place in a log, and the two calls that the reader gets."""

    # There may be thousands of readers.
    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def on_append(self, data: bytes, tail: int) -> None:
        """The log can be read up to `tail`; its last bytes are `data`."""

    def on_change(self) -> None:
        """The log has ended, or cannot be read any further."""


class Fanout:
    """The cursors of a stream, the wake-ups that they get, and the room that they leave its producer."""

    __slots__ = (
        "_announced",
        "_first",
        "_is_waking",
        "_log",
        "_quiet_until",
        "_room",
        "_traffic",
        "cursors",
        "is_due",
        "slowest",
        "visible",
    )

    def __init__(self, log: ByteLog, traffic: Traffic | None = None) -> None:
        """Of a stream that is written beside others of the same `traffic`."""
        self._log = log
        self._traffic = traffic or Traffic()
        self.cursors: set[Cursor] = set()
        self.slowest: float = math.inf
        """A lower bound of the cursors' offsets: they only move forward, so a stale one errs on the safe side."""
        self.visible: int | None = None
        """Up to where readers may read, if that is not all of the log."""
        self.is_due = False
        """Whether the readers are about to be woken."""
        self._is_waking = False
        """Whether some of them have been, and the others are in the next turns of the event loop."""
        self._announced = 0
        self._first = b""
        """What was written at `_announced`, which no reader has been woken for yet."""
        self._quiet_until = 0.0
        self._room: asyncio.Future[None] | None = None

    @property
    def tail(self) -> int:
        """How far readers can read."""
        return self._log.tail if self.visible is None else self.visible

    # The readers.

    def attach(self, cursor: Cursor) -> None:
        """Keep what `cursor` has yet to read."""
        self.cursors.add(cursor)
        self.slowest = min(self.slowest, cursor.offset)

    def detach(self, cursor: Cursor) -> None:
        """Forget `cursor`; the producer waits for it no longer."""
        self.cursors.discard(cursor)
        # Only the departure of the slowest can make room.
        if cursor.offset <= self.slowest:
            self.make_room()

    def advance(self, cursor: Cursor, size: int) -> None:
        """Note that the reader has sent `size` bytes on."""
        offset = cursor.offset
        cursor.offset = offset + size
        # A waiting producer has just worked out who is slowest, and only that one's progress can matter to it.
        if self._room is not None and offset <= self.slowest:
            self.make_room()

    def find_slowest(self) -> float:
        """Where the slowest reader is; infinity if there is none."""
        self.slowest = min((cursor.offset for cursor in self.cursors), default=math.inf)
        return self.slowest

    # What they are woken for.

    def announce(self, data: bytes, tail: int, now: float) -> None:
        """Wake the readers for `data`, the last bytes before `tail`; at once, or with what comes next."""
        if self.is_due or not self.cursors:
            return
        self._announced, self._first = tail - len(data), data
        # A write to a socket costs more than the rest of a delivery, so pieces that come close together are joined.
        if now < self._quiet_until:
            self.is_due = True
            asyncio.get_running_loop().call_later(FLUSH_INTERVAL, self.flush)
        elif self._traffic.is_dense(now):
            self.is_due = True
            asyncio.get_running_loop().call_soon(self.flush)
        else:
            self.flush()

    def flush(self) -> None:
        """Wake the readers for all that has come since they were last woken."""
        # First, as a delivery may append more, which has to be announced again.
        self.is_due = False
        self.wake()
        self._quiet_until = monotonic() + FLUSH_INTERVAL

    def show(self, offset: int) -> None:
        """Let readers read up to `offset`, if they could not yet."""
        before = self.tail
        if offset > before:
            self._announced, self.visible = before, offset
            self.wake()
            self.make_room()

    def wake(self) -> None:
        """Wake the readers that have not read everything."""
        if self._is_waking:
            self.is_due = True
            return
        tail, start, data = self.tail, self._announced, self._first
        self._announced, self._first = tail, b""
        size = tail - start
        if len(data) != size:
            data = b""
            if len(self.cursors) > 1 and 0 < size <= BLOCK_SIZE and start >= self._log.floor:
                # Once for all of them, instead of a copy for each; unless it lies in more than one block.
                data = self._log.read(start, size)
                if len(data) != size:
                    data = b""
        # A copy, because a delivery may detach its reader, or attach another one.
        self._wake_in_turn(tuple(self.cursors), data, tail)

    def _wake_in_turn(self, cursors: tuple[Cursor, ...], data: bytes, tail: int) -> None:
        for cursor in cursors[:WOKEN_AT_ONCE]:
            if cursor.offset < tail:
                cursor.on_append(data, tail)
        if len(cursors) > WOKEN_AT_ONCE:
            # What comes meanwhile is sent afterwards, in one piece: several rounds at a time would take long turns.
            self._is_waking = self.is_due = True
            asyncio.get_running_loop().call_soon(self._wake_in_turn, cursors[WOKEN_AT_ONCE:], data, tail)
        elif self._is_waking:
            self._is_waking = False
            self.is_due = self.tail > tail
            if self.is_due:
                asyncio.get_running_loop().call_soon(self.flush)

    def notify(self) -> None:
        """Have every reader look, and a producer that waits: the log has ended, or cannot be read any further."""
        self._notify_in_turn(tuple(self.cursors))
        self.make_room()

    def _notify_in_turn(self, cursors: tuple[Cursor, ...]) -> None:
        for cursor in cursors[:WOKEN_AT_ONCE]:
            cursor.on_change()
        if len(cursors) > WOKEN_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._notify_in_turn, cursors[WOKEN_AT_ONCE:])

    # The room that they leave.

    def has_room(self, size: int, bound: int) -> bool:
        """Whether `size` more bytes leave in place what readers need, or all have read everything."""
        tail = self._log.tail
        if tail + size - self.slowest <= bound:
            return True
        slowest = self.find_slowest()
        return tail + size - slowest <= bound or slowest >= tail

    async def wait_for_room(self, timeout: float | None = None) -> None:
        """Wait until there may be more room, for `timeout` seconds at most."""
        # Before the readers are woken, or the room that they make at once would go unnoticed.
        self._room = asyncio.get_running_loop().create_future()
        try:
            # Readers may make room as they are woken.
            self.wake()
            await asyncio.wait({self._room}, timeout=timeout)
        finally:
            self._room = None

    @property
    def is_waiting(self) -> bool:
        """Whether the producer waits for room."""
        return self._room is not None

    def make_room(self) -> None:
        """Have a producer that waits look again."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


NO_READERS = Fanout(ByteLog())
"""For streams that have no readers, which most that are kept have not: nothing is ever attached to it."""
