"""Stream ids, epochs, offsets and event ids: how they are written and what is refused.

An event id of ours is `<epoch>-<offset>`: the epoch is 16 lowercase base-32 characters (RFC 4648 §6), the offset is
the position right after the event. So `Last-Event-ID` and `?from=` name the same place.
"""

import re
import unicodedata
from typing import NamedTuple

from ..exceptions import InvalidOffset, InvalidRequest, InvalidStreamId

# An id comes back in headers and URLs, which proxies bound to a few KiB.
MAX_STREAM_ID_BYTES = 512
EPOCH_BYTES = 16
MAX_IDEMPOTENCY_KEY_BYTES = 512
_BASE_32_OF_BYTE = b"abcdefghijklmnopqrstuvwxyz234567" * 8
# Without leading zeros, so that a position has one spelling; an offset has at most 19 digits, as in 63 bits.
_EVENT_ID = re.compile(r"([a-z2-7]{16})-(0|[1-9][0-9]{0,18})")
# Not where an id begins: an empty one is none.
_BEFORE_VARIANT = re.compile(r"(?!^)(?=::)")
_DIGITS = re.compile(r"[0-9]+")
# The largest integer that SQLite can store; Redis' stream ids end at 2**64.
_MAX_COUNT = 2**63 - 1


class StreamKey(NamedTuple):
    """What a stream is kept under: two owners may use the same id and never meet."""

    owner: str | None
    id: str

    def fields(self, epoch: str | None = None) -> dict[str, str | None]:
        """What a log record about the stream carries: `logger.warning(..., extra=key.fields(epoch))`."""
        return {"stream_id": self.id, "owner": self.owner, "epoch": epoch}


class EventId(NamedTuple):
    """A position that names its epoch, so that one from an earlier epoch is refused, not misread."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def format_epoch(entropy: bytes) -> str:
    """Write `EPOCH_BYTES` random bytes as an epoch: five bits of each."""
    # By a table, because a stream is begun for each request, and `base64.b32encode` takes several times as long.
    return entropy.translate(_BASE_32_OF_BYTE).decode("ascii")


def parse_event_id(text: str) -> EventId | None:
    """Read an event id of ours; `None` if it has another form, so is the application's own."""
    # `fullmatch`, as `$` would let a trailing line feed through.
    match = _EVENT_ID.fullmatch(text)
    return EventId(match[1], int(match[2])) if match else None


def parse_stream_id(value: str | None) -> str | None:
    """Check a stream id; `None` for one that is absent or blank.

    Raises:
        InvalidStreamId: It is longer than 512 bytes in UTF-8, has control characters, or cannot be written in UTF-8.
    """
    # A client without an id may send an empty header rather than none.
    if value is None or not value.strip():
        return None
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError as exc:
        raise InvalidStreamId("The stream id is not valid Unicode: it has a lone surrogate.") from exc
    if size > MAX_STREAM_ID_BYTES:
        raise InvalidStreamId(f"The stream id has {size} bytes; use at most {MAX_STREAM_ID_BYTES}.")
    # `isprintable` is one call in C and settles nearly every id; it alone would also refuse spaces other than U+0020.
    if not value.isprintable() and any(unicodedata.category(character) == "Cc" for character in value):
        raise InvalidStreamId("The stream id has control characters; use printable ones.")
    return value


def require_stream_id(value: str | None) -> str:
    """`parse_stream_id`, where an absent id is an error too.

    Raises:
        InvalidStreamId: There is no id, or it is a bad one.
    """
    stream_id = parse_stream_id(value)
    if stream_id is None:
        raise InvalidStreamId("Name the stream, in the path or as ?conv_id=.")
    return stream_id


def parse_idempotency_key(value: str | None) -> str | None:
    """Check an `Idempotency-Key`; `None` for one that is absent or blank.

    Raises:
        InvalidRequest: It is longer than 512 bytes, which would have to be kept for as long as the stream.
    """
    if value is None or not value.strip():
        return None
    # The header was read as Latin-1, in which a character is a byte.
    size = len(value)
    if size > MAX_IDEMPOTENCY_KEY_BYTES:
        raise InvalidRequest(f"The Idempotency-Key has {size} bytes; use at most {MAX_IDEMPOTENCY_KEY_BYTES}.")
    return value


def parse_count(name: str, text: str | None) -> int | None:
    """Read a parameter of a query that counts bytes or events; `None` if it is absent or has no value.

    Raises:
        InvalidOffset: It is not a non-negative integer in ASCII digits.
    """
    if not text:
        return None
    if not _DIGITS.fullmatch(text):
        raise InvalidOffset(f"`{name}` must be a non-negative integer in decimal digits, like {name}=1024.")
    # Counts too large to exist are clipped, not refused; and `int` refuses more than 4,300 digits.
    return int(text) if len(text) <= 18 else _MAX_COUNT


def variants(stream_id: str) -> list[str]:
    """The shorter ids of which `stream_id` is a variant: `a` and `a::b` for `a::b::c`."""
    # Those of `a:::b` are `a` and `a:`, so two `::` may overlap.
    return [stream_id[: found.start()] for found in _BEFORE_VARIANT.finditer(stream_id)]
