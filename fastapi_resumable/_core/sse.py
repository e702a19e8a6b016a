"""Server-sent events as bytes: where an event ends, and the `id:` line that makes it a place to resume from.

Written to WHATWG HTML §9.2.6: lines end in CR LF, LF or CR, a blank line ends an event, one leading BOM is dropped.
The framer hands on whole events only, so that a log never ends in half an event.
"""

import re
from collections.abc import Iterable, Iterator

BOM = b"\xef\xbb\xbf"
PING = b": ping\n"
"""A keep-alive: a comment line alone, because some decoders dispatch an empty event at a blank line."""
CR = 13
# Atomic groups, so that the two halves of one CR LF are never taken for two line ends.
_LINE_END = rb"(?>\r\n|\n|\r)"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)
_DATA = re.compile(rb"(?:\A|[\r\n])data(?=[:\r\n]|\Z)")
_ID = re.compile(rb"(?:\A|[\r\n])id(?=[:\r\n]|\Z)")
_ID_VALUE = re.compile(rb"(?:\A|[\r\n])id(?:: ?([^\r\n]*))?(?=[\r\n])")
_NOTHING_TO_DISPATCH = re.compile(rb"(?:(?::[^\r\n]*|retry(?::[^\r\n]*)?)" + _LINE_END + rb")*+")


class EventFramer:
    """Cuts chunks into whole events and, given an epoch, stamps an id on each that has data and none of its own.

    With an epoch, a block of comments and `retry:` alone loses its blank line, because some decoders dispatch an
    empty event there once they have seen an id. Without one, the bytes stay as they are.
    """

    __slots__ = (
        "_added",
        "_begun",
        "_epoch",
        "_flushed_data",
        "_flushed_id",
        "_limit",
        "_more_digits",
        "_pending",
        "_prefix",
        "_skip_lf",
        "oversize",
    )

    def __init__(self, epoch: str | None, limit: int) -> None:
        """Stamp ids of `epoch` (none: leave the bytes alone); hand on an event unfinished once it passes `limit`."""
        self._epoch = epoch
        self._prefix = b"id: %s-" % (epoch or "").encode("ascii")
        self._limit = limit
        # Offsets below `_more_digits` are written in so many digits that an `id:` line has `_added` bytes.
        self._more_digits = 10
        self._added = len(self._prefix) + 2
        self._pending = bytearray()
        self._begun = False
        self._skip_lf = False
        self._flushed_data = False
        self._flushed_id = False
        self.oversize = False
        """Whether the log ends within an event, because that one was too large to hold back."""

    def feed(self, chunk: bytes, offset: int) -> bytes:
        """Take what the application sent; return the whole events that are ready to be appended at `offset`."""
        if chunk.endswith(b"\n\n") and not (self._pending or self.oversize or self._skip_lf):
            if self._epoch is None:
                return chunk
            # An integer here, and `find` for what is longer: `in` with bytes costs more than the search.
            if CR not in chunk:
                if chunk.startswith(b"data:") and chunk.find(b"\n", 0, -2) < 0:
                    # What applications send most: one event of one line.
                    return self._stamp_data(chunk, offset)
                return self._feed_lf(chunk, offset)
        return self._feed(chunk, offset, final=False)

    def _feed_lf(self, chunk: bytes, offset: int) -> bytes:
        """`feed`, short for whole events whose lines end in LF."""
        if chunk.find(b"\n\n") == len(chunk) - 2:
            return self._stamp_lf(chunk, offset)
        if chunk.find(b"\n\n\n") >= 0:
            return self._feed(chunk, offset, final=False)
        parts = chunk[:-2].split(b"\n\n")
        for index, event in enumerate(parts):
            parts[index] = stamped = self._stamp_lf(event + b"\n\n", offset)
            offset += len(stamped)
        return b"".join(parts)

    def _stamp_lf(self, event: bytes, offset: int) -> bytes:
        """`_stamp`, short for an event whose lines end in LF and that plainly has data and no id."""
        if (event.startswith(b"data:") or (event.startswith(b"event:") and event.find(b"\ndata:") >= 0)) and event.find(
            b"\nid"
        ) < 0:
            return self._stamp_data(event, offset)
        return self._stamp(event, offset)

    def _stamp_data(self, event: bytes, offset: int) -> bytes:
        """`_stamp`, for an event whose lines end in LF and that has data and no id."""
        self._begun = True
        end = offset + len(event) + self._added
        while end >= self._more_digits:
            self._more_digits *= 10
            self._added += 1
            end += 1
        return b"%b%b%d\n\n" % (event[:-1], self._prefix, end)

    def _id_line(self, offset: int, line_end: bytes = b"\n") -> bytes:
        """The `id:` line of an event that would end at `offset` without it; the id counts the line itself in."""
        base = offset + len(self._prefix) + len(line_end)
        digits = str(base + len(str(base)))
        return b"%s%d%s" % (self._prefix, base + len(digits), line_end)

    def finish(self, offset: int) -> bytes:
        """Return what is left when the application has ended in order: recorded as it is."""
        ready = self._feed(b"", offset, final=True)
        rest = bytes(self._pending)
        self._pending.clear()
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
        ready: list[bytes] = []
        size = start = 0
        while (end := _find_blank_line(pending, position)) >= 0:
            if end == len(pending) and pending[-1:] == b"\r":
                # A LF may follow. It must in a stream of CR LF; where CR is the rule, waiting would hold up the event.
                if not final and pending[-2:] != b"\r\r":
                    break
                self._skip_lf = not final
            event = self._stamp(bytes(pending[start:end]), offset + size)
            ready.append(event)
            size += len(event)
            start = position = end
        del pending[:start]
        if len(pending) > self._limit:
            ready.append(self._flush_oversize())
        return b"".join(ready)

    def _flush_oversize(self) -> bytes:
        """Give up on holding back an event that is larger than the log."""
        # Keep a few bytes, so that a blank line across the cut is still seen as one.
        cut = max(0, len(self._pending) - 3)
        part = bytes(self._pending[:cut])
        del self._pending[:cut]
        self._flushed_data = self._flushed_data or _DATA.search(part) is not None
        self._flushed_id = self._flushed_id or _ID.search(part) is not None
        self.oversize = self._begun = True
        return part

    def _stamp(self, event: bytes, offset: int) -> bytes:
        """Return a whole event as it is recorded at `offset`."""
        bom = b""
        if not self._begun:
            self._begun = True
            if event.startswith(BOM):
                bom, event = BOM, event[len(BOM) :]
        if self._epoch is None:
            return bom + event
        if offset:
            # A keep-alive has come first, so it would be no byte order mark any more, but part of a field's name.
            bom = b""
        if self.oversize:
            has_data, has_id = self._flushed_data, self._flushed_id
            self.oversize = self._flushed_data = self._flushed_id = False
        else:
            has_data = has_id = False
            event = event.lstrip(b"\r\n")
            if not event:
                return bom
            if event.startswith(BOM) and not (offset or bom):
                # It is no byte order mark, because line ends came before it: one has to stay.
                event = b"\n" + event
        blank = _last_line_end(event)
        lines = event[: len(event) - len(blank)]
        if (has_data or _DATA.search(event)) and not (has_id or (b"id" in event and _ID.search(event))):
            line_end = _last_line_end(lines)
            return bom + lines + self._id_line(offset + len(bom) + len(event), line_end) + blank
        if not has_data and _NOTHING_TO_DISPATCH.fullmatch(lines):
            return bom + lines
        return bom + event


def _find_blank_line(data: bytearray, position: int) -> int:
    """Where the first blank line from `position` on ends; negative if there is none."""
    if data.find(b"\r", position) < 0:
        # Much faster than the pattern, where events are large.
        found = data.find(b"\n\n", position)
        return found if found < 0 else found + 2
    match = _BLANK_LINE.search(data, position)
    return match.end() if match else -1


def _last_line_end(data: bytes) -> bytes:
    return b"\r\n" if data.endswith(b"\r\n") else data[-1:]


def events(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut recorded bytes into whole events; what follows the last blank line comes as it is."""
    pending = bytearray()
    for block in blocks:
        position = max(0, len(pending) - 3)
        pending += block
        start = 0
        while match := _BLANK_LINE.search(pending, position):
            if match.end() == len(pending) and match[0].endswith(b"\r"):
                break
            yield bytes(pending[start : match.end()])
            start = position = match.end()
        del pending[:start]
    if pending:
        yield bytes(pending)


def find_boundary(blocks: Iterable[bytes]) -> int | None:
    """The position right after the first blank line in `blocks`; `None` if there is none."""
    seen = 0
    tail = b""
    for block in blocks:
        data = tail + block
        if match := _BLANK_LINE.search(data):
            return seen - len(tail) + match.end()
        seen += len(block)
        tail = data[-3:]
    return None


def would_dispatch(blocks: Iterable[bytes]) -> bool:
    """Whether a client that reads `blocks` would dispatch an event."""
    return any(_DATA.search(event) and _BLANK_LINE.search(event[-4:]) for event in events(blocks))


def find_event_id(blocks: Iterable[bytes], event_id: str) -> int | None:
    """The position right after the first event whose id is `event_id`; `None` if no event has it."""
    wanted = event_id.encode("utf-8", "surrogateescape")
    position = 0
    for event in events(blocks):
        position += len(event)
        if wanted in event:
            values = _ID_VALUE.findall(event.removeprefix(BOM))
            if values and values[-1] == wanted:
                return position
    return None
