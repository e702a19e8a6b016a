"""How what went wrong reaches the client: one table, FastAPI's own error shape."""

from typing import Any

from fastapi import HTTPException, Request
from starlette.responses import Response
from starlette.types import Scope

from ..core.errors import ResumableError
from ..core.models import ResumableErrorResponse


def http_error(error: ResumableError) -> HTTPException:
    """The HTTPException for one of our errors."""
    return HTTPException(error.status_code, detail=error.detail, headers=error.headers or None)


class Answered(Exception):
    """Ends a request from within a dependency: with this response, or (`None`) with the one sent already."""

    def __init__(self, response: Response | None) -> None:
        super().__init__("the request has been answered")
        self.response = response


async def _answer(_request: Request, exc: Answered) -> Response | None:
    return exc.response


def let_dependencies_answer(scope: Scope) -> None:
    """Register the handler of `Answered` with the application that serves this request."""
    handlers: dict[Any, Any] = scope["starlette.exception_handlers"][0]
    handlers.setdefault(Answered, _answer)


def unwrap(error: BaseException) -> BaseException:
    """The exception that the user's code raised, out of what frameworks wrap around it.

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


def error_responses(*errors: type[ResumableError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` for these errors, with an example of each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        entry = responses.setdefault(
            error.status_code,
            {
                "model": ResumableErrorResponse,
                "description": "",
                "content": {"application/json": {"examples": {}}},
            },
        )
        summary = (error.__doc__ or "").strip().partition("\n")[0]
        entry["description"] = f"{entry['description']}`{error.code}`: {summary} ".lstrip()
        entry["content"]["application/json"]["examples"][error.code] = {
            "summary": summary,
            "value": {"detail": {"code": error.code, "message": summary}},
        }
    for entry in responses.values():
        entry["description"] = entry["description"].strip()
    return responses
