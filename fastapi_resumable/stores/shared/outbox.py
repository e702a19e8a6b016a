"""What a backend still needs of a log: which bytes, whether it has to begin, and how the log has ended.

Pure bookkeeping: a write that was lost, or whose reply was, is made again by asking for the next one.
"""

from enum import Enum

from ..._core.log import BLOCK_SIZE
from ..._stream.recording import Recording
from .writes import Begin, Ended, Ending, Gap, Missing, Reply, Restore, Write, Written

AHEAD = 256 * 1024
"""The most bytes a producer may be ahead of what the backend has acknowledged."""


class Sync(Enum):
    """What the next write has to do."""

    BEGIN = "begin"
    """Begin the stream, which could not be done when it began here."""
    WRITE = "write"
    """Add what is new."""
    RESTORE = "restore"
    """Begin it anew: the backend has lost it, or has been gone for longer than this log remembers."""
    LEFT = "left"
    """Nothing. There is no way back from here."""


class Outbox:
    """How far a backend is behind a recording."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.ahead = max(1, min(AHEAD, recording.limits.max_stream_bytes // 4))
        """The most bytes that may be written before the backend has acknowledged them."""
        self.sync = Sync.WRITE
        self.recorded = 0
        """How much the backend has acknowledged."""
        self.sent: Write | None = None
        """The last write."""
        self.renew = True
        """Whether to ask the backend for a sign that it still has the stream."""
        self.ending: Ending | None = None
        """How the log has ended."""

    def next_write(self) -> Begin | Restore | Write | None:
        """What the backend is to do now."""
        if self.sync is Sync.LEFT:
            return None
        recording = self._recording
        if self.sync is Sync.BEGIN:
            return Begin()
        # What the backend lacks was dropped here in the meantime, so there can be no log without a gap.
        if self.sync is Sync.RESTORE or self.recorded < recording.log.floor:
            self.sync = Sync.RESTORE
            return Restore(recording.earliest)
        first, last = self.recorded, recording.log.tail
        if first == last and self.ending is None and not self.renew:
            return None
        self.sent = Write(
            first,
            last,
            b"".join(recording.log.chunks(first)),
            earliest=recording.earliest if last > recording.bound else 0,
            is_mid_event=recording.is_mid_event,
            renew=self.renew or not first,
            # As long as the log cannot fill up before the next reply, no reader has to be waited for.
            may_fill=last + 2 * max(self.ahead, BLOCK_SIZE) > recording.bound,
            ending=self.ending,
        )
        self.renew = False
        return self.sent

    def take(self, reply: Reply) -> bool:
        """Note what came of the last write; return whether the stream still belongs to this worker."""
        match reply:
            case Written():
                assert self.sent is not None
                self.recorded = self.sent.last
            case Gap(offset):
                self.sync, self.renew, self.recorded = Sync.WRITE, True, offset
            case Missing():
                self.sync = Sync.RESTORE
            case Ended():
                return False
        # A backend that has more than was written here has it from another worker.
        return self.recorded <= self._recording.log.tail
