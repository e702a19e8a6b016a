"""A client's place in a stream: what to deliver of the bytes that come, and where to go on after a cut."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from httpx_sse import ServerSentEvent

from .._core.sse import BOM
from .errors import StreamCancelled, StreamFailed, StreamIncomplete

_LINE_END = rb"(?>\r\n|\n|\r)"
_BLANK_LINE = re.compile(_LINE_END + _LINE_END)
_FIELD = re.compile(rb"[^\r\n]+")
_LINE = re.compile(rb"([^\r\n]*)(?:\n|\r\n|\r(?!\Z))")
_OUR_ID = re.compile(rb"[\r\n]id: ([a-z2-7]{16})-([0-9]{1,19})" + _LINE_END + _LINE_END + rb"\Z")
_TERMINAL = {"error": StreamFailed, "cancelled": StreamCancelled}


class Item(NamedTuple):
    """Something to deliver."""

    value: Any
    offset: int
    """The position right after it."""


class Cursor(Protocol):
    """Turns bytes into items, and knows its place."""

    offset: int
    """The position right after the last item."""
    retry: float
    """Seconds that the stream asks clients to wait before they come back."""

    @property
    def received(self) -> int:
        """The position right after the last byte."""

    def feed(self, chunk: bytes) -> list[Item]:
        """Take bytes; return the items that are whole by now."""

    def finish(self) -> list[Item]:
        """Return what the end of the stream makes whole."""

    def resume(self) -> int | str:
        """Where to go on after a cut: an offset, or an event id."""


class ByteCursor:
    """Hands on bytes as they come."""

    retry = 0.0

    def __init__(self, offset: int) -> None:
        self.offset = offset

    @property
    def received(self) -> int:
        """The same as the offset."""
        return self.offset

    def feed(self, chunk: bytes) -> list[Item]:
        """Hand them on."""
        self.offset += len(chunk)
        return [Item(chunk, self.offset)]

    def finish(self) -> list[Item]:
        """Nothing is held back."""
        return []

    def resume(self) -> int | str:
        """By offset."""
        return self.offset


class LineCursor:
    """Cuts text into lines; they end in LF, CR LF or CR, and nothing else ends one."""

    retry = 0.0

    def __init__(self, offset: int, charset: str) -> None:
        self.offset = offset
        self._charset = charset
        self._pending: list[bytes] = []

    @property
    def received(self) -> int:
        """Counts the part of a line that is held back."""
        return self.offset + sum(map(len, self._pending))

    def feed(self, chunk: bytes) -> list[Item]:
        """Return the lines that are whole by now."""
        # A CR at the end may have been half of a line end.
        ends = b"\n" in chunk or b"\r" in chunk or b"".join(self._pending[-1:]).endswith(b"\r")
        self._pending.append(chunk)
        return list(self._lines(b"".join(self._pending))) if ends else []

    def finish(self) -> list[Item]:
        """The last line need not end."""
        rest = b"".join(self._pending)
        return list(self._lines(rest + b"\n")) if rest else []

    def resume(self) -> int | str:
        """By offset."""
        return self.received

    def _lines(self, data: bytes) -> Iterator[Item]:
        end = 0
        for match in _LINE.finditer(data):
            self.offset += match.end() - end
            end = match.end()
            yield Item(match[1].decode(self._charset, "replace"), self.offset)
        self._pending = [data[end:]] if end < len(data) else []


class EventCursor:
    """Decodes server-sent events (WHATWG HTML §9.2.6); a place is right after a whole event.

    After a cut it goes on by the id of the last event, if the library has stamped it: then it does not matter what a
    proxy may have put in between. Else, and where events are so large or cuts so frequent that not even one event has
    come through since the last time, by offset: so that every byte counts.
    """

    def __init__(self, offset: int, epoch: str | None) -> None:
        self.offset = offset
        self.retry = 0.0
        self._epoch = (epoch or "").encode("ascii")
        self._event_id: str | None = None
        self._last_id = ""
        self._pending = bytearray()
        self._skip_lf = False
        self._advanced = False
        self._before: tuple[int, str | None] = offset, None

    @property
    def received(self) -> int:
        """Counts the part of an event that is held back."""
        return self.offset + len(self._pending)

    def feed(self, chunk: bytes, *, final: bool = False) -> list[Item]:
        """Decode the events that are whole by now."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk.startswith(b"\n"):
                # The second half of a CR LF whose CR has already ended an event.
                chunk = chunk[1:]
                self.offset += 1
                self._event_id = None
        pending = self._pending
        position = max(0, len(pending) - 3)
        pending += chunk
        start = 0
        events = []
        while match := _BLANK_LINE.search(pending, position):
            position = match.end()
            if position == len(pending) and match[0].endswith(b"\r") and not final:
                # A LF may follow; waiting for it would hold up every event where CR alone is the rule.
                if match[0] != b"\r\r":
                    break
                self._skip_lf = True
            event = self._take(bytes(pending[start:position]))
            start = position
            if event is not None:
                events.append(Item(event, self.offset))
        del pending[:start]
        return events

    def finish(self) -> list[Item]:
        """A CR at the very end is a whole line end."""
        return self.feed(b"", final=True)

    def undo(self) -> bool:
        """Forget the last event, which one server has told one client; false if it is in the log."""
        if self._event_id is not None:
            return False
        self.offset, self._event_id = self._before
        self._pending.clear()
        return True

    def resume(self) -> int | str:
        """By id or by offset, see above."""
        if self._event_id is None or (self._pending and not self._advanced):
            return self.received
        self._pending.clear()
        self._skip_lf = self._advanced = False
        return self._event_id

    def _take(self, block: bytes) -> ServerSentEvent | None:
        self._advanced = True
        self._before = self.offset, self._event_id
        text = block if self.offset else block.removeprefix(BOM)
        stamp = _OUR_ID.search(block)
        if stamp and stamp[1] == self._epoch:
            self.offset = int(stamp[2])
            self._event_id = f"{stamp[1].decode('ascii')}-{self.offset}"
        else:
            self.offset += len(block)
            self._event_id = None
        return self._decode(text)

    def _decode(self, block: bytes) -> ServerSentEvent | None:
        kind = ""
        retry = None
        data = []
        for raw in _FIELD.findall(block):
            name, _, value = raw.decode("utf-8", "replace").partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                kind = value
            elif name == "id" and "\0" not in value:
                self._last_id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                retry = int(value)
                self.retry = retry / 1000
        if not data:
            return None
        return ServerSentEvent(event=kind or "message", data="\n".join(data), id=self._last_id, retry=retry)


def terminal(event: ServerSentEvent) -> StreamIncomplete | None:
    """What an event says about the stream's end, if it is the one by which the server ends what did not complete."""
    kind = _TERMINAL.get(event.event)
    if kind is None:
        return None
    try:
        match json.loads(event.data):
            case {"code": str(code), "message": str(message), "error": {"code": str(), "message": str()}}:
                return kind(code, message)
    except ValueError:
        pass
    return None
