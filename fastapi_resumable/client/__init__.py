"""Layer 6: clients in Python. Resume without writing the loop.

`ResumableClient` and `AsyncResumableClient` start, resume, stop and look up streams with a user's own httpx client;
`ResumableTransport` and `AsyncResumableTransport` do it below a client that cannot, such as the OpenAI SDK.
"""

try:
    import httpx as _httpx  # noqa: F401  # for an error that names the missing package
    import httpx_sse as _httpx_sse  # noqa: F401  # for an error that names the missing package
except ImportError as exc:
    raise ImportError(
        f"fastapi_resumable.client needs {exc.name}: pip install 'fastapi-resumable[client]'", name=exc.name
    ) from exc

from ..exceptions import (
    ClientError,
    ConnectionLost,
    RequestRefused,
    StreamCancelled,
    StreamFailed,
    StreamIncomplete,
)
from .client import AsyncResumableClient, ResumableClient
from .machine import StreamState
from .messages import Backoff
from .streams import AsyncClientStream, ClientStream, ResumableStream
from .transport import AsyncResumableTransport, ResumableTransport

__all__ = [
    "AsyncClientStream",
    "AsyncResumableClient",
    "AsyncResumableTransport",
    "Backoff",
    "ClientError",
    "ClientStream",
    "ConnectionLost",
    "RequestRefused",
    "ResumableClient",
    "ResumableStream",
    "ResumableTransport",
    "StreamCancelled",
    "StreamFailed",
    "StreamIncomplete",
    "StreamState",
]
