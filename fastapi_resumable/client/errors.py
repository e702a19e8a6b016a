"""What can go wrong for a client, as one tree of exceptions.

ClientError
├── RequestRefused        the server's answer is final: 404, 409, 416, 401 ...
├── ConnectionLost        no way (back) to the stream: the cause is the last error of the transport
└── StreamIncomplete      the stream has ended, and did not complete
    ├── StreamFailed      its endpoint failed, or was lost
    └── StreamCancelled   somebody stopped it, or a newer request replaced it
"""

import json
from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Root of what the clients raise on purpose."""


class ConnectionLost(ClientError):
    """The connection broke and could not be replaced; `__cause__` is why the last attempt failed."""


class RequestRefused(ClientError):
    """The server's answer is final: asking again would not change it.

    `status_code` is the answer's, `code` and `message` are the server's (`code` is empty if it gave none), `detail` is
    the `detail` member of the error's body, as it came.
    """

    def __init__(self, status_code: int, code: str, message: str, detail: Any = None) -> None:
        super().__init__(f"{status_code} {code}: {message}" if code else f"{status_code}: {message}")
        self.status_code = status_code
        self.code = code
        self.message = message
        self.detail = detail

    @classmethod
    def read(cls, status_code: int, body: bytes) -> "RequestRefused":
        """Make the error out of an answer."""
        try:
            content = json.loads(body)
        except ValueError:
            content = body.decode("utf-8", "replace")
        detail = content.get("detail", content) if isinstance(content, Mapping) else content
        if isinstance(detail, Mapping):
            return cls(status_code, str(detail.get("code", "")), str(detail.get("message", detail)), detail)
        return cls(status_code, "", str(detail), detail)


class StreamIncomplete(ClientError):
    """The stream has ended, and did not complete; `code` and `message` are the server's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class StreamFailed(StreamIncomplete):
    """The endpoint failed, or the server lost it."""


class StreamCancelled(StreamIncomplete):
    """Somebody stopped the stream (`cancelled`), or a newer request replaced it (`replaced`)."""
