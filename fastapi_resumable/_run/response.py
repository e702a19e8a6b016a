"""The response class: a user's response that runs in the background and is answered from the log."""

from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .exchange import Exchange
from .streaming import shortened


class ResumableResponse(Response):
    """Stands for the user's response and shares its status, headers and background tasks with it."""

    def __init__(self, response: Response, exchange: Exchange) -> None:
        self._response = response
        self._exchange = exchange
        self.status_code = response.status_code
        self.raw_headers = response.raw_headers
        self.media_type = response.media_type

    # FastAPI sets the request's background tasks on the response that it gets; they belong to the one that runs.
    @property
    def background(self) -> BackgroundTask | None:
        """The background tasks of the user's response."""
        return self._response.background

    @background.setter
    def background(self, value: BackgroundTask | None) -> None:
        self._response.background = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Run the user's response in the background, and answer from the log.

        Raises:
            Exception: What the user's response raised; after the stream has begun too, so that dependencies see it.
        """
        await self._exchange.run(self._run, scope, send)
        if self._exchange.failure is not None:
            raise self._exchange.failure

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with shortened(self._response, self._exchange.recorder):
                await self._response(scope, receive, send)
        finally:
            # Starlette leaves a generator that was stopped between two chunks to the garbage collector.
            aclose = getattr(getattr(self._response, "body_iterator", None), "aclose", None)
            if aclose is not None:
                await aclose()
