"""Make any FastAPI streaming endpoint survive disconnects.

`Resumable` is the place to start: include its `router`, and put its `stream` on an endpoint.
"""

from typing import TYPE_CHECKING, Any

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
    StoreUnavailable,
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

if TYPE_CHECKING:
    from .stores.redis.store import RedisStore

__version__ = "0.1.0"

__all__ = [
    "FinishedStream",
    "InvalidOffset",
    "InvalidRequest",
    "InvalidStreamId",
    "MemoryStore",
    "OffsetLost",
    "OffsetOutOfRange",
    "RedisStore",
    "Resumable",
    "ResumableError",
    "ResumableMiddleware",
    "ResumableSettings",
    "ResumableStatus",
    "ResumableStream",
    "ShuttingDown",
    "StoreUnavailable",
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


def __getattr__(name: str) -> Any:
    """`RedisStore` is imported when it is asked for: it needs an extra, and its time."""
    if name == "RedisStore":
        from .stores.redis.store import RedisStore  # noqa: PLC0415  # see above

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
