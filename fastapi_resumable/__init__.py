"""Make any FastAPI streaming endpoint survive disconnects.

`Resumable` is the place to start: include its `router`, and put its `stream` on an endpoint.
"""

from typing import TYPE_CHECKING, Any

from ._fastapi.endpoint import ResumableStream
from ._fastapi.request import body_field, header
from ._fastapi.resumable import Resumable, ResumableMiddleware
from ._run.hooks import FinishedStream
from .exceptions import (
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
from .models import ResumableStatus
from .settings import ResumableSettings
from .stores.memory import MemoryStore

if TYPE_CHECKING:
    from .stores.redis.store import RedisStore
    from .stores.sqlite.store import SqliteStore

__version__ = "0.2.0"

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
    "SqliteStore",
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a shared store on first use: `RedisStore` needs an extra, and both take time to import."""
    # Imported here, `redis` is not needed by an application that does not use it.
    if name == "RedisStore":
        from .stores.redis.store import RedisStore  # noqa: PLC0415  # on first use

        return RedisStore
    if name == "SqliteStore":
        from .stores.sqlite.store import SqliteStore  # noqa: PLC0415  # on first use

        return SqliteStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
