"""Which headers are recorded, and which are set on every response of a resumable stream."""

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

from starlette.datastructures import MutableHeaders

from .._stream.stream import Stream
from ..stores.base import Reservation

RawHeaders = list[tuple[bytes, bytes]]

# RFC 9110 §7.6.1, and the length, which is the transfer's own affair.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# What belongs to one exchange, so to one client, and not to the stream: what a server, a cache, a browser's store of
# credentials, a measurement of this request or the limit of this client's rate have to do with it.
_OF_ONE_RESPONSE = frozenset(
    {
        *(b"date", b"server", b"set-cookie", b"vary", b"via", b"alt-svc", b"clear-site-data"),
        *(b"accept-ranges", b"content-range"),
        *(b"www-authenticate", b"authentication-info", b"proxy-authentication-info", b"authorization"),
        *(b"age", b"expires", b"pragma", b"etag", b"last-modified", b"warning", b"cache-status", b"surrogate-control"),
        *(b"surrogate-key", b"cache-tag", b"edge-control", b"x-cache", b"retry-after"),
        *(b"x-request-id", b"x-correlation-id", b"request-id", b"x-trace-id", b"x-amzn-trace-id", b"x-b3-traceid"),
        *(b"server-timing", b"traceparent", b"tracestate", b"traceresponse", b"x-process-time", b"x-runtime"),
        b"x-response-time",
        *(b"ratelimit", b"ratelimit-policy"),
    }
)
_OF_ONE_RESPONSE_PREFIXES = (b"access-control-", b"x-ratelimit-", b"ratelimit-", b"x-rate-limit-")
_CACHING_SUFFIX = b"cdn-cache-control"
_OURS = frozenset(
    {b"cache-control", b"content-location", b"x-accel-buffering", b"x-conversation-id", b"x-stream-epoch"}
)
# Ids of which nothing has to be quoted, and no segment is a dot: nearly all.
_PLAIN_ID = re.compile(r"\w[\w.~:@-]*", re.ASCII)
_SCRIPTED = ("text/html", "application/xhtml+xml", "image/svg+xml")
_AI_SDK = b"x-vercel-ai-ui-message-stream"


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The headers of a response without those of the connection, with names in lower case."""
    lowered = [(name.lower(), value) for name, value in headers]
    kept = [header for header in lowered if header[0] not in _HOP_BY_HOP]
    # RFC 9110 §7.6.1: `Connection`, which is one of those, names further headers that are for this connection alone.
    if len(kept) < len(lowered):
        named = {
            token.strip().lower() for name, value in lowered if name == b"connection" for token in value.split(b",")
        }
        kept = [header for header in kept if header[0] not in named]
    return kept


def replayable(headers: RawHeaders) -> tuple[tuple[bytes, bytes], ...]:
    """Those of the headers of a response, `end_to_end`, that a replay repeats."""
    return tuple([header for header in headers if _is_replayable(header[0])])


@lru_cache(maxsize=256)
def _is_replayable(name: bytes) -> bool:
    return not (
        name in _OF_ONE_RESPONSE
        or name in _OURS
        or name.startswith(_OF_ONE_RESPONSE_PREFIXES)
        or name.endswith(_CACHING_SUFFIX)
    )


def id_value(stream_id: str) -> bytes:
    """A stream id as the value of a header, which has no spaces at its ends: servers refuse to send those."""
    return stream_id.encode("utf-8").strip(b" ")


def identify(headers: Iterable[tuple[bytes, bytes]], stream: Stream | Reservation, location: str | None) -> RawHeaders:
    """Put our own headers in the place of any of the same name."""
    others = [header for header in headers if header[0] not in _OURS]
    result = [
        *others,
        (b"x-conversation-id", id_value(stream.key.id)),
        (b"x-stream-epoch", stream.epoch.encode("ascii")),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
    ]
    if location is not None:
        result.append((b"content-location", location.encode("ascii")))
    if _AI_SDK in dict(others):
        # What the AI SDK's `WorkflowChatTransport` takes for the id in `{api}/{id}/stream`.
        result = [(name, value) for name, value in result if name != b"x-workflow-run-id"]
        result.append((b"x-workflow-run-id", id_value(stream.key.id)))
    return result


def guard(headers: RawHeaders) -> RawHeaders:
    """Keep a browser from taking a replay, which has a URL of its own, for more than its media type says."""
    result = MutableHeaders(raw=headers)
    result["x-content-type-options"] = "nosniff"
    if result.get("content-type", "").partition(";")[0].strip().lower() in _SCRIPTED:
        result["content-security-policy"] = "sandbox"
    return result.raw


def describe(stream: Stream) -> RawHeaders:
    """The `X-Stream-*` headers of a HEAD response."""
    item = stream.item
    return [
        (b"x-stream-status", item.status.value.encode("ascii")),
        (b"x-stream-total-bytes", b"%d" % item.total_bytes),
        (b"x-stream-dropped-bytes", b"%d" % item.dropped_bytes),
    ]


def replay_path(prefix: str, stream_id: str) -> str:
    """The URL path, in ASCII, under which `prefix` serves the stream `stream_id`.

    The query form is for ids that clients or proxies would normalise as a path: dot segments and empty segments.
    """
    if _PLAIN_ID.fullmatch(stream_id):
        return f"{prefix}/{stream_id}"
    # Clients remove dot segments before they send (RFC 3986 §5.2.4), and many proxies merge slashes.
    if all(segment not in ("", ".", "..") for segment in stream_id.split("/")):
        return f"{prefix}/{quote(stream_id, safe='/:@')}"
    return f"{prefix}?conv_id={quote(stream_id, safe='')}"
