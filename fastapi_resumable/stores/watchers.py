"""The callbacks that get the changes of streams. Streams without watchers take no memory here."""

import sys
from collections.abc import Callable, Sequence

from .._core.ids import StreamKey, variants
from .._stream.stream import Budget
from ..exceptions import TooManyStreams
from ..models import ResumableStreamItem

Notify = Callable[[ResumableStreamItem], None]

WATCH_OVERHEAD = 512
"""How many bytes a watched id is counted for, in addition to its own."""


class Watchers:
    """The watchers of streams, by owner and id."""

    def __init__(self, budget: Budget | None = None) -> None:
        """Count what is kept in the `budget`."""
        self._budget = budget or Budget()
        self._by_key: dict[StreamKey, dict[object, Notify]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def add(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with each change of the owner's streams, until the function that is returned is called.

        Raises:
            TooManyStreams: There is no room for so many ids.
        """
        keys = {StreamKey(owner, stream_id) for stream_id in ids}
        size = sum(WATCH_OVERHEAD + sys.getsizeof(key.id) for key in keys)
        if self._budget.used + size > self._budget.limit:
            raise TooManyStreams("The server's memory for streams is full. Try again in a moment.")
        self._budget.used += size
        # Not the callback itself: the same one may watch several times.
        watcher = object()
        for key in keys:
            self._by_key.setdefault(key, {})[watcher] = notify

        def remove() -> None:
            if keys:
                self._budget.used -= size
            while keys:
                key = keys.pop()
                watching = self._by_key[key]
                del watching[watcher]
                if not watching:
                    del self._by_key[key]

        return remove

    def notify(self, owner: str | None, item: ResumableStreamItem) -> None:
        """Tell each watcher of the stream, or of an id that it is a variant of, once."""
        # By watcher, because one that watches an id and a variant of it is to hear of a change once.
        told: dict[object, Notify] = {}
        for watched in (item.conversation_id, *variants(item.conversation_id)):
            told |= self._by_key.get(StreamKey(owner, watched), {})
        for notify in told.values():
            notify(item)
