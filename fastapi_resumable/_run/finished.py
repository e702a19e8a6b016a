"""What `on_finish` hooks get: a stream that has ended, with what its log holds."""

from collections.abc import Iterator

from .._core.sse import events
from .._stream.stream import WritableStream
from ..models import ResumableStatus


class FinishedStream:
    """A finished stream. It holds its bytes itself, so it may be kept after the stream has expired."""

    def __init__(self, stream: WritableStream) -> None:
        head = stream.head
        self.id: str = stream.key.id
        self.owner: str | None = stream.key.owner
        self.epoch: str = stream.epoch
        self.status: ResumableStatus = stream.status
        self.status_code: int = head.status_code
        self.headers: dict[str, str] = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        self.media_type: str | None = head.content_type
        self.started_at: float = stream.started_at
        """Unix seconds."""
        self.completed_at: float = stream.completed_at
        """Unix seconds."""
        self.total_bytes: int = stream.tail
        self.dropped_bytes: int = stream.earliest
        self._blocks = stream.held_blocks()

    @property
    def head_dropped(self) -> bool:
        """Whether the stream was larger than `max_stream_bytes`, so that its beginning is missing."""
        return self.dropped_bytes > 0

    def iter_bytes(self) -> Iterator[bytes]:
        """The recorded bytes, in pieces of no particular size."""
        return iter(self._blocks)

    def iter_events(self) -> Iterator[bytes]:
        """The recorded bytes cut into whole server-sent events, as they were sent."""
        return events(self._blocks)
