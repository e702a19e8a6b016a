"""Server-sent events as a browser reads them (WHATWG HTML §9.2.6), written as simply as it can be said.

A model to test against: it takes a whole body and knows nothing of how the library does it.
"""

import re
from dataclasses import dataclass

OUR_ID = re.compile(rb"id: ([a-z2-7]{16})-(\d+)(?:\r\n|\n|\r)")
LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r)")


@dataclass(frozen=True)
class Event:
    """What a client dispatches."""

    data: str
    type: str = "message"
    id: str = ""


def parse(body: bytes) -> list[Event]:
    """The events that an `EventSource` dispatches for `body`, an unfinished last one left out."""
    events: list[Event] = []
    data: list[str] = []
    kind = last_id = ""
    for raw, _ in LINE.findall(body.removeprefix(b"\xef\xbb\xbf")):
        line = raw.decode("utf-8", "replace")
        if not line:
            if data:
                events.append(Event("\n".join(data), kind or "message", last_id))
            data, kind = [], ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last_id = value
    return events


def payloads(body: bytes) -> list[str]:
    """The `data` of every event."""
    return [event.data for event in parse(body)]


def types(body: bytes) -> list[str]:
    """The type of every event."""
    return [event.type for event in parse(body)]


def without_ids(body: bytes) -> bytes:
    """The body without the id lines that the library has put in."""
    return OUR_ID.sub(b"", body)


def our_ids(body: bytes) -> list[tuple[str, int]]:
    """Epoch and offset of each id line that the library has put in."""
    return [(epoch.decode(), int(offset)) for epoch, offset in OUR_ID.findall(body)]


def last_ids(body: bytes) -> list[str]:
    """The `lastEventId` of each event, which is what a client sends back."""
    return [event.id for event in parse(body)]


def boundaries(body: bytes) -> list[int]:
    """Every position right after a blank line."""
    return [match.end() for match in LINE.finditer(body) if not match[1]]


def normalised(body: bytes) -> bytes:
    """The body with LF for every line end."""
    return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def dispatched_at_blank_lines(body: bytes) -> list[str]:
    """What a decoder dispatches that, once it has seen an id, takes every blank line for the end of an event."""
    found: list[str] = []
    data: list[str] = []
    kind = last_id = retry = ""
    for raw, _ in LINE.findall(body.removeprefix(b"\xef\xbb\xbf")):
        line = raw.decode("utf-8", "replace")
        if not line:
            if kind or data or last_id or retry:
                found.append("\n".join(data))
            data, kind, retry = [], "", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            last_id = value
        elif name == "retry" and value.isdigit():
            retry = value
    return found
