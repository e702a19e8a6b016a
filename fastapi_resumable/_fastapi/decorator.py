"""`@resumable.stream`: an endpoint whose response is made resumable, with its signature otherwise as it was."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.datastructures import DefaultPlaceholder
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, serialize_response
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from .handle import ResumableStream

_STREAM = "fastapi_resumable_stream"
DECORATED = "__fastapi_resumable__"


def decorate(endpoint: Callable[..., Any], dependency: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `endpoint` so that FastAPI also solves `dependency`, and the response goes through the stream it gives.

    Raises:
        TypeError: `endpoint` uses `yield`.
    """
    if inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint):
        raise TypeError(
            f"@resumable.stream cannot wrap {getattr(endpoint, '__name__', endpoint)!r}, because an endpoint that uses "
            "`yield` has its response built by FastAPI. Put it on a router made with "
            "APIRouter(route_class=resumable.route_class) instead."
        )

    @functools.wraps(endpoint)
    async def wrapper(**values: Any) -> Any:
        stream: ResumableStream = values.pop(_STREAM)
        answer = stream.preempt()
        if answer is not None:
            return answer
        if inspect.iscoroutinefunction(endpoint):
            result = await endpoint(**values)
        else:
            result = await run_in_threadpool(endpoint, **values)
            if inspect.isawaitable(result):
                result = await result
        if stream.request is None:
            return result
        return stream(result if isinstance(result, Response) else await _render(stream.request, result))

    signature = _signature(endpoint)
    ours = inspect.Parameter(_STREAM, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Any, Depends(dependency)])
    theirs = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
    # Ours first: the request is reserved when it comes in, and what depends on it is closed before ours is.
    wrapper.__signature__ = signature.replace(parameters=[ours, *theirs])  # type: ignore[attr-defined]  # inspect's protocol
    setattr(wrapper, DECORATED, True)
    return wrapper


def _signature(endpoint: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(endpoint, eval_str=True)
    except NameError:
        # Annotations that name what is not defined yet are left to FastAPI.
        return inspect.signature(endpoint)


async def _render(request: Request, value: Any) -> Response:
    """Turn a value that is no response into one, by the route's response model, as FastAPI would."""
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    content = await serialize_response(
        field=route.response_field,
        response_content=value,
        include=route.response_model_include,
        exclude=route.response_model_exclude,
        by_alias=route.response_model_by_alias,
        exclude_unset=route.response_model_exclude_unset,
        exclude_defaults=route.response_model_exclude_defaults,
        exclude_none=route.response_model_exclude_none,
    )
    response_class = route.response_class
    if isinstance(response_class, DefaultPlaceholder):
        response_class = JSONResponse
    return response_class(content, status_code=route.status_code or 200)
