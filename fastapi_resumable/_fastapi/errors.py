"""How what went wrong reaches the client: one table, FastAPI's own error shape."""

from typing import Any

from fastapi import HTTPException

from ..exceptions import ResumableError
from ..models import ResumableErrorResponse


def http_error(error: ResumableError) -> HTTPException:
    """The HTTPException for one of our errors."""
    return HTTPException(error.status_code, detail=error.detail, headers=error.headers or None)


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
