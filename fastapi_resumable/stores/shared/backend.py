"""What the store protocol needs of a worker, whichever backend that has."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..._core.ids import StreamKey
from ..._core.lifecycle import OnConflict, Verdict
from ..._stream.tasks import Tasks
from ...exceptions import StoreUnavailable
from ..base import Reservation
from ..watchers import Notify
from .local import LocalStream
from .remote import RemoteStream
from .streams import WorkerStreams
from .writes import KeyState, ReaderBackend, WriterBackend


class Answer(NamedTuple):
    """What became of a request."""

    verdict: Verdict
    rival: str = ""
    """The epoch to follow or to wait for."""
    code: str = ""
    """Why it was stopped."""


class SharedBackend(Protocol):
    """What a store needs of its worker: everything here may raise `StoreUnavailable`."""

    loop: asyncio.AbstractEventLoop
    tasks: Tasks
    streams: WorkerStreams

    @property
    def writer(self) -> WriterBackend[LocalStream]:
        """For streams that are produced here."""

    @property
    def reader(self) -> ReaderBackend[RemoteStream]:
        """For streams that other workers produce."""

    async def start(self) -> None:
        """Register the worker; once, and all that ask meanwhile wait for the same attempt."""

    async def reserve(self, reservation: Reservation, on_conflict: OnConflict, now: float) -> Answer:
        """Queue a request, or say what it has to follow.

        Raises:
            TooManyStreams: A limit is reached.
        """

    async def begin(self, reservation: Reservation, stream: LocalStream) -> Answer:
        """Make a request the current epoch."""

    def begin_later(self, stream: LocalStream, failure: StoreUnavailable) -> None:
        """Have a stream `begin_later`."""

    async def release(self, reservation: Reservation) -> None:
        """Make sure that a request stays neither queued nor live, now or when the backend is back."""

    async def stop(self, key: StreamKey, epoch: str | None) -> None:
        """Stop what is queued or live, forget what has ended."""

    async def state(self, key: StreamKey) -> KeyState:
        """What there is under a key."""

    async def states(self, owner: str | None, ids: Sequence[str]) -> list[KeyState]:
        """What there is under some ids and their variants, each once, in the order asked for."""

    async def subscribe(
        self, owner: str | None, ids: Sequence[str], notify: Notify, *, is_urgent: bool = False
    ) -> Callable[[], None]:
        """Call `notify` with each change from now on, until what is returned is called."""

    async def aclose(self) -> None:
        """Write what is left, and end."""
