"""What Redis says of a stream: its hash, read."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..._core.ids import StreamKey, format_epoch
from ..._stream.stream import Head
from ...models import ResumableStatus, ResumableStreamItem
from ..base import queued_item
from ..shared.writes import RemoteState


class Queued(NamedTuple):
    """A request that waits for its endpoint to begin."""

    order: int
    epoch: str
    worker: str
    requested_at: float


class State:
    """One stream: its current epoch, if it has one, and who is queued."""

    def __init__(self, key: StreamKey, flat: Sequence[bytes]) -> None:
        """`flat` is the reply of `PEEK`."""
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        self.key = key
        self.epoch = _text(fields, b"epoch")
        self.worker = _text(fields, b"worker")
        self.queued = sorted(_queued(name[2:], value) for name, value in fields.items() if name.startswith(b"q:"))
        self.stopped = {
            name[2:].decode(): value.split()[0].decode() for name, value in fields.items() if name.startswith(b"x:")
        }
        """What was stopped or replaced lately, and which of the two."""
        if not self.epoch:
            return
        self.status = ResumableStatus(_text(fields, b"status"))
        self.tail = int(fields[b"tail"])
        self.earliest = int(fields[b"earliest"])
        self.head = load_head(fields[b"head"])
        self.started_at = float(fields[b"started"])
        self.completed_at = float(fields.get(b"completed", b"0"))
        self.idempotency_key = _text(fields, b"idem") or None

    @property
    def remote(self) -> RemoteState:
        """The current epoch, as a stream that is read here takes it."""
        return RemoteState(
            self.key,
            self.epoch,
            self.worker,
            self.head,
            self.status,
            self.tail,
            self.earliest,
            self.started_at,
            self.completed_at,
            self.idempotency_key,
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing by this name."""
        return not self.epoch and not self.queued

    @property
    def is_final(self) -> bool:
        """Whether the current epoch has ended."""
        return self.status is not ResumableStatus.IN_PROGRESS

    @property
    def is_live(self) -> bool:
        """Whether there is a current epoch that has not ended."""
        return bool(self.epoch) and not self.is_final

    @property
    def workers(self) -> set[str]:
        """Those who must be alive for this to be true."""
        waiting = {queued.worker for queued in self.queued}
        return waiting | {self.worker} if self.is_live else waiting

    @property
    def item(self) -> ResumableStreamItem:
        """What a lookup shows: the current epoch, or else the newest request that is queued."""
        if not self.epoch:
            newest = self.queued[-1]
            return queued_item(self.key, newest.epoch, newest.requested_at)
        return ResumableStreamItem.of(
            conversation_id=self.key.id,
            status=self.status,
            is_done=self.is_final,
            epoch=self.epoch,
            total_bytes=self.tail,
            dropped_bytes=self.earliest,
            content_type=self.head.content_type,
            started_at=int(self.started_at),
            completed_at=int(self.completed_at),
        )


def dump_head(head: Head) -> str:
    """Write status and headers as text."""
    pairs = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in head.headers]
    trace = [] if head.traceparent is None else [head.traceparent]
    return json.dumps([head.status_code, pairs, *trace], separators=(",", ":"))


def load_head(text: bytes) -> Head:
    """Read what `dump_head` wrote."""
    status_code, pairs, *trace = json.loads(text)
    headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)
    return Head(status_code, headers, *trace)


def cut_event(stamped: bytes, epoch: str) -> list[bytes | int]:
    """Cut an event that was stamped for offset 0 under `epoch`, so that it can be stamped for another place.

    Returns pieces, with the distance from each id to the offset that it names in between.
    """
    parts: list[bytes | int] = []
    done = 0
    for match in re.finditer(rb"%s-(\d+)" % epoch.encode("ascii"), stamped):
        parts += [stamped[done : match.start()], int(match[1]) - match.end()]
        done = match.end()
    return [*parts, stamped[done:]]


UNUSED_EPOCH = format_epoch(b"\xff" * 10)


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode()


def _queued(epoch: bytes, value: bytes) -> Queued:
    item: dict[str, Any] = json.loads(value)
    return Queued(int(item["n"]), epoch.decode(), item["w"], float(item["t"]))
