"""Sharing the event loop with generators that never await, which would keep everybody else from it.

A producer that has written twice while the loop did not go round, and for longer than a turn, queues; each round of the
loop releases one. Who awaits between two writes queues only by mistake: if somebody else held up the loop meanwhile.
"""

import asyncio
from collections import deque
from time import monotonic

TURN = 0.0015
"""Seconds for which a producer that was released may keep the event loop."""
ROUND = 0.002
"""Seconds within which the event loop should go round; in twice that it must have."""


class Turns:
    """Whose turn it is, on one event loop. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.ends = 0.0
        """Who writes later than this has to `give_way`; zero while nobody has written for a while."""
        self._began = 0.0
        """When the loop was last seen to go round."""
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[asyncio.Future[None]] = deque()

    async def give_way(self, previous: float, now: float) -> None:
        """Wait for a turn if the loop has not gone round since `previous`, which was the producer's last write."""
        loop = asyncio.get_running_loop()
        if not self.ends:
            self._began, self.ends = now, now + 2 * ROUND
            self._look_out(loop)
        elif previous >= self._began:
            while self._queue and self._queue[0].done():
                self._queue.popleft()
            if not self._queue:
                loop.call_soon(self._release, loop)
            waiter: asyncio.Future[None] = loop.create_future()
            self._queue.append(waiter)
            await waiter

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        self._began = monotonic()
        self.ends = self._began + TURN
        if self._queue:
            loop.call_soon(self._release, loop)
        else:
            self._look_out(loop)

    def _look_out(self, loop: asyncio.AbstractEventLoop) -> None:
        """See whether the loop goes round; one timer for all writes of a round."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(ROUND, self._gone_round)

    def _gone_round(self) -> None:
        self._timer = None
        if not self._queue:
            self.ends = 0.0
