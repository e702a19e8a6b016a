"""What is asked of the file, for reading."""

import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from ..._core.ids import StreamKey
from ...exceptions import OffsetLost
from ...models import ResumableStatus
from ..shared.writes import Page
from .rows import COLUMNS, KeyState, bindable, row_of

PAGE_SIZE = 256 * 1024

_TAIL = "coalesce((SELECT end FROM chunks WHERE stream = s.stream ORDER BY end DESC LIMIT 1), s.earliest)"
NEWS = f"""
SELECT f.key,
    (SELECT end - length(data) FROM chunks WHERE stream = s.stream AND end > f.value ORDER BY end LIMIT 1),
    (SELECT group_concat(piece, '') FROM (
        SELECT hex(data) AS piece FROM chunks WHERE stream = s.stream AND end > f.value ORDER BY end LIMIT 256
    )),
    {_TAIL}, s.status, s.expires_at IS NOT NULL, s.completed_at
FROM json_each(?) AS f LEFT JOIN streams AS s ON s.epoch = f.key
WHERE s.stream IS NULL OR s.expires_at IS NOT NULL
    OR EXISTS (SELECT 1 FROM chunks WHERE stream = s.stream AND end > f.value)
"""  # noqa: S608  # no input
"""What was added to the streams that are followed, by epoch, after the offset that each was read to."""
_PAGE = """
SELECT min(end - size), group_concat(hex(data), '') FROM (
    SELECT end, length(data) AS size, data, sum(length(data)) OVER (ORDER BY end) AS upto
    FROM (SELECT end, data FROM chunks WHERE stream = ? AND end > ? ORDER BY end LIMIT 2048) ORDER BY end
) WHERE upto - size < ?
"""


def read_page(connection: sqlite3.Connection, epoch: str, offset: int) -> Page:
    """Bytes of a log from `offset` on, and how the log ended if nothing comes after them.

    Raises:
        OffsetLost: The bytes there were dropped.
    """
    connection.execute("BEGIN")
    try:
        row = connection.execute(
            f"SELECT s.stream, s.status, s.code, s.expires_at, {_TAIL} FROM streams AS s WHERE epoch = ?",  # noqa: S608
            (epoch,),
        ).fetchone()
        if row is None:
            return Page(b"")
        stream, status, code, expires_at, tail = row
        start, text = connection.execute(_PAGE, (stream, offset, PAGE_SIZE)).fetchone()
    finally:
        connection.execute("ROLLBACK")
    data = b""
    if text:
        if start > offset:
            raise OffsetLost(start)
        data = bytes.fromhex(text)[offset - start :]
    is_over = expires_at is not None and offset + len(data) >= tail
    return Page(data, (ResumableStatus(status), code) if is_over else None)


def read_states(
    connection: sqlite3.Connection, owner: str | None, ids: Sequence[str], *, with_variants: bool = False
) -> list[KeyState]:
    """What there is under some ids, in the order asked for; with the ids that are variants of one, if wanted."""
    columns = COLUMNS.replace("streams.stream", "s.stream")
    select = f"SELECT a.key, s.id, {columns} FROM json_each(:asked) AS a JOIN streams AS s "  # noqa: S608
    select += "ON s.owner IS :owner AND "
    query = select + "s.id = a.value"
    if with_variants:
        query += f" UNION ALL {select} s.id >= a.value || '::' AND s.id < a.value || ':;'"
    asked = list(dict.fromkeys(ids))
    rows = connection.execute(query, {"asked": json.dumps(asked), "owner": bindable(owner)}).fetchall()
    by_id: dict[str, dict[str, Any]] = {}
    # An id that was asked for comes before its variants.
    for _, stream_id, *values in sorted(rows, key=lambda row: (row[0], asked[row[0]] != row[1], row[1], row[2])):
        row = row_of(values)
        by_id.setdefault(stream_id, {})[row.epoch] = row
    now = time.time()
    return [KeyState(StreamKey(owner, stream_id), found.values(), now) for stream_id, found in by_id.items()]


def read_workers(connection: sqlite3.Connection) -> list[str]:
    """Every worker that there is, or that something belongs to."""
    return [
        worker
        for (worker,) in connection.execute(
            "SELECT worker FROM workers UNION SELECT worker FROM streams WHERE expires_at IS NULL"
        )
    ]


def read_last_change(connection: sqlite3.Connection) -> int:
    """The number of the last change of state."""
    (last,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return int(last or 0)
