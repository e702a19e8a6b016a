"""A coroutine that was begun on behalf of a task that waits, and has to wait itself: the task takes it over.

Private API of others: `asyncio._enter_task`, `_leave_task` (documented for those who run tasks, "Extending" in the
documentation of asyncio) and `asyncio.tasks._swap_current_task` (the same in one call, from Python 3.12 on).
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any


def _swap(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> asyncio.Task[Any] | None:
    """Make `task` the current one; return the one that was."""
    running = asyncio.current_task(loop)
    if running is not None:
        asyncio._leave_task(loop, running)  # noqa: SLF001  # listed at the head of this module
    if task is not None:
        asyncio._enter_task(loop, task)  # noqa: SLF001
    return running


swap_current_task = getattr(asyncio.tasks, "_swap_current_task", _swap)


class Suspended:
    """A coroutine that was begun inline and has to wait; its own task awaits the rest of it, once."""

    __slots__ = ("_awaited", "_context", "_coroutine", "_error")

    def __init__(
        self, coroutine: Coroutine[Any, Any, None] | None, context: Context, awaited: Any, error: BaseException | None
    ) -> None:
        """Without a coroutine, it has failed already, with `error`."""
        self._coroutine = coroutine
        self._context = context
        self._awaited = awaited
        self._error = error

    def cancel(self, error: asyncio.CancelledError) -> None:
        """Go on, when awaited, with a cancellation that came before."""
        # The first error is what the coroutine has to see; a cancellation on top of it would hide it.
        self._error = self._error or error

    def __await__(self) -> Generator[Any, Any, None]:
        run, coroutine, awaited, error = self._context.run, self._coroutine, self._awaited, self._error
        if coroutine is None:
            assert error is not None
            raise error
        try:
            while True:
                sent = None
                if error is None:
                    try:
                        sent = yield awaited
                    except BaseException as exc:  # noqa: BLE001  # it is the coroutine's to handle
                        error = exc
                if error is None:
                    awaited = run(coroutine.send, sent)
                else:
                    thrown, error = error, None
                    awaited = run(coroutine.throw, thrown)
        # The coroutine has returned, which is the end of this await.
        except StopIteration:
            return
