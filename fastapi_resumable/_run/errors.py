"""What the exceptions of a recorded application stand for, and what they keep alive."""

import asyncio
import gc
import traceback

import anyio
from starlette.requests import ClientDisconnect

MAX_YOUNG_OBJECTS = 50_000
"""With more, a collection takes over 5 ms, and does not look for what a stopped application has left."""


class StreamStopped(OSError):
    """Raised by `send` after the stream was stopped, as servers do after a disconnect."""


def is_disconnect(error: BaseException) -> bool:
    """Whether an exception is one that a disconnect causes in an application."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_disconnect(inner) for inner in error.exceptions)
    return isinstance(error, asyncio.CancelledError | StreamStopped | ClientDisconnect | anyio.BrokenResourceError)


def release_frames(error: BaseException) -> None:
    """Free what the frames of an exception hold, such as a generator that was cut short, which then closes itself."""
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
    # A task group of anyio's leaves the exceptions of its tasks in a cycle with their frames. They are the youngest
    # objects there are, so this looks at few; unless collection is turned off, and all objects are young.
    if gc.get_count()[0] < MAX_YOUNG_OBJECTS:
        gc.collect(1)


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
