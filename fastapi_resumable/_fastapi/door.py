"""The door of an endpoint: what comes after a request was checked and before the endpoint runs.

It stands in for the endpoint where FastAPI calls it, on the route that runs; `route.endpoint` stays as it is.
"""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio.from_thread
from starlette.types import Scope

from . import internals
from .admission import Admission

_REQUEST = "fastapi_resumable_request"
_DOORS = "__fastapi_resumable_doors__"


def put_up(scope: Scope, key: str) -> None:
    """Put a door before the endpoint of the route that serves this request, if it has none yet.

    Requests go by it whose scope has no admission under `key`.
    """
    dependant = internals.running_dependant(scope)
    if dependant is None or dependant.call is None or key in getattr(dependant.call, _DOORS, ()):
        return
    endpoint, name = dependant.call, dependant.request_param_name
    is_ours = name is None
    if name is None:
        # FastAPI hands the request in under this name.
        name = dependant.request_param_name = _REQUEST

    @functools.wraps(endpoint)
    def door(*args: Any, **values: Any) -> Any:
        request = values.pop(name, None) if is_ours else values.get(name)
        admission: Admission | None = request.scope.get(key) if request is not None else None
        call = functools.partial(endpoint, *args, **values)
        if admission is None or not admission.names_a_stream:
            return call()
        return _pass(call, endpoint, admission)

    setattr(door, _DOORS, (*getattr(endpoint, _DOORS, ()), key))
    dependant.call = door


def _pass(call: Callable[[], Any], endpoint: Callable[..., Any], admission: Admission) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # A `def` endpoint, in a thread.
        return admission.run_in_thread(call)
    innermost = inspect.unwrap(endpoint)
    kinds = innermost, getattr(innermost, "__call__", None)  # noqa: B004  # of an object, the kind of its method
    if any(map(inspect.isasyncgenfunction, kinds)):
        return _AfterTheDoor(call, admission)
    if any(map(inspect.isgeneratorfunction, kinds)):
        return _after_the_door(call, admission)
    return admission.run(call)


class _AfterTheDoor:
    """The generator of an `async def` endpoint; it has nothing if the request is answered otherwise."""

    def __init__(self, call: Callable[[], AsyncIterator[Any]], admission: Admission) -> None:
        self._call = call
        self._admission = admission
        self._generator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> "_AfterTheDoor":
        return self

    async def __anext__(self) -> Any:
        if self._generator is None:
            if not await _is_to_run(self._admission):
                raise StopAsyncIteration
            self._generator = self._admission.generator = self._call()
        return await anext(self._generator)

    async def aclose(self) -> None:
        """Close the generator, if it has begun."""
        aclose = getattr(self._generator, "aclose", None)
        if aclose is not None:
            await aclose()


def _after_the_door(call: Callable[[], Iterator[Any]], admission: Admission) -> Iterator[Any]:
    # Iterated over in a thread.
    if anyio.from_thread.run(_is_to_run, admission):
        generator = admission.generator = call()
        yield from generator


async def _is_to_run(admission: Admission) -> bool:
    try:
        return await admission.enter() is None
    except Exception:  # noqa: BLE001  # raised by the route's own handler, which waits for the same
        return False
