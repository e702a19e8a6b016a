"""Events, lines and bytes out of what comes, and what the server's own events mean: no I/O."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

from httpx_sse import EventSource, ServerSentEvent

from .._core.sse import BOM
from ..exceptions import StreamCancelled, StreamFailed, StreamIncomplete

Form = Literal["events", "iter_lines", "iter_bytes"]

# Atomic, or `\r\n` could be taken for a CR and the blank line after it.
_LINE_END = rb"(?>\r\n|\n|\r)"
_ENDS: dict[Form, re.Pattern[bytes]] = {"events": re.compile(_LINE_END * 2), "iter_lines": re.compile(_LINE_END)}
# An event without `data` is not dispatched (WHATWG HTML, 9.2.6), but httpx-sse hands it out.
_DATA = re.compile(rb"(?:^|[\r\n])data(?:[:\r\n]|$)")
_TERMINAL = {"error": StreamFailed, "cancelled": StreamCancelled}


class Item(NamedTuple):
    """Something to deliver."""

    value: Any
    offset: int
    """The position right after it."""


class Decoder:
    """Cuts at blank lines (`events`), at line ends (`iter_lines`), or not at all (`iter_bytes`)."""

    def __init__(self, form: Form, offset: int, charset: str = "utf-8") -> None:
        self.offset = offset
        """The position right after the last item."""
        self.retry: int | None = None
        """What the stream last asked its clients to wait, in milliseconds."""
        self._form = form
        self._charset = charset
        self._pending = bytearray()
        self._may_have_bom = offset == 0
        self._last_id = ""

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[Item]:
        """Take the next bytes; return the items that are whole by now. `final` ones make the rest whole."""
        pending = self._pending
        # The end that is looked for has at most four bytes, and some of them may have come before.
        position = max(0, len(pending) - 3)
        pending += data
        start = 0
        for piece, end in self._cut(position, final=final):
            self.offset += end - start
            start = end
            yield from self._take(piece)
        del pending[:start]

    def _cut(self, position: int, *, final: bool) -> Iterator[tuple[bytes, int]]:
        pending = self._pending
        start = 0
        if self._form != "iter_bytes":
            while match := _ENDS[self._form].search(pending, position):
                position = match.end()
                if position == len(pending) and match[0].endswith(b"\r") and not final:
                    # A LF may follow.
                    return
                yield bytes(pending[start : match.start()]), position
                start = position
            # An event that is cut off by the end is not dispatched (WHATWG HTML, 9.2.6); a last line without an end is
            # a line.
            if self._form == "events" or not final:
                return
        if len(pending) > start:
            yield bytes(pending[start:]), len(pending)

    def _take(self, piece: bytes) -> Iterable[Item]:
        if self._form == "events":
            return self._take_event(piece)
        return [Item(piece.decode(self._charset, "replace") if self._form == "iter_lines" else piece, self.offset)]

    def _take_event(self, piece: bytes) -> Iterator[Item]:
        """httpx-sse decodes it; it gets the last id first, because it has seen no event before."""
        block = (piece.removeprefix(BOM) if self._may_have_bom else piece).strip(b"\r\n")
        self._may_have_bom = False
        text = _Block(f"id: {self._last_id}\n{block.decode('utf-8', 'replace')}\n\n")
        for event in EventSource(text).iter_sse():  # type: ignore[arg-type]  # see `_Block`
            self._last_id = event.id
            if event.retry is not None:
                self.retry = event.retry
            if _DATA.search(block):
                yield Item(event, self.offset)


class _Block:
    """As much of an `httpx.Response` as `EventSource` reads."""

    headers: ClassVar = {"content-type": "text/event-stream"}

    def __init__(self, text: str) -> None:
        self._text = text

    def iter_text(self) -> Iterator[str]:
        yield self._text

    def iter_lines(self) -> Iterator[str]:  # what httpx-sse read before its version 0.4.1
        return iter(re.split(r"\r\n|\n|\r", self._text)[:-1])


def terminal(event: ServerSentEvent) -> StreamIncomplete | None:
    """What an event says about the stream's end, if it is the one by which the server ends what did not complete."""
    kind = _TERMINAL.get(event.event)
    if kind is None:
        return None
    try:
        match json.loads(event.data):
            # An application may have events of these names. The server's own has the message twice, also in the form of
            # OpenAI's.
            case {"code": str(code), "message": str(message), "error": {"code": str(), "message": str()}}:
                incomplete: StreamIncomplete = kind(code, message)
                return incomplete
    except (ValueError, RecursionError):
        pass
    return None


def known_charset(charset: str | None) -> str:
    """The charset of a text; UTF-8 if it names none, or none that can be read."""
    charset = charset or "utf-8"
    try:
        # `codecs.lookup` would also find codecs that decode no bytes, like rot13.
        b"\xff".decode(charset, "replace")
    except (LookupError, ValueError):
        return "utf-8"
    return charset
