"""Running the user's `on_finish` hooks beside everything else: nothing of the library waits for one without a bound.

Hooks that are no coroutine functions run in threads of their own rather than in the pool that `def` endpoints share, so
that slow ones do not keep requests waiting. The threads are daemons: one that hangs does not keep the process alive.
"""

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from .._core.ids import StreamKey
from .._core.sse import events
from .._stream.stream import WritableStream
from .._stream.tasks import Tasks
from ..models import ResumableStatus

logger = logging.getLogger("fastapi_resumable")


class FinishedStream:
    """A finished stream. It holds its bytes itself, so it may be kept after the stream has expired."""

    def __init__(self, stream: WritableStream) -> None:
        head = stream.head
        self.id: str = stream.key.id
        self.owner: str | None = stream.key.owner
        self.epoch: str = stream.epoch
        self.status: ResumableStatus = stream.status
        self.status_code: int = head.status_code
        self.headers: dict[str, str] = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        self.media_type: str | None = head.content_type
        self.started_at: float = stream.started_at
        """Unix seconds."""
        self.completed_at: float = stream.completed_at
        """Unix seconds."""
        self.total_bytes: int = stream.tail
        self.dropped_bytes: int = stream.earliest
        # Taken now, because a newer request may replace the stream before a hook has run.
        self._blocks = list(stream.log.chunks(self.dropped_bytes))

    @property
    def head_dropped(self) -> bool:
        """Whether the stream was larger than `max_stream_bytes`, so that its beginning is missing."""
        return self.dropped_bytes > 0

    def iter_bytes(self) -> Iterator[bytes]:
        """The recorded bytes, in pieces of no particular size."""
        return iter(self._blocks)

    def iter_events(self) -> Iterator[bytes]:
        """The recorded bytes cut into whole server-sent events, as they were sent."""
        return events(self._blocks)


Hook = Callable[[FinishedStream], Any]

MAX_THREADS = 8
"""How many hooks may be in a thread at a time."""
MAX_PENDING = 1_000
"""How many finished streams may wait for their hooks; while there are more, hooks are skipped."""
HOOK_TIMEOUT = 60.0
"""Seconds after which a hook is given up: cancelled, or left alone in its thread."""
POLL_INTERVAL = 0.05
"""Seconds between two looks for a free thread. A thread may outlive the event loop, so it wakes nothing."""


class Hooks:
    """The hooks of one `Resumable`, in the order in which they were registered."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._hooks: list[Hook] = []
        self._running: set[asyncio.Task[None]] = set()
        self._threads = threading.Semaphore(MAX_THREADS)

    def add(self, hook: Hook) -> None:
        """Call `hook` with every stream that has ended, from now on."""
        self._hooks.append(hook)

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def run(self, finished: FinishedStream) -> asyncio.Task[None] | None:
        """Hand a finished stream to the hooks, in a task of their own."""
        # Hooks hold the bytes of their streams, so those that hang may not pile up without a bound.
        if len(self._running) >= MAX_PENDING:
            what = "%d on_finish hooks hang; none was called for stream %r"
            logger.error(what, MAX_PENDING, finished.id, extra=_fields(finished))
            return None
        task = self._tasks.spawn(self._run(finished), name=f"resumable on_finish {finished.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def wait(self, timeout: float) -> None:
        """Wait for the hooks that run, `timeout` seconds at most."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout)

    async def _run(self, finished: FinishedStream) -> None:
        for hook in list(self._hooks):
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    if inspect.iscoroutinefunction(hook):
                        await hook(finished)
                    else:
                        result = await self._run_in_thread(hook, finished)
                        # A partial or a callable object may return a coroutine without being a coroutine function.
                        if inspect.isawaitable(result):
                            await result
            # Also `SystemExit`: a hook of the user's must not end the server.
            except BaseException as exc:
                task = asyncio.current_task()
                if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                # The stream has ended well; an error of the user's hook does not change that.
                what = "the on_finish hook %r failed for stream %r"
                logger.exception(what, hook, finished.id, extra=_fields(finished))

    async def _run_in_thread(self, hook: Hook, finished: FinishedStream) -> Any:
        while not self._threads.acquire(blocking=False):  # noqa: ASYNC110  # see POLL_INTERVAL
            await asyncio.sleep(POLL_INTERVAL)
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        # The hook sees the request's context variables, as a coroutine would.
        context = copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            if not outcome.done():
                outcome.set_result((result, error))

        def target() -> None:
            result, error = None, None
            try:
                result = context.run(hook, finished)
            except BaseException as exc:  # noqa: BLE001  # raised in the task that waits
                error = exc
            # Released by the thread itself: one that hangs keeps its place, so that threads are bounded.
            self._threads.release()
            # The loop may have been closed in the meantime: then nothing waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, error)

        try:
            threading.Thread(target=target, name=f"resumable on_finish {finished.id}", daemon=True).start()
        except RuntimeError:
            # The process may have no more threads. Its place is for the next hook then.
            self._threads.release()
            raise
        result, error = await outcome
        if error is not None:
            raise error
        return result


def _fields(finished: FinishedStream) -> dict[str, str | None]:
    return StreamKey(finished.owner, finished.id).fields(finished.epoch)
