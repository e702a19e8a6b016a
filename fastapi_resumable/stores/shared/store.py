"""The store protocol for stores that several workers share: what is the same for each backend."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

from ..._core.ids import StreamKey
from ..._core.lifecycle import OnConflict, Verdict
from ..._stream.stream import Head, Limits, Stream, WritableStream
from ...exceptions import StoreUnavailable, StreamExists, StreamNotFound, StreamPending
from ...models import ResumableStatus, ResumableStreamItem
from ..base import LOOKED_UP_AT_ONCE, Notify, Reservation, stop_error
from .backend import SharedBackend
from .local import LocalStream
from .outage import RECHECK
from .writes import KeyState, Sync

OnStoreFailure = Literal["degrade", "fail"]


class SharedStore(ABC):
    """A store whose streams are kept by a backend, for all workers."""

    def __init__(self, store_timeout: float, on_store_failure: OnStoreFailure) -> None:
        check_seconds("store_timeout", store_timeout)
        if on_store_failure not in ("degrade", "fail"):
            raise ValueError(f"on_store_failure must be 'degrade' or 'fail', not {on_store_failure!r}.")
        self._timeout = float(store_timeout)
        self._degrade = on_store_failure == "degrade"
        self._limits = Limits()
        self._backend: SharedBackend | None = None

    @abstractmethod
    def _open_backend(self) -> SharedBackend:
        """A worker of the backend, on the running event loop; nothing of it has begun yet."""

    @property
    def held_bytes(self) -> int:
        """How many bytes this process holds: the logs of the streams that it writes or follows."""
        return 0 if self._backend is None else self._backend.budget.used

    def configure(self, limits: Limits) -> None:
        """Take the limits."""
        self._limits = limits

    def _here(self) -> SharedBackend:
        """The backend of the running event loop."""
        # Tests and scripts run one application on several loops, and connections belong to one loop.
        if self._backend is None or self._backend.loop is not asyncio.get_running_loop():
            self._backend = self._open_backend()
        return self._backend

    # Starting.

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict) -> Stream | None:
        """Queue a request, or return the stream it is to follow."""
        backend = self._here()
        try:
            await backend.start()
            return await self._reserve(backend, reservation, on_conflict)
        except BaseException as exc:
            # Also after an error: the backend may have queued the request, although the reply was lost.
            await self.release(reservation)
            if isinstance(exc, StoreUnavailable):
                exc.degrade = self._degrade
            raise

    async def _reserve(
        self, backend: SharedBackend, reservation: Reservation, on_conflict: OnConflict
    ) -> Stream | None:
        key, epoch, now = reservation.key, reservation.epoch, time.time()
        timeout = reservation.pending_timeout
        deadline = float("inf") if timeout is None else backend.loop.time() + timeout
        while True:
            # Before the call: a stop by another worker may be here before the reply is.
            backend.streams.queued[epoch] = reservation
            answer = await backend.reserve(reservation, on_conflict, now)
            if answer.verdict is Verdict.QUEUED:
                return None
            del backend.streams.queued[epoch]
            if answer.verdict is Verdict.EXISTS:
                raise StreamExists
            is_over = partial(_is_settled, answer.rival)
            state = await self._wait_for_state(backend, key, is_over, deadline)
            _check_code(state.gone.get(answer.rival))
            if state.current is not None and state.current.epoch == answer.rival:
                # It may be over by now: that is what was waited for, and it is followed.
                return backend.open(state.current)

    async def _wait_for_state(
        self, backend: SharedBackend, key: StreamKey, is_over: Callable[[KeyState], bool], deadline: float
    ) -> KeyState:
        if is_over(state := await backend.state(key)):
            return state
        changed = asyncio.Event()
        # Subscribed before the second look, so that no change is missed in between.
        unsubscribe = await backend.subscribe(key.owner, [key.id], lambda _: changed.set())
        try:
            while not is_over(state := await backend.state(key)):
                left = deadline - backend.loop.time()
                if left <= 0:
                    raise StreamPending
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, RECHECK)):
                        await changed.wait()
                changed.clear()
        finally:
            unsubscribe()
        return state

    async def begin(self, reservation: Reservation, head: Head) -> WritableStream:
        """Make the reservation the current epoch."""
        backend, epoch = self._here(), reservation.epoch
        stream = LocalStream(backend, reservation, head)
        _check_code(reservation.stop_code)
        failure: StoreUnavailable | None = None
        try:
            answer = await backend.begin(reservation, stream)
            if answer.verdict is not Verdict.BEGUN and reservation.stop_code is None:
                reservation.stop(answer.code or "cancelled")
        except StoreUnavailable as exc:
            if not self._degrade:
                raise
            failure = exc
        _check_code(reservation.stop_code)
        # Only now, in one step with the next line: a stop that comes must find the epoch in one of the two.
        backend.streams.queued.pop(epoch, None)
        backend.streams.local[epoch] = stream
        if failure is not None:
            # It begins there as soon as that can be done.
            stream.outbox.sync = Sync.BEGIN
            stream.on_outage(failure)
            backend.mark(stream)
            backend.tasks.spawn(backend.announce(stream), "resumable announce")
        return stream

    async def release(self, reservation: Reservation) -> None:
        """Give a reservation back."""
        backend = self._backend
        if backend is not None and backend.streams.queued.pop(reservation.epoch, None) is not None:
            # In a task of its own, which goes on if the caller is cancelled.
            await asyncio.shield(backend.tasks.spawn(backend.release(reservation), "resumable release"))

    async def finish(self, stream: WritableStream, status: ResumableStatus, code: str, message: str) -> None:
        """End a stream; it expires after the retention."""
        if stream.closed:
            return
        assert isinstance(stream, LocalStream)
        stream.backend.note_end(stream)
        stream.end(status, code, message, time.time())
        await asyncio.shield(stream.settled)
        await stream.backend.announce(stream)

    # Looking.

    async def find(self, key: StreamKey, timeout: float, *, live: bool = False) -> Stream:
        """Return the current epoch, after waiting for one that is queued."""
        backend = self._here()

        def is_here(state: KeyState) -> bool:
            current = state.current
            return not state.queued or (current is not None and not (live and current.is_final))

        try:
            await backend.start()
            state = await self._wait_for_state(backend, key, is_here, backend.loop.time() + timeout)
        except StoreUnavailable:
            # The readers here can still have what is produced here.
            if local := backend.streams.find(key):
                return local[0]
            raise
        if state.current is None:
            raise StreamNotFound
        return backend.open(state.current)

    async def lookup(self, owner: str | None, ids: Sequence[str]) -> list[ResumableStreamItem]:
        """Return the streams with these `ids`, each once, in the order asked for."""
        if not ids:
            return []
        backend = self._here()
        await backend.start()
        items: list[ResumableStreamItem] = []
        for number, state in enumerate(await backend.states(owner, ids), 1):
            if (item := state.item) is not None:
                items.append(item)
            if number % LOOKED_UP_AT_ONCE == 0:
                await asyncio.sleep(0)
        return items

    async def watch(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` at every change of the owner's streams with these `ids`."""
        backend = self._here()
        await backend.start()
        return await backend.subscribe(owner, ids, notify)

    # Stopping.

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""
        backend = self._here()
        try:
            await backend.start()
            await backend.stop(key, epoch)
        except StoreUnavailable:
            # What runs here can be stopped without the backend, which learns of it when it is back.
            local = backend.streams.find(key, epoch)
            if not local:
                raise
            for stream in local:
                stream.stop_here()

    async def aclose(self) -> None:
        """Give back what the worker holds; streams stay in the backend."""
        # Taken first, so that a request that comes meanwhile opens a new one instead of using one that closes.
        backend, self._backend = self._backend, None
        if backend is not None and backend.loop is asyncio.get_running_loop():
            await backend.aclose()


def check_seconds(name: str, seconds: float) -> None:
    """Check a setting.

    Raises:
        ValueError: It is no positive number of seconds.
    """
    if not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ValueError(f"{name} must be a positive number of seconds, not {seconds!r}.")


def _is_settled(epoch: str, state: KeyState) -> bool:
    return all(queued.epoch != epoch for queued in state.queued)


def _check_code(code: str | None) -> None:
    """Raise the error of a request that was stopped, or of what it waits for, be it before that began or after."""
    if code is not None:
        raise stop_error(code)
