"""The face that records any ASGI application: `Resumable.serve`, and `ResumableMiddleware` by it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._run.body import RequestBody
from .._run.recorder import inner_scope
from . import internals
from .admission import CLIENT_LEFT, END_DELAY, Admission, Identity, Service, admissions_of, enter_all, http_errors
from .endpoint import intercept
from .responses import run_to_the_end
from .route import RouteAdmission

_FOUND = ("route", "endpoint")
"""What a router puts into the scope of a request that it has a route for."""


class AppAdmission(RouteAdmission):
    """Admits one request to an application: runs it up to its endpoint, if that is FastAPI's and the body has come.

    Of other applications it is known only that they need the whole body, so they run until that has come: a client that
    sends half a body holds no id, and takes no place from others.
    """

    is_of_app = True
    end_delay = END_DELAY

    def __init__(
        self,
        service: Service,
        scope: Scope,
        identity: Identity,
        body: RequestBody,
        send: Send,
        *,
        outer_scope: Scope,
        has_endpoint: bool,
    ) -> None:
        """With the scope of the request as what stands around this face has it, too."""
        super().__init__(service, scope, identity, body, send)
        self._outer_scope = outer_scope
        self._has_endpoint = has_endpoint
        self._app_scope: Scope = {}

    async def serve(self, app: ASGIApp, scope: Scope) -> None:
        """Serve the request.

        Raises:
            HTTPException: The request is refused.
            Exception: What the application raised before the stream had begun.
        """

        async def up_to_admission(scope: Scope, receive: Receive, send: Send) -> None:
            passes_by = False

            async def receive_and_enter() -> Message:
                message = await receive()
                if not self._has_endpoint and message["type"] == "http.request" and not message.get("more_body"):
                    await self.enter()
                return message

            async def enter_and_send(message: Message) -> None:
                nonlocal passes_by
                if not self._has_reached_endpoint and message["type"] == "http.response.start":
                    # The application's own checks come first, and what they refuse is not recorded; nor is what
                    # another face answers that stands around this one.
                    outer = [each for each in admissions_of(scope) if each is not self]
                    passes_by = not 200 <= message["status"] < 300 or await enter_all(outer) is not None
                    # One that uses `yield` is about to be begun. Else it is not the endpoint that answers.
                    self._has_endpoint = bool(self.generators)
                if not passes_by:
                    await self.enter()
                await send(message)

            await app(scope, receive_and_enter, enter_and_send)

        self._app_scope = scope
        try:
            await super().serve(up_to_admission, scope)
        finally:
            # It leads back here. The request is freed when it is over, and not at some collection.
            self._app_scope = {}

    async def _go_on(self, task: "asyncio.Task[None]") -> None:
        # The application's router has put it into a scope of the application's own. Telemetry looks for it here, and
        # middleware around this face in its own.
        found = {key: self._app_scope[key] for key in _FOUND if key in self._app_scope}
        self._outer_scope.update(found)
        self.scope = {**self.scope, **found}
        try:
            answer = await self.decide()
        except Exception:
            await self._dismiss(task, None)
            raise
        if answer is None:
            await super()._go_on(task)
            return
        await self._dismiss(task, answer)
        with http_errors():
            await answer(self.scope, self._body.receive, self._send)
        if task.done():
            # What a dependency has raised at its close, say.
            task.result()

    async def _dismiss(self, task: "asyncio.Task[None]", answer: Response | None) -> None:
        """Have the application end without a word, since its client gets `answer`, or a refusal."""
        if not self._has_endpoint:
            task.cancel()
            return
        # In place of what its endpoint returns; so its dependencies are closed in order.
        self.answer = _NoAnswer(answer)
        self._channel = self._body.receive, _drop
        self._goes_on.set()
        await asyncio.wait({task})


class _NoAnswer(Response):
    """Returned for the endpoint of a request whose client gets another answer: that one runs the background tasks.

    With a status that nothing records, since another `Resumable` may do so.
    """

    def __init__(self, answer: Response | None) -> None:
        super().__init__(status_code=CLIENT_LEFT)
        self._instead = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._instead is not None:
            self._instead.background = self.background
        self.background = None
        await super().__call__(scope, receive, send)


async def _drop(_message: Message) -> None:
    """Take a message that no one gets."""


async def serve(
    service: Service,
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: list[tuple[bytes, bytes]] | None,
    path_params: dict[str, Any],
    routes: Sequence[Any] | None,
) -> None:
    """Run any ASGI application recorded, if the request names a stream. See `Resumable.serve`.

    One whose `routes` are known, and are FastAPI's, runs up to its endpoint first, so that its dependencies may refuse
    the request.
    """
    if scope["type"] != "http" or service.scope_key in scope:
        await app(scope, receive, send)
        return
    body = RequestBody(receive, scope)
    # The application does not see these: its routes may have other names for them.
    request = {**scope, "path_params": {**scope.get("path_params", {}), **path_params}} if path_params else scope
    identity = await service.identify(Request(request, body.peek), body.peek)
    if identity is None:
        await app(scope, body.receive, send)
        return
    inner = {**scope, "headers": scope["headers"] if headers is None else headers}
    endpoints = internals.dependants_at(routes, scope)
    # One that is refused needs no more of its body, and a limit may have been the end of that.
    is_partial = endpoints is None and identity.refusal is None and not body.is_complete
    if endpoints is not None or (is_partial and (await body.peek()).get("more_body", True)):
        intercept(endpoints or [])
        upload = inner[service.scope_key] = AppAdmission(
            service, request, identity, body, send, outer_scope=scope, has_endpoint=endpoints is not None
        )
        await upload.serve(app, inner_scope(inner, lambda: upload.producer))
        return
    admission = inner[service.scope_key] = Admission(service, request, identity, body, send)
    await _decide_and_serve(admission, app, scope, inner, body.receive, send)


async def _decide_and_serve(
    admission: Admission, app: ASGIApp, scope: Scope, inner: Scope, receive: Receive, send: Send
) -> None:
    """Serve a request to an application that cannot be asked first; `inner` is the scope of one that is recorded."""
    service = admission.service
    if service.settings.owner is None:
        service.warn_once(
            "a resume at an endpoint that is not FastAPI's, or inside a wrapper that does not keep its application as "
            "`app`, is answered before the application can check the user: anyone who knows a stream id can read that "
            "stream, and replace it. "
            "Set Resumable(owner=...) to a dependency that returns the user's id."
        )
    answer = await admission.decide()
    if answer is not None:
        with http_errors():
            await answer(admission.scope, receive, send)
    elif admission.exchange is None:
        await app(scope, receive, send)
    else:
        await run_to_the_end(admission.exchange, app, inner, receive, send)
