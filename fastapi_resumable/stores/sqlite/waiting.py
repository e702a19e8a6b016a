"""How a request waits for another one."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from ..._core.ids import StreamKey
from ...exceptions import StreamCancelled, StreamReplaced
from .rows import KeyState
from .worker import SqliteWorker

RECHECK = 1.0
"""Seconds after which a request that waits for another one looks again, should it have missed the change."""


async def wait_for_rival(worker: SqliteWorker, key: StreamKey, rival: str) -> KeyState:
    """Wait until a request is queued no longer.

    Raises:
        StreamCancelled: It was stopped, before it began or after that.
        StreamReplaced: A newer one has begun, likewise.
    """

    def is_over(state: KeyState) -> bool:
        return all(queued.epoch != rival for queued in state.slot.queued)

    while (state := await wait_for_state(worker, key, RECHECK, is_over)) is None:
        pass
    for gone in state.slot.gone:
        if gone.epoch == rival:
            raise StreamReplaced if gone.code == "replaced" else StreamCancelled
    return state


async def wait_for_state(
    worker: SqliteWorker, key: StreamKey, timeout: float, is_over: Callable[[KeyState], bool]
) -> KeyState | None:
    """Wait until the state of `key` is as asked for; `None` if it was not in time."""
    state = await worker.state(key)
    if is_over(state):
        return state
    if timeout <= 0:
        return None
    changed = asyncio.Event()
    unsubscribe = await worker.subscribe(key.owner, [key.id], lambda _: changed.set())
    worker.waiting += 1
    worker.note_interest()
    deadline = worker.loop.time() + timeout
    try:
        while True:
            state = await worker.state(key)
            if is_over(state):
                return state
            left = deadline - worker.loop.time()
            if left <= 0:
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, RECHECK)):
                    await changed.wait()
            changed.clear()
    finally:
        worker.waiting -= 1
        unsubscribe()
