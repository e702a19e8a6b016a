"""The blocking read by which a worker hears of what others write: its inbox, changes, and the logs that it follows.

Redis reads any number of keys in one call, so one connection does for all of them. In a Cluster, where keys of
different slots cannot be read together, it is one for each key.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from ..._stream.tasks import Tasks
from ...exceptions import StoreUnavailable
from ..shared.outage import UNAVAILABLE
from .calls import Call
from .link import Link, is_passing, within

logger = logging.getLogger("fastapi_resumable")

FIRST_PAUSE = 0.05
"""Seconds before a read that failed is tried again; each further failure doubles them."""
LONGEST_PAUSE = 0.5

COUNT = 64
"""How many entries of each key one read returns at most."""

Fields = dict[bytes, bytes]
Handler = Callable[[str, Fields], None]
"""Called with each entry: its id, and what it says."""
OnOutage = Callable[[StoreUnavailable], None]
LogFields = Mapping[str, str | None]


class Place(NamedTuple):
    """How far a key has been read, and what is called with what comes next."""

    last: str
    handler: Handler
    on_failure: OnOutage
    fields: LogFields | None
    """What log records of it carry."""


class Listener:
    """Reads what is added to streams, and hands it on."""

    def __init__(self, link: Link, tasks: Tasks, *, wake: Callable[[], None], on_outage: OnOutage) -> None:
        """Set it up.

        `wake` makes a blocked read return, by a message to the worker's own inbox, which is to be followed first of
        all. `on_outage` is called with the reason while nothing could be read for too long.
        """
        self.link = link
        self.tasks = tasks
        self.wake = wake
        self.on_outage = on_outage
        self._groups: dict[str, _Group] = {}

    def follow(
        self, key: str, last: str, handler: Handler, on_failure: OnOutage, fields: LogFields | None = None
    ) -> None:
        """Hand each entry of `key` after the id `last` to `handler`, until `unfollow`.

        `on_failure` is called if this key alone cannot be read; it is followed no longer then.
        """
        name = key if self.link.is_cluster else ""
        group = self._groups.get(name)
        # A group ends by itself when it has no keys left.
        if group is None or group.task.done():
            group = self._groups[name] = _Group(self)
        group.add(key.encode(), Place(last, handler, on_failure, fields))

    def unfollow(self, key: str) -> None:
        """Stop reading `key`."""
        name = key if self.link.is_cluster else ""
        if (group := self._groups.get(name)) is not None:
            group.places.pop(key.encode(), None)
            if not group.places:
                del self._groups[name]
                group.task.cancel()


class _Group:
    """Keys that are read together, and where the reading of each is."""

    def __init__(self, listener: Listener) -> None:
        self.places: dict[bytes, Place] = {}
        self._listener = listener
        self._link = listener.link
        self._is_blocked = False
        # When something was read last, or could have been. Other commands may work while reading does not.
        self._read_at = monotonic()
        self._failures = 0
        self.task = listener.tasks.keep_running(self._run, "resumable follower", self._link.note_failure)

    def add(self, key: bytes, place: Place) -> None:
        self.places[key] = place
        if self._is_blocked:
            # One wake-up is enough for any number of keys that are added before the read returns.
            self._is_blocked = False
            self._listener.wake()

    async def _run(self) -> None:
        while self.places:
            try:
                reply = await self._read()
            except Exception as exc:  # noqa: BLE001  # it is handled, whatever it is
                if not await self._drop_unreadable(exc):
                    await self._note_failure(exc)
                continue
            self._link.outage.note_up()
            self._read_at = monotonic()
            self._failures = 0
            for key, entries in reply:
                # There are none if what was added was dropped again before this read got its turn.
                for entry_id, fields in entries:
                    self._hand_on(key, entry_id, fields)

    def _hand_on(self, key: bytes, entry_id: str, fields: Fields) -> None:
        if (place := self.places.get(key)) is None:
            return
        # Before the handler, so that an entry that it cannot handle does not come again.
        self.places[key] = place._replace(last=entry_id)
        try:
            place.handler(entry_id, fields)
        except Exception:
            # Another version of this library may have written it; later entries can still be read.
            logger.exception("an entry of %r could not be handled", key, extra=place.fields)

    async def _note_failure(self, failure: Exception) -> None:
        if isinstance(failure, ResponseError) and not is_passing(failure):
            self._link.complain(failure)
        else:
            self._link.note_failure(failure)
            await self._link.leave_broken_connections(failure)
        self._failures += 1
        # A single failure is no outage, however long it took: this process may have been stopped meanwhile.
        is_silent = self._failures > 1 and monotonic() - self._read_at > self._link.outage.timeout
        if self._link.outage.is_too_long or is_silent:
            outage = StoreUnavailable(UNAVAILABLE)
            outage.__cause__ = failure
            self._listener.on_outage(outage)
        await asyncio.sleep(min(FIRST_PAUSE * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE))

    async def _drop_unreadable(self, failure: Exception) -> bool:
        """If Redis refuses to read some of the keys, go on without those; returns whether there were any."""
        if not isinstance(failure, ResponseError) or is_passing(failure):
            return False
        places = dict(self.places)
        replies = await self._link.try_each(
            *(Call("XREAD", ["COUNT", "1", "STREAMS", key], [place.last]) for key, place in places.items())
        )
        refused = {
            key: reply for key, reply in zip(places, replies, strict=True) if isinstance(reply, StoreUnavailable)
        }
        if len(refused) == len(places) and not str(failure).startswith("WRONGTYPE"):
            # Reading as such is refused, which may pass: an operator may have changed the rights for a moment.
            return False
        for key, refusal in refused.items():
            if self.places.get(key) is places[key]:
                del self.places[key]
                logger.error("%r cannot be read: %s", key, refusal.__cause__, extra=places[key].fields)
                places[key].on_failure(refusal)
        return bool(refused)

    async def _read(self) -> Iterable[tuple[bytes, list[tuple[str, Fields]]]]:
        keys = list(self.places)
        ids = [self.places[key].last for key in keys]
        self._is_blocked = True
        try:
            reply = await within(
                self._link.block + self._link.outage.attempt,
                self._link.client.execute_command(
                    "XREAD", "COUNT", COUNT, "BLOCK", int(self._link.block * 1000), "STREAMS", *keys, *ids
                ),
            )
        finally:
            self._is_blocked = False
        return [(key, _entries(raw)) for key, raw in (reply.items() if isinstance(reply, dict) else reply or ())]


def _entries(raw: Any) -> list[tuple[str, Fields]]:
    # Clients nest the entries of a stream one list deeper under RESP3.
    while raw and isinstance(raw[0], list) and raw[0] and isinstance(raw[0][0], list | tuple):
        raw = raw[0]
    return [(str(entry_id, "ascii"), fields) for entry_id, fields in raw]
