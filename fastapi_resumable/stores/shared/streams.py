"""What a worker works on: the requests that are queued, the streams that it produces, and those that it reads."""

from weakref import WeakValueDictionary

from ..._core.ids import StreamKey
from ..._stream.stream import Budget, Limits, Stream
from ...exceptions import ResumableError, TooManyStreams
from ..base import Reservation
from .local import LocalStream
from .remote import RemoteStream
from .writes import ReaderBackend, RemoteState


class WorkerStreams:
    """The streams of one worker, by epoch. A stream of another worker has one view, which its readers share."""

    def __init__(self, limits: Limits) -> None:
        self.budget = Budget()
        self.queued: dict[str, Reservation] = {}
        """Requests that may be queued, until they begin or are released: a stop can be here before the reply is."""
        self.local: dict[str, LocalStream] = {}
        self.views: WeakValueDictionary[str, RemoteStream] = WeakValueDictionary()
        """Streams of other workers that anything here refers to."""
        self.followed: dict[str, RemoteStream] = {}
        """Those that have readers."""
        self._limits = limits

    def has(self, epoch: str) -> bool:
        """Whether an epoch belongs to this worker, and may be live."""
        return epoch in self.local or epoch in self.queued

    def find(self, key: StreamKey, epoch: str | None = None) -> list[LocalStream]:
        """The streams of a key that are produced here; of one epoch, if that is given."""
        return [stream for stream in self.local.values() if stream.key == key and epoch in (None, stream.epoch)]

    def check_limit(self, *, replaces: bool) -> None:
        """Check that there is room for the request that was queued last.

        Raises:
            TooManyStreams: There is not.
        """
        live = sum(request.stop_code is None for request in self.queued.values())
        live += sum(not stream.closed for stream in self.local.values())
        if live > self._limits.max_streams + replaces:
            raise TooManyStreams("The server has reached its limit of live streams. Try again in a moment.")

    def stop(self, epoch: str, code: str) -> None:
        """Take over that another worker, or a request to this one, has ended an epoch."""
        if (request := self.queued.get(epoch)) is not None:
            if request.stop_code is None:
                request.stop(code)
        elif (stream := self.local.get(epoch)) is not None:
            stream.backend.end_elsewhere(stream, code)

    def forget(self, stream: LocalStream) -> bool:
        """Write no more of a stream; return whether it was written until now."""
        if self.local.pop(stream.epoch, None) is None:
            return False
        stream.leave_store()
        return True

    def open(self, state: RemoteState, backend: ReaderBackend[RemoteStream]) -> Stream:
        """The stream that the backend knows as `state`, as it is read here."""
        if (local := self.local.get(state.epoch)) is not None:
            local.note_recorded(state.tail)
            return local
        view = self.views.get(state.epoch)
        if view is not None and view.failure is None:
            view.update(state)
            return view
        view = self.views[state.epoch] = RemoteStream(backend, state, limits=self._limits, budget=self.budget)
        return view

    def fail_followed(self, failure: ResumableError) -> None:
        """End the readings of streams that other workers produce."""
        for stream in list(self.followed.values()):
            stream.fail(failure)
