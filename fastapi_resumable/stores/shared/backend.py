"""A worker of a shared store: the requests and streams that it has, and what all backends do with them alike."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from ..._core.ids import StreamKey
from ..._core.lifecycle import OnConflict, Verdict
from ..._core.log import Budget
from ..._stream.stream import Limits, Stream
from ..._stream.tasks import Tasks
from ...exceptions import ShuttingDown, StoreUnavailable, TooManyStreams
from ..base import Notify, Reservation, Watchers
from .local import LocalStream
from .outage import UNAVAILABLE, Outage
from .queue import WriteQueue
from .remote import RemoteStream
from .writes import KeyState, RemoteState, StreamBackend, Sync

logger = logging.getLogger("fastapi_resumable")


class Answer(NamedTuple):
    """What became of a request."""

    verdict: Verdict
    rival: str = ""
    """The epoch to follow or to wait for."""
    code: str = ""
    """Why it was stopped."""


class WorkerStreams:
    """What a worker works on, by epoch. A stream of another worker has one view, which its readers share."""

    def __init__(self) -> None:
        self.queued: dict[str, Reservation] = {}
        """Requests that may be queued, until they begin or are released: a stop can be here before the reply is."""
        self.local: dict[str, LocalStream] = {}
        """Streams that are produced here, until the backend has the whole of them."""
        self.views: WeakValueDictionary[str, RemoteStream] = WeakValueDictionary()
        """Streams of other workers that anything here refers to."""
        self.followed: dict[str, RemoteStream] = {}
        """Those that have readers."""

    def has(self, epoch: str) -> bool:
        """Whether an epoch belongs to this worker, and may be live."""
        return epoch in self.local or epoch in self.queued

    def find(self, key: StreamKey, epoch: str | None = None) -> list[LocalStream]:
        """The streams of a key that are produced here; of one epoch, if that is given."""
        return [stream for stream in self.local.values() if stream.key == key and epoch in (None, stream.epoch)]


class SharedBackend(StreamBackend, ABC):
    """The backend of a store on one event loop. What the store asks of it may raise `StoreUnavailable`."""

    outage: Outage
    """Since when the backend cannot be written."""

    def __init__(self, limits: Limits, *, degrade: bool) -> None:
        """`degrade`: whether streams that are produced here go on without the backend while that is gone."""
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.budget = Budget(limits.max_total_bytes)
        self.degrade = degrade
        self.tasks = Tasks()
        self.queue: WriteQueue[Any] = WriteQueue(self._next_job, self.take_reply, self.write)
        self.mark = self.queue.mark
        self.streams = WorkerStreams()
        self.watchers = Watchers(self.budget)
        self._starting: asyncio.Task[StoreUnavailable | None] | None = None

    # Starting and ending.

    @abstractmethod
    async def register(self) -> None:
        """Make the worker known to others, and begin to listen to them."""

    @abstractmethod
    async def leave(self) -> None:
        """Tell others that the worker is gone."""

    async def start(self) -> None:
        """Register the worker; once, and all that ask meanwhile wait for the same attempt."""
        starting = self._starting
        if starting is None:
            starting = self._starting = self.tasks.spawn(self._start(), "resumable start")
        if not starting.done():
            # Not `await starting`: other requests wait for the same attempt, and the end of the backend cancels it.
            await asyncio.wait({starting})
        if starting.cancelled():
            raise ShuttingDown
        if (failure := starting.result()) is not None:
            raise failure

    async def _start(self) -> StoreUnavailable | None:
        try:
            await self.register()
        except Exception as exc:
            # The next request tries again.
            self._starting = None
            if isinstance(exc, StoreUnavailable):
                return exc
            logger.exception("the worker could not register with its store")
            return StoreUnavailable(UNAVAILABLE)
        return None

    async def aclose(self) -> None:
        """End, when everything is written that can be."""
        if self._starting is not None and self._starting.done():
            try:
                # The process is about to exit and must not wait for a store that is gone.
                async with asyncio.timeout(self.outage.attempt):
                    await self.queue.flush()
                    await self.leave()
            except Exception as exc:
                # The reason is known already, if it is one that the store expects.
                unexpected = None if isinstance(exc, TimeoutError | StoreUnavailable) else exc
                logger.warning("the worker ended before its store had acknowledged everything", exc_info=unexpected)
        self.close()
        await self.tasks.aclose()

    def keep_writing(self, on_failure: Callable[[Exception], object]) -> None:
        """Write what streams record, until the backend is closed; or until its event loop ends without that."""
        task = self.tasks.keep_running(self._run_queue, "resumable appender", on_failure)
        # A producer that ends later would wait for its last bytes to be written, and keep the loop alive.
        task.add_done_callback(lambda _: self.close())

    async def _run_queue(self) -> None:
        try:
            await self.queue.run()
        except asyncio.CancelledError:
            try:
                # The producers are cancelled with it: all readers are to see how their streams end.
                async with asyncio.timeout(self.outage.attempt):
                    streams = self.streams.local
                    while not self.queue.is_closed and any(not each.settled.done() for each in streams.values()):
                        await self.queue.write_next()
            except Exception as exc:
                # In place of the cancellation, it would begin the queue again.
                logger.warning("the event loop ended before the store had acknowledged everything", exc_info=exc)
            raise

    def close(self) -> None:
        """Write nothing more, and let no stream wait for that."""
        self.queue.close()
        for stream in list(self.streams.local.values()):
            # For producers that ignore their cancellation, and write on.
            stream.on_outage(StoreUnavailable("The store is closed."))

    # State changes.

    def check_limit(self, *, replaces: bool) -> None:
        """Check that there is room for the request that was queued last.

        Raises:
            TooManyStreams: There is not.
        """
        live = sum(request.stop_code is None for request in self.streams.queued.values())
        # Counted rather than kept as a number: a stream can end in many ways, and a wrong number would refuse requests
        # for good.
        live += sum(not stream.closed for stream in self.streams.local.values())
        if live > self.limits.max_streams + replaces:
            raise TooManyStreams("The server has reached its limit of live streams. Try again in a moment.")

    @abstractmethod
    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow.

        Raises:
            TooManyStreams: A limit is reached.
        """

    @abstractmethod
    async def begin(self, reservation: Reservation, stream: LocalStream) -> Answer:
        """Make a request the current epoch."""

    @abstractmethod
    async def release(self, reservation: Reservation) -> None:
        """Make sure that a request stays neither queued nor live, now or when the backend is back."""

    @abstractmethod
    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""

    # Looking.

    @abstractmethod
    async def state(self, key: StreamKey) -> KeyState:
        """What there is under a key."""

    @abstractmethod
    async def states(self, owner: str | None, ids: Sequence[str]) -> list[KeyState]:
        """What there is under some ids and their variants, each once, in the order asked for."""

    @abstractmethod
    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""

    def open(self, state: RemoteState) -> Stream:
        """The stream that the backend knows as `state`, as it is read here."""
        streams = self.streams
        if (local := streams.local.get(state.epoch)) is not None:
            local.note_recorded(state.tail)
            return local
        view = streams.views.get(state.epoch)
        # A reader that comes after a failure begins anew.
        if view is not None and view.failure is None:
            view.update(state)
            return view
        view = streams.views[state.epoch] = RemoteStream(self, state)
        return view

    # What streams ask for.

    def forget(self, stream: LocalStream) -> None:
        """Write no more of a stream. Its bytes stay, and stay counted, for the readers here."""
        self.streams.local.pop(stream.epoch, None)
        stream.outbox.sync = Sync.LEFT

    def follow(self, stream: RemoteStream) -> None:
        """Give what is added to a log to the stream."""
        self.streams.followed[stream.epoch] = stream

    def report_again(self) -> None:
        """Repeat where the readers here are, because that is forgotten after a while."""
        # A copy, as views are freed at any moment.
        for view in list(self.streams.views.values()):
            if view.slowest is not None:
                view.report()

    def unfollow(self, stream: RemoteStream) -> None:
        """Stop that."""
        if self.streams.followed.get(stream.epoch) is stream:
            del self.streams.followed[stream.epoch]

    def check_streams(self) -> None:
        """Ask whether the backend still has what is produced here."""
        for stream in self.streams.local.values():
            stream.outbox.renew = True
            self.mark(stream)

    # What the write queue asks for.

    def _next_job(self, stream: LocalStream | RemoteStream) -> Any:
        # A view that has failed may have a successor, whose readers must not be reported as gone.
        is_latest = isinstance(stream, LocalStream) or self.streams.views.get(stream.epoch) is stream
        return self.next_job(stream) if is_latest else None

    @abstractmethod
    def next_job(self, stream: LocalStream | RemoteStream) -> Any:
        """What is to be done for a stream now; `None` if nothing is."""

    @abstractmethod
    def take_reply(self, stream: LocalStream | RemoteStream, reply: Any) -> None:
        """Note what came of it."""

    @abstractmethod
    async def write(self, jobs: Sequence[Any]) -> list[Any]:
        """Do some jobs; return the reply to each."""

    # What the worker hears of others.

    def on_ended(self, epoch: str, code: str) -> None:
        """Take over that another worker, or a request to this one, has ended an epoch."""
        if (request := self.streams.queued.get(epoch)) is not None:
            # It may hear of it twice: by the reply to its own call, and by a message.
            if request.stop_code is None:
                request.stop(code)
        elif (stream := self.streams.local.get(epoch)) is not None:
            self.end_elsewhere(stream, code)

    def end_elsewhere(self, stream: LocalStream, code: str = "cancelled") -> None:
        """Take over that something else has ended a stream, and stop its producer."""
        if stream.epoch in self.streams.local:
            self.forget(stream)
            self.tasks.spawn(self.adopt_end(stream, code), f"resumable end {stream.key.id}")

    async def adopt_end(self, stream: LocalStream, code: str) -> None:
        """Have a stream that is forgotten end as the backend says, and stop its producer."""
        try:
            code = await stream.adopt_end(code)
        finally:
            stream.stop_producer("interrupted" if code == "producer_lost" else code)

    def on_outage(self, failure: StoreUnavailable) -> None:
        """The backend could not be read for too long: end the readings of streams that other workers produce."""
        for stream in list(self.streams.followed.values()):
            stream.fail(failure)
