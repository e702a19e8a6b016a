"""The one place that turns exceptions into answers, in the format of FastAPI's errors."""

from fastapi import HTTPException
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..exceptions import ResumableError

_ANSWER = "fastapi_resumable.answer"


def http_error(error: ResumableError) -> HTTPException:
    """The HTTPException for one of our errors."""
    return HTTPException(error.status_code, detail=error.detail, headers=error.headers or None)


class http_errors:  # noqa: N801  # called like a function
    """Within the context, our errors are raised as the `HTTPException`s that FastAPI answers with."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Raise `HTTPException` for an error of ours."""
        if isinstance(error, ResumableError):
            raise http_error(error) from error


class Answer(Response):
    """Stands for a response that is sent when the request's dependencies are closed; on an `AnswerRoute` only.

    So what `owner` or a router's dependencies hold (a database session, say) is given back before the first byte is
    read, rather than kept for as long as a client follows a stream.
    """

    def __init__(self, response: Response) -> None:
        super().__init__()
        self._response = response

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        """Leave the response to the route."""
        scope[_ANSWER] = self._response


class AnswerRoute(APIRoute):
    """The class of our own routes: sends what an `Answer` stands for, and turns our errors into answers."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        with http_errors():
            await super().handle(scope, receive, send)
            answer: Response | None = scope.pop(_ANSWER, None)
            if answer is not None:
                await answer(scope, receive, send)
