"""What workers tell one another: messages to one of them, and changes of state to all that watch."""

import json
from collections.abc import Callable, Sequence

from ...exceptions import StoreUnavailable
from ...models import ResumableStreamItem
from ..shared.queue import WriteQueue
from ..watchers import Notify, Watchers
from .calls import Call, post
from .keys import Keys
from .link import Link
from .listener import Fields, Listener

OnMessage = Callable[[str, str, str], None]
"""Called with a message, the epoch that it is of, and what else it says."""


class Messages:
    """The inbox of this worker, those of others, and the changes that all of them announce."""

    def __init__(
        self, worker: str, keys: Keys, link: Link, queue: WriteQueue[Call], listener: Listener, watchers: Watchers
    ) -> None:
        self._worker = worker
        self._keys = keys
        self._link = link
        self._queue = queue
        self._listener = listener
        self._watchers = watchers

    async def run_now_or_later(self, *calls: Call) -> None:
        """Run calls whose replies do not matter, now or when Redis is back."""
        try:
            await self._link.run(*calls)
        except StoreUnavailable:
            self._queue.run_later(*calls)

    # Messages.

    def listen(self, on_message: OnMessage) -> None:
        """Begin to receive messages."""
        self._on_message = on_message
        self._follow_inbox()

    def _follow_inbox(self) -> None:
        self._listener.follow(self._keys.inbox(self._worker), "0-0", self._take_message, self._replace_inbox)

    def _replace_inbox(self, _failure: StoreUnavailable) -> None:
        self._listener.tasks.keep_running(self._clear_inbox, "resumable inbox", self._link.note_failure)

    async def _clear_inbox(self) -> None:
        """Something else lies under the key of this worker's inbox: remove it, and listen again."""
        await self._link.run(Call("UNLINK", [self._keys.inbox(self._worker)]))
        self._follow_inbox()

    def _take_message(self, _entry_id: str, fields: Fields) -> None:
        self._on_message(*(fields.get(name, b"").decode() for name in (b"m", b"e", b"c")))

    def send(self, worker: str, message: str, epoch: str, about: str = "") -> None:
        """Tell a worker something of an epoch, soon."""
        # Not by way of Redis, which may be away.
        if worker == self._worker:
            self._on_message(message, epoch, about)
        else:
            self._queue.run_later(post(self._keys.inbox(worker), "m", message, "e", epoch, "c", about))

    # Changes.

    async def announce(self, owner: str | None, *items: ResumableStreamItem) -> None:
        """Tell all workers of changes, at once, so that they come in the order of what happened."""
        await self.run_now_or_later(
            *(post(self._keys.changes, "o", json.dumps(owner), "i", item.model_dump_json()) for item in items)
        )

    async def subscribe(self, owner: str | None, ids: Sequence[str], notify: Notify) -> Callable[[], None]:
        """Call `notify` with changes, from everywhere, until what is returned is called."""
        # Changes are read only while something here watches: they are those of all workers.
        if not self._watchers:
            await self._follow_changes()
        return self._watchers.add(owner, ids, notify)

    async def _follow_changes(self, *, again: bool = False) -> None:
        # Not `$`: a change between this call and the first read would be missed.
        (last,) = await self._link.run(Call("XREVRANGE", [self._keys.changes], ["+", "-", "COUNT", 1]))
        # The `await` may have let others in, which follow already, or have left.
        if bool(self._watchers) is again:
            last_id = last[0][0].decode() if last else "0-0"
            self._listener.follow(self._keys.changes, last_id, self._take_change, self._changes_failed)

    def _changes_failed(self, _failure: StoreUnavailable) -> None:
        self._listener.tasks.keep_running(
            lambda: self._follow_changes(again=True), "resumable changes", self._link.note_failure
        )

    def _take_change(self, _entry_id: str, fields: Fields) -> None:
        if not self._watchers:
            self._listener.unfollow(self._keys.changes)
        self._watchers.notify(json.loads(fields[b"o"]), ResumableStreamItem.model_validate_json(fields[b"i"]))
