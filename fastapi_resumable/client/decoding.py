"""Cuts the bytes of a stream into lines or server-sent events; says where each of them ends."""

import json
import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from httpx_sse import EventSource, ServerSentEvent

from .._core.sse import BOM
from .errors import StreamCancelled, StreamFailed, StreamIncomplete

_LINE_END = rb"(?>\r\n|\n|\r)"
LINE = re.compile(_LINE_END)
EVENT = re.compile(_LINE_END + _LINE_END)
_DATA = re.compile(rb"(?:^|[\r\n])data(?:[:\r\n]|$)")
_TERMINAL = {"error": StreamFailed, "cancelled": StreamCancelled}


class Item(NamedTuple):
    """Something to deliver."""

    value: Any
    offset: int
    """The position right after it."""


class Decoder:
    """Hands on bytes as they come."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        """The position right after the last item."""

    def feed(self, data: bytes) -> Iterator[Item]:
        """Take bytes; return the items that are whole by now."""
        self.offset += len(data)
        yield Item(data, self.offset)

    def finish(self) -> Iterator[Item]:
        """Return what the end of the stream makes whole."""
        yield from ()


class _Pieces(Decoder):
    """Cuts at each match of a pattern."""

    def __init__(self, offset: int, end: re.Pattern[bytes]) -> None:
        super().__init__(offset)
        self._end = end
        self._pending = bytearray()

    def feed(self, data: bytes, *, final: bool = False) -> Iterator[Item]:
        pending = self._pending
        # The end that is looked for has at most four bytes, and some of them may have come before.
        position = max(0, len(pending) - 3)
        pending += data
        start = 0
        while match := self._end.search(pending, position):
            position = match.end()
            if position == len(pending) and match[0].endswith(b"\r") and not final:
                # A LF may follow.
                break
            piece = bytes(pending[start : match.start()])
            self.offset += position - start
            start = position
            yield from self.take(piece)
        del pending[:start]

    @abstractmethod
    def take(self, piece: bytes) -> Iterator[Item]:
        """Return the item that a piece makes, if it makes one."""


class LineDecoder(_Pieces):
    """Cuts text into lines; they end in LF, CR LF or CR, and nothing else ends one."""

    def __init__(self, offset: int, charset: str) -> None:
        super().__init__(offset, LINE)
        self._charset = charset

    def take(self, piece: bytes) -> Iterator[Item]:
        """See above."""
        yield Item(piece.decode(self._charset, "replace"), self.offset)

    def finish(self) -> Iterator[Item]:
        """The last line need not end."""
        yield from self.feed(b"", final=True)
        rest = bytes(self._pending)
        self._pending.clear()
        self.offset += len(rest)
        if rest:
            yield from self.take(rest)


class _Block:
    """As much of an `httpx.Response` as `EventSource` reads."""

    headers: ClassVar = {"content-type": "text/event-stream"}

    def __init__(self, text: str) -> None:
        self._text = text

    def iter_text(self) -> Iterator[str]:
        yield self._text

    def iter_lines(self) -> Iterator[str]:  # what httpx-sse read before its version 0.4.1
        return iter(re.split(r"\r\n|\n|\r", self._text)[:-1])


class EventDecoder(_Pieces):
    """Cuts at blank lines; httpx-sse decodes what is between them."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset, EVENT)
        self._last_id = ""
        self._may_have_bom = offset == 0
        self.retry: int | None = None
        """What the stream last asked its clients to wait, in milliseconds."""

    def take(self, piece: bytes) -> Iterator[Item]:
        """See above."""
        block = (piece.removeprefix(BOM) if self._may_have_bom else piece).strip(b"\r\n")
        self._may_have_bom = False
        text = _Block(f"id: {self._last_id}\n{block.decode('utf-8', 'replace')}\n\n")
        for event in EventSource(text).iter_sse():  # type: ignore[arg-type]  # as above
            self._last_id = event.id
            if event.retry is not None:
                self.retry = event.retry
            if _DATA.search(block):
                yield Item(event, self.offset)

    def finish(self) -> Iterator[Item]:
        """A CR at the very end is a whole line end."""
        yield from self.feed(b"", final=True)


def terminal(event: ServerSentEvent) -> StreamIncomplete | None:
    """What an event says about the stream's end, if it is the one by which the server ends what did not complete."""
    kind = _TERMINAL.get(event.event)
    if kind is None:
        return None
    try:
        match json.loads(event.data):
            case {"code": str(code), "message": str(message), "error": {"code": str(), "message": str()}}:
                incomplete: StreamIncomplete = kind(code, message)
                return incomplete
    except (ValueError, RecursionError):
        pass
    return None
