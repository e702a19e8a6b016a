"""What a stream needs of Redis: its writes as calls, the replies as what they mean, and pages of its log."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from ..._core.ids import StreamKey
from ...exceptions import StoreUnavailable, StreamReplaced
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import Begin, Begun, Ended, Gap, Missing, Page, Reply, Restore, Written
from .keys import log_key, readers_key
from .link import Call
from .scripts import APPEND, REPORT, RESTORE, WAIT

if TYPE_CHECKING:
    from .site import Site


def block_size(max_stream_bytes: int) -> int:
    """How many bytes a block has into which Redis packs small pieces: a log should hold a good many of them."""
    return max(64, min(4096, max_stream_bytes // 64))


class RedisWriter:
    """For a stream that is produced here."""

    def __init__(self, site: "Site", key: StreamKey, epoch: str) -> None:
        self.site = site
        self._key = key
        self.name = site.keys.stream(key)
        self._epoch = epoch
        self._stream: Callable[[], LocalStream | None] = lambda: None

    def belongs_to(self, stream: LocalStream) -> LocalStream:
        """Work for this stream; the reference is weak, so that its bytes go with the last reader."""
        self._stream = ref(stream)
        return stream

    @property
    def degrade(self) -> bool:
        """Whether a stream goes on without Redis while that is gone."""
        return self.site.degrade

    def mark(self, *, may_wait: bool = False) -> None:
        """Write soon."""
        self.site.appender.mark(self, may_wait=may_wait)

    async def slowest_reader(self) -> int | None:
        """Where the slowest reader on another worker is."""
        call = Call(WAIT, [self.name, readers_key(self.name, self._epoch)], [self._epoch])
        (slowest,) = await self.site.link.run(call)
        return None if slowest is None else int(slowest)

    async def page(self, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        return await self.site.page(self.name, self._epoch, offset)

    def forget(self) -> None:
        """Ask for no more writes."""
        if (stream := self._stream()) is not None:
            self.site.forget(stream)

    def abandon(self) -> None:
        """See to it that the stream does not stay live in Redis."""
        self.site.abandon(self.name, self._epoch)
        self.site.spawn(self.site.free(self._key, self._epoch), "resumable free")

    def on_ended_elsewhere(self) -> None:
        """Take over how another worker has ended the stream."""
        if (stream := self._stream()) is not None:
            self.site.end_elsewhere(stream)

    # What the appender asks and tells.

    def next_call(self) -> Call | None:
        """What to run now."""
        site, stream = self.site, self._stream()
        if stream is None or (write := stream.next_write()) is None:
            return None
        if isinstance(write, Begin):
            assert isinstance(write.how, Call)
            return write.how
        if isinstance(write, Restore):
            args = [self._epoch, site.worker, *site.describe(stream), site.ttl, write.earliest]
            return Call(RESTORE, [self.name, log_key(self.name, self._epoch)], args)
        return Call(
            APPEND,
            [self.name],
            [
                self._epoch,
                write.first,
                write.last,
                write.data,
                write.earliest,
                int(write.is_mid_event),
                site.ttl,
                int(write.renew),
                int(write.may_fill),
                " ".join(map(str, write.ending or ())),
                site.retention,
                block_size(site.limits.max_stream_bytes),
            ],
        )

    def take_reply(self, reply: Any) -> None:
        """What came of it."""
        if reply[0] == b"begun":
            told = self.site.tell_ended(self._key, reply[1:], "replaced")
            self.site.spawn(told, "resumable replaced")
        if (stream := self._stream()) is not None:
            stream.take_reply(_meaning(reply))

    def on_outage(self, failure: StoreUnavailable) -> None:
        """Redis is gone; there will be another attempt."""
        if (stream := self._stream()) is not None:
            stream.on_outage(failure)


def _meaning(reply: Any) -> Reply:
    match reply[0]:
        case b"ok":
            return Written(int(reply[1]) if len(reply) > 1 and reply[1] is not None else None)
        case b"gap":
            return Gap(int(reply[1]))
        case b"missing" | b"unknown":
            return Missing()
        case b"begun":
            return Begun()
    return Ended()


class RedisReader:
    """For a stream that is read here, and produced elsewhere or over."""

    def __init__(self, site: "Site", key: StreamKey, epoch: str) -> None:
        self._site = site
        self.name = site.keys.stream(key)
        self._epoch = epoch
        self._stream: Callable[[], RemoteStream | None] = lambda: None

    def belongs_to(self, stream: RemoteStream) -> RemoteStream:
        """Work for this stream; the reference is weak, so that its bytes go with the last reader."""
        self._stream = ref(stream)
        return stream

    def follow(self) -> None:
        """Read what is added to the stream."""
        if (stream := self._stream()) is not None:
            self._site.follow(stream)

    def unfollow(self) -> None:
        """Stop that."""
        if (stream := self._stream()) is not None:
            self._site.unfollow(stream)

    def report(self) -> None:
        """Tell the producer's worker how far the readers are."""
        # By way of the appender, so that a report never overtakes another.
        self._site.appender.mark(self)

    async def page(self, offset: int) -> Page:
        """Bytes of the log from `offset` on."""
        return await self._site.page(self.name, self._epoch, offset)

    # What the appender asks and tells.

    def next_call(self) -> Call:
        """What to run now."""
        stream = self._stream()
        slowest = None if stream is None else stream.slowest
        keys = [self.name, readers_key(self.name, self._epoch)]
        return Call(REPORT, keys, [self._site.worker, "" if slowest is None else slowest, self._site.patience])

    def take_reply(self, reply: Any) -> None:
        """Pass it on to the producer, if that waits for it."""
        if reply == [b"gone"]:
            # Replaced, and freed, in the moment between finding it and saying so.
            if (stream := self._stream()) is not None:
                stream.fail(StreamReplaced())
        elif reply:
            self._site.send_message(reply[0].decode(), "room", reply[1].decode())

    def on_outage(self, _failure: StoreUnavailable) -> None:
        """Its worker is told as soon as it can be."""
