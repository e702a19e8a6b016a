"""Calls after a delay that share a timer."""

import asyncio

from fastapi_resumable._stream.tasks import SharedTimers


async def test_what_is_not_cancelled_is_called_in_its_order() -> None:
    """One timer serves all that have the same delay, and each comes at its own time."""
    timers, called, over = SharedTimers(), [], asyncio.Event()
    for name in "abc":
        timers.start(0.01, lambda name=name: called.append(name))
    timers.start(0.02, lambda: called.append("later"))
    timers.start(0.03, over.set)
    async with asyncio.timeout(5):
        await over.wait()
    assert called == ["a", "b", "c", "later"]
    assert not timers._due


async def test_what_is_cancelled_is_not_called() -> None:
    """Nor is what was cancelled by a call that came before it; and nothing of it is kept."""
    timers, called, over = SharedTimers(), [], asyncio.Event()
    never = lambda: called.append("never")  # noqa: E731  # the same object twice
    timers.start(0.01, lambda: timers.cancel(never))
    timers.start(0.01, never)
    timers.start(0.02, over.set)
    timers.cancel(lambda: None)
    async with asyncio.timeout(5):
        await over.wait()
    assert not called
    assert not timers._due


async def test_what_is_due_stays_due_when_it_is_started_again() -> None:
    """It is called once, after the first delay; from then on it may be started anew."""
    timers, over = SharedTimers(), asyncio.Event()
    called: list[str] = []
    again = lambda: called.append("again")  # noqa: E731  # the same object each time
    timers.start(0.01, again)
    timers.start(3600, again)
    timers.start(0.02, over.set)
    async with asyncio.timeout(5):
        await over.wait()
    assert called == ["again"]
    over.clear()
    timers.start(0.01, again)
    timers.start(0.02, over.set)
    async with asyncio.timeout(5):
        await over.wait()
    assert called == ["again", "again"]


async def test_a_call_may_start_another_and_may_fail() -> None:
    """Neither keeps the rest from being called."""
    timers, called, over = SharedTimers(), [], asyncio.Event()
    loop, failures = asyncio.get_running_loop(), []
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

    def fail() -> None:
        timers.start(0.01, lambda: called.append("again"))
        timers.start(0.01, over.set)
        raise ValueError("a call that fails")

    timers.start(0.01, fail)
    timers.start(0.01, lambda: called.append("next"))
    async with asyncio.timeout(5):
        await over.wait()
    assert called == ["next", "again"]
    loop.set_exception_handler(handler)
    assert [str(failure) for failure in failures] == ["a call that fails"]


def test_what_waits_on_a_closed_event_loop_is_not_called_on_the_next() -> None:
    """An application may be run on several event loops, one after another."""
    timers, loops = SharedTimers(), []
    called: list[tuple[asyncio.AbstractEventLoop, asyncio.AbstractEventLoop]] = []

    async def start(delay: float, over: asyncio.Event | None = None) -> None:
        loops.append(loop := asyncio.get_running_loop())
        timers.start(delay, lambda: called.append((loop, asyncio.get_running_loop())))
        if over is not None:
            timers.start(delay, over.set)
            await over.wait()

    asyncio.run(start(0.01))
    asyncio.run(start(0.01, asyncio.Event()))
    # On a busy machine, the first loop may have had the time to make its own call before it was closed.
    assert all(started_on is called_on for started_on, called_on in called)
    assert called[-1] == (loops[1], loops[1])
