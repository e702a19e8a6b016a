"""What stands in for an endpoint where FastAPI calls it: the decorator, and the door of the other faces.

A decorated endpoint is the user's own function: FastAPI calls it with one more argument, the connection of the request,
and for all other callers it is the function that it was. A door is on the route that runs: it comes after the request
was checked and before the endpoint runs, and `route.endpoint` stays as it is.
"""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio.from_thread
from fastapi import Depends, Request
from starlette.requests import HTTPConnection
from starlette.types import Scope

from .._run.body import RequestBody
from . import internals
from .admission import Admission, Service
from .handle import EndpointAdmission, ResumableStream
from .request import body_again

_REQUEST = "fastapi_resumable_request"
_DOORS = "__fastapi_resumable_doors__"


def decorate(endpoint: Callable[..., Any], service: Service) -> Callable[..., Any]:
    """Wrap `endpoint` so that FastAPI also hands in the connection, and the response is recorded.

    Raises:
        TypeError: `endpoint` uses `yield`.
    """
    name = getattr(endpoint, "__name__", type(endpoint).__name__)
    _refuse_generator(endpoint, name)
    # Its own for each `Resumable`, because an endpoint may be one of several.
    parameter = service.scope_key.replace(".", "_connection_")
    signature = _signature(endpoint)
    if parameter in signature.parameters:
        return endpoint
    if _is_coroutine_function(endpoint):

        @functools.wraps(endpoint)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            request: Request | None = kwargs.pop(parameter, None)
            call = functools.partial(endpoint, *args, **kwargs)
            admission = None if request is None else await _decorated(request, service)
            return await (call() if admission is None else admission.run(call))
    else:

        @functools.wraps(endpoint)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            request: Request | None = kwargs.pop(parameter, None)
            call = functools.partial(endpoint, *args, **kwargs)
            if request is None or not service.identifier.may_name_a_stream(request):
                return call()
            if _is_in_event_loop():
                # A decorator above made it `async`, and cannot wait for a store.
                service.warn_once(
                    f"{name!r} is a `def` endpoint that is called in the event loop, so it is not resumable: "
                    "make it `async def`."
                )
                return call()
            admission = anyio.from_thread.run(_decorated, request, service)
            return call() if admission is None else admission.run_in_thread(call)

    # That of an object, or of a partial, is its class's: for FastAPI, the name of the operation.
    wrapper.__name__ = name
    wrapper.__signature__ = _with_connection(signature, parameter)  # type: ignore[attr-defined]  # inspect's protocol
    return wrapper


def _refuse_generator(endpoint: Callable[..., Any], name: str) -> None:
    innermost = inspect.unwrap(endpoint)
    if inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost):
        raise TypeError(
            f"@resumable.stream cannot wrap {name!r}, because an endpoint that uses `yield` has its response built by "
            "FastAPI. Put it on a router made with APIRouter(route_class=resumable.route_class) instead."
        )


async def _decorated(request: Request, service: Service) -> Admission | None:
    """The admission of a request to a decorated endpoint; `None` if the request names no stream."""
    admission: Admission = request.scope.get(service.scope_key) or await _admission_of(request, service)
    admission.records_result = True
    return admission if admission.names_a_stream else None


def _is_coroutine_function(endpoint: Callable[..., Any]) -> bool:
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    return inspect.iscoroutinefunction(endpoint) or inspect.iscoroutinefunction(getattr(endpoint, "__call__", None))  # noqa: B004  # its kind


def _signature(endpoint: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(endpoint, eval_str=True)
    except NameError:
        # Annotations that name what is not defined yet are left to FastAPI.
        return inspect.signature(endpoint)


def _with_connection(signature: inspect.Signature, name: str) -> inspect.Signature:
    """The signature of an endpoint, with a parameter more."""
    parameters = list(signature.parameters.values())
    # FastAPI hands its connection to one parameter only; and a string may stand for such an annotation.
    taken = any(each.annotation in (HTTPConnection, "HTTPConnection") for each in parameters)
    annotation: Any = Annotated[Any, Depends(_connection)] if taken else HTTPConnection
    # Last, because class-based views take the first parameter for `self`; but nothing may come after `**kwargs`.
    at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters.insert(at, inspect.Parameter(name, kind, default=None, annotation=annotation))
    return signature.replace(parameters=parameters)


async def _connection(connection: HTTPConnection) -> HTTPConnection:
    return connection


# The dependency.


async def handle_of(request: Request, service: Service) -> ResumableStream:
    """The handle of a request, the same admission for all that ask for one."""
    key = service.scope_key
    admission: Admission | None = request.scope.get(key)
    if admission is None:
        request.scope[key] = admission = await _admission_of(request, service)
        # So that the request is freed when it is over: nothing leads from it back to itself.
        internals.dependency_stack(request.scope).callback(request.scope.pop, key, None)
        if admission.names_a_stream:
            # A resume is answered there, in place of the endpoint.
            put_up_door(request.scope, key)
    return ResumableStream(admission)


async def _admission_of(request: Request, service: Service) -> Admission:
    identity = await service.identifier.identify(request, body_again(request))
    body = RequestBody(request.receive, owed=False)
    return EndpointAdmission(service, request, identity, body, internals.send_of(request))


# The door.


def put_up_door(scope: Scope, key: str) -> None:
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
    if not _is_in_event_loop():
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


def _is_in_event_loop() -> bool:
    """Whether this is no thread that FastAPI runs a `def` endpoint in."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
