"""Server-sent events as bytes: where an event ends, and the `id:` line that makes it a place to resume from.

Written to WHATWG HTML §9.2.6: lines end in CR LF, LF or CR, a blank line ends an event, one leading BOM is dropped.
The framer hands on whole events only, so that a log never ends in half an event.
"""

import re
from collections.abc import Iterable, Iterator

from .log import Budget

BOM = b"\xef\xbb\xbf"
PING = b": ping\n"
"""A keep-alive: a comment line alone, because some decoders dispatch an empty event at a blank line."""
CR = 13
# A line end, by its last byte, and one more: the two halves of one CR LF are never taken for two. Patterns that begin
# with a choice of single bytes are found several times as fast as others.
BLANK_LINE = re.compile(rb"(?:\n|\r(?!\n))(?:\r\n?|\n)")
_LINE_ENDS = re.compile(rb"[\r\n]+")
_FIELD_NAME = len(b"data:")
_NOTHING_TO_DISPATCH = re.compile(rb"(?:(?::[^\r\n]*|retry(?::[^\r\n]*)?)(?:\r\n?|\n))*+")


class Line:
    """Finds a line that has a form.

    A pattern that begins with one certain byte is found fifty times as fast as one that has a choice.
    """

    def __init__(self, form: bytes) -> None:
        self._first, self._after_lf, self._after_cr = (re.compile(before + form) for before in (b"", rb"\n", rb"\r"))

    def match(self, data: bytes, position: int) -> re.Match[bytes] | None:
        """Such a line at a `position` at which a line begins."""
        return self._first.match(data, position)

    def search(self, data: bytes, *, at_start: bool = True) -> re.Match[bytes] | None:
        """The first such line of `data`, where a line begins if `at_start`."""
        if at_start and (match := self._first.match(data)):
            return match
        match = self._after_lf.search(data)
        if CR not in data:
            return match
        return self._after_cr.search(data, 0, len(data) if match is None else match.start()) or match


DATA = Line(rb"data(?=[:\r\n]|\Z)")
# With a NUL in it, it is no id: clients ignore the line.
ID = Line(rb"id(?::[^\r\n\0]*+)?(?=[\r\n]|\Z)")


class EventFramer:
    """Cuts chunks into whole events and, given an epoch, stamps an id on each that has data and none of its own.

    With an epoch, a block of comments and `retry:` alone loses its blank line, because some decoders dispatch an
    empty event there once they have seen an id. Without one, the bytes stay as they are.
    """

    __slots__ = (
        "_added",
        "_begun",
        "_budget",
        "_epoch",
        "_flushed_data",
        "_flushed_id",
        "_has_cr",
        "_ids_first",
        "_is_mid_line",
        "_limit",
        "_more_digits",
        "_pending",
        "_prefix",
        "_skip_lf",
        "oversize",
    )

    def __init__(self, epoch: str | None, limit: int, *, ids_first: bool = False, budget: Budget | None = None) -> None:
        """Stamp ids of `epoch` (none: leave the bytes alone); hand on an event unfinished once it passes `limit`.

        With `ids_first`, an id is the first line of its event rather than the last. It names the same place: the
        position right after the event. What is held back is counted in the `budget`.
        """
        self._epoch = epoch
        self._ids_first = ids_first
        self._prefix = b"id: %s-" % (epoch or "").encode("ascii")
        self._limit = limit
        self._budget = budget or Budget()
        # Offsets below `_more_digits` are written in so many digits that an `id:` line has `_added` bytes, and its end.
        self._more_digits = 10
        self._added = len(self._prefix) + 1
        self._pending = bytearray()
        self._has_cr = False
        self._begun = False
        self._skip_lf = False
        self._is_mid_line = False
        self._flushed_data = False
        self._flushed_id = False
        self.oversize = False
        """Whether the log ends within an event, because that one was too large to hold back."""

    @property
    def held_back(self) -> int:
        """How many bytes of an unfinished event are held back."""
        return len(self._pending)

    def feed(self, chunk: bytes, offset: int) -> bytes:
        """Take what the application sent; return the whole events that are ready to be appended at `offset`."""
        # What applications send most: whole events, one in a chunk, in lines that end in LF. (`find` for what is longer
        # than a byte: `in` costs more than the search.)
        if (
            chunk.endswith(b"\n\n")
            and not (self._pending or self.oversize or self._skip_lf)
            and CR not in chunk
            and (self._epoch is None or chunk.find(b"\n\n") == len(chunk) - 2)
        ):
            return chunk if self._epoch is None else self._stamp(chunk, offset)
        return self._feed(chunk, offset, final=False)

    def _add_id(self, event: bytes, offset: int, line_end: bytes, blank: int, *, ids_first: bool) -> bytes:
        """Add an `id:` line to an event, whose blank line has `blank` bytes; the id counts the line itself in."""
        end = offset + len(event) + self._added + len(line_end)
        while end >= self._more_digits:
            self._more_digits *= 10
            self._added += 1
            end += 1
        if ids_first:
            return b"%b%d%b%b" % (self._prefix, end, line_end, event)
        return b"%b%b%d%b%b" % (event[:-blank], self._prefix, end, line_end, event[-blank:])

    def finish(self, offset: int) -> bytes:
        """Return what is left when the application has ended in order: recorded as it is."""
        if not self._pending:
            return b""
        ready = self._feed(b"", offset, final=True)
        rest = self._take(len(self._pending))
        # A line end that follows a blank line is one more blank line, and would end a block of nothing.
        return ready + (rest if self._epoch is None or self.oversize else rest.lstrip(b"\r\n"))

    def _feed(self, chunk: bytes, offset: int, *, final: bool) -> bytes:
        pending = self._pending
        if self._skip_lf and chunk:
            # The second half of a CR LF whose CR has already ended an event.
            self._skip_lf = False
            if chunk.startswith(b"\n"):
                if self._epoch is None:
                    return b"\n" + self._feed(chunk[1:], offset + 1, final=final)
                chunk = chunk[1:]
        position = max(0, len(pending) - 3)
        pending += chunk
        size = len(chunk)
        self._budget.used += size
        ready: list[bytes] = []
        size = start = 0
        has_cr = self._has_cr = self._has_cr or CR in chunk
        if self._epoch is None and not has_cr and (end := pending.rfind(b"\n\n", position)) >= 0:
            # Nothing is changed, so that all whole events are one piece.
            start = position = end + 2
            ready.append(self._stamp(bytes(pending[:start]), offset))
        while (end := find_boundary(pending, position, has_cr=has_cr)) >= 0:
            if end == len(pending) and pending[-1:] == b"\r":
                # A LF may follow. It must in a stream of CR LF; where CR is the rule, waiting would hold up the event.
                if not final and pending[-2:] != b"\r\r":
                    break
                self._skip_lf = not final
            event = self._stamp(bytes(pending[start:end]), offset + size)
            ready.append(event)
            size += len(event)
            start = position = end
            if self._epoch is not None and (blank := _LINE_ENDS.match(pending, start)):
                # Any number of blank lines more, of which nothing is recorded, in one go.
                start = position = blank.end()
        if start:
            self._take(start)
        if self.oversize or len(pending) > self._limit:
            ready.append(self.flush(offset + size))
        return b"".join(ready)

    def _take(self, size: int) -> bytes:
        with memoryview(self._pending) as view:
            part = bytes(view[:size])
        del self._pending[:size]
        self._budget.used -= size
        self._has_cr = CR in self._pending
        return part

    def flush(self, offset: int) -> bytes:
        """Hand on what there is of an unfinished event, which is too large to be held back."""
        # A few bytes stay, so that a blank line across the cut is still seen as one, and the name of a field.
        cut = max(0, len(self._pending) - 3)
        line = 1 + max(self._pending.rfind(end, max(0, cut - _FIELD_NAME), cut) for end in (b"\n", b"\r"))
        part = self._take(line or (cut if self._is_mid_line or cut > _FIELD_NAME else 0))
        lines = part if self._begun or self._epoch is None else part.removeprefix(BOM)
        part = lines if offset else part
        at_start = not self._is_mid_line
        self._flushed_data = self._flushed_data or DATA.search(lines, at_start=at_start) is not None
        self._flushed_id = self._flushed_id or ID.search(lines, at_start=at_start) is not None
        if part:
            self._is_mid_line = not part.endswith((b"\r", b"\n"))
            self.oversize = self._begun = True
        return part

    def _stamp(self, event: bytes, offset: int) -> bytes:
        """Return a whole event as it is recorded at `offset`."""
        if (
            (self._begun and self._epoch is not None and not self.oversize and CR not in event)
            and (event.startswith(b"data:") or (event.startswith(b"event:") and event.find(b"\ndata:") >= 0))
            and event.find(b"\nid") < 0
        ):
            # Most events have data, and no id, at a glance.
            return self._add_id(event, offset, b"\n", 1, ids_first=self._ids_first)
        bom = b""
        if not self._begun:
            self._begun = True
            if event.startswith(BOM):
                bom, event = BOM, event[len(BOM) :]
        was_oversize, has_data, has_id = self.oversize, self._flushed_data, self._flushed_id
        at_start = not self._is_mid_line
        self.oversize = self._flushed_data = self._flushed_id = self._is_mid_line = False
        if self._epoch is None:
            return bom + event
        if offset:
            # A keep-alive has come first, so it would be no byte order mark any more, but part of a field's name.
            bom = b""
        if not was_oversize:
            event = event.lstrip(b"\r\n")
            if not event:
                return bom
            if event.startswith(BOM) and not bom:
                # It is no byte order mark here, and a comment keeps it from being one where a client resumes here.
                event = b":\n" + event
        blank = _last_line_end(event)
        lines = event[: len(event) - len(blank)]
        has_data = has_data or DATA.search(event, at_start=at_start) is not None
        if has_data and not (has_id or ID.search(event, at_start=at_start)):
            ids_first = self._ids_first and not was_oversize
            event = self._add_id(event, offset + len(bom), _last_line_end(lines), len(blank), ids_first=ids_first)
        elif not has_data and _NOTHING_TO_DISPATCH.fullmatch(lines):
            event = lines
        return bom + event


def find_boundary(data: bytes | bytearray, start: int, *, has_cr: bool) -> int:
    """Where the first blank line from `start` on ends, given whether there may be a CR; negative if there is none."""
    if has_cr:
        match = BLANK_LINE.search(data, start)
        return match.end() if match else -1
    # Much faster than the pattern, where events are large.
    found = data.find(b"\n\n", start)
    return found if found < 0 else found + 2


def _last_line_end(data: bytes) -> bytes:
    return b"\r\n" if data.endswith(b"\r\n") else data[-1:]


def events(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut recorded bytes into whole events; what follows the last blank line comes as it is."""
    return (event for event in split_events(blocks) if event is not None)


def split_events(blocks: Iterable[bytes]) -> Iterator[bytes | None]:
    """The events, and `None` after each block, as a place for a search to let others run."""
    pending = bytearray()
    has_cr = False
    for block in blocks:
        position = max(0, len(pending) - 3)
        pending += block
        start, has_cr = 0, has_cr or CR in block
        while (end := find_boundary(pending, position, has_cr=has_cr)) >= 0:
            if end == len(pending) and pending[-1:] == b"\r":
                break
            yield bytes(pending[start:end])
            start = position = end
        if start:
            del pending[:start]
            has_cr = has_cr and CR in pending
        yield None
    if pending:
        yield bytes(pending)
