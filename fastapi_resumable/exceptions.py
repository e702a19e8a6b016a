"""What can go wrong, as one tree of exceptions; each row of the HTTP error table is one class.

    ResumableError
    ├── InvalidStreamId       400 invalid_stream_id
    ├── InvalidOffset         400 invalid_offset
    ├── OffsetLost            400 offset_lost
    ├── UnknownEventId        400 unknown_event_id
    ├── InvalidRequest        400 invalid_request
    ├── StreamNotFound        404 stream_not_found
    ├── StreamReplaced        409 stream_replaced
    ├── StreamExists          409 stream_exists
    ├── OffsetOutOfRange      416 offset_out_of_range
    ├── TooManyStreams        429 (an owner's) or 503 (the server's) too_many_streams
    ├── StreamPending         503 stream_pending
    ├── StoreUnavailable      503 store_unavailable
    ├── ShuttingDown          503 shutting_down
    └── ClientError           what `fastapi_resumable.client` raises; also for an answer that makes no sense
        ├── RequestRefused    the server's answer is final: 404, 409, 416, 401 ...
        ├── ConnectionLost    there is no way (back) to the stream
        └── StreamIncomplete  the stream has ended, and did not complete
            ├── StreamFailed      its endpoint failed, or the server lost it
            └── StreamCancelled   400 cancelled: it was stopped, or a newer request replaced it

The classes carry status and code as data; the FastAPI layer alone turns them into responses.
"""

from typing import Any


class ResumableError(Exception):
    """Root of all exceptions that this library raises.

    `status_code` and `code` are what a client sees, `message` is the sentence that names the fix, `extra` are
    further members of the error body, `retry_after` is in seconds.
    """

    status_code: int
    code: str
    retry_after: int | None = None

    def __init__(self, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are remade with what is in `args`, which is not what the classes below take.
        return type(self).__new__, (type(self), *self.args), self.__dict__

    @property
    def detail(self) -> dict[str, Any]:
        """The `detail` member of the error body."""
        return {"code": self.code, "message": self.message, **self.extra}

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class InvalidStreamId(ResumableError):
    """The stream id is missing where it is needed, too long, or has control characters."""

    status_code = 400
    code = "invalid_stream_id"


class InvalidOffset(ResumableError):
    """`from` or `starting_after` is not a non-negative integer in ASCII digits, or the stream has no such places."""

    status_code = 400
    code = "invalid_offset"


class OffsetLost(ResumableError):
    """The bytes at that offset are no longer retained; `earliest` is the first offset that is."""

    status_code = 400
    code = "offset_lost"

    def __init__(self, earliest: int) -> None:
        super().__init__(
            f"The log no longer holds that offset. The earliest one it holds is {earliest}: "
            f"resume with from={earliest}, or start over.",
            earliest=earliest,
        )
        self.earliest = earliest


class UnknownEventId(ResumableError):
    """`Last-Event-ID` is an id of the application's own that the log does not hold."""

    status_code = 400
    code = "unknown_event_id"


class InvalidRequest(ResumableError):
    """The body is not what the route takes."""

    status_code = 400
    code = "invalid_request"


class StreamNotFound(ResumableError):
    """Unknown, expired, stopped, or another owner's: the caller cannot tell which."""

    status_code = 404
    code = "stream_not_found"

    def __init__(self) -> None:
        super().__init__("There is no such stream. It may have ended and expired, or been stopped; start a new one.")


class StreamReplaced(ResumableError):
    """The position belongs to another epoch than the stream's current one."""

    status_code = 409
    code = "stream_replaced"

    def __init__(self) -> None:
        super().__init__("A newer request has replaced that stream. Read the current one from its start (from=0).")


class StreamExists(ResumableError):
    """The id has a live stream, and `on_conflict` is `reject`."""

    status_code = 409
    code = "stream_exists"

    def __init__(self) -> None:
        super().__init__("A stream with this id is live. Follow it, stop it with DELETE, or use another id.")


class OffsetOutOfRange(ResumableError):
    """The offset lies past the tail of the log."""

    status_code = 416
    code = "offset_out_of_range"

    def __init__(self, tail: int) -> None:
        super().__init__(f"The offset is past the end of the log, which is at {tail}.", tail=tail)
        self.tail = tail


class TooManyStreams(ResumableError):
    """A limit is reached: `max_streams_per_owner` (429), `max_streams` or `max_total_bytes` (503)."""

    status_code = 503
    code = "too_many_streams"
    retry_after = 5


class TooManyStreamsOfOwner(TooManyStreams):
    """The owner's own limit is reached: 429 instead of 503."""

    status_code = 429


class StreamPending(ResumableError):
    """The stream is still queued: its endpoint has not begun to answer."""

    status_code = 503
    code = "stream_pending"
    retry_after = 1

    def __init__(self) -> None:
        super().__init__("The stream has not begun yet. Ask again in a moment.")


class StoreUnavailable(ResumableError):
    """A shared store cannot be reached, or refuses writes."""

    status_code = 503
    code = "store_unavailable"
    retry_after = 5
    degrade = False
    """Whether the request is answered without being recorded, rather than refused."""


class ShuttingDown(ResumableError):
    """The server takes no new streams, because it is about to exit."""

    status_code = 503
    code = "shutting_down"
    retry_after = 5

    def __init__(self) -> None:
        super().__init__("The server is shutting down and takes no new streams. Try again in a moment.")


class ClientError(ResumableError):
    """Root of what the clients raise."""

    status_code = 0
    code = ""


class ConnectionLost(ClientError):
    """The connection broke and could not be replaced; `__cause__` is why the last attempt failed."""


class RequestRefused(ClientError):
    """The server's answer is final: asking again would not change it.

    `status_code` is the answer's, `code` and `message` are the server's (`code` is empty if it gave none), `detail` is
    the `detail` member of the error's body, as it came. `note` is what the client adds to it.
    """

    def __init__(self, status_code: int, code: str, message: str, detail: Any = None, note: str = "") -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code
        self.note = note
        self._detail = detail

    @property
    def detail(self) -> Any:
        """The `detail` member of the error's body."""
        return self._detail

    def __str__(self) -> str:
        text = f"{self.status_code} {self.code}: {self.message}" if self.code else f"{self.status_code}: {self.message}"
        return f"{text} ({self.note})" if self.note else text


class StreamIncomplete(ClientError):
    """The stream has ended, and did not complete; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class StreamFailed(StreamIncomplete):
    """The endpoint failed, or the server lost it."""


class StreamCancelled(StreamIncomplete):
    """The stream was stopped (`cancelled`), or a newer request replaced it (`replaced`).

    The server raises it for a request whose stream was stopped before it began, the clients for any stream.
    """

    status_code = 400
    code = "cancelled"

    def __init__(self, code: str = "cancelled", message: str = "The stream was cancelled before it began.") -> None:
        super().__init__(code, message)
