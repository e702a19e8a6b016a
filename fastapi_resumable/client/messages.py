"""What is asked of a server, and when; and what its answers mean, whatever they may hold: no I/O."""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx
from httpx_sse import EventSource, ServerSentEvent

from .._core.sse import BOM
from ..exceptions import RequestRefused, StreamCancelled, StreamFailed, StreamIncomplete

Form = Literal["events", "iter_lines", "iter_bytes"]

# Atomic, or `\r\n` could be taken for a CR and the blank line after it.
_LINE_END = rb"(?>\r\n|\n|\r)"
_ENDS: dict[Form, re.Pattern[bytes]] = {"events": re.compile(_LINE_END * 2), "iter_lines": re.compile(_LINE_END)}
# An event without `data` is not dispatched (WHATWG HTML, 9.2.6), but httpx-sse hands it out.
_DATA = re.compile(rb"(?:^|[\r\n])data(?:[:\r\n]|$)")
_TERMINAL = {"error": StreamFailed, "cancelled": StreamCancelled}

# As many as fit into 64 bits.
MAX_DIGITS = 18

# Headers of the request that begins a stream which say nothing about a replay of it.
_OF_THE_BODY = {"content-encoding", "content-length", "content-type", "transfer-encoding", "expect"}
_OF_THE_START = {"host", "idempotency-key", "last-event-id", "prefer"}
# Headers that any server may get. All others are for the one that they were meant for: a key may be in any of them.
_OPEN = {"accept", "accept-encoding", "accept-language", "connection", "user-agent", "x-conversation-id"}
_OPEN |= _OF_THE_BODY | _OF_THE_START

# Parameters that name the event to begin after, or the part to begin with; the last two only of a replay.
_EVENTS = {"lastEventId", "last_event_id"}
_PARTS = {"starting_after", "startIndex"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential back-off with full jitter: a random part of `initial`, `2 * initial`, `4 * initial` ... seconds.

    What the server asks for (`Retry-After`, or `retry:` in the stream) comes on top, as the least.

    Args:
        initial: Upper bound of the first wait, in seconds.
        maximum: Upper bound of every wait.
        server_maximum: Upper bound of what the server may ask for on top.
        retries: How many attempts in a row may fail before the client gives up; `None`: it never does. An attempt that
            brings a byte begins a new row.
        random: Returns a number from 0 to 1.
    """

    initial: float = 0.5
    maximum: float = 30.0
    server_maximum: float = 60.0
    retries: int | None = 10
    random: Callable[[], float] = random.random

    def exhausted(self, failures: int) -> bool:
        """Whether so many failures in a row are too many."""
        return self.retries is not None and failures > self.retries

    def delay(self, failures: int, asked: float = 0.0) -> float:
        """Seconds to wait after so many failures in a row, if the server has `asked` for so many."""
        # Full jitter, so that the clients of a server that comes back do not all return at once. The exponent is
        # clipped, or a client that never gives up would end with an `OverflowError`.
        own = self.random() * min(self.maximum, self.initial * 2.0 ** min(failures - 1, 64))
        return min(max(asked, 0.0), self.server_maximum) + own


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be made, after `delay` seconds; without a `method`, the one that begins the stream."""

    delay: float
    method: str | None = None
    url: str = ""
    trusted: bool = True
    """Whether the request may carry the credentials of the one that begins the stream."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer; `headers` are looked up by lower-case names."""

    status_code: int
    headers: Mapping[str, str]
    url: str

    @property
    def is_success(self) -> bool:
        """Whether there is a body to be read."""
        return 200 <= self.status_code < 300


def origin(url: str) -> str:
    """The scheme, host and port of a URL (RFC 6454)."""
    # httpx drops the default port, and spells scheme and host in small letters.
    return str(httpx.URL(url).copy_with(userinfo=b"", raw_path=b"/", fragment=None))


def replay_url(head: Head) -> str | None:
    """Where an answer can be had again; `None` if it cannot."""
    location = head.headers.get("content-location")
    # `Content-Location` alone is common HTTP and no promise of a replay; and what is compressed on the way has other
    # offsets than the log.
    if not location or "x-stream-epoch" not in head.headers or head.headers.get("content-encoding"):
        return None
    try:
        url = httpx.URL(head.url).join(location).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):
        return None
    # httpx takes a port of any size, and the socket raises an `OverflowError` later.
    return str(url) if url.scheme in ("http", "https") and url.host and (url.port or 0) < 65536 else None


def first_offset(request: httpx.Request) -> int | None:
    """Where the answer to a request begins if it is a replay; `None` if the request does not say."""
    query = parse_qs(urlsplit(str(request.url)).query)
    is_get = request.method == "GET"
    if "last-event-id" in request.headers or not (_EVENTS | _PARTS if is_get else _EVENTS).isdisjoint(query):
        return None
    # What is no number is refused as a place in a replay, so it is one in something else.
    return (is_get and whole_number(query.get("from", [""])[-1])) or 0


def is_replay(url: str, replay_url: str) -> bool:
    """Whether `url` is that of a replay, in either form: a `from` of any other is the application's own."""
    asked, kept = httpx.URL(url), httpx.URL(replay_url).path
    # A proxy may have removed a part of the path, which the server does not know of then.
    return asked.path.endswith(kept) or f"{asked.path}/{asked.params.get('conv_id')}".endswith(kept)


def whole_number(text: str | None) -> int | None:
    """A number in ASCII digits, as HTTP has it; `None` if `text` is anything else."""
    # Python refuses to convert thousands of digits, and more than these make no sense as a place or a time.
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait (RFC 9110 §10.2.3); a date counts from the answer's own `Date`."""
    # `str.isdigit` alone is also true for the digits of other scripts.
    value = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        seconds = whole_number(value)
        return float("inf") if seconds is None else float(seconds)
    try:
        # Not from this machine's clock, which may be wrong.
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError, OverflowError):
        # No dates; or one of them does not name its time zone.
        return 0.0
    return max(0.0, wait.total_seconds())


def next_headers(headers: httpx.Headers, *, trusted: bool, replay: bool = False) -> httpx.Headers:
    """The headers for the request that follows: a redirect, or a `replay`. If it is not `trusted`, without secrets."""
    result = headers.copy()
    for name in headers:
        if (replay and name in _OF_THE_BODY | _OF_THE_START) or not (trusted or name in _OPEN):
            del result[name]
    return result


def charset_of(content_type: str) -> str:
    """The charset of a text; UTF-8 if there is none, or none that can be read."""
    # The parser of mail headers knows quotes and RFC 2231, and is the standard library's only one.
    message = Message()
    message["Content-Type"] = content_type
    charset = message.get_content_charset("utf-8")
    try:
        # `codecs.lookup` would also find codecs that decode no bytes, like rot13.
        b"\xff".decode(charset, "replace")
    except (LookupError, ValueError):
        return "utf-8"
    return charset


def refusal(status_code: int, body: bytes, note: str = "") -> RequestRefused:
    """Make the error out of an answer, whatever its body is."""
    try:
        # FastAPI puts an error under `detail`; proxies and other frameworks do not.
        content = json.loads(body)
        detail = content.get("detail", content) if isinstance(content, Mapping) else content
        if isinstance(detail, Mapping):
            message = str(detail.get("message", detail))
            return RequestRefused(status_code, str(detail.get("code", "")), message, detail, note)
        return RequestRefused(status_code, "", str(detail), detail, note)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace")
        return RequestRefused(status_code, "", text, text, note)


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
