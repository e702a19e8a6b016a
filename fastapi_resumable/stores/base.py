"""What a store does: it decides who may begin under an id, holds the current epoch of each, and reports changes."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from .._core.ids import StreamKey, parse_idempotency_key, variants
from .._core.lifecycle import OnConflict
from .._core.log import Budget
from .._stream.stream import Head, Limits, Stream, WritableStream
from ..exceptions import (
    ResumableError,
    ShuttingDown,
    StreamCancelled,
    StreamReplaced,
    TooManyStreams,
)
from ..models import ResumableStatus, ResumableStreamItem

Notify = Callable[[ResumableStreamItem], None]

LOOKED_UP_AT_ONCE = 256
"""How many ids or streams are looked at before others run."""
WATCH_OVERHEAD = 512
"""How many bytes a watched id is counted for, in addition to its own."""


def queued_item(key: StreamKey, epoch: str, requested_at: float) -> ResumableStreamItem:
    """A stream that is queued, as a lookup shows it."""
    return ResumableStreamItem(
        conversation_id=key.id,
        status=ResumableStatus.QUEUED,
        is_done=False,
        epoch=epoch,
        total_bytes=0,
        dropped_bytes=0,
        content_type=None,
        started_at=int(requested_at),
        completed_at=0,
    )


def stop_error(code: str | None) -> ResumableError:
    """What a request gets whose stream, or the one that it is to follow, was stopped: before it began, or since."""
    if code == "interrupted":
        return ShuttingDown()
    return StreamReplaced() if code == "replaced" else StreamCancelled()


class Reservation:
    """A request that waits for its endpoint to begin: a stream that is `queued`."""

    __slots__ = (
        "_settled",
        "epoch",
        "idempotency_key",
        "key",
        "on_stop",
        "pending_timeout",
        "requested_at",
        "size",
        "stop_code",
    )

    def __init__(
        self, key: StreamKey, epoch: str, *, idempotency_key: str | None, on_stop: Callable[[str], None]
    ) -> None:
        """`on_stop` is called with `cancelled`, `replaced` or `interrupted`, at any time, from the event loop.

        Raises:
            InvalidRequest: The idempotency key is too long.
        """
        self.key = key
        self.epoch = epoch
        self.idempotency_key = parse_idempotency_key(idempotency_key)
        self.on_stop = on_stop
        self.requested_at = 0.0
        self.size = 0
        """What it is counted for, where it is kept in memory."""
        self.pending_timeout: float | None = None
        """Seconds for which to wait for another request's stream, where this one is to follow it; `None`: no limit."""
        self.stop_code: str | None = None
        """Why it was stopped before it began."""
        # One for all that wait: they go on in the order in which they came.
        self._settled: asyncio.Future[Stream | None] | None = None

    async def settled(self) -> Stream | None:
        """Wait until the stream has begun, and return it, whatever has become of it since; or until it never will.

        Raises:
            StreamCancelled: It was stopped before it began.
            StreamReplaced: A newer request has begun before it.
            ShuttingDown: It was interrupted before it began.
        """
        if self._settled is None:
            self._settled = asyncio.get_running_loop().create_future()
        # Should this task be cancelled, that does not cancel what others wait for, too.
        await asyncio.wait({self._settled})
        if self.stop_code is not None:
            raise stop_error(self.stop_code)
        return self._settled.result()

    def stop(self, code: str) -> None:
        """Tell the request, and other requests that wait for it, that the stream will not begin."""
        self.stop_code = code
        self.on_stop(code)
        self.settle()

    def settle(self, stream: Stream | None = None) -> None:
        """Give the requests that wait the stream, or `None` if there will be none."""
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(stream)

    @property
    def item(self) -> ResumableStreamItem:
        """The queued stream as a lookup shows it."""
        return queued_item(self.key, self.epoch, self.requested_at)

    def ended(self, status: ResumableStatus, now: float) -> ResumableStreamItem:
        """The stream as a watcher sees it that waits no longer, and has not begun."""
        return self.item.model_copy(update={"status": status, "is_done": True, "completed_at": int(now)})


@runtime_checkable
class Store(Protocol):
    """Where streams live. Its methods change their states; bytes go through the `Stream` that `begin` returns."""

    def configure(self, limits: Limits) -> None:
        """Take the limits; called once, before anything else."""

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        """Queue a request; or return the stream that it is to follow instead, once that has begun.

        A stream that was waited for is followed even if it is over by then; if there is nothing left of it to follow,
        because it was stopped or replaced, the request gets that error, and its endpoint is not run.

        Raises:
            StreamCancelled: What it waited for was stopped.
            StreamReplaced: What it waited for was replaced.
            StreamPending: It has waited for `pending_timeout`, for however many of them.
            StreamExists: The id has a live or queued stream, and the rule is `reject`.
            TooManyStreams: A limit is reached.
        """

    async def begin(self, reservation: Reservation, head: Head) -> WritableStream:
        """Turn a reservation into the current epoch of its id, which replaces the one before.

        Raises:
            StreamCancelled: It was stopped while it waited.
            StreamReplaced: A newer request has begun in the meantime.
            ShuttingDown: Its worker was taken for dead meanwhile.
        """

    async def release(self, reservation: Reservation) -> None:
        """Give a reservation back: the stream will not begin. No-op if it has."""

    async def finish(self, stream: WritableStream, status: ResumableStatus, code: str, message: str) -> None:
        """End a stream; it stays for the retention. No-op if it has ended."""

    async def find(self, key: StreamKey, timeout: float, *, live: bool = False) -> Stream:
        """Return the current epoch; wait up to `timeout` seconds for one that is queued.

        With `live`, one that has ended is not returned while another is queued.

        Raises:
            StreamNotFound: There is none.
            StreamPending: It is still queued.
        """

    async def lookup(self, owner: str | None, ids: Sequence[str]) -> list[ResumableStreamItem]:
        """Return the owner's streams whose id is one of `ids` or a variant of one, each once."""

    async def watch(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` at each change of the owner's streams whose id is one of `ids` or a variant of one.

        It is called from the event loop, with the stream's item, until the function that is returned is called.

        A change is a new status: `queued` at `reserve`, `in_progress` at `begin`, and how it ended. A request that
        waits no longer and has not begun is `failed`, or `cancelled` if it was stopped or overtaken. If the id still
        has another stream or request, that one's item follows, so that the last item is what a lookup shows. The
        expiry of an ended stream is no change.
        """

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live under `key` and forget what has ended; only that `epoch`, if one is given."""

    async def aclose(self) -> None:
        """Give back what the store holds."""


def watch_size(ids: Sequence[str]) -> int:
    """What a watch over some ids is counted for."""
    return sum(WATCH_OVERHEAD + sys.getsizeof(stream_id) for stream_id in set(ids))


class Watchers:
    """The callbacks that get the changes of streams, by owner and id. Streams without any take no memory here."""

    def __init__(self, budget: Budget | None = None) -> None:
        """Count what is kept in the `budget`."""
        self._budget = budget or Budget()
        self._by_key: dict[StreamKey, dict[object, Notify]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def add(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change of the owner's streams, until the function that is returned is called.

        Raises:
            TooManyStreams: There is no room for so many ids.
        """
        keys = {StreamKey(owner, stream_id) for stream_id in ids}
        size = watch_size(ids)
        if self._budget.used + size > self._budget.limit:
            raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")
        self._budget.used += size
        # Not the callback itself: the same one may watch several times.
        watcher = object()
        for key in keys:
            self._by_key.setdefault(key, {})[watcher] = notify

        def remove() -> None:
            if keys:
                self._budget.used -= size
            while keys:
                key = keys.pop()
                watching = self._by_key[key]
                del watching[watcher]
                if not watching:
                    del self._by_key[key]

        return remove

    def watched(self) -> dict[str | None, list[str]]:
        """The ids that are watched, by owner."""
        ids: dict[str | None, list[str]] = {}
        for owner, stream_id in self._by_key:
            ids.setdefault(owner, []).append(stream_id)
        return ids

    def notify(self, owner: str | None, item: ResumableStreamItem) -> bool:
        """Tell each watcher of the stream, or of an id that it is a variant of, once; return whether there is one."""
        # By watcher, because one that watches an id and a variant of it is to hear of a change once.
        told: dict[object, Notify] = {}
        for watched in (item.conversation_id, *variants(item.conversation_id)):
            told |= self._by_key.get(StreamKey(owner, watched), {})
        for notify in told.values():
            notify(item)
        return bool(told)
