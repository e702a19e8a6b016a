"""The blocking read by which a worker hears of what others write: its inbox, changes, and the logs that it follows.

Redis reads any number of keys in one call, so one connection does for all of them. In a Cluster, where keys of
different slots cannot be read together, it is one for each key.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from .link import Link, explain

logger = logging.getLogger("fastapi_resumable")

COUNT = 64
"""How many entries of each key one read returns at most."""

Entry = tuple[str, dict[bytes, bytes]]
Handler = Callable[[list[Entry]], None]
Spawn = Callable[[Any, str], asyncio.Task[Any]]


class Follower:
    """Reads what is added to streams, and hands it on."""

    def __init__(
        self, link: Link, spawn: Spawn, *, wake: Callable[[], None], on_outage: Callable[[Exception], None]
    ) -> None:
        """Set it up.

        `wake` makes a blocked read return, by a message to the worker's own inbox, which is to be followed first of
        all. `on_outage` is called with the reason while the store is gone for too long.
        """
        self._link = link
        self._spawn = spawn
        self._wake = wake
        self._on_outage = on_outage
        self._groups: dict[str, _Group] = {}

    def follow(self, key: str, last: str, handler: Handler) -> None:
        """Hand entries of `key` after the id `last` to `handler`, until `unfollow`."""
        name = key if self._link.is_cluster else ""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(self._link, self._wake, self._on_outage)
            group.task = self._spawn(group.run(), "resumable follower")
        group.add(key.encode(), last, handler)

    def unfollow(self, key: str) -> None:
        """Stop reading `key`."""
        if self._link.is_cluster:
            group = self._groups.pop(key, None)
            if group is not None and group.task is not None:
                group.task.cancel()
        elif (group := self._groups.get("")) is not None:
            group.remove(key.encode())


class _Group:
    """Keys that are read together, and where the reading of each is."""

    def __init__(self, link: Link, wake: Callable[[], None], on_outage: Callable[[Exception], None]) -> None:
        self.task: asyncio.Task[Any] | None = None
        self._link = link
        self._wake = wake
        self._on_outage = on_outage
        self._places: dict[bytes, tuple[str, Handler]] = {}
        self._is_blocked = False

    def add(self, key: bytes, last: str, handler: Handler) -> None:
        self._places[key] = last, handler
        if self._is_blocked:
            self._is_blocked = False
            self._wake()

    def remove(self, key: bytes) -> None:
        self._places.pop(key, None)

    async def run(self) -> None:
        """Read, for ever."""
        delay = 0.05
        while self._places:
            try:
                reply = await self._read()
            except (RedisError, OSError, TimeoutError, RuntimeError) as exc:
                self._link.note_down(explain(exc)[0])
                if self._link.is_gone:
                    self._on_outage(exc)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 0.5)
                continue
            self._link.note_up()
            delay = 0.05
            for key, entries in reply:
                if (place := self._places.get(key)) is not None:
                    self._places[key] = entries[-1][0], place[1]
                    try:
                        place[1](entries)
                    except Exception:
                        # Another version of this library may have written it; what follows can be read all the same.
                        logger.exception("what was read from %r makes no sense", key)

    async def _read(self) -> Iterable[tuple[bytes, list[Entry]]]:
        keys = list(self._places)
        ids = [self._places[key][0] for key in keys]
        self._is_blocked = True
        try:
            async with asyncio.timeout(self._link.block + self._link.attempt):
                reply = await self._link.client.execute_command(
                    "XREAD", "COUNT", COUNT, "BLOCK", int(self._link.block * 1000), "STREAMS", *keys, *ids
                )
        finally:
            self._is_blocked = False
        return [(key, _entries(raw)) for key, raw in (reply.items() if isinstance(reply, dict) else reply or ())]


def _entries(raw: Any) -> list[Entry]:
    # Clients nest the entries of a stream one list deeper under RESP3.
    while raw and isinstance(raw[0], list) and raw[0] and isinstance(raw[0][0], list | tuple):
        raw = raw[0]
    return [(str(entry_id, "ascii"), fields) for entry_id, fields in raw]
