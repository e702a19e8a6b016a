"""What Redis says of a key: its hash, read."""

import json
from collections.abc import Sequence
from typing import Any

from ..._core.ids import StreamKey
from ..._core.lifecycle import Queued
from ..._stream.stream import Head
from ...models import ResumableStatus
from ..shared.writes import KeyState, RemoteState


def read_state(key: StreamKey, flat: Sequence[bytes]) -> KeyState:
    """Read the reply of `PEEK`."""
    fields = {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
    waiting = sorted(
        ((json.loads(value), name[2:]) for name, value in fields.items() if name.startswith("q:")),
        key=lambda pair: int(pair[0]["n"]),
    )
    queued = tuple(Queued(epoch, item["w"], item.get("k") or None, float(item["t"])) for item, epoch in waiting)
    gone = {name[2:]: value.split()[0].decode() for name, value in fields.items() if name.startswith("x:")}
    return KeyState(key, _current(key, fields) if "epoch" in fields else None, queued, gone)


def _current(key: StreamKey, fields: dict[str, bytes]) -> RemoteState:
    return RemoteState(
        key=key,
        epoch=fields["epoch"].decode(),
        worker=fields["worker"].decode(),
        head=load_head(fields["head"]),
        status=ResumableStatus(fields["status"].decode()),
        tail=int(fields["tail"]),
        earliest=int(fields["earliest"]),
        started_at=float(fields["started"]),
        completed_at=float(fields.get("completed", b"0")),
        idempotency_key=fields.get("idem", b"").decode() or None,
    )


def dump_head(head: Head) -> str:
    """Write status and headers as text."""
    pairs = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in head.headers]
    trace = [] if head.traceparent is None else [head.traceparent]
    return json.dumps([head.status_code, pairs, *trace], separators=(",", ":"))


def load_head(text: bytes) -> Head:
    """Read what `dump_head` wrote."""
    pairs: list[tuple[str, str]]
    trace: list[Any]
    status_code, pairs, *trace = json.loads(text)
    headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)
    return Head(status_code, headers, *trace)
