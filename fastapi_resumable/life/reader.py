"""Following a log from an offset to its end, at the pace of whoever takes the bytes.

There is one source, the log, and one loop: replay and live tail are the same thing. The reader owns a cursor and no
queue; what has piled up since the last delivery goes out in one piece.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum

from ..core.errors import OffsetLost, ResumableError
from ..core.log import BLOCK_SIZE
from ..stores.stream import Cursor, Stream


class Reading(Enum):
    """How a reading ended."""

    FINISHED = "finished"
    """The log has ended and everything was delivered."""
    LEFT = "left"
    """The client went away."""
    STALLED = "stalled"
    """The client took nothing for too long, or is asked to go because the server shuts down."""
    LOST = "lost"
    """The bytes at the cursor were dropped, or cannot be had: the reader's `failure` tells."""


class Reader:
    """One client's reading of one stream."""

    __slots__ = (
        "_cursor",
        "_deadline",
        "_goes_on",
        "_left",
        "_sending_since",
        "_stall_timeout",
        "_waiter",
        "_watchdog",
        "cancelled",
        "failure",
        "stream",
    )

    def __init__(self, stream: Stream, offset: int, *, stall_timeout: float, goes_on: Callable[[], bool]) -> None:
        """`goes_on`, asked when the reading is cancelled: whether to deliver the rest all the same."""
        self.stream = stream
        self.cancelled: asyncio.CancelledError | None = None
        """A cancellation that was put off until the rest had been delivered; for the caller to raise."""
        self.failure: ResumableError | None = None
        """Why the reading was `LOST`."""
        self._goes_on = goes_on
        self._cursor = Cursor(offset)
        self._stall_timeout = stall_timeout
        self._waiter: asyncio.Future[None] | None = None
        self._left = False
        self._deadline: asyncio.Timeout | None = None
        self._sending_since: float | None = None
        # From now on, not from the first delivery: what there is now must still be there then.
        stream.attach(self._cursor)

    def leave(self) -> None:
        """The client has gone: end the reading."""
        self._left = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def evict(self) -> None:
        """End the reading as stalled, even in the middle of a delivery."""
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Let go of the log. `run` does so by itself."""
        self.stream.detach(self._cursor)

    async def run(self, start: Callable[[], Awaitable[None]], deliver: Callable[[bytes], Awaitable[None]]) -> Reading:
        """Call `start`, then hand everything from the cursor on to `deliver`, until the log ends or the client goes."""
        deadline = self._deadline = asyncio.timeout(None)
        self._watch()
        try:
            async with deadline:
                await self._follow(start, deliver)
        except TimeoutError:
            if not deadline.expired():
                raise
            return Reading.STALLED
        except ResumableError as exc:
            self.failure = exc
            return Reading.LOST
        finally:
            self._watchdog.cancel()
            self._deadline = None
            self.close()
        return Reading.LEFT if self._left else Reading.FINISHED

    async def _follow(self, start: Callable[[], Awaitable[None]], deliver: Callable[[bytes], Awaitable[None]]) -> None:
        stream, cursor = self.stream, self._cursor
        now = asyncio.get_running_loop().time
        self._sending_since = now()
        await start()
        self._sending_since = None
        while not self._left:
            try:
                data = stream.read(cursor)
            except OffsetLost:
                data = await stream.recall(cursor)
            if data:
                self._sending_since = now()
                await deliver(data)
                self._sending_since = None
                stream.advance(cursor, len(data))
                if len(data) >= BLOCK_SIZE // 2:
                    # A replay whose socket never fills up would keep everybody else from the loop.
                    await asyncio.sleep(0)
            elif stream.is_final:
                return
            elif stream.failure is not None:
                raise stream.failure
            else:
                self._waiter = stream.waiter()
                try:
                    await self._waiter
                except asyncio.CancelledError as exc:
                    if self.cancelled is not None or not self._goes_on():
                        raise
                    self.cancelled = exc
                finally:
                    stream.forget(self._waiter)
                    self._waiter = None

    def _watch(self) -> None:
        """Look whether a delivery is stuck: one timer for each reader, rather than one for each delivery."""
        loop = asyncio.get_running_loop()
        stuck = 0.0 if self._sending_since is None else loop.time() - self._sending_since
        if stuck >= self._stall_timeout:
            self.evict()
            stuck = 0.0
        self._watchdog = loop.call_later(self._stall_timeout - stuck, self._watch)
