"""Background tasks with an owner, and what is run on behalf of a task that waits.

Private API of others: `asyncio._enter_task`, `_leave_task` (documented for those who run tasks, "Extending" in the
documentation of asyncio) and `asyncio.tasks._swap_current_task` (the same in one call, from Python 3.12 on).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from dataclasses import dataclass
from time import monotonic
from typing import Any

logger = logging.getLogger("fastapi_resumable")

RECANCEL = 0.1
"""Seconds after which a task that has not ended is cancelled once more."""
FIRST_PAUSE = 0.05
"""Seconds before a failed task starts again; each further failure doubles them."""
LONGEST_PAUSE = 1.0
_DONE = object()


class Tasks:
    """The tasks of one owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine in a task. What it raises is logged."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        # The event loop itself keeps only weak references to tasks.
        self._tasks.add(task)
        task.add_done_callback(self._discard)
        return task

    def _discard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Also marks the exception as retrieved; otherwise asyncio would log it again when the task is freed.
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    def keep_running(
        self, work: Callable[[], Coroutine[Any, Any, None]], name: str, on_failure: Callable[[Exception], object]
    ) -> asyncio.Task[None]:
        """Run `work()` in a task, and again whenever it raises; `on_failure` gets the exception first."""
        return self.spawn(_keep_running(work, name, on_failure), name)

    async def aclose(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # A library may swallow a cancellation that arrives between two of its steps, so one is not always enough.
            await asyncio.wait(self._tasks, timeout=RECANCEL)


async def _keep_running(
    work: Callable[[], Coroutine[Any, Any, None]], name: str, on_failure: Callable[[Exception], object]
) -> None:
    pause = 0.0
    while True:
        begun = monotonic()
        try:
            if pause:
                await asyncio.sleep(pause)
            await work()
        except Exception as exc:
            if monotonic() - begun > 2 * LONGEST_PAUSE:
                pause = 0.0
            # One traceback is enough for a failure that repeats.
            logger.error("%s failed (%s: %s); it starts again", name, type(exc).__name__, exc, exc_info=not pause)  # noqa: TRY400
            on_failure(exc)
            pause = min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE)
        else:
            return


def _swap(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> asyncio.Task[Any] | None:
    """Make `task` the current one; return the one that was."""
    running = asyncio.current_task(loop)
    if running is not None:
        asyncio._leave_task(loop, running)  # noqa: SLF001  # listed at the head of this module
    if task is not None:
        asyncio._enter_task(loop, task)  # noqa: SLF001
    return running


swap_current_task = getattr(asyncio.tasks, "_swap_current_task", _swap)


@dataclass(slots=True)
class Suspended:
    """A coroutine that was begun inline and has to wait; its own task awaits the rest of it, once."""

    context: Context
    coroutine: Coroutine[Any, Any, None] | None = None
    """Without one, it has failed already, with `error`."""
    awaited: Any = None
    error: BaseException | None = None
    """What it goes on with when it is awaited: what it has raised, or a cancellation that came before."""

    def __await__(self) -> Generator[Any, Any, None]:
        run, coroutine, awaited, error = self.context.run, self.coroutine, self.awaited, self.error
        if coroutine is None:
            assert error is not None
            raise error
        try:
            while True:
                if error is None:
                    try:
                        yield awaited
                    except BaseException as exc:  # noqa: BLE001  # it is the coroutine's to handle
                        error = exc
                thrown, error = error, None
                awaited = run(coroutine.send, None) if thrown is None else run(coroutine.throw, thrown)
        # The coroutine has returned, which is the end of this await.
        except StopIteration:
            return


def run_inline(task: asyncio.Task[Any], context: Context, coroutine: Coroutine[Any, Any, None]) -> Suspended | None:
    """Run a coroutine on behalf of a task that waits; return what is left for the task to await, if anything is."""
    loop = task.get_loop()
    running = swap_current_task(loop, task)
    try:
        # `next` with a default: the end is no exception, which would cost more than all of this.
        awaited = context.run(next, coroutine.__await__(), _DONE)
    except BaseException as exc:  # noqa: BLE001  # raised where the rest is awaited, and never in the producer
        return Suspended(context, error=exc)
    finally:
        swap_current_task(loop, running)
    return None if awaited is _DONE else Suspended(context, coroutine, awaited)
