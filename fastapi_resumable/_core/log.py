"""The bounded record of one epoch's bytes, addressed by offset.

Invariant: `0 <= floor <= tail`, and every byte in `[floor, tail)` can be read. Bytes live in blocks rather than in one
object per event, so that a log costs little more than its bytes, and a replay sends whole blocks without copying.
Not thread-safe; it decides nothing about waiting, time or readers.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator

# About what a socket takes in one write (asyncio's high-water mark is 64 KiB). A block has what it took to get there.
BLOCK_SIZE = 64 * 1024


class Budget:
    """How many bytes everything holds that shares it; `on_excess` is to be called when that is more than `limit`.

    What is freed by the garbage collector is counted back wherever that runs, in any thread. So nothing may be called
    between the two halves of a `used += size`: `size` has to be known before.
    """

    __slots__ = ("limit", "on_excess", "used")

    def __init__(self, limit: float = math.inf, on_excess: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self.on_excess = on_excess
        self.used = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether more is held than may be."""
        return self.used > self.limit


class ByteLog:
    """An append-only run of bytes that may lose its head, and counts what it holds."""

    __slots__ = ("_blocks", "_budget", "_open", "_open_start", "_starts", "block_size", "tail")

    def __init__(self, block_size: int = BLOCK_SIZE, start: int = 0, budget: Budget | None = None) -> None:
        """A log without bytes, whose first one will have the offset `start`."""
        self._budget = budget or Budget()
        self.block_size = block_size
        self.tail = start
        """The offset that the next byte will have."""
        # Tuples, because nearly all logs are one block, and cost nothing beside it.
        self._blocks: tuple[bytes, ...] = ()
        self._starts: tuple[int, ...] = ()
        # Grows in place; the blocks before it never change, so that readers may hold them without a copy.
        self._open: bytearray | bytes = bytearray()
        self._open_start = start

    @property
    def floor(self) -> int:
        """The oldest offset that can be read."""
        return self._starts[0] if self._starts else self._open_start

    @property
    def size(self) -> int:
        """How many bytes are held."""
        return self.tail - self.floor

    def append(self, data: bytes) -> None:
        """Add `data` at the tail."""
        size = len(data)
        self._open += data
        self.tail += size
        self._budget.used += size
        if len(self._open) >= self.block_size:
            # Never cut: an event stream's log grows by whole events, so that each block ends where an event does, and
            # with it what a reader has been sent.
            self._blocks += (bytes(self._open),)
            self._starts += (self._open_start,)
            self._open = bytearray()
            self._open_start = self.tail

    def close(self) -> None:
        """Give back the spare room: nothing is likely to follow."""
        # A `bytearray` that has grown holds up to an eighth more than its bytes.
        self._open = bytes(self._open)

    def read(self, offset: int, size: int | None = None) -> bytes:
        """Return bytes from `offset` to the end of its block: at most `size`, at least one unless it is the tail.

        Raises:
            LookupError: `offset` is below the floor.
            ValueError: `offset` is past the tail.
        """
        if offset >= self.tail:
            if offset > self.tail:
                raise ValueError("offset past the tail")
            return b""
        if offset >= self._open_start:
            block, start = self._open, offset - self._open_start
        else:
            index = bisect_right(self._starts, offset) - 1
            if index < 0:
                raise LookupError("offset below the floor")
            block, start = self._blocks[index], offset - self._starts[index]
        # A whole block is handed out as it is: this is what makes replays to many readers cheap.
        end = len(block) if size is None else start + size
        if start == 0 and len(block) <= end and isinstance(block, bytes):
            return block
        # A slice of a `bytearray` would be copied twice: once as a `bytearray`, once as `bytes`.
        with memoryview(block) as view:
            return bytes(view[start:end])

    def trim(self, offset: int, *, exactly: bool = False) -> None:
        """Drop the bytes before `offset`, whole blocks of them unless `exactly` those are to go."""
        size, count = self.size, 0
        while count < len(self._blocks) and self._starts[count] + len(self._blocks[count]) <= offset:
            count += 1
        self._blocks, self._starts = self._blocks[count:], self._starts[count:]
        if exactly and offset > self.floor:
            if self._blocks:
                self._blocks = (self._blocks[0][offset - self._starts[0] :], *self._blocks[1:])
                self._starts = (offset, *self._starts[1:])
            else:
                self._open = self._open[offset - self._open_start :]
                self._open_start = offset
        dropped = size - self.size
        self._budget.used -= dropped

    def restart(self, offset: int) -> None:
        """Drop all bytes, and go on at `offset`."""
        size = self.size
        self._budget.used -= size
        self._blocks = self._starts = ()
        self._open = bytearray()
        self._open_start = self.tail = offset

    def truncate(self, offset: int) -> None:
        """Drop the bytes from `offset` (not below the floor) on."""
        # The block that the new end lies in becomes the open one again.
        while self._open_start > offset and self._starts:
            self._open, self._open_start = self._blocks[-1], self._starts[-1]
            self._blocks, self._starts = self._blocks[:-1], self._starts[:-1]
        self._open = bytearray(self._open[: max(0, offset - self._open_start)])
        self._open_start = min(self._open_start, offset)
        self._budget.used -= self.tail - offset
        self.tail = offset

    def chunks(self, offset: int) -> Iterator[bytes]:
        """All bytes from `offset` (not below the floor) to the tail, block by block."""
        while offset < self.tail:
            block = self.read(offset)
            offset += len(block)
            yield block
