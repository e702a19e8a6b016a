"""What becomes of a request: it runs, is answered from a log, or is not for us. The same for all faces."""

import logging
import secrets

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Send

from .._core.ids import StreamKey
from .._run.body import RequestBody
from .._run.exchange import Exchange, accepted
from .._run.manager import StreamManager
from .._run.producer import Producer
from .._run.replay import replay
from .._run.signals import TerminationWatch
from ..exceptions import StoreUnavailable
from . import requests
from .identity import IdDependency, Identifier, header
from .location import Locator
from .settings import ResumableSettings

logger = logging.getLogger("fastapi_resumable")


class Admission:
    """Decides about requests, and sets up the exchange of those that run."""

    def __init__(
        self,
        manager: StreamManager,
        settings: ResumableSettings,
        *,
        stream_id: IdDependency | None,
        owner: IdDependency | None,
        locator: Locator,
        termination: TerminationWatch,
    ) -> None:
        self._manager = manager
        self._settings = settings
        self._identify = Identifier(stream_id or header("X-Conversation-Id"), owner, auto_id=settings.auto_id)
        self._locator = locator
        self._termination = termination

    async def admit(self, request: Request, receive: Receive) -> Producer | Response | None:
        """Return the producer of a request that is to run, or its answer; `None` for one that names no stream.

        Args:
            request: The request.
            receive: Gives the body, for dependencies that look for the id there.

        Raises:
            ResumableError: The request is refused.
            HTTPException: From the dependencies that name the stream and its owner.
        """
        owner, stream_id = await self._identify(request, receive)
        named = stream_id is not None
        if stream_id is None:
            if not self._settings.auto_id:
                return None
            stream_id = secrets.token_urlsafe(16)
        # Where no lifespan runs, as in a mounted application, this is the first that we hear of the event loop.
        self._termination.start()
        key = StreamKey(owner, stream_id)
        location = self._locator.within(request.scope)(stream_id)
        last_event_id = requests.last_event_id(request)
        if named and last_event_id:
            stream = await self._manager.store.find(key, self._settings.pending_timeout)
            return await replay(self._manager, stream, None, last_event_id, location)
        try:
            started = await self._manager.start(key, request.headers.get("idempotency-key"))
        except StoreUnavailable as exc:
            if not exc.degrade:
                raise
            logger.warning("request for stream %r is answered unrecorded: %s", stream_id, exc.message)
            return None
        if isinstance(started, Producer):
            return started
        if requests.prefers_async(request):
            return accepted(started.item, location)
        return await replay(self._manager, started, None, None, location, kind="attach")

    def exchange(
        self, producer: Producer, body: RequestBody, request: Request, send: Send, *, end_delay: float = 0.0
    ) -> Exchange:
        """Set up the exchange of a request that is to run."""
        return Exchange(
            self._manager,
            producer,
            body,
            send,
            locate=self._locator.within(request.scope),
            head_timeout=self._settings.head_timeout,
            end_delay=end_delay,
            pending_timeout=self._settings.pending_timeout,
            respond_async=requests.prefers_async(request),
        )
