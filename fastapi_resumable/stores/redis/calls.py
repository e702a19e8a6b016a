"""Every call that is made about streams: which script, on which keys, with which words; and what Redis replies."""

import json
import sys
import time
from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple

from ..._core.ids import StreamKey, variants
from ..._core.lifecycle import OnConflict, Queued
from ..._stream.recording import end_event
from ..._stream.stream import Head, Limits
from ...exceptions import OffsetLost
from ...models import ResumableStatus
from ..base import Reservation
from ..shared.local import LocalStream
from ..shared.remote import RemoteStream
from ..shared.writes import (
    END_MESSAGES,
    Ended,
    Ending,
    Gap,
    KeyState,
    Missing,
    Page,
    RemoteState,
    Reply,
    Restore,
    Write,
    Written,
)
from .keys import Keys, log_key

LIVE = 3600.0
"""Seconds for which keys of live streams are kept without being renewed: a crash leaves nothing behind for longer."""
PAGE_SIZE = 256 * 1024
CHANGES = 10_000
"""How many changes of state are remembered, and how many messages of a worker."""


class Script(Enum):
    """The scripts. What each does, and what it replies, is said at the head of its file."""

    APPEND = "append"
    BEGIN = "begin"
    CLAIM = "claim"
    INDEX = "index"
    PAGE = "page"
    PEEK = "peek"
    POST = "post"
    REAP = "reap"
    RELEASE = "release"
    REPORT = "report"
    RESERVE = "reserve"
    RESTORE = "restore"
    STOP = "stop"
    TOUCH = "touch"
    VARIANTS = "variants"
    WAIT = "wait"

    @cached_property
    def text(self) -> str:
        """What Redis runs: `common.lua`, and the file of its name."""
        folder = files(__package__) / "lua"
        return "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in ("common", self.value))


class Call(NamedTuple):
    """One command: a script, or a command by its name."""

    command: Script | str
    keys: Sequence[str | bytes]
    args: Sequence[Any] = ()
    ends_with: str = ""
    """The code of the terminal event, if the script may end a live stream."""


def block_size(max_stream_bytes: int) -> int:
    """How many bytes a block has into which Redis packs small pieces: a log should hold a good many of them."""
    return max(64, min(4096, max_stream_bytes // 64))


def post(key: str, *fields: Any) -> Call:
    """Add a message to an inbox, or to the changes."""
    return Call(Script.POST, [key], [int(LIVE * 1000), CHANGES, *fields])


class Calls:
    """The calls of one worker."""

    def __init__(self, keys: Keys, worker: str, limits: Limits, lease: float) -> None:
        self._keys = keys
        self._worker = worker
        self._limits = limits
        self._ttl = int((LIVE + limits.retention) * 1000)
        # `PEXPIRE` with 0 deletes a key at once, and with it the end that attached readers have yet to see.
        self._retention = max(1, int(limits.retention * 1000))
        # Twice as long as the pause between two reports, so that one of them may come late.
        self._expiry = int(lease * 2000)
        """Milliseconds for which a worker's readers hold a producer without being heard of again."""

    def _call(self, script: Script, key: StreamKey, *words: Any) -> Call:
        return Call(script, [self._keys.stream(key)], words)

    def _call_with_log(self, script: Script, stream: LocalStream | RemoteStream, *words: Any) -> Call:
        return Call(script, [self._keys.stream(stream.key), self.log(stream)], words)

    def _end(self, script: Script, key: StreamKey, whose: str, code: str) -> Call:
        words = [whose, self._ttl, time.time(), self._retention]
        return Call(script, [self._keys.stream(key)], words, code)

    def log(self, stream: LocalStream | RemoteStream) -> str:
        """The key of a stream's log."""
        return log_key(self._keys.stream(stream.key), stream.epoch)

    # A key, and the requests that wait.

    def peek(self, key: StreamKey) -> Call:
        """What there is under a key."""
        return self._call(Script.PEEK, key)

    def reserve(self, reservation: Reservation, rule: OnConflict, now: float) -> Call:
        """Queue a request, unless it is queued or has begun."""
        idem = reservation.idempotency_key or ""
        return self._call(Script.RESERVE, reservation.key, reservation.epoch, self._worker, idem, rule, now, self._ttl)

    def release(self, key: StreamKey, epoch: str) -> Call:
        """End an epoch, be it queued or live; not by its worker, which may have the next one by then."""
        return self._end(Script.RELEASE, key, epoch, "producer_lost")

    def stop(self, key: StreamKey, epoch: str | None) -> Call:
        """Stop what is queued or live, forget what has ended."""
        return self._end(Script.STOP, key, epoch or "", "cancelled")

    def reap(self, key: StreamKey, worker: str) -> Call:
        """End what belongs to a worker that is gone."""
        return self._end(Script.REAP, key, worker, "producer_lost")

    def index(self, key: StreamKey) -> list[Call]:
        """Note a stream under its shorter ids."""
        shorter = (self._keys.variants(StreamKey(key.owner, each)) for each in variants(key.id))
        return [Call(Script.INDEX, [name], [key.id, self._ttl]) for name in shorter]

    def claim(self, owner: str, epoch: str, most: int) -> Call:
        """Count a stream against its owner's limit."""
        return Call(Script.CLAIM, [self._keys.owner(owner)], [epoch, self._worker, most, self._ttl])

    def free(self, key: StreamKey, *epochs: str | bytes) -> list[Call]:
        """Count streams against their owner's limit no longer."""
        if not epochs or key.owner is None or self._limits.max_streams_per_owner is None:
            return []
        return [Call("HDEL", [self._keys.owner(key.owner)], epochs)]

    def find_variants(self, key: StreamKey) -> Call:
        """The longer ids of which the id is a short form."""
        return Call(Script.VARIANTS, [self._keys.variants(key)])

    # A stream that is produced here.

    def begin(self, stream: LocalStream) -> Call:
        """Make a queued request the current epoch."""
        words = [*self._about(stream), self._ttl, self._retention, time.time()]
        return Call(Script.BEGIN, [self._keys.stream(stream.key)], words, "replaced")

    def restore(self, stream: LocalStream, how: Restore) -> Call:
        """Put a live epoch back that Redis has lost."""
        words = [*self._about(stream), self._ttl, how.earliest]
        return self._call_with_log(Script.RESTORE, stream, *words)

    def _about(self, stream: LocalStream) -> list[Any]:
        head, idem = stream.head, stream.idempotency_key or ""
        return [stream.epoch, self._worker, dump_head(head), int(head.is_event_stream), stream.started_at, idem]

    def append(self, stream: LocalStream, write: Write) -> Call:
        """Write bytes, and the end if there is one."""
        words = [stream.epoch, write.first, write.last, write.data, write.earliest, int(write.is_mid_event), self._ttl]
        words += [int(write.renew), int(write.may_fill), " ".join(map(str, write.ending or ())), self._retention]
        return self._call(Script.APPEND, stream.key, *words, block_size(self._limits.max_stream_bytes))

    def touch(self, key: StreamKey, epoch: str) -> list[Call]:
        """Keep a live stream or a queued request from expiring, and put back how it is found and counted."""
        name = self._keys.stream(key)
        calls = [Call(Script.TOUCH, [name, log_key(name, epoch)], [self._ttl]), *self.index(key)]
        if key.owner is not None and self._limits.max_streams_per_owner is not None:
            calls.append(self.claim(key.owner, epoch, sys.maxsize))
        return calls

    # Those who read.

    def page(self, stream: LocalStream | RemoteStream, offset: int) -> Call:
        """Bytes of a log from `offset` on."""
        return self._call_with_log(Script.PAGE, stream, offset, PAGE_SIZE)

    def wait(self, stream: LocalStream) -> Call:
        """Ask for a message when a reader advances."""
        return self._call_with_log(Script.WAIT, stream, stream.epoch)

    def report(self, stream: LocalStream | RemoteStream, slowest: int | None) -> Call:
        """Say how far the slowest reader here is."""
        words = [self._worker, "" if slowest is None else slowest, self._expiry]
        return self._call_with_log(Script.REPORT, stream, *words)

    # Terminal events, which are the application's to make.

    def give_event(self, call: Call, reply: Sequence[bytes]) -> Call:
        """The call again, with the terminal event that a script lacks: its reply says for which place."""
        _, epoch, tail, mid = reply
        code = call.ends_with
        status = ResumableStatus.INTERRUPTED if code == "producer_lost" else ResumableStatus.CANCELLED
        place = (epoch.decode(), self._limits, int(tail), mid == b"1")
        return call._replace(args=[*call.args, epoch, tail, end_event(*place, status, code, END_MESSAGES[code])])


def lacks_event(call: Call, reply: Any) -> bool:
    """Whether a script has done nothing yet, because it has to be given a terminal event."""
    return bool(call.ends_with) and isinstance(reply, list) and reply[:1] == [b"event"]


# What Redis replies.


def read_written(reply: Sequence[Any]) -> Reply:
    """Read the reply to `append`, `restore` or `begin`."""
    match reply[0]:
        case b"ok":
            return Written(int(reply[1])) if len(reply) > 1 and reply[1] is not None else Written()
        case b"gap":
            return Gap(int(reply[1]))
        case b"begun":
            return Gap(0)
        case b"missing" | b"unknown":
            return Missing()
    return Ended()


def read_page(reply: Sequence[Any], offset: int) -> Page:
    """Read the reply to `page`: bytes from `offset` on, and how the log ended if that is next to them.

    Raises:
        OffsetLost: The bytes at `offset` were dropped.
    """
    first, data, *ending = reply
    if first is not None:
        if int(first) > offset:
            raise OffsetLost(int(first))
        data = data[offset - int(first) :]
    if not ending:
        return Page(data)
    status, code, completed_at = ending
    return Page(data, Ending(ResumableStatus(status.decode()), code.decode(), float(completed_at)))


def read_state(key: StreamKey, reply: bytes) -> KeyState:
    """Read the reply to `peek`: the hash of a stream."""
    fields: dict[str, str] = json.loads(reply)
    waiting = sorted(
        ((json.loads(value), name[2:]) for name, value in fields.items() if name.startswith("q:")),
        # A hash has no order, so each request has the number under which it was queued.
        key=lambda pair: int(pair[0]["n"]),
    )
    queued = tuple(Queued(epoch, item["w"], item.get("k") or None, float(item["t"])) for item, epoch in waiting)
    gone = {name[2:]: value.split()[0] for name, value in fields.items() if name.startswith("x:")}
    return KeyState(key, _read_current(key, fields) if "epoch" in fields else None, queued, gone)


def _read_current(key: StreamKey, fields: dict[str, str]) -> RemoteState:
    return RemoteState(
        key=key,
        epoch=fields["epoch"],
        worker=fields["worker"],
        head=load_head(fields["head"]),
        status=ResumableStatus(fields["status"]),
        tail=int(fields["tail"]),
        earliest=int(fields["earliest"]),
        started_at=float(fields["started"]),
        completed_at=float(fields.get("completed", 0)),
        idempotency_key=fields.get("idem"),
    )


def dump_head(head: Head) -> str:
    """Write status and headers as text."""
    pairs = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in head.headers]
    trace = [] if head.traceparent is None else [head.traceparent]
    return json.dumps([head.status_code, pairs, *trace], separators=(",", ":"))


def load_head(text: str) -> Head:
    """Read what `dump_head` wrote."""
    pairs: list[tuple[str, str]]
    trace: list[Any]
    status_code, pairs, *trace = json.loads(text)
    headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)
    return Head(status_code, headers, *trace)
