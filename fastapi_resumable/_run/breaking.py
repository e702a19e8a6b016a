"""Breaking off a response: its connection is closed uncleanly, so that the client can tell that more was to come.

ASGI has no message for that, so it depends on the server; see `servers`.
"""

import asyncio
from collections.abc import Callable

from starlette.types import Message, Scope, Send

from .manager import StreamManager
from .recorder import find_outer
from .servers import is_in_middleware, server_of_task, transport_of

MARK_TIMEOUT = 1.0
"""Seconds in which middleware has to pass on the last parts of a response that breaks off, once it has taken them.

Before that it sends to its client, which has `stall_timeout` to take each part.
"""


class StreamBroken(Exception):
    """Raised to make the server close the connection uncleanly, so that the client can tell that more was to come."""


class QuietlyBroken(asyncio.CancelledError):
    """The same where the server takes a cancellation for it, and reports no error."""


class EndMark(bytes):
    """An empty part of a body, at which the response is to break off once all that was sent before has been sent.

    A `BaseHTTPMiddleware` ends every body in order, whatever the application raises, and passes on each part a moment
    after it was sent. But it asks of each in turn whether it is empty, and does so in the task of its own caller. So
    the outermost one asks in the server's task, when all that came before has been passed on.
    """

    act: Callable[[], bool]
    """Called by the last one that asks; returns whether the part is to be sent."""

    def __bool__(self) -> bool:
        return is_in_middleware() or self.act()


def _mark(act: Callable[[], bool]) -> Message:
    mark = EndMark()
    mark.act = act
    return {"type": "http.response.body", "body": mark, "more_body": True}


def end_of_body() -> Message:
    """The message that ends a response in order; a new one each time, because middleware changes what it passes on."""
    return {"type": "http.response.body", "body": b"", "more_body": False}


async def break_off(why: str, manager: StreamManager, scope: Scope, send: Send, *, at_once: bool = False) -> None:
    """Close a response's connection uncleanly; `at_once` if its client takes nothing.

    Raises:
        StreamBroken: The server has to do it.
        QuietlyBroken: The same.
    """
    if (producer := find_outer(scope)()) is not None:
        # Its clients are the ones to be broken off.
        await producer.fail("The answer ended before it was complete.")
        return
    transport = transport_of(scope, manager.termination.servers)
    if transport is None:
        await _leave_open(why, send, at_once=at_once)
        return
    if at_once:
        transport.abort()
    elif server_of_task() == "uvicorn":
        transport.close()
    else:
        await _close_in_turn(transport, send)
    # It does not reach the client any more, but middleware and telemetry learn that this is no failure.
    await send(end_of_body())


async def _close_in_turn(transport: asyncio.Transport, send: Send) -> None:
    """Close a connection when the middleware around has passed on all that was sent."""
    is_closed = asyncio.Event()

    def close() -> bool:
        transport.close()
        is_closed.set()
        return False

    await send(_mark(close))
    try:
        async with asyncio.timeout(MARK_TIMEOUT):
            await is_closed.wait()
    except TimeoutError:
        # The mark waits for a slow client, or a middleware that compresses has swallowed it.
        close()


async def _leave_open(why: str, send: Send, *, at_once: bool) -> None:
    """Leave a response without an end, on a server whose connections are not known."""

    def give_up() -> bool:
        raise QuietlyBroken(why) if server_of_task() == "hypercorn" else StreamBroken(why)

    server = server_of_task()
    if server == "granian":
        if not at_once:
            # A head alone is not sent before the first part.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        return
    if not at_once and server != "hypercorn":
        await send(_mark(lambda: server_of_task() == "granian"))
        await send(_mark(give_up))
    give_up()
