"""Every call that is made about streams: which script, on which keys, with which words."""

import time
from typing import Any, NamedTuple

from ..._core.ids import StreamKey, variants
from ..._stream.stream import Limits
from ..base import Reservation
from ..shared.local import LocalStream
from ..shared.writes import Restore, Write
from .keys import Keys, log_key, readers_key
from .link import Call
from .scripts import APPEND, BEGIN, CLAIM, INDEX, PAGE, PEEK, REAP, RELEASE, REPORT, RESERVE, RESTORE, STOP, TOUCH, WAIT
from .state import dump_head
from .worker import LIVE

PAGE_SIZE = 256 * 1024


class Epoch(NamedTuple):
    """One epoch of a stream."""

    key: StreamKey
    epoch: str


def block_size(max_stream_bytes: int) -> int:
    """How many bytes a block has into which Redis packs small pieces: a log should hold a good many of them."""
    return max(64, min(4096, max_stream_bytes // 64))


class Calls:
    """The calls of one worker."""

    def __init__(self, keys: Keys, worker: str, limits: Limits, lease: float) -> None:
        self._keys = keys
        self._worker = worker
        self._limits = limits
        self._block = block_size(limits.max_stream_bytes)
        self._ttl = int((LIVE + limits.retention) * 1000)
        self._retention = max(1, int(limits.retention * 1000))
        self._expiry = int(lease * 2000)
        """Milliseconds for which a worker's readers hold a producer without being heard of again."""

    def _name(self, key: StreamKey) -> list[str]:
        return [self._keys.stream(key)]

    # A key, and the requests that wait.

    def peek(self, key: StreamKey) -> Call:
        """What there is under a key."""
        return Call(PEEK, self._name(key))

    def reserve(self, reservation: Reservation, rule: str, now: float) -> Call:
        """Queue a request, unless it is queued or has begun."""
        idem = reservation.idempotency_key or ""
        return Call(RESERVE, self._name(reservation.key), [reservation.epoch, self._worker, idem, rule, now, self._ttl])

    def release(self, epoch: Epoch) -> Call:
        """End an epoch, be it queued or live; not by its worker, which may have the next one by then."""
        return Call(RELEASE, self._name(epoch.key), [epoch.epoch, self._ttl, time.time(), self._retention])

    def stop(self, key: StreamKey, epoch: str | None) -> Call:
        """Stop what is queued or live, forget what has ended."""
        return Call(STOP, self._name(key), [epoch or "", self._ttl, time.time(), self._retention])

    def reap(self, key: StreamKey, worker: str) -> Call:
        """End what belongs to a worker that is gone."""
        return Call(REAP, self._name(key), [worker, self._ttl, time.time(), self._retention])

    def index(self, key: StreamKey) -> list[Call]:
        """Note a stream under its shorter ids."""
        return [
            Call(INDEX, [self._keys.variants(StreamKey(key.owner, shorter))], [key.id, self._ttl])
            for shorter in variants(key.id)
        ]

    def claim(self, owner: str, epoch: str, most: int) -> Call:
        """Count a stream against its owner's limit."""
        return Call(CLAIM, [self._keys.owner(owner)], [epoch, self._worker, most, self._ttl])

    def free(self, key: StreamKey, *epochs: str | bytes) -> list[Call]:
        """Count streams against their owner's limit no longer."""
        if not epochs or key.owner is None or self._limits.max_streams_per_owner is None:
            return []
        return [Call("HDEL", [self._keys.owner(key.owner)], epochs)]

    # A stream that is produced here.

    def begin(self, stream: LocalStream) -> Call:
        """Make a queued request the current epoch."""
        return Call(BEGIN, self._name(stream.key), [*self._about(stream), self._ttl, self._retention, time.time()])

    def restore(self, stream: LocalStream, how: Restore) -> Call:
        """Put a live epoch back that Redis has lost."""
        name = self._keys.stream(stream.key)
        return Call(RESTORE, [name, log_key(name, stream.epoch)], [*self._about(stream), self._ttl, how.earliest])

    def _about(self, stream: LocalStream) -> list[Any]:
        head, idem = stream.head, stream.idempotency_key or ""
        return [stream.epoch, self._worker, dump_head(head), int(head.is_event_stream), stream.started_at, idem]

    def append(self, stream: LocalStream, write: Write) -> Call:
        """Write bytes, and the end if there is one."""
        words = [stream.epoch, write.first, write.last, write.data, write.earliest, int(write.is_mid_event), self._ttl]
        ending = " ".join(map(str, write.ending or ()))
        words += [int(write.renew), int(write.may_fill), ending, self._retention, self._block]
        return Call(APPEND, self._name(stream.key), words)

    def touch(self, stream: LocalStream) -> list[Call]:
        """Keep a live stream from expiring."""
        name, owner = self._keys.stream(stream.key), stream.key.owner
        calls = [Call(TOUCH, [name, log_key(name, stream.epoch)], [self._ttl]), *self.index(stream.key)]
        return calls if owner is None else [*calls, Call("PEXPIRE", [self._keys.owner(owner)], [self._ttl])]

    def touch_queue(self, key: StreamKey) -> Call:
        """Keep a queued request from expiring."""
        return Call(TOUCH, self._name(key), [self._ttl])

    # Those who read.

    def page(self, key: StreamKey, epoch: str, offset: int) -> Call:
        """Bytes of a log from `offset` on."""
        name = self._keys.stream(key)
        return Call(PAGE, [name, log_key(name, epoch)], [offset, PAGE_SIZE])

    def wait(self, key: StreamKey, epoch: str) -> Call:
        """Ask for a message when a reader advances."""
        name = self._keys.stream(key)
        return Call(WAIT, [name, readers_key(name, epoch)], [epoch])

    def report(self, key: StreamKey, epoch: str, slowest: int | None) -> Call:
        """Say how far the slowest reader here is."""
        name = self._keys.stream(key)
        words = [self._worker, "" if slowest is None else slowest, self._expiry]
        return Call(REPORT, [name, readers_key(name, epoch)], words)
