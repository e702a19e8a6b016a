"""Layer 3: where streams live, and which store a setting means."""

from .base import Store
from .memory import MemoryStore


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
