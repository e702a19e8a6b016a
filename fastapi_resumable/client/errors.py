"""What can go wrong for a client, as one tree of exceptions.

ClientError               also a wrong answer to a lookup
├── RequestRefused        the server's answer is final: 404, 409, 416, 401 ...
├── ConnectionLost        no way (back) to the stream: the cause is the last error of the transport
└── StreamIncomplete      the stream has ended, and did not complete
    ├── StreamFailed      its endpoint failed, or was lost
    └── StreamCancelled   somebody stopped it, or a newer request replaced it
"""

import json
from collections.abc import Mapping
from typing import Any

from ..exceptions import ClientError, StreamCancelled, StreamIncomplete

__all__ = ["ClientError", "ConnectionLost", "RequestRefused", "StreamCancelled", "StreamFailed", "StreamIncomplete"]


class ConnectionLost(ClientError):
    """The connection broke and could not be replaced; `__cause__` is why the last attempt failed."""


class RequestRefused(ClientError):
    """The server's answer is final: asking again would not change it.

    `status_code` is the answer's, `code` and `message` are the server's (`code` is empty if it gave none), `detail` is
    the `detail` member of the error's body, as it came. `note` is what the client has to say about it.
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

    @classmethod
    def read(cls, status_code: int, body: bytes, note: str = "") -> "RequestRefused":
        """Make the error out of an answer, whatever its body is."""
        try:
            content = json.loads(body)
            detail = content.get("detail", content) if isinstance(content, Mapping) else content
            if isinstance(detail, Mapping):
                return cls(status_code, str(detail.get("code", "")), str(detail.get("message", detail)), detail, note)
            return cls(status_code, "", str(detail), detail, note)
        except (ValueError, RecursionError):
            text = body.decode("utf-8", "replace")
            return cls(status_code, "", text, text, note)


class StreamFailed(StreamIncomplete):
    """The endpoint failed, or the server lost it."""
