"""The event that ends a stream which did not complete, in the form that the client's library understands."""

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from sse_starlette import ServerSentEvent

TerminalForm = Literal["sse", "openai", "ai-sdk", "ag-ui", "anthropic"]
TerminalEvent = TerminalForm | Callable[[str, str, str], bytes | None]
"""A named form, or a function of status, code and message to the bytes of the event (`None`: no event)."""


class WrittenEvent(NamedTuple):
    """A terminal event, and why it is the default one although a function should have written it."""

    event: bytes | None
    failure: BaseException | None = None


def write_terminal_event(form: TerminalEvent, status: str, code: str, message: str) -> WrittenEvent:
    """Write the terminal event of a stream that ended as `status`. Never raises: the stream has to end.

    If the user's function raises, or returns neither bytes nor `None`, the event is the default one, and `failure`
    says what happened. The caller logs it, with the stream's id.
    """
    if not callable(form):
        return WrittenEvent(terminal_event(form, status, code, message))
    try:
        event: Any = form(status, code, message)
        # A `str` is refused rather than encoded: whether it is a whole event is the function's to know.
        if event is None or isinstance(event, bytes | bytearray | memoryview):
            return WrittenEvent(None if event is None else bytes(event))
        failure: BaseException = TypeError(f"terminal_event must return bytes or None, not {type(event).__name__}")
    except BaseException as exc:  # noqa: BLE001  # not even SystemExit may keep a stream from ending
        failure = exc
    return WrittenEvent(terminal_event("sse", status, code, message), failure)


def terminal_event(form: TerminalForm, status: str, code: str, message: str) -> bytes:
    """Write the terminal event in a named form.

    `sse` is `event: cancelled` after a stop and `event: error` otherwise.
    """
    match form:
        case "ai-sdk":
            # The AI SDK's UI message stream protocol: an `error` or `abort` part, and `[DONE]` as at every end.
            part = {"type": "abort"} if status == "cancelled" else {"type": "error", "errorText": message}
            return _event(part) + ServerSentEvent("[DONE]", sep="\n").encode()
        case "ag-ui":
            return _event({"type": "RUN_ERROR", "message": message, "code": code})
        case "anthropic":
            return _event({"type": "error", "error": {"type": "api_error", "message": message}}, "error")
    # The OpenAI SDKs look for the inner object, and raise `APIError`.
    data = {"code": code, "message": message, "error": {"code": code, "message": message}}
    if form == "openai":
        return _event(data)
    return _event(data, "cancelled" if status == "cancelled" else "error")


def _event(data: object, name: str | None = None) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return ServerSentEvent(text, event=name, sep="\n").encode()
