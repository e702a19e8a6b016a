"""A coroutine that is run in a waiting task's name cannot tell that it is not run by that task."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import pytest

from fastapi_resumable._stream.tasks import Suspended, run_inline
from tests.support.asgi import until

variable: ContextVar[str] = ContextVar("variable", default="unset")

Work = Callable[[], Coroutine[Any, Any, None]]


class Sleeper:
    """A task that waits, in whose name others do a step of its work; it does what is left of it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ready = asyncio.Event()
        self.woken: asyncio.Future[Suspended | None]
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        variable.set("of the sleeper")
        self.context = copy_context()
        self.woken = asyncio.get_running_loop().create_future()
        self.ready.set()
        rest = await self.woken
        if rest is not None:
            await rest

    def run(self, coroutine: Coroutine[Any, Any, None]) -> Suspended | None:
        """Do a step of a coroutine in its name."""
        return run_inline(self.task, self.context, coroutine)

    async def step(self) -> Suspended | None:
        """Do a step of the work, and wake the sleeper with what is left."""
        await self.ready.wait()
        rest = self.run(self.work())
        self.woken.set_result(rest)
        return rest


async def test_what_need_not_wait_is_done_when_the_step_returns():
    """Nothing is left, and the task sees it in the task's own name and context."""
    seen: list[Any] = []

    async def work() -> None:
        seen.append((asyncio.current_task(), variable.get()))

    sleeper = Sleeper(work)
    variable.set("of another")
    assert await sleeper.step() is None
    assert seen == [(sleeper.task, "of the sleeper")]
    await sleeper.task


async def test_the_task_that_runs_the_step_stays_the_current_one():
    """Afterwards everything is as it was, with a rest, without, and after a failure."""

    async def fail() -> None:
        raise LookupError

    for work in (lambda: asyncio.sleep(0), noop, fail):
        sleeper = Sleeper(work)
        variable.set("of another")
        await sleeper.step()
        assert asyncio.current_task() is not sleeper.task
        assert variable.get() == "of another"
        await asyncio.wait({sleeper.task})
        sleeper.task.exception()


async def noop() -> None:
    """Nothing."""


async def test_a_step_can_be_done_where_no_task_runs():
    """In a callback of the event loop there is no current task; in the step there is, and not afterwards."""
    seen: list[Any] = []

    async def work() -> None:
        seen.append(asyncio.current_task())

    sleeper = Sleeper(work)
    await sleeper.ready.wait()
    done = asyncio.Event()

    def callback() -> None:
        seen.append(asyncio.current_task())
        sleeper.run(work())
        seen.append(asyncio.current_task())
        done.set()

    asyncio.get_running_loop().call_soon(callback)
    await done.wait()
    assert seen == [None, sleeper.task, None]
    sleeper.woken.set_result(None)
    await sleeper.task


async def test_a_step_within_a_step_returns_to_the_outer_one():
    """As where one stream's delivery appends to another stream."""
    seen: list[Any] = []

    async def inner() -> None:
        seen.append(asyncio.current_task())

    second = Sleeper(inner)

    async def outer() -> None:
        await_nothing = second.run(inner())
        assert await_nothing is None
        seen.append(asyncio.current_task())

    first = Sleeper(outer)
    await second.ready.wait()
    assert await first.step() is None
    assert seen == [second.task, first.task]
    second.woken.set_result(None)
    await asyncio.gather(first.task, second.task)


async def test_the_task_goes_on_with_what_has_to_wait():
    """From where it waits, in the same context, however often."""
    gates = [asyncio.Event() for _ in range(3)]
    seen: list[Any] = []

    async def work() -> None:
        token = variable.set("within")
        for gate in gates:
            await gate.wait()
            seen.append((asyncio.current_task(), variable.get()))
        # Would raise ValueError in any other context than the one in which it was set.
        variable.reset(token)

    sleeper = Sleeper(work)
    assert await sleeper.step() is not None
    for number, gate in enumerate(gates):
        assert len(seen) == number
        gate.set()
        await until(lambda count=number: len(seen) > count)
    await sleeper.task
    assert seen == [(sleeper.task, "within")] * 3


async def test_a_coroutine_that_only_lets_others_run_goes_on():
    """`asyncio.sleep(0)` waits for nothing that could be awaited."""
    done = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(True)

    sleeper = Sleeper(work)
    assert await sleeper.step() is not None
    await sleeper.task
    assert done == [True]


async def test_what_the_step_raises_is_raised_in_the_task():
    """And not where the step is done."""

    async def work() -> None:
        raise ConnectionResetError("gone")

    sleeper = Sleeper(work)
    assert await sleeper.step() is not None
    with pytest.raises(ConnectionResetError, match="gone"):
        await sleeper.task


async def test_what_the_rest_raises_is_raised_in_the_task():
    """After it has waited."""

    async def work() -> None:
        await asyncio.sleep(0)
        raise ConnectionResetError("gone")

    sleeper = Sleeper(work)
    await sleeper.step()
    with pytest.raises(ConnectionResetError, match="gone"):
        await sleeper.task


async def test_a_cancellation_reaches_the_coroutine_where_it_waits():
    """As if the task had begun it: it can clean up, and wait while it does."""
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            cleaned.append(asyncio.current_task())
            raise

    sleeper = Sleeper(work)
    await sleeper.step()
    await asyncio.sleep(0)
    sleeper.task.cancel()
    await asyncio.wait({sleeper.task})
    assert sleeper.task.cancelled()
    assert cleaned == [sleeper.task]


async def test_a_cancellation_that_came_before_the_task_took_over_is_not_lost():
    """The coroutine is told at once, where it waits."""
    told = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            told.append(exc)
            raise

    sleeper = Sleeper(work)
    await sleeper.ready.wait()
    rest = sleeper.run(work())
    assert rest is not None
    rest.error = error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await rest
    assert told == [error]
    sleeper.woken.set_result(None)
    await sleeper.task


async def test_a_timeout_within_the_coroutine_belongs_to_the_task():
    """`asyncio.timeout` and anyio's scopes ask which task they are in, and want to be left in the same."""
    seen = []

    async def work() -> None:
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep_forever()
        seen.append(scope.cancelled_caught)
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append(True)

    sleeper = Sleeper(work)
    assert await sleeper.step() is not None
    await sleeper.task
    assert seen == [True, True]
