"""Searches through recorded events: for the place to go on from, by an event id or by a `sequence_number`.

A `sequence_number` is in the JSON data of an event, as in those of OpenAI's Responses API. Numbers increase, so the
place to go on from is right after the last event whose number the client has had. Events without one (a terminal
event, comments) belong to the place that they are at.
"""

import json
import math
import re
from collections.abc import Generator, Iterable
from typing import NamedTuple, TypeVar

from .sse import BLANK_LINE, BOM, DATA, ID, EventFramer, events, split_events

T = TypeVar("T")
Search = Generator[None, None, T]
"""A search through a log, in steps, so that the event loop can run other tasks between two of them."""

# The default of `max_stream_bytes`: a log of that size holds no larger event.
MAX_EVENT_BYTES = 4 * 1024 * 1024
"""What a filter waits for the end of. A larger event goes through it, whatever its number."""

_NAME = b'"sequence_number"'
_AT_ONCE = 256
"""How many events are looked at before others run."""
_LARGE = 64 * 1024
"""An event of more bytes is not parsed, which cannot be done in steps."""
_MARK = re.compile(rb'["\\{}\[\]]')
_MARKED_STEP = 16 * 1024
"""How many bytes are looked through before others run, where each may have to be looked at by itself."""
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*([0-9]{1,18})\s*[,}]')


def search_dispatch(blocks: Iterable[bytes]) -> Search[bool]:
    """Whether a client that reads `blocks` would dispatch an event."""
    for event in split_events(blocks):
        if event is None:
            yield
        # A client dispatches an event only at its blank line, and only if it has data.
        elif BLANK_LINE.search(event[-4:]) and DATA.search(event):
            return True
    return False


def search_event_id(blocks: Iterable[bytes], event_id: str) -> Search[int | None]:
    """The position right after the first event whose id is `event_id`; `None` if no event has it."""
    # The bytes of the header as they came, which need not be UTF-8.
    wanted = event_id.encode("utf-8", "surrogateescape")
    position = 0
    for count, event in enumerate(split_events(blocks)):
        if event is None or count % _AT_ONCE == 0:
            yield
        if event is None:
            continue
        lines = event if position else event.removeprefix(BOM)
        position += len(event)
        # To look for the bytes alone is far cheaper, and few events have them.
        if wanted in lines and _has_id(lines, wanted):
            return position
    return None


def _has_id(event: bytes, wanted: bytes) -> bool:
    """Whether the last id of an event, which is the one that counts, is `wanted`, and its line is whole."""
    found = ID.match(event, 1 + max(_last_id(event, b"\nid"), _last_id(event, b"\rid")))
    if found is None or found.end() == len(event):
        return False
    value = found[0][3:]
    # Spaces around a value do not come back in a header.
    return wanted in value and value.strip(b" \t") == wanted.strip(b" \t")


def _last_id(event: bytes, begins: bytes) -> int:
    """Where an event has its last id of those before which there is a line end, as `begins` has it; -1 if nowhere."""
    # Not line by line: there may be millions.
    position = event.rfind(begins)
    while position >= 0 and ID.match(event, position + 1) is None:
        position = event.rfind(begins, 0, position)
    return position


class Place(NamedTuple):
    """Where a number is in a log."""

    offset: int | None
    """The position right after the last event with this number or a lower one; `None` if there is none."""
    following: int | None
    """The first higher number; `None` if there is none yet."""


def sequence_number(event: bytes) -> int | None:
    """The number of an event; `None` if it has none."""
    # A search of bytes is far cheaper than JSON, and most logs have no such member.
    if _NAME not in event:
        return None
    lines = event.removeprefix(BOM).splitlines(keepends=True)
    try:
        data = json.loads(b"".join(line[5:] for line in lines if line.startswith(b"data:") and line[-1] in b"\r\n"))
    # An application may send anything as data, also JSON that is nested too deeply to be read.
    except (ValueError, RecursionError):
        return None
    number = data.get("sequence_number") if isinstance(data, dict) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _number_of(event: bytes) -> Search[int | None]:
    """The number of an event of any size; a large one is scanned."""
    if len(event) <= _LARGE or _NAME not in event:
        return sequence_number(event)
    event = event.removeprefix(BOM)
    data = DATA.search(event)
    begin = len(event) if data is None else data.end()
    number, depth, is_string, escaped = None, 0, False, -1
    for start in range(begin, len(event), _MARKED_STEP):
        yield
        for mark in _MARK.finditer(event, start, start + _MARKED_STEP):
            at, character = mark.start(), mark[0]
            if at == escaped:
                continue
            if character == b'"':
                if not is_string and depth == 1 and (found := _NUMBER.match(event, at)):
                    number = int(found[1])
                is_string = not is_string
            elif character == b"\\":
                escaped = at + 1
            elif not is_string:
                depth += 1 if character in b"{[" else -1
    return number if depth == 0 and not is_string else None


def search_sequence(blocks: Iterable[bytes], number: int) -> Search[Place]:
    """Find the place of `number` in recorded bytes.

    Not every event is parsed: a block can be passed over if the next one begins with a number that is low enough.
    """
    start = 0
    rest: list[bytes] = []
    for block in blocks:
        # The block may begin within an event, which has no number then, and is passed over.
        first = (yield from _place_in([block], -math.inf)).following if _NAME in block else None
        # Numbers increase, so the place is not before this block.
        if first is not None and first <= number:
            start += sum(map(len, rest))
            rest = [block]
        else:
            rest.append(block)
            if first is not None:
                break
    offset, following = yield from _place_in(rest, number)
    return Place(None if offset is None else start + offset, following)


def _place_in(blocks: Iterable[bytes], number: float) -> Search[Place]:
    offset, position = None, 0
    for count, event in enumerate(split_events(blocks)):
        if event is None or count % _AT_ONCE == 0:
            yield
        if event is None:
            continue
        position += len(event)
        if (found := (yield from _number_of(event))) is not None:
            if found > number:
                return Place(offset, found)
            offset = position
    return Place(offset, None)


class SequenceFilter:
    """Drops the events of a live stream up to a number, until one with a higher number comes."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._framer = EventFramer(None, MAX_EVENT_BYTES)
        self.passed = False
        """Whether a higher number has come: from there on there is nothing to drop."""

    def feed(self, data: bytes) -> Search[bytes]:
        """Take recorded bytes; return those that are to be sent, in whole events."""
        return data if self.passed else (yield from self._keep(self._framer.feed(data, 0)))

    def finish(self) -> Search[bytes]:
        """Return what is left at the end of the stream."""
        return b"" if self.passed else (yield from self._keep(self._framer.finish(0)))

    def _keep(self, data: bytes) -> Search[bytes]:
        kept: list[bytes] = []
        for event in events([data]):
            number = None if self.passed else (yield from _number_of(event))
            if number is None or number > self._number:
                kept.append(event)
                self.passed = self.passed or number is not None
        if self.passed:
            kept.append(self._framer.finish(0))
        return b"".join(kept)
