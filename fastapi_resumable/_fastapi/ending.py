"""Ending a request from within one of its dependencies.

FastAPI unwinds its outermost exit stack, that of uploaded files, when all dependencies are closed. What is raised
there, or kept from being raised, is no longer of concern to them.
"""

from contextlib import AsyncExitStack
from typing import Any

from fastapi import Request
from starlette.responses import Response


class RequestEnded(BaseException):
    """Ends a request quietly: with an answer, or because it has been answered.

    No `Exception`, so that neither dependencies nor exception handlers take it for a failure.
    """

    def __init__(self, request: Request, answer: Response | None = None) -> None:
        super().__init__("the request has ended")
        self._request = request
        self._answer = answer
        outermost(request).push_async_exit(self._conclude)

    async def _conclude(self, _type: Any, error: BaseException | None, _traceback: Any) -> bool:
        if error is not self:
            return False
        if self._answer is not None:
            request = self._request
            await self._answer(request.scope, request.receive, request._send)  # noqa: SLF001  # it has no public name
        return True


def outermost(request: Request) -> AsyncExitStack:
    """The exit stack that FastAPI unwinds last."""
    stack: AsyncExitStack = request.scope["fastapi_middleware_astack"]
    return stack
