"""The bytes of the logs: how they are read and added to, how much room they take, and how they are given up."""

import json
import logging
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from time import monotonic
from typing import Any, NamedTuple

from ..._core.ids import StreamKey
from ..._core.lifecycle import REMEMBERED
from ..._stream.stream import Limits
from ...exceptions import OffsetLost
from ...models import ResumableStatus
from ..shared.writes import Ending, Page, Write

logger = logging.getLogger("fastapi_resumable")

READER = 20.0
"""Seconds for which a reader on another worker holds a producer without being heard of again."""
MOST_ROWS = 2048
"""How many rows of one log are read at once, at most."""
PAGE_SIZE = 256 * 1024
"""How many bytes of one log are read at once at most, unless one row has more."""
CHANGES_KEPT = 60.0
"""Seconds for which a change can be read by other workers."""
UNREAD = 5.0
"""Seconds after which the log of a stopped or replaced stream goes, unless a reader is known to follow it."""
STEP = 0.01
"""Seconds after which a clean-up leaves the rest to the next one, as no worker can write meanwhile."""
MOST_DELETED = 1000
"""How many rows of a table one clean-up deletes at most."""
VACUUM_FROM = 256
"""How many pages may lie free before the file is made smaller."""
TOGETHER = 64
"""How many logs one statement adds to."""

TAIL = "coalesce((SELECT end FROM chunks WHERE stream = s.stream ORDER BY end DESC LIMIT 1), s.earliest)"
# What can be many rows is put together by SQLite, and comes as one: with each row, a statement gives the interpreter
# away, and a busy event loop is slow to give it back.
_PIECES = f"""
SELECT f.key, s.status, s.code, s.expires_at IS NOT NULL, s.completed_at, {TAIL},
    (SELECT end - length(data) FROM chunks WHERE stream = s.stream AND end > f.value ORDER BY end LIMIT 1),
    (SELECT group_concat(piece, '') FROM (
        SELECT hex(data) AS piece FROM chunks WHERE stream = s.stream AND end > f.value AND end <= max(
            f.value + {PAGE_SIZE}, (SELECT min(end) FROM chunks WHERE stream = s.stream AND end > f.value)
        ) ORDER BY end LIMIT {MOST_ROWS}
    ))
FROM json_each(?) AS f LEFT JOIN streams AS s ON s.epoch = f.key
WHERE s.stream IS NULL OR s.expires_at IS NOT NULL OR {TAIL} > f.value
"""  # noqa: S608  # no input
_APPEND = f"""
INSERT INTO chunks WITH w (epoch, first, last, data) AS (VALUES %s)
SELECT s.stream, w.last, w.data FROM w CROSS JOIN streams AS s ON s.epoch = w.epoch
WHERE s.status = 'in_progress' AND s.gone = '' AND s.mid_event = 0 AND {TAIL} = w.first
"""  # noqa: S608  # no input


class Piece(NamedTuple):
    """Some bytes of a log, from `start` on."""

    epoch: str
    start: int = 0
    data: bytes = b""
    tail: int = 0
    """Where the log ends."""
    ending: Ending | None = None
    """How the stream ended, if `data` reaches that."""
    is_missing: bool = False
    """Whether the file knows nothing of the stream."""

    @property
    def end(self) -> int:
        """The offset after `data`."""
        return self.start + len(self.data) if self.data else self.tail


def read_pieces(connection: sqlite3.Connection, offsets: Mapping[str, int]) -> list[Piece]:
    """What there is of some logs after an offset of each; nothing for one that is live and has no more."""
    return [_piece(*row) for row in connection.execute(_PIECES, (json.dumps(offsets),)).fetchall()]


def _piece(
    epoch: str, status: str, code: str, is_over: int, at: float, tail: int | None, start: int | None, text: str | None
) -> Piece:
    if tail is None:
        return Piece(epoch, is_missing=True)
    piece = Piece(epoch, start or 0, bytes.fromhex(text or ""), tail)
    is_whole = is_over and piece.end >= tail
    return piece._replace(ending=Ending(ResumableStatus(status), code, at)) if is_whole else piece


def read_news(connection: sqlite3.Connection, offsets: Mapping[str, int]) -> list[Piece]:
    """As `read_pieces`, but a log that is damaged counts as missing: the others are not to suffer for it."""
    try:
        return read_pieces(connection, offsets) if offsets else []
    except sqlite3.DatabaseError as exc:
        if len(offsets) > 1:
            return [piece for one in offsets.items() for piece in read_news(connection, dict([one]))]
        (epoch,) = offsets
        logger.warning("stream of epoch %s cannot be read: %s", epoch, exc, extra={"epoch": epoch})
        return [Piece(epoch, is_missing=True)]


def read_page(connection: sqlite3.Connection, epoch: str, offset: int) -> Page:
    """Bytes of a log from `offset` on, and how the log ended if nothing comes after them.

    Raises:
        OffsetLost: The bytes there were dropped.
    """
    for piece in read_pieces(connection, {epoch: offset}):
        if piece.data and piece.start > offset:
            raise OffsetLost(piece.start)
        return Page(piece.data[offset - piece.start :] if piece.data else b"", piece.ending)
    return Page(b"")


@dataclass(slots=True)
class Append:
    """The job that writes what one stream has recorded."""

    key: StreamKey
    epoch: str
    write: Write

    def __call__(self, transactions: Any) -> Any:
        """Do it in a transaction."""
        return transactions.write(self.key, self.epoch, self.write)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but some bytes has to be written."""
        write = self.write
        return bool(write.data) and not (write.ending or write.earliest or write.is_mid_event or write.may_fill)


def append_plainly(connection: sqlite3.Connection, appends: Sequence[Append]) -> bool:
    """Write what is plain, where the file is as expected; return whether everything was written.

    Each statement is a transaction of its own, which takes the lock of the file and gives it back without needing the
    interpreter in between. So what is written most often hardly ever keeps others waiting, not even if this process is
    stopped.
    """
    written = 0
    for start in range(0, len(appends), TOGETHER):
        some = appends[start : start + TOGETHER]
        values = [value for each in some for value in (each.epoch, each.write.first, each.write.last, each.write.data)]
        written += connection.execute(_APPEND % ", ".join(["(?, ?, ?, ?)"] * len(some)), values).rowcount
    return written == len(appends)


class Logs:
    """All logs: how far they and their readers are, and how much room they take; within a transaction."""

    def __init__(self, connection: sqlite3.Connection, worker: str, limits: Limits) -> None:
        self._execute = connection.execute
        self._worker = worker
        self._limits = limits
        self._unchecked = 0

    # Readers on other workers.

    def report(self, epoch: str, offset: int | None) -> None:
        """Note how far the slowest reader here of a stream is."""
        if offset is None:
            self._execute(
                "DELETE FROM readers WHERE worker = ? AND stream = (SELECT stream FROM streams WHERE epoch = ?)",
                (self._worker, epoch),
            )
        else:
            self._execute(
                "INSERT OR REPLACE INTO readers SELECT stream, ?, ?, ? FROM streams WHERE epoch = ?",
                (self._worker, offset, time.time() + READER, epoch),
            )

    def slowest_reader(self, epoch: str) -> float:
        """How far the slowest reader on another worker is; infinity if there is none."""
        (slowest,) = self._execute(
            "SELECT min(offset) FROM readers WHERE stream = (SELECT stream FROM streams WHERE epoch = ?) "
            "AND worker <> ? AND until > ?",
            (epoch, self._worker, time.time()),
        ).fetchone()
        return math.inf if slowest is None else int(slowest)

    # Room.

    def grow(self, size: int) -> bool:
        """Note that streams have grown; return whether it is time to `shrink`."""
        self._unchecked += size
        return self._unchecked >= min(1024 * 1024, self._limits.max_total_bytes // 64)

    def shrink(self) -> bool:
        """Delete what has no reader any more, and finished streams before their time; return whether that gives room.

        If it takes long, because the limit was higher before, the rest is left to the next time.
        """
        self._unchecked, until = 0, monotonic() + STEP
        while not self._has_room():
            # In the order of their index. What is known of those that are gone is still needed.
            query = "SELECT stream FROM streams WHERE expires_at IS NOT NULL AND gone = '' ORDER BY expires_at LIMIT 1"
            if unread := self._find_unread(time.time(), 1):
                self._delete_log(*unread)
            elif oldest := self._execute(query).fetchone():
                self.delete(*oldest)
            else:
                return False
            if monotonic() >= until:
                break
        return True

    def _has_room(self) -> bool:
        # What an empty file takes is not counted.
        (used,) = self._execute(
            "SELECT (page_count - freelist_count - (SELECT count(*) + 3 FROM sqlite_master WHERE rootpage > 0)) "
            "* page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchone()
        return bool(used < self._limits.max_total_bytes)

    def delete(self, stream: int | None) -> None:
        """Delete an epoch and its log."""
        self._delete_log(stream)
        for table in ("readers", "streams"):
            self._execute(f"DELETE FROM {table} WHERE stream = ?", (stream,))  # noqa: S608  # no input

    def _delete_log(self, stream: int | None) -> None:
        self._execute("DELETE FROM chunks WHERE stream = ?", (stream,))

    def clean_up(self) -> bool:
        """Delete what is past its time; return whether more of that is left than there was time for."""
        until, now = monotonic() + STEP, time.time()
        query = "SELECT stream FROM streams WHERE expires_at <= ? LIMIT ?"
        expired = self._execute(query, (now, MOST_DELETED)).fetchall()
        due = [(self._delete_log, stream) for stream in self._find_unread(now - UNREAD, MOST_DELETED)]
        due += [(self.delete, stream) for (stream,) in expired]
        while due:
            delete, stream = due.pop()
            delete(stream)
            if monotonic() >= until:
                break
        # Nor is anything kept that is of the future, since the clock was set back.
        self._execute("DELETE FROM readers WHERE until NOT BETWEEN ? AND ?", (now, now + 2 * READER))
        changes = self._execute("SELECT change, at FROM changes ORDER BY change LIMIT ?", (MOST_DELETED,)).fetchall()
        old = [change for change, _ in takewhile(lambda row: abs(now - row[1]) > CHANGES_KEPT, changes)]
        if old:
            self._execute("DELETE FROM changes WHERE change <= ?", old[-1:])
        self.shrink()
        return bool(due) or len(old) == MOST_DELETED or self._give_room_back(until)

    def _find_unread(self, since: float, most: int) -> list[int]:
        """Streams that are gone `since` then, and whose logs are still there, but not read."""
        found = self._execute(
            "SELECT stream FROM streams AS s WHERE expires_at <= ? AND gone <> '' "
            "AND EXISTS (SELECT 1 FROM chunks WHERE stream = s.stream) "
            "AND NOT EXISTS (SELECT 1 FROM readers WHERE stream = s.stream AND until > ?) LIMIT ?",
            (since + REMEMBERED, time.time(), most),
        )
        return [stream for (stream,) in found.fetchall()]

    def _give_room_back(self, until: float) -> bool:
        """Make the file smaller, if much of it is free, for as long as there is time; whether more is to be done."""
        (pages,) = self._execute("PRAGMA page_count").fetchone()
        (free,) = self._execute("PRAGMA freelist_count").fetchone()
        if free <= VACUUM_FROM or free * 4 <= pages:
            return False
        while free > 0 and monotonic() < until:
            # Whichever number it is given, Python stops after the first page.
            self._execute("PRAGMA incremental_vacuum")
            free -= 1
        return bool(free > VACUUM_FROM)
