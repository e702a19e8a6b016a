"""`@resumable.stream`: the user's own function, whose response FastAPI gets recorded.

FastAPI calls it with one more argument, the admission of the request. For all other callers it is the function that it
was.
"""

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends

from .handle import EndpointAdmission

logger = logging.getLogger("fastapi_resumable")

_ADMISSION = "fastapi_resumable_admission"


def decorate(endpoint: Callable[..., Any], dependency: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `endpoint` so that FastAPI also solves `dependency`, and the response is recorded.

    Raises:
        TypeError: `endpoint` uses `yield`.
    """
    innermost = inspect.unwrap(endpoint)
    if inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost):
        raise TypeError(
            f"@resumable.stream cannot wrap {getattr(endpoint, '__name__', endpoint)!r}, because an endpoint that uses "
            "`yield` has its response built by FastAPI. Put it on a router made with "
            "APIRouter(route_class=resumable.route_class) instead."
        )
    if _is_coroutine_function(endpoint):

        @functools.wraps(endpoint)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            admission: EndpointAdmission | None = kwargs.pop(_ADMISSION, None)
            if admission is None:
                return await endpoint(*args, **kwargs)
            admission.records_result = True
            return await admission.run(lambda: endpoint(*args, **kwargs))
    else:

        @functools.wraps(endpoint)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            admission: EndpointAdmission | None = kwargs.pop(_ADMISSION, None)
            if admission is None or not admission.names_a_stream:
                return endpoint(*args, **kwargs)
            if _is_in_event_loop():
                # A decorator above made it `async`, and cannot wait for a store.
                admission.service.warn_once(
                    f"{getattr(endpoint, '__name__', endpoint)!r} is a `def` endpoint that is called in the event "
                    "loop, so it is not resumable: make it `async def`."
                )
                return endpoint(*args, **kwargs)
            admission.records_result = True
            return admission.run_in_thread(lambda: endpoint(*args, **kwargs))

    signature = _signature(endpoint)
    parameters = list(signature.parameters.values())
    # Last, because class-based views take the first parameter for `self`; but nothing may come after `**kwargs`.
    at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(
        at,
        inspect.Parameter(
            _ADMISSION, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Any, Depends(dependency)]
        ),
    )
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect's protocol
    return wrapper


def _is_coroutine_function(endpoint: Callable[..., Any]) -> bool:
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    return inspect.iscoroutinefunction(endpoint) or inspect.iscoroutinefunction(getattr(endpoint, "__call__", None))  # noqa: B004  # its kind


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _signature(endpoint: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(endpoint, eval_str=True)
    except NameError:
        # Annotations that name what is not defined yet are left to FastAPI.
        return inspect.signature(endpoint)
