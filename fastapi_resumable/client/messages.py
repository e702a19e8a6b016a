"""What is asked of a server, and when; and what its answers mean, whatever they may hold: no I/O."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qs, urlsplit

import httpx

from ..exceptions import RequestRefused

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


def origin(url: object) -> str:
    """The scheme, host and port of a URL (RFC 6454)."""
    # httpx drops the default port, and spells scheme and host in small letters.
    return str(httpx.URL(str(url)).copy_with(userinfo=b"", raw_path=b"/", fragment=None))


def replay_url(head: httpx.Response) -> str | None:
    """Where an answer can be had again; `None` if it cannot."""
    location = head.headers.get("content-location")
    # `Content-Location` alone is common HTTP and no promise of a replay; and what is compressed on the way has other
    # offsets than the log.
    if not location or "x-stream-epoch" not in head.headers or head.headers.get("content-encoding"):
        return None
    try:
        url = httpx.URL(str(head.url)).join(location).copy_with(fragment=None)
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


def is_replay(asked: httpx.URL, replay_url: str) -> bool:
    """Whether the URL `asked` for is that of a replay, in either form, so that its `from` is a place in the stream."""
    kept = _in_path(httpx.URL(replay_url))
    # The server names an id that does not fit into a path in the query, even if it was asked for in the path. And a
    # proxy may have removed a part of the path, which the server does not know of then.
    return asked.path.endswith(kept) or _in_path(asked).endswith(kept)


def _in_path(url: httpx.URL) -> str:
    """The path, and the id that is named in the query, if there is one, at its end."""
    # Of several, the server reads the last one.
    stream_id = ["", *url.params.get_list("conv_id")][-1]
    return f"{url.path}/{stream_id}" if stream_id else url.path


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


def merge_cookies(given: str, later: str) -> str:
    """The cookies of two `Cookie` headers; of a name that is in both, the `later` one."""
    pairs = [pair.strip() for pair in f"{given};{later}".split(";")]
    return "; ".join({pair.partition("=")[0]: pair for pair in pairs if pair}.values())


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
