"""What the exceptions of a recorded application stand for, and what it leaves behind that has to be closed."""

import asyncio
import gc
import traceback
from collections.abc import Iterable

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

MAX_YOUNG_OBJECTS = 50_000
"""With more, a collection takes over 5 ms, and does not look for what a stopped application has left."""
CLOSING_TURNS = 8
"""Turns of the event loop in which it closes what is left: two for a generator, and two for what that iterated over."""


class StreamStopped(OSError):
    """Raised by `send` after the stream was stopped, as servers do after a disconnect."""


def is_disconnect(error: BaseException) -> bool:
    """Whether an exception is one that a disconnect causes in an application."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_disconnect(inner) for inner in error.exceptions)
    return isinstance(error, asyncio.CancelledError | StreamStopped | ClientDisconnect | anyio.BrokenResourceError)


async def close_remains(error: BaseException | None) -> None:
    """Have the event loop close what a stopped application has left behind, like a generator that it iterated over."""
    if error is not None:
        _clear_frames(error)
    # A task group of anyio's leaves the exceptions of its tasks in a cycle with their frames, and may return as if
    # there were none. They are the youngest objects there are, so this looks at few; unless collection is turned off,
    # and all objects are young.
    if gc.get_count()[0] < MAX_YOUNG_OBJECTS:
        gc.collect(1)
    for _ in range(CLOSING_TURNS):
        await asyncio.sleep(0)


def _clear_frames(error: BaseException) -> None:
    pending, seen = [error], set()
    while pending:
        exc = pending.pop()
        # `__context__` and `__cause__` may lead in circles.
        if id(exc) in seen:
            continue
        seen.add(id(exc))
        traceback.clear_frames(exc.__traceback__)
        # A frame that is cleared still leads to its function, and so to what that is a closure of.
        exc.__traceback__ = None
        pending += [linked for linked in (exc.__cause__, exc.__context__) if linked is not None]
        if isinstance(exc, BaseExceptionGroup):
            pending += exc.exceptions


async def close_generator(generator: object) -> None:
    """Close a generator that was cut short; frameworks leave it to the garbage collector.

    One that runs in threads is closed in a thread, like each of its steps.
    """
    # One that has come to its end has no frame any more, and nothing to close; one that runs is being closed already,
    # or is at work in a thread.
    for kind in ("ag", "gi"):
        if getattr(generator, f"{kind}_frame", generator) is None or getattr(generator, f"{kind}_running", False):
            return
    if (aclose := getattr(generator, "aclose", None)) is not None:
        with anyio.CancelScope(shield=True):
            await aclose()
            # It drops any generator that it has iterated, which the event loop then closes in its next turns.
            for _ in range(3):
                await asyncio.sleep(0)
    elif (close := getattr(generator, "close", None)) is not None:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(close)


async def close_generators(generators: Iterable[object], error: BaseException | None, *, is_stopped: bool) -> None:
    """Close all that an application generates, before what it uses is closed; `error` is what it has raised."""
    for generator in generators:
        await close_generator(generator)
    if is_stopped:
        with anyio.CancelScope(shield=True):
            # The traceback of any other error is still to be logged.
            await close_remains(error if error is not None and is_disconnect(error) else None)


def unwrap(error: BaseException) -> BaseException:
    """The exception that the user's code raised, without those that frameworks wrap around it.

    Starlette and anyio wrap what is raised after a response has started, or in a task group. While we hold the head
    back the response has not started, so the original can still be handled.
    """
    while True:
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        elif (
            type(error) is RuntimeError
            and error.__cause__ is not None
            and str(error).startswith("Caught handled exception")
        ):
            error = error.__cause__
        else:
            return error
