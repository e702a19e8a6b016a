"""Requests to be made, when to make them, and what the head of an answer says, whatever it may say: no I/O."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qs, urlsplit

import httpx

MAX_DIGITS = 18

# Headers of the request that begins a stream which say nothing about a replay of it.
_OF_THE_BODY = {"content-encoding", "content-length", "content-type", "transfer-encoding", "expect"}
_OF_THE_START = {"host", "idempotency-key", "last-event-id", "prefer"}
# Headers that any server may get. All others are for the one that they were meant for: a key may be in any of them.
_OPEN = {"accept", "accept-encoding", "accept-language", "connection", "user-agent", "x-conversation-id"}
_OPEN |= _OF_THE_BODY | _OF_THE_START


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
    """The head of an answer; `headers` has lower-case names, or does not mind."""

    status_code: int
    headers: Mapping[str, str]
    url: str
    delimited: bool
    """Whether the protocol tells the end of the body from the loss of the connection."""

    @property
    def is_success(self) -> bool:
        """Whether there is a body to be read."""
        return 200 <= self.status_code < 300


def origin(url: str) -> str:
    """Who gets a request for a URL: scheme, host and port (RFC 6454)."""
    # httpx drops the default port, and spells scheme and host in small letters.
    return str(httpx.URL(url).copy_with(userinfo=b"", raw_path=b"/", fragment=None))


def replay_url(head: Head) -> str | None:
    """Where an answer can be had again; `None` if it can't."""
    location = head.headers.get("content-location")
    if not location or "x-stream-epoch" not in head.headers or head.headers.get("content-encoding"):
        return None
    try:
        url = httpx.URL(head.url).join(location).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):
        return None
    return str(url) if url.scheme in ("http", "https") and url.host and (url.port or 0) < 65536 else None


def first_offset(url: str, headers: Mapping[str, str]) -> int | None:
    """Where the answer to a request begins, which may be a replay; `None` if the request does not say."""
    if "last-event-id" in headers:
        return None
    return whole_number(parse_qs(urlsplit(url).query).get("from", ["0"])[-1])


def whole_number(text: str | None) -> int | None:
    """A number in ASCII digits, as HTTP has it; `None` if `text` is anything else."""
    # Python's own limit is an exception, and more digits than these make no sense as a place or a time.
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait (RFC 9110 §10.2.3); a date counts from the answer's own `Date`."""
    value = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        seconds = whole_number(value)
        return float("inf") if seconds is None else float(seconds)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError, OverflowError):
        # No dates; or one of them does not name its time zone.
        return 0.0
    return max(0.0, wait.total_seconds())


def replay_headers(headers: httpx.Headers, *, trusted: bool = True) -> httpx.Headers:
    """The headers of the request that began a stream, for one that goes on with it."""
    result = headers.copy()
    for name in headers:
        if name in _OF_THE_BODY | _OF_THE_START or not (trusted or name in _OPEN):
            del result[name]
    return result


def without_credentials(request: httpx.Request) -> httpx.Request:
    """Take from a request what another origin than the one it was made for is not to get."""
    for name in list(request.headers):
        if name not in _OPEN:
            del request.headers[name]
    return request


def charset_of(content_type: str) -> str:
    """The charset of a text; UTF-8 if there is none, or none that can be read."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"')
            try:
                b"\xff".decode(charset, "replace")
            except (LookupError, ValueError):
                break
            return charset
    return "utf-8"
