"""The answer to a request that watches streams: their states, at the pace of the client.

Of each stream only the latest undelivered state is kept, so a slow client gets fewer changes, and no queue grows.
"""

import asyncio
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .._core.sse import PING
from ..exceptions import ShuttingDown
from ..models import ResumableStreamItem
from .body import client_gone
from .breaking import break_off, end_of_body
from .manager import StreamManager
from .servers import transport_of

AT_ONCE = 500
"""How many changes are delivered before other tasks run."""
MAX_BEHIND = 10_000
"""How many streams may have undelivered changes; a client that is further behind is disconnected, and may ask again."""


class WatchResponse(Response):
    """The states of some of the owner's streams and their changes, until the client leaves or the server exits."""

    def __init__(self, manager: StreamManager, owner: str | None, ids: Sequence[str]) -> None:
        super().__init__()
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store, no-transform"),
            (b"x-accel-buffering", b"no"),
        ]
        self._manager = manager
        self._owner = owner
        self._ids = ids
        self._news: dict[str, ResumableStreamItem] = {}
        self._changed = asyncio.Event()
        self._is_begun = False
        self._is_over = False
        self._deadline = asyncio.timeout(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch.

        Raises:
            ResumableError: The store has no answer, or the server is about to exit.
            StreamBroken: The client took nothing for too long.
        """
        self._manager.add_watch(self)
        self._transport = transport_of(scope, self._manager.termination.servers)
        departure = self._manager.tasks.spawn(client_gone(receive), name="resumable disconnect")
        departure.add_done_callback(lambda _: self.leave())
        try:
            async with self._deadline:
                await self._follow(send)
        # What a server of ASGI 2.4 raises from `send` once the client has gone. A `TimeoutError` is one as well.
        except OSError:
            if self._deadline.expired():
                if not self._is_begun:
                    raise ShuttingDown from None
                why = "the client of a watch took nothing for too long"
                await break_off(why, self._manager, scope, send, at_once=True)
        finally:
            self._manager.remove_watch(self)
            departure.cancel()
            await asyncio.wait({departure})
        # Those of the dependencies of the request.
        if self.background is not None:
            await self.background()

    def leave(self) -> None:
        """End the watch, once all changes have been delivered."""
        self._is_over = True
        self._changed.set()

    def evict(self) -> None:
        """End the watch as stalled, even in the middle of a delivery."""
        if not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def _note(self, item: ResumableStreamItem) -> None:
        # At a new place in the order, so that the latest change is delivered last.
        self._news.pop(item.conversation_id, None)
        self._news[item.conversation_id] = item
        self._changed.set()
        # An owner with that many streams would fill the memory through one slow client.
        if len(self._news) > MAX_BEHIND:
            self.evict()

    async def _follow(self, send: Send) -> None:
        """Deliver the current state, and then changes."""
        store, ping = self._manager.store, self._manager.settings.ping or None
        # First this and then the look, so that no change is missed in between.
        unsubscribe = await store.watch(self._owner, self._ids, self._note)
        try:
            current = {item.conversation_id: item for item in await store.lookup(self._owner, self._ids)}
            # What was reported in the meantime is newer.
            self._news = current | self._news
            self._is_begun = True
            await self._deliver(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while self._news or not self._is_over:
                news, self._news = list(self._news.values()), {}
                self._changed.clear()
                for first in range(0, len(news) or 1, AT_ONCE):
                    body = b"".join(map(encode, news[first : first + AT_ONCE])) or PING
                    await self._deliver(send, {"type": "http.response.body", "body": body, "more_body": True})
                    # A socket that takes everything at once never suspends this task.
                    await asyncio.sleep(0)
                try:
                    async with asyncio.timeout(ping):
                        if not self._news and not self._is_over:
                            await self._changed.wait()
                except TimeoutError:
                    # Nothing else tells of a client's leaving behind a middleware that gives the body again and again.
                    if self._transport is not None and self._transport.is_closing():
                        self.leave()
            await self._deliver(send, end_of_body())
        finally:
            unsubscribe()

    async def _deliver(self, send: Send, message: Message) -> None:
        self._deadline.reschedule(asyncio.get_running_loop().time() + self._manager.settings.stall_timeout)
        await send(message)
        self._deadline.reschedule(None)


def encode(item: ResumableStreamItem) -> bytes:
    """Write an item as a server-sent event. It has no id: a client that comes back gets the current state first."""
    return b"event: stream.%s\ndata: %s\n\n" % (item.status.encode("ascii"), item.model_dump_json().encode("utf-8"))
