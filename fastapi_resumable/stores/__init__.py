"""Layer 3: where streams live; which store a setting means, and how long its operations take."""

import functools
from asyncio import CancelledError
from time import perf_counter
from typing import Any

from ..exceptions import ResumableError, StoreUnavailable
from ..telemetry import Telemetry
from .base import Store
from .memory import MemoryStore

_OPERATIONS = {"reserve", "begin", "release", "finish", "find", "lookup", "watch", "stop"}


def open_store(setting: str) -> Store:
    """Make the store that is meant by `memory`, or by the URL of a SQLite file or of a Redis.

    Raises:
        ValueError: It is no such URL, or there can be no store there.
        ImportError: The extra for Redis is not installed; the message says how to.
    """
    if setting == "memory":
        return MemoryStore()
    if setting.startswith("sqlite:"):
        from .sqlite.store import SqliteStore  # noqa: PLC0415  # only an application that uses it loads SQLite

        return SqliteStore(setting)
    from .redis.store import RedisStore  # noqa: PLC0415  # an extra, and slow to import

    return RedisStore(setting)


class MeasuredStore:
    """Stands for a store beyond this process, and measures how long its operations take, where a provider is set."""

    def __init__(self, store: Any, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if name not in _OPERATIONS:
            return attribute

        @functools.wraps(attribute)
        async def measured(*args: Any, **kwargs: Any) -> Any:
            # Asked at each call: the application may set its provider after it has made the store.
            instruments = self._telemetry.instruments()
            if instruments is None:
                return await attribute(*args, **kwargs)
            started = perf_counter()
            attributes = {"operation": name}
            try:
                return await attribute(*args, **kwargs)
            except BaseException as exc:
                # Others are answers, like that there is no such stream.
                if not isinstance(exc, (ResumableError, CancelledError)) or isinstance(exc, StoreUnavailable):
                    attributes["error.type"] = type(exc).__qualname__
                raise
            finally:
                instruments.operation.record(perf_counter() - started, attributes)

        # The next access finds it on the instance, and does not come through `__getattr__`.
        setattr(self, name, measured)
        return measured
