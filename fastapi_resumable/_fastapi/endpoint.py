"""What stands in for an endpoint where FastAPI calls it: the decorator, the dependency's handle, and the interceptor.

A decorated endpoint is the user's own function: FastAPI calls it with one more argument, the handle of the request's
stream, and for all other callers it is the function that it was. An interceptor is on the route that runs: FastAPI
calls it in place of the endpoint, once the request was checked, and `route.endpoint` stays as it is.
"""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.to_thread
from fastapi import Depends, Request
from starlette.requests import HTTPConnection
from starlette.responses import Response

from .._run.errors import close_generator
from .._run.producer import Producer
from . import internals
from .admission import Admission, Service, admissions_of, enter_all
from .request import body_again
from .responses import AnswerRoute, EndpointAdmission, record

if TYPE_CHECKING:
    from fastapi.dependencies.models import Dependant

LEND_DELAY = 0.01
"""Seconds after which a thread that waits for a decision gives its place in the pool to another."""
MAX_THREADS = 1000
"""How many threads there may be at most for such a place to be given."""
TAKE_BACK_TIMEOUT = 30.0
"""Seconds after which such a thread goes on even if it does not get a place again."""
_REQUEST = "fastapi_resumable_request"
_INTERCEPTED = "__fastapi_resumable_intercepted__"

_T = TypeVar("_T")
ResponseT = TypeVar("ResponseT", bound=Response)


def decorate(endpoint: Callable[..., Any], handle: Callable[..., Any], parameter: str) -> Callable[..., Any]:
    """Wrap `endpoint` so that FastAPI also hands in what the dependency `handle` returns, and that gets the response.

    Raises:
        TypeError: `endpoint` uses `yield`.
    """
    name = getattr(endpoint, "__name__", type(endpoint).__name__)
    if _is(inspect.isgeneratorfunction, endpoint) or _is(inspect.isasyncgenfunction, endpoint):
        raise TypeError(
            f"@resumable.stream cannot wrap {name!r}, because an endpoint that uses `yield` has its response built by "
            "FastAPI. Put it on a router made with APIRouter(route_class=resumable.route_class) instead."
        )
    signature = _signature(endpoint)
    if parameter in signature.parameters:
        return endpoint
    if _is(inspect.iscoroutinefunction, endpoint):

        @functools.wraps(endpoint)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            stream: ResumableStream | None = kwargs.pop(parameter, None)
            result = await endpoint(*args, **kwargs)
            return result if stream is None else stream(result)
    else:

        @functools.wraps(endpoint)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            stream: ResumableStream | None = kwargs.pop(parameter, None)
            result = endpoint(*args, **kwargs)
            return result if stream is None else stream(result)

    # That of an object, or of a partial, is its class's: for FastAPI, the name of the operation.
    wrapper.__name__ = name
    annotation = Annotated[Any, Depends(handle)]
    extra = inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    wrapper.__signature__ = _with_parameter(signature, extra)  # type: ignore[attr-defined]  # inspect's protocol
    return wrapper


def _signature(endpoint: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(endpoint, eval_str=True)
    except NameError:
        # Annotations that name what is not defined yet are left to FastAPI.
        return inspect.signature(endpoint)


def _with_parameter(signature: inspect.Signature, extra: inspect.Parameter) -> inspect.Signature:
    """The signature of an endpoint, with a parameter more."""
    parameters = list(signature.parameters.values())
    # Last, because class-based views take the first parameter for `self`; but nothing may come after `**kwargs`.
    at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(at, extra)
    return signature.replace(parameters=parameters)


class ResumableStream:
    """A request's stream, as an endpoint sees it. Falsy if the request names no stream."""

    def __init__(self, admission: Admission | None = None) -> None:
        self._admission = admission

    @property
    def id(self) -> str | None:
        """The stream id, or `None` if the request names none."""
        return self._admission.identity.key.id or None if self._admission is not None else None

    @property
    def epoch(self) -> str | None:
        """The epoch that this request begins; `None` in dependencies, which are solved before it does."""
        return None if (producer := self._producer) is None else producer.reservation.epoch

    @property
    def stopped(self) -> bool:
        """Whether the stream was stopped. Safe to ask from any thread: a sync generator cannot be cancelled."""
        return (producer := self._producer) is not None and producer.stop_code is not None

    @property
    def _producer(self) -> Producer | None:
        return None if self._admission is None else self._admission.producer

    def __bool__(self) -> bool:
        return self._admission is not None

    def __call__(self, response: ResponseT) -> ResponseT:
        """Make `response` resumable. Without a stream id, it is returned unchanged."""
        admission = self._admission
        if not isinstance(admission, EndpointAdmission) or admission.exchange is None:
            return response
        if not isinstance(response, Response):
            # FastAPI has yet to render it.
            admission.is_unrendered = True
            return response
        return cast("ResponseT", record(response, admission.exchange))


async def handle_of(request: HTTPConnection, service: Service) -> ResumableStream:
    """The handle of a request, with the same admission for all that ask for one."""
    if not isinstance(request, Request) or isinstance(request.scope.get("route"), AnswerRoute):
        # A websocket, or one of our own routes, behind a dependency that others share: these begin no stream.
        return ResumableStream()
    admission = service.admission_of(request.scope)
    if admission is None and (identity := await service.identify(*body_again(request))) is not None:
        admission, key = EndpointAdmission(service, request, identity), service.scope_key
        request.scope[key] = admission
        # So that the request is freed when it is over: nothing leads from it back to itself.
        internals.dependency_stack(request.scope).callback(request.scope.pop, key, None)
        # A resume is answered there, in place of the endpoint.
        intercept(internals.running_dependants(request.scope))
    return ResumableStream(admission)


def intercept(dependants: "list[Dependant]") -> None:
    """Put interceptors before endpoints that have none yet. Requests without an admission go by them."""
    for dependant in dependants:
        endpoint, name = dependant.call, dependant.request_param_name
        if endpoint is None or hasattr(endpoint, _INTERCEPTED):
            continue
        if name is None:
            # FastAPI hands the request in under this name.
            dependant.request_param_name = _REQUEST
        dependant.call = _intercepted(endpoint, name)


def _intercepted(endpoint: Callable[..., Any], name: str | None) -> Callable[..., Any]:
    generate: Callable[..., Any] | None = None
    if _is(inspect.isasyncgenfunction, endpoint):
        generate = _generate_once_admitted
    elif _is(inspect.isgeneratorfunction, endpoint):
        generate = _generate_in_threads

    @functools.wraps(endpoint)
    def interceptor(*args: Any, **values: Any) -> Any:
        request: Any = values.pop(_REQUEST, None) if name is None else values.get(name)
        admissions = [] if request is None else admissions_of(request.scope)
        call = functools.partial(endpoint, *args, **values)
        for admission in admissions:
            if not isinstance(admission, EndpointAdmission):
                # A recorded response closes its own.
                internals.dependency_stack(request.scope).push_async_exit(admission.close_generators)
        if generate is not None and admissions:
            generator = generate(call, admissions)
            for admission in admissions:
                admission.generators.append(generator)
            return generator
        # The outermost is the first to enter.
        run = _run if _is_in_event_loop() else _run_in_thread
        for admission in reversed(admissions):
            call = functools.partial(run, admission, call)
        return call()

    setattr(interceptor, _INTERCEPTED, True)
    return interceptor


async def _run(admission: Admission, call: Callable[[], Awaitable[Any]]) -> Any:
    answer = await admission.enter()
    return await admission.run(call) if answer is None else answer


def _run_in_thread(admission: Admission, call: Callable[[], Any]) -> Any:
    answer = _from_thread(admission.enter)
    return admission.run_in_thread(call) if answer is None else answer


async def _generate_once_admitted(
    call: Callable[[], AsyncIterator[Any]], admissions: list[Admission]
) -> AsyncIterator[Any]:
    """The generator of an endpoint; it has nothing if the request is answered otherwise."""
    if await _is_to_run(admissions):
        generator = call()
        try:
            async for item in generator:
                yield item
        finally:
            await close_generator(generator)


def _generate_in_threads(call: Callable[[], Iterator[Any]], admissions: list[Admission]) -> Iterator[Any]:
    if _from_thread(functools.partial(_is_to_run, admissions)):
        yield from call()


async def _is_to_run(admissions: list[Admission]) -> bool:
    try:
        return await enter_all(admissions) is None
    except Exception:  # noqa: BLE001  # raised by the route's own handler, which waits for the same
        return False


# A `def` endpoint waits for the decision in a thread of the application's pool.


def _from_thread(work: Callable[[], Awaitable[_T]]) -> _T:
    """Have the event loop do what a thread of a `def` endpoint waits for; another thread works if that takes a while.

    So requests that wait for another's stream to begin, or for their client's body, hold up no others.
    """
    return anyio.from_thread.run(_lend_thread, work)


async def _lend_thread(work: Callable[[], Awaitable[_T]]) -> _T:
    limiter, is_lent = anyio.to_thread.current_default_thread_limiter(), False

    def lend() -> None:
        nonlocal is_lent
        if limiter.borrowed_tokens < MAX_THREADS:
            limiter.total_tokens += 1
            is_lent = True

    timer = asyncio.get_running_loop().call_later(LEND_DELAY, lend)
    try:
        return await work()
    finally:
        timer.cancel()
        if is_lent:
            await _take_back(limiter)


async def _take_back(limiter: anyio.CapacityLimiter) -> None:
    """Wait for a place in the pool: no more threads are to be at work than the application allows."""
    place, has_place = object(), False
    try:
        # With a limit, as the application may have made the pool smaller than what has to wait here.
        with anyio.move_on_after(TAKE_BACK_TIMEOUT):
            await limiter.acquire_on_behalf_of(place)
            has_place = True
    finally:
        limiter.total_tokens = max(limiter.total_tokens - 1, 1)
        if has_place:
            limiter.release_on_behalf_of(place)


def _is(kind: Callable[[Any], bool], endpoint: Any) -> bool:
    """Whether an endpoint, or what it wraps, is a function of this kind; of an object, its method counts."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    innermost = inspect.unwrap(endpoint)
    return any(kind(each) or kind(getattr(each, "__call__", None)) for each in (endpoint, innermost))  # noqa: B004  # its kind


def _is_in_event_loop() -> bool:
    """Whether this is no thread that FastAPI runs a `def` endpoint in."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
