"""Make any FastAPI streaming endpoint survive disconnects.

`Resumable` is the place to start: include its `router`, and put its `stream` on an endpoint.
"""

from .api.identity import body_field, header
from .api.middleware import ResumableMiddleware
from .api.resumable import Resumable
from .api.settings import ResumableSettings
from .api.stream import ResumableStream
from .core.errors import (
    InvalidOffset,
    InvalidRequest,
    InvalidStreamId,
    OffsetLost,
    OffsetOutOfRange,
    ResumableError,
    ShuttingDown,
    StreamCancelled,
    StreamExists,
    StreamNotFound,
    StreamPending,
    StreamReplaced,
    TooManyStreams,
    UnknownEventId,
)
from .core.models import ResumableStatus
from .life.finished import FinishedStream
from .stores.memory import MemoryStore

__version__ = "0.1.0"

__all__ = [
    "FinishedStream",
    "InvalidOffset",
    "InvalidRequest",
    "InvalidStreamId",
    "MemoryStore",
    "OffsetLost",
    "OffsetOutOfRange",
    "Resumable",
    "ResumableError",
    "ResumableMiddleware",
    "ResumableSettings",
    "ResumableStatus",
    "ResumableStream",
    "ShuttingDown",
    "StreamCancelled",
    "StreamExists",
    "StreamNotFound",
    "StreamPending",
    "StreamReplaced",
    "TooManyStreams",
    "UnknownEventId",
    "body_field",
    "header",
]
