"""What a request says about itself, beyond who asks and for which stream."""

from fastapi import Request
from starlette.types import Message, Receive

from ..exceptions import InvalidRequest


def last_event_id(request: Request) -> str | None:
    """`Last-Event-ID` (WHATWG HTML §9.2.4), which is UTF-8 on the wire; bytes that are not are kept as surrogates."""
    for name, value in request.scope["headers"]:
        if name == b"last-event-id":
            return str(value, "utf-8", "surrogateescape") or None
    return None


def prefers_async(request: Request) -> bool:
    """Whether the client would rather not wait for the answer: `Prefer: respond-async` (RFC 7240 §4.1)."""
    if request.method == "GET":
        return False
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)


async def read_body(request: Request, limit: int, advice: str) -> bytes:
    """Read the body.

    Raises:
        InvalidRequest: It is larger than `limit`; the message ends with `advice`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise InvalidRequest(f"The body is larger than {limit} bytes. {advice}")
    return bytes(body)


def body_again(request: Request) -> Receive:
    """A `receive` that gives the request's body once more, to whoever looks for the stream id in it."""

    async def receive() -> Message:
        try:
            body = await request.body()
        except RuntimeError:
            # It was read as a form, which keeps no copy.
            body = b""
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
