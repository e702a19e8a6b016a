"""Running a coroutine on behalf of a task that waits, without waking that task.

To wake a task costs the event loop more than most of what the task then does. A coroutine that need not wait can be run
by another task, as long as it cannot tell the difference: the current task and the context variables are those of the
task that it belongs to. If it has to wait after all, or fails, its own task takes it over.

Private API of others: `asyncio._enter_task`, `_leave_task` (documented for those who run tasks, "Extending" in the
documentation of asyncio) and `asyncio.tasks._swap_current_task` (the same in one call, from Python 3.12 on).
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

_DONE = object()


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
        self, coroutine: Coroutine[Any, Any, None], context: Context, awaited: Any, error: BaseException | None = None
    ) -> None:
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


async def _nothing() -> None:
    """Stands for a coroutine that has failed."""


class InlineRunner:
    """Runs coroutines on behalf of the task that makes it, while that task waits."""

    __slots__ = ("_context", "_loop", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._loop = asyncio.get_running_loop()
        self._task = task
        # A copy, because no context can be entered twice: the task's own is, by the task.
        self._context = copy_context()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Suspended | None:
        """Run `coroutine` to its end; or, if it has to wait or fails, return what is left for the task to await."""
        loop = self._loop
        running = swap_current_task(loop, self._task)
        try:
            # `next` with a default: the end is no exception, which would cost more than all of this.
            awaited = self._context.run(next, coroutine.__await__(), _DONE)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  # raised where the rest is awaited
            return Suspended(_nothing(), self._context, None, exc)
        finally:
            swap_current_task(loop, running)
        return None if awaited is _DONE else Suspended(coroutine, self._context, awaited)
