"""Following the states of streams, at the pace of the client.

Of each stream only the latest undelivered state is kept, so a slow client gets fewer changes, and no queue grows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from .._stream.reader import Reading
from ..models import ResumableStreamItem
from ..stores.base import Store

AT_ONCE = 500
"""How many changes are delivered before other tasks run."""
MAX_BEHIND = 10_000
"""How many streams may have undelivered changes; a client that is further behind is disconnected, and may ask again."""


class Watch:
    """One client's watch over the owner's streams with some ids."""

    def __init__(
        self, store: Store, owner: str | None, ids: Sequence[str], *, ping: float, stall_timeout: float
    ) -> None:
        self._store = store
        self._owner = owner
        self._ids = ids
        self._ping = ping or None
        self._stall_timeout = stall_timeout
        self._news: dict[str, ResumableStreamItem] = {}
        self._changed = asyncio.Event()
        self._over = False
        self._deadline: asyncio.Timeout | None = None

    def _note(self, item: ResumableStreamItem) -> None:
        # At a new place in the order, so that the latest change is delivered last.
        self._news.pop(item.conversation_id, None)
        self._news[item.conversation_id] = item
        self._changed.set()
        # An owner with that many streams would fill the memory through one slow client.
        if len(self._news) > MAX_BEHIND:
            self.evict()

    def leave(self) -> None:
        """End the watch, once all changes have been delivered."""
        self._over = True
        self._changed.set()

    def evict(self) -> None:
        """End the watch as stalled, even in the middle of a delivery."""
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())

    async def run(
        self, start: Callable[[], Awaitable[None]], deliver: Callable[[Sequence[ResumableStreamItem]], Awaitable[None]]
    ) -> Reading:
        """Call `start`, then hand the current state on to `deliver`, and then changes, until `leave` is called.

        An empty delivery is a keep-alive.

        Raises:
            ResumableError: The store has no answer. Nothing has been started then.
        """
        # First this and then the look, so that no change is missed in between.
        end = await self._store.watch(self._owner, self._ids, self._note)
        try:
            current = {item.conversation_id: item for item in await self._store.lookup(self._owner, self._ids)}
            # What was reported in the meantime is newer.
            self._news = current | self._news
            async with asyncio.timeout(None) as self._deadline:
                await self._follow(start, deliver)
        except TimeoutError:
            if self._deadline is None or not self._deadline.expired():
                raise
            return Reading.STALLED
        finally:
            self._deadline = None
            end()
        return Reading.FINISHED

    async def _follow(
        self, start: Callable[[], Awaitable[None]], deliver: Callable[[Sequence[ResumableStreamItem]], Awaitable[None]]
    ) -> None:
        await self._in_time(start())
        while self._news or not self._over:
            news, self._news = list(self._news.values()), {}
            self._changed.clear()
            for first in range(0, len(news) or 1, AT_ONCE):
                await self._in_time(deliver(news[first : first + AT_ONCE]))
                # A socket that takes everything at once never suspends this task.
                await asyncio.sleep(0)
            try:
                async with asyncio.timeout(self._ping):
                    if not self._news and not self._over:
                        await self._changed.wait()
            except TimeoutError:
                pass

    async def _in_time(self, delivery: Awaitable[None]) -> None:
        assert self._deadline is not None
        self._deadline.reschedule(asyncio.get_running_loop().time() + self._stall_timeout)
        await delivery
        self._deadline.reschedule(None)


def encode(item: ResumableStreamItem) -> bytes:
    """Write an item as a server-sent event. It has no id: a client that comes back gets the current state first."""
    return b"event: stream.%s\ndata: %s\n\n" % (item.status.encode("ascii"), item.model_dump_json().encode("utf-8"))
