"""Following a log from an offset to its end, at the pace of the client.

There is one source, the log, and one loop: replay and live tail are the same thing. The reader owns a cursor and no
queue; what has piled up since the last message goes out in one piece.

To wake a task costs more than most of what the task then does. So what comes while a reader's task waits is sent within
the call that appends it, or in the next turn of the event loop, on behalf of that task: the server's `send`, and
middleware around it, see the current task and the context variables that they would see anyway. If a `send` has to
wait, or fails, the task takes it over.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from enum import Enum
from time import monotonic
from typing import Any

import anyio

from .._core.log import BLOCK_SIZE
from ..exceptions import OffsetLost, ResumableError
from .fanout import Cursor
from .stream import YIELD_EVERY, Stream, ends_in_order, loss_of
from .tasks import Suspended, run_inline

Message = dict[str, Any]
Send = Callable[[Message], Coroutine[Any, Any, None]]
End = Callable[["Reading"], Coroutine[Any, Any, None]]

MAX_SEND = 2 * BLOCK_SIZE
"""The most bytes in one message: a slow client has to take each of them within `stall_timeout`."""
LAST_DELIVERY = 2.0
"""Seconds that a client has to take the rest of its stream once the server exits, or has cancelled its request."""


class Reading(Enum):
    """How a reading ended."""

    FINISHED = "finished"
    """The log has ended and everything was delivered."""
    LEFT = "left"
    """The client went away."""
    CUT = "cut"
    """Sending to the client failed: it went away, or something between it and the application broke."""
    STALLED = "stalled"
    """The client took no bytes for too long, or has to leave because the server shuts down."""
    LOST = "lost"
    """The bytes at the cursor were dropped, or the store cannot be reached: see the reader's `failure`."""


class Reader(Cursor):
    """One client's reading of one stream."""

    __slots__ = (
        "_context",
        "_drain_on_cancel",
        "_is_evicted",
        "_is_idle",
        "_left",
        "_missed",
        "_rest",
        "_rest_size",
        "_send",
        "_sending_since",
        "_stall_timeout",
        "_start",
        "_task",
        "_timer",
        "_waiter",
        "failure",
        "has_sent_end",
        "stream",
    )

    def __init__(
        self,
        stream: Stream,
        offset: int,
        *,
        stall_timeout: float,
        drain_on_cancel: Callable[[], bool],
    ) -> None:
        """Attach to the stream. A reading whose client takes no bytes for `stall_timeout` seconds ends.

        `drain_on_cancel` is asked, when the reading is cancelled, whether to deliver the rest nevertheless.
        """
        super().__init__(offset)
        self.stream = stream
        self._start = offset
        self.failure: ResumableError | None = None
        """Why the reading was `LOST`."""
        self.has_sent_end = False
        """Whether the last bytes went out together with the end of the body."""
        self._drain_on_cancel = drain_on_cancel
        self._stall_timeout = stall_timeout
        self._timer: asyncio.TimerHandle | None = None  # for the next look at the client's progress
        self._waiter: asyncio.Future[None] | None = None
        self._left = self._missed = self._is_evicted = False
        self._is_idle = False  # whether it waits, with nothing half sent
        self._task: Any = None  # that of `run`
        self._sending_since: float | None = None
        self._rest: Suspended | None = None
        # From now on, not from the first message: what there is now must still be there then.
        stream.attach(self)

    def leave(self) -> None:
        """The client has gone: end the reading."""
        self._left = True
        self.on_change()

    def on_change(self) -> None:
        """Let the task look."""
        self._missed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_append(self, data: bytes, tail: int) -> None:
        """Send what has come, if the task waits for it; and let the task go on with what cannot be done here."""
        waiter = self._waiter
        # The task is awake, or about to be, and looks at the log once more before it waits.
        if waiter is None or waiter.done():
            self._missed = True
            return
        size = len(data)
        if self.offset + size != tail:
            # There is more than that, for this reader.
            try:
                data = self.stream.read(self.offset)
            except OffsetLost:
                # The bytes have to be fetched, and only the task can wait for that.
                data = b""
            size = len(data)
        if not 0 < size <= MAX_SEND:
            waiter.set_result(None)
            return
        # Not to be called again by what this message sets off.
        self._waiter, self._missed = None, False
        message = self._send({"type": "http.response.body", "body": data, "more_body": True})
        rest = run_inline(self._task, self._context, message)
        self._waiter = waiter
        if rest is None:
            self.stream.advance(self, size)
            if self.offset == tail and not self._missed:
                return
        else:
            # The cursor moves when the client has it, not when the `send` begins.
            self._rest, self._rest_size = rest, size
            self._begin_sending()
        if not waiter.done():
            waiter.set_result(None)

    def evict(self) -> None:
        """End the reading as stalled, even in the middle of a `send`."""
        if self._task is not None and not self._is_evicted:
            self._is_evicted = True
            self._task.cancel()

    async def run(self, send: Send, start: Message, end: End | None = None) -> Reading:
        """Send `start`, then everything from the cursor on, until the log ends or the client goes; then detach.

        `end` is called last, unless the client has stalled. A cancellation may have been put off until then.
        """
        task = self._task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        # A copy, because a context cannot be entered twice, and the task is within its own.
        self._send, self._context = send, copy_context()
        try:
            self._begin_sending()
            await send(start)
            self._sending_since = None
            return await self._read(end)
        except asyncio.CancelledError:
            # As `asyncio.timeout` does, for which an eviction is too rare: a cancellation from elsewhere goes on.
            if not self._is_evicted or task.uncancel() > cancelling:
                raise
            return Reading.STALLED
        finally:
            self._cancel_timer()
            self.stream.detach(self)
            # They may lead back to the reader, which would then wait for the garbage collector.
            del self._send, self._context
            self._task = None

    async def _read(self, end: End | None) -> Reading:
        try:
            return await self._read_on(end)
        except asyncio.CancelledError as exc:
            # In the middle of a `send` it is unknown what the client has, so only an idle reading can continue.
            if self._is_evicted or not self._is_idle or not self._drain_on_cancel():
                raise
            cancelled = exc
        # It may be that nothing takes any more what is sent, without saying so.
        self._cancel_timer()
        self._stall_timeout = min(self._stall_timeout, LAST_DELIVERY)
        # A cancellation through a task group comes again at each `await`.
        with anyio.CancelScope(shield=True):
            await self._read_on(end)
        raise cancelled

    async def _read_on(self, end: End | None) -> Reading:
        try:
            await self._follow()
            # With the end of the body, a server takes the client for gone.
            reading = Reading.LEFT if self._left and not self.has_sent_end else Reading.FINISHED
        except ResumableError as exc:
            # It may have been stopped since the reader's place was found.
            self.failure = exc if self.offset > self._start else loss_of(self.stream, exc)
            reading = Reading.LOST
        if end is not None:
            self._begin_sending()
            await end(reading)
        return reading

    async def _follow(self) -> None:
        stream = self.stream
        sends = 0
        while not self._left:
            try:
                data = stream.read(self.offset)
            except OffsetLost:
                data = await stream.fetch(self.offset)
            if data:
                await self._deliver(data)
                sends += 1
                if sends % YIELD_EVERY == 0:
                    # A replay whose socket never fills up would block the event loop.
                    await asyncio.sleep(0)
            elif stream.is_final:
                return
            elif stream.failure is not None:
                raise stream.failure
            else:
                await self._wait()

    async def _deliver(self, data: bytes) -> None:
        """Send what comes at the cursor. Once begun, it is sent whole: an event ends where it does, or further on."""
        stream = self.stream
        is_last = stream.is_final and self.offset + len(data) == stream.tail and ends_in_order(stream)
        for start in range(0, len(data), MAX_SEND):
            if start:
                await asyncio.sleep(0)
            piece = data[start : start + MAX_SEND]
            # With the last bytes, that is one write to the socket in place of two.
            self.has_sent_end = is_last and start + len(piece) == len(data)
            self._begin_sending()
            await self._send({"type": "http.response.body", "body": piece, "more_body": not self.has_sent_end})
            self._sending_since = None
            stream.advance(self, len(piece))

    async def _wait(self) -> None:
        """Wait until there is something to do; and finish what was begun in the meantime."""
        # No append can be missed: there is no `await` between the last look at the log and this future.
        self._waiter = asyncio.get_running_loop().create_future()
        self._is_idle = True
        try:
            await self._waiter
        except asyncio.CancelledError as exc:
            if self._rest is None:
                raise
            # This task would be waiting in what was begun on its behalf, so the cancellation belongs there.
            # The first error is what it has to see; a cancellation on top of that would hide it.
            self._rest.error = self._rest.error or exc
        finally:
            self._waiter = None
        self._is_idle = False
        if self._rest is not None:
            rest, self._rest = self._rest, None
            await rest
            self._sending_since = None
            self.stream.advance(self, self._rest_size)

    def _begin_sending(self) -> None:
        self._sending_since = monotonic()
        # One timer serves many messages, because setting a timer for each would cost more than to send it.
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._stall_timeout, self._check_progress)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self) -> None:
        """Give up on a client that has taken nothing for too long; look again if it is being sent something."""
        self._timer = None
        if self._sending_since is not None:
            left = self._sending_since + self._stall_timeout - monotonic()
            if left <= 0:
                self.evict()
            else:
                self._timer = asyncio.get_running_loop().call_later(left, self._check_progress)
