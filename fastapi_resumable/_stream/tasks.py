"""Background tasks with an owner. Each failure is logged; a task that must not stop starts again."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

logger = logging.getLogger("fastapi_resumable")

RECANCEL = 0.1
"""Seconds after which a task that has not ended is cancelled once more."""
FIRST_PAUSE = 0.05
"""Seconds before a failed task starts again; each further failure doubles them."""
LONGEST_PAUSE = 1.0


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
