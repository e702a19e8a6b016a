"""The event that ends a stream which did not complete, in the form that the client's library understands."""

import json
from collections.abc import Callable
from typing import Literal

TerminalEvent = Literal["sse", "openai", "ai-sdk"] | Callable[[str, str, str], bytes | None]
"""A named form, or a function of status, code and message to the bytes of the event (`None`: no event)."""


def terminal_event(form: TerminalEvent, status: str, code: str, message: str) -> bytes | None:
    """Write the terminal event of a stream that ended as `status`.

    `sse` is `event: cancelled` after a stop and `event: error` otherwise. The inner `error` object is what the OpenAI
    SDKs look for.
    """
    if callable(form):
        return form(status, code, message)
    if form == "ai-sdk":
        # The AI SDK's UI message stream protocol: an `error` or `abort` part, and `[DONE]` as at every end.
        part = {"type": "abort"} if status == "cancelled" else {"type": "error", "errorText": message}
        return b"data: %s\n\ndata: [DONE]\n\n" % _json(part)
    data = _json({"code": code, "message": message, "error": {"code": code, "message": message}})
    if form == "openai":
        return b"data: %s\n\n" % data
    return b"event: %s\ndata: %s\n\n" % (b"cancelled" if status == "cancelled" else b"error", data)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
