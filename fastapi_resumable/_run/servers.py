"""What the library uses of the server that runs the application, beyond ASGI.

None of it is documented by the server; each has a test that fails when it changes:

- The coroutines of a uvicorn's `Server` are found among the tasks, because it hands itself to no application. Without
  that, an exit without a signal goes unnoticed (`tests/servers/test_shutdown.py`).
- `RequestResponseCycle.transport` of uvicorn is closed to break a response off. ASGI has no message for that: the
  alternatives are an exception, which servers log with its traceback, and a clean end, which is not true
  (`tests/servers/test_quiet.py`).
- A request of hypercorn's that ends as cancelled is broken off without an error in its log, and so is one of granian's
  that returns without the end of its body (the same test). Behind a `BaseHTTPMiddleware`, which ends every body, both
  get an exception: hypercorn takes it for a cancellation, granian logs it. If their client has stalled, that
  middleware waits in the server's `send`, where nothing of ours reaches it: a client that goes on later gets an end.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.types import Scope
from uvicorn import Server, server

MAX_CONNECTIONS = 1_000
"""Among how many connections a request is looked for: with more, it would hold up the event loop."""


def running_servers() -> list[Server]:
    """The uvicorns that run on this event loop; those that are started in code, by gunicorn or in a thread, too."""
    found: list[Server] = []
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        while coroutine is not None:
            # Only of uvicorn's own frames: to ask a frame for its locals keeps them alive.
            if getattr(getattr(coroutine, "cr_code", None), "co_filename", None) == server.__file__:
                candidate = coroutine.cr_frame.f_locals.get("self") if coroutine.cr_frame is not None else None
                if isinstance(candidate, Server) and candidate not in found:
                    found.append(candidate)
            coroutine = getattr(coroutine, "cr_await", None)
    return found


def is_exiting(found: Server) -> bool:
    """Whether a uvicorn takes no more requests, for any reason."""
    return found.should_exit or (found.started and not any(listener.is_serving() for listener in found.servers))


def takes_cancellation() -> bool:
    """Whether the current task is one of hypercorn's: it closes the connection of a request that is cancelled."""
    code = getattr(_coroutine(), "cr_code", None)
    return code is not None and code.co_name == "_handle" and "hypercorn" in code.co_filename


def takes_return() -> bool:
    """Whether the current task is one of granian's: it closes the connection of a request without an end."""
    # On uvloop it steps its coroutines by itself, and its tasks are stand-ins.
    code = getattr(_coroutine(), "cr_code", None)
    name = type(asyncio.current_task()).__module__ if code is None else code.co_filename
    return "granian" in name and "_futures" in name


def _coroutine() -> Any:
    task = asyncio.current_task()
    return None if task is None else task.get_coro()


def transport_of(scope: Scope, servers: Sequence[Server]) -> asyncio.Transport | None:
    """The connection of a request that a uvicorn serves."""
    # The scope and its headers may be copies by now, made by Starlette's `Request` or by a middleware. The state, which
    # uvicorn makes for each request, stays the object that it was; a request made in process has none of uvicorn's.
    state = scope.get("state")
    for cycle in _cycles(servers):
        if state is not None and cycle.scope["state"] is state:
            transport: asyncio.Transport = cycle.transport
            return transport
    return None


def _cycles(servers: Sequence[Server]) -> list[Any]:
    """The exchanges of uvicorn among which that of the current request is."""
    coroutine = _coroutine()
    if servers and getattr(getattr(coroutine, "cr_code", None), "co_name", None) == "run_asgi":
        return [coroutine.cr_frame.f_locals["self"]]
    # In a task of a middleware's.
    connections = [connection for found in servers for connection in found.server_state.connections]
    if len(connections) > MAX_CONNECTIONS:
        return []
    cycles = (getattr(connection, "cycle", None) for connection in connections)
    return [cycle for cycle in cycles if cycle is not None]
