"""From a setting to a store."""

from .base import Store
from .memory import MemoryStore


def open_store(setting: str) -> Store:
    """Make the store that is meant by `memory` or by the URL of a Redis.

    Raises:
        ValueError: It is no such URL.
        ImportError: The extra for Redis is not installed; the message says how to.
    """
    if setting == "memory":
        return MemoryStore()
    from .redis.store import RedisStore  # noqa: PLC0415  # an extra, and slow to import

    return RedisStore(setting)
