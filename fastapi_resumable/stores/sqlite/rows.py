"""Rows of the table `streams`, and the values of the state machine that they stand for."""

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from ..._core.ids import StreamKey
from ..._core.lifecycle import REMEMBERED, Current, Gone, Queued, Slot, expire
from ..._stream.stream import Head
from ...models import ResumableStatus, ResumableStreamItem
from ..base import queued_item
from ..shared.writes import KeyState, RemoteState
from .log import TAIL

COLUMNS = (
    "stream, epoch, worker, idempotency_key, status, code, gone, requested_at, started_at, completed_at, expires_at, "
    f"status_code, headers, traceparent, earliest, mid_event, {TAIL}"
)
"""Those of a `Row`, in its order, from `streams AS s`."""


class Row(NamedTuple):
    """One epoch: queued, current, or gone."""

    stream: int | None
    epoch: str
    worker: str
    idempotency_key: str | bytes | None
    status: str
    code: str = ""
    gone: str = ""
    """`cancelled` or `replaced`, once it is neither queued nor current any more."""
    requested_at: float = 0.0
    started_at: float = 0.0
    completed_at: float = 0.0
    expires_at: float | None = None
    status_code: int | None = None
    headers: str | None = None
    traceparent: str | None = None
    earliest: int = 0
    mid_event: int = 0
    tail: int = 0
    """Where its chunks end: no column."""

    @property
    def head(self) -> Head:
        """Status and headers."""
        pairs = json.loads(self.headers or "[]")
        return Head(
            self.status_code or 200,
            tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs),
            self.traceparent,
        )

    def with_head(self, head: Head) -> "Row":
        """The same, begun with a head."""
        headers = json.dumps([[name.decode("latin-1"), value.decode("latin-1")] for name, value in head.headers])
        return self._replace(status_code=head.status_code, headers=headers, traceparent=head.traceparent)

    @property
    def is_live(self) -> bool:
        """Whether it is queued, or its producer runs."""
        return self.expires_at is None

    def remote(self, key: StreamKey) -> RemoteState:
        """An epoch that has begun, for those who read it."""
        return RemoteState(
            key=key,
            epoch=self.epoch,
            worker=self.worker,
            head=self.head,
            status=ResumableStatus(self.status),
            tail=self.tail,
            earliest=self.earliest,
            started_at=self.started_at,
            completed_at=self.completed_at,
            idempotency_key=text_of(self.idempotency_key),
        )

    def item(self, key: StreamKey) -> ResumableStreamItem:
        """The epoch as those who watch see it."""
        return queued_item(key, self.epoch, self.requested_at) if self.headers is None else self.remote(key).item


class Rows:
    """Everything that the file has under one key, at `now`."""

    def __init__(self, key: StreamKey, rows: Iterable[Row], now: float) -> None:
        self.key = key
        self.now = now
        self.by_epoch = {row.epoch: row for row in rows}
        self.slot = expire(_slot(self.by_epoch.values()), now)

    @property
    def state(self) -> KeyState:
        """What those see that look."""
        current = self.slot.current
        remote = None if current is None else self.by_epoch[current.epoch].remote(self.key)
        return KeyState(self.key, remote, self.slot.queued, {gone.epoch: gone.code for gone in self.slot.gone})

    def changed_to(self, slot: Slot) -> dict[str, Row]:
        """The rows that say what a slot says, by epoch."""
        rows = {request.epoch: self._find(request) for request in slot.queued}
        if (current := slot.current) is not None:
            rows[current.epoch] = self._find(current)._replace(
                status=current.status.value,
                code=current.code,
                started_at=current.started_at,
                completed_at=current.completed_at,
                expires_at=None if current.is_live else current.expires_at,
            )
        for gone in slot.gone:
            if (row := self.by_epoch.get(gone.epoch)) is not None:
                if row.is_live:
                    row = row._replace(status="cancelled", code=gone.code, completed_at=gone.at)
                rows[gone.epoch] = row._replace(gone=gone.code, expires_at=gone.at + REMEMBERED)
        return rows

    def _find(self, stream: Queued | Current) -> Row:
        if (row := self.by_epoch.get(stream.epoch)) is not None:
            return row
        at = stream.requested_at if isinstance(stream, Queued) else stream.started_at
        return Row(None, stream.epoch, stream.worker, bindable(stream.idempotency_key), "queued", requested_at=at)


def _slot(rows: Iterable[Row]) -> Slot:
    current: Current | None = None
    queued, gone = [], []
    for row in rows:
        about = (row.epoch, row.worker, text_of(row.idempotency_key))
        if row.gone:
            gone.append(Gone(row.epoch, row.gone, (row.expires_at or 0.0) - REMEMBERED))
        elif row.status == "queued":
            queued.append(Queued(*about, row.requested_at))
        else:
            status, expires_at = ResumableStatus(row.status), row.expires_at or 0.0
            current = Current(*about, row.started_at, status, row.code, row.tail, row.completed_at, expires_at)
    return Slot(current, tuple(queued), tuple(sorted(gone, key=attrgetter("at"))))


def bindable(text: str | None) -> str | bytes | None:
    """A text as SQLite takes it: as bytes, where it is no Unicode, because it has a lone surrogate."""
    if text is not None and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-8", "surrogatepass")
    return text


def text_of(value: str | bytes | None) -> str | None:
    """What `bindable` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def read_states(
    connection: sqlite3.Connection, owner: str | None, ids: Sequence[str], *, with_variants: bool = False
) -> list[KeyState]:
    """What there is under some ids, in the order asked for; with the ids that are variants of one, if wanted."""
    # `CROSS`, so that SQLite goes through the ids: through all streams of the owner, it would take seconds.
    select = f"SELECT a.key, s.id, {COLUMNS} FROM json_each(:asked) AS a CROSS JOIN streams AS s "  # noqa: S608  # no input
    select += "ON s.owner IS :owner AND "
    query = select + "s.id = a.value"
    if with_variants:
        # A range rather than `LIKE`: it uses the index, and an id may hold `%` and `_`.
        query += f" UNION ALL {select} s.id >= a.value || '::' AND s.id < a.value || ':;'"
    asked = list(dict.fromkeys(ids))
    rows = connection.execute(query, {"asked": json.dumps(asked), "owner": bindable(owner)}).fetchall()
    by_id: dict[str, dict[str, Any]] = {}
    # An id that was asked for comes before its variants.
    for _, stream_id, *values in sorted(rows, key=lambda row: (row[0], asked[row[0]] != row[1], row[1], row[2])):
        row = Row(*values)
        by_id.setdefault(stream_id, {})[row.epoch] = row
    now = time.time()
    return [Rows(StreamKey(owner, stream_id), found.values(), now).state for stream_id, found in by_id.items()]


def read_workers(connection: sqlite3.Connection) -> list[str]:
    """Every worker that a stream may belong to."""
    return [worker for (worker,) in connection.execute("SELECT worker FROM workers")]
