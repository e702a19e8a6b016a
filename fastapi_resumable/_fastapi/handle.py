"""The handle that an endpoint gets: is this request resumable, was it stopped, and `stream(response)`."""

from fastapi import HTTPException, Request
from starlette.responses import Response

from .._run.exchange import Exchange, ResumableResponse
from .._run.producer import Producer


class ResumableStream:
    """A request's stream, as an endpoint sees it. Falsy if the request names no stream."""

    def __init__(
        self,
        producer: Producer | None = None,
        *,
        exchange: Exchange | None = None,
        request: Request | None = None,
        answer: Response | HTTPException | None = None,
    ) -> None:
        self._producer = producer
        self._exchange = exchange
        self.request = request
        """The request whose response has to go through this handle; `None` where the whole request is recorded."""
        self._answer = answer

    @property
    def id(self) -> str | None:
        """The stream id, or `None` if the request names none."""
        return self._producer.key.id if self._producer else None

    @property
    def epoch(self) -> str | None:
        """The epoch that this request begins, or `None` if the request names no stream."""
        return self._producer.reservation.epoch if self._producer else None

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped the stream. Safe to ask from any thread; sync generators cannot be cancelled."""
        return self._producer is not None and self._producer.stop_code is not None

    def __bool__(self) -> bool:
        return self._producer is not None

    def preempt(self) -> Response | None:
        """The answer that stands in for the endpoint's: a replay, for a request that resumes or is to follow.

        Raises:
            HTTPException: The request is refused.
        """
        if isinstance(self._answer, HTTPException):
            raise self._answer
        return self._answer

    def __call__(self, response: Response) -> Response:
        """Make `response` resumable; without a stream id it comes back as it is.

        Raises:
            HTTPException: The request is refused.
        """
        answer = self.preempt()
        if answer is not None:
            return answer
        if self._exchange is None or isinstance(response, ResumableResponse):
            return response
        return ResumableResponse(response, self._exchange)
