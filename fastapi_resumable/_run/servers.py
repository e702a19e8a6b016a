"""What the library uses of the server that runs the application, beyond ASGI.

None of it is documented by the server; each has a test that fails when it changes:

- The coroutines of a uvicorn's `Server` are found among the tasks, because it hands itself to no application. Without
  that, an exit without a signal goes unnoticed (`tests/servers/test_shutdown.py`).
- `RequestResponseCycle.transport` of uvicorn is closed to break a response off. ASGI has no message for that: the
  alternatives are an exception, which servers log with its traceback, and a clean end, which is not true
  (`tests/servers/test_quiet.py`).
- A request of hypercorn's that ends as cancelled is broken off without an error in its log, and so is one of granian's
  that returns without the end of its body (the same test). Behind a `BaseHTTPMiddleware`, which ends every body, both
  get an exception in their own task: hypercorn takes it for a cancellation, granian logs it. If their client has
  stalled, that middleware waits in the server's `send`, where nothing of ours reaches it: a client that goes on later
  gets an end.
- The main coroutine of a hypercorn is found among the tasks, too, with the `WorkerContext` that knows of its exit. Its
  workers get no signal, and from Python 3.12 on they wait for open connections without a limit
  (`tests/servers/test_shutdown.py`).

Servers tell an application of a shutdown only once all its responses have ended, which live streams prevent. So
`TerminationWatch` looks for it in two ways. The handler of a signal that is in place is called as before; where there
is none, nothing is installed. And a uvicorn or hypercorn that exits without a signal, as with
`--limit-max-requests`, is noticed by polling its state.
"""

import asyncio
import math
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

from starlette.middleware import base
from starlette.types import Scope
from uvicorn import Server, server

MAX_CONNECTIONS = 1_000
"""Among how many connections a request is looked for: with more, it would hold up the event loop."""


class Hypercorn(NamedTuple):
    """A worker of hypercorn, by its main coroutine."""

    coroutine: Any

    def local(self, name: str) -> Any:
        """What the coroutine calls so; None before it has set it, and after it has returned."""
        frame = self.coroutine.cr_frame
        return None if frame is None else frame.f_locals.get(name)


def running_servers() -> list[Server | Hypercorn]:
    """The servers that run on this event loop; those that are started in code, by gunicorn or in a thread, too."""
    found: list[Server | Hypercorn] = []
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        while coroutine is not None:
            candidate = _server_of(coroutine)
            if candidate is not None and candidate not in found:
                found.append(candidate)
            coroutine = getattr(coroutine, "cr_await", None)
    return found


def _server_of(coroutine: Any) -> Server | Hypercorn | None:
    code, frame = getattr(coroutine, "cr_code", None), getattr(coroutine, "cr_frame", None)
    if code is None or frame is None:
        return None
    if code.co_name == "worker_serve" and "hypercorn" in code.co_filename:
        return Hypercorn(coroutine)
    # Only of uvicorn's own frames: to ask a frame for its locals keeps them alive.
    candidate = frame.f_locals.get("self") if code.co_filename == server.__file__ else None
    return candidate if isinstance(candidate, Server) else None


def is_exiting(found: Server | Hypercorn) -> bool:
    """Whether a server takes no more requests, for any reason."""
    if isinstance(found, Hypercorn):
        context = found.local("context")
        return context is not None and context.terminated.is_set()
    return found.should_exit or (found.started and not any(listener.is_serving() for listener in found.servers))


def exit_timeout(found: Server | Hypercorn) -> float | None:
    """Seconds that a server waits for responses when it exits; None without a limit."""
    if isinstance(found, Hypercorn):
        config = found.local("config")
        return None if config is None else config.graceful_timeout
    return found.config.timeout_graceful_shutdown


def is_in_middleware() -> bool:
    """Whether this code runs in the task that a `BaseHTTPMiddleware` runs an application in."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001  # the way to walk the stack that takes no time
    while frame is not None:
        if frame.f_code.co_name == "coro" and frame.f_code.co_filename == base.__file__:
            return True
        frame = frame.f_back
    return False


def server_of_task() -> str | None:
    """Which server's task the current one is, of those that close a connection without an error in their log.

    `uvicorn` does so at once, `hypercorn` for a request that is cancelled, and `granian` for one without an end.
    """
    task = asyncio.current_task()
    code = getattr(task and task.get_coro(), "cr_code", None)
    # On uvloop, granian steps its coroutines by itself, and its tasks are stand-ins.
    name, place = ("", type(task).__module__) if code is None else (code.co_name, code.co_filename)
    if name == "run_asgi":
        return "uvicorn"
    if name == "_handle" and "hypercorn" in place:
        return "hypercorn"
    return "granian" if "granian" in place and "_futures" in place else None


def transport_of(scope: Scope, servers: Sequence[Server | Hypercorn]) -> asyncio.Transport | None:
    """The connection of a request that a uvicorn serves."""
    # The scope and its headers may be copies by now, made by Starlette's `Request` or by a middleware. The state, which
    # uvicorn makes for each request, stays the object that it was; a request made in process has none of uvicorn's.
    state = scope.get("state")
    for cycle in _cycles(servers):
        if state is not None and cycle.scope["state"] is state:
            transport: asyncio.Transport = cycle.transport
            return transport
    return None


def _cycles(servers: Sequence[Server | Hypercorn]) -> list[Any]:
    """The exchanges of uvicorn among which that of the current request is."""
    uvicorns = [found for found in servers if isinstance(found, Server)]
    if uvicorns and (task := asyncio.current_task()) is not None and server_of_task() == "uvicorn":
        coroutine: Any = task.get_coro()
        return [coroutine.cr_frame.f_locals["self"]]
    # In a task of a middleware's.
    connections = [connection for found in uvicorns for connection in found.server_state.connections]
    if len(connections) > MAX_CONNECTIONS:
        return []
    cycles = (getattr(connection, "cycle", None) for connection in connections)
    return [cycle for cycle in cycles if cycle is not None]


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DEFAULTS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)
POLL_INTERVAL = 0.25
"""Seconds between two looks at the server, while there is something live."""


def _may_handle_signals() -> bool:
    """Whether this is the main thread: Python lets no other one set handlers."""
    return threading.current_thread() is threading.main_thread()


class _Handler:
    """One link of a chain of signal handlers. A retired link may have to stay in it; then it only passes on."""

    def __init__(self, previous: Any, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
        self.previous = previous
        self._loop = loop
        self._callback = callback
        self.retired = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.retired and not self._loop.is_closed():
            # A signal handler may run between any two bytecodes, so it only schedules the callback.
            self._loop.call_soon_threadsafe(self._callback)
        self.previous(number, frame)


class TerminationWatch:
    """Calls back on the event loop when the server is about to exit.

    Args:
        callback: What to call.
        is_busy: Whether there is anything live; while there is not, nothing looks at the server.
    """

    def __init__(self, callback: Callable[[], object], is_busy: Callable[[], bool] = lambda: False) -> None:
        self._callback = callback
        self._is_busy = is_busy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handlers: dict[int, _Handler] = {}
        self.servers: list[Server | Hypercorn] = []
        """The servers of this event loop, as far as they are known here."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def server_timeout(self) -> float:
        """Seconds that the server waits for responses from its exit on, less what it takes to end them in order."""
        timeouts = map(exit_timeout, self.servers)
        return min((timeout - min(0.5, timeout / 5) for timeout in timeouts if timeout), default=math.inf)

    def start(self) -> None:
        """Listen from now on; call it again when something has become live."""
        loop = asyncio.get_running_loop()
        # The application may be started anew on another loop in the same process, as test clients do.
        if self._loop is not loop:
            self.stop()
            self._loop = loop
            self.servers = running_servers()
            if _may_handle_signals():
                self._chain(loop)
        if self.servers and self._timer is None:
            self._timer = loop.call_later(POLL_INTERVAL, self._look, loop)

    def _chain(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            # Else a test suite that takes turns between its main thread and others would make the chain ever longer.
            while isinstance(previous, _Handler) and previous.retired:
                previous = previous.previous
            # Where there is no handler, no server handles the signal, and it ends the process.
            if previous not in _DEFAULTS:
                handler = self._handlers[number] = _Handler(previous, loop, self._callback)
                signal.signal(number, handler)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        # Several may run on one loop; requests come as long as one of them takes any.
        if all(map(is_exiting, self.servers)):
            self._callback()
        elif self._is_busy():
            self._timer = loop.call_later(POLL_INTERVAL, self._look, loop)

    def stop(self) -> None:
        """Put the former handlers back, unless a later handler still calls ours."""
        self._loop = None
        self.servers = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for number, handler in self._handlers.items():
            # Another library may have put its handler on top of ours, and calls it. It cannot be taken out then.
            handler.retired, previous = True, handler.previous
            if signal.getsignal(number) == handler and _may_handle_signals():
                signal.signal(number, previous)
        self._handlers.clear()
