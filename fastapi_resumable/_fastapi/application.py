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
from .admission import END_DELAY, Admission, Identity, Service, http_errors
from .endpoint import intercept
from .responses import run_to_the_end
from .route import RouteAdmission


class AppAdmission(RouteAdmission):
    """Admits one request to an application: runs it up to its endpoint, if that is FastAPI's and the body has come.

    Of other applications it is known only that they need the whole body, so they run until that has come: a client that
    sends half a body holds no id, and takes no place from others.
    """

    is_of_app = True
    end_delay = END_DELAY

    def __init__(
        self, service: Service, scope: Scope, identity: Identity, body: RequestBody, send: Send, *, has_endpoint: bool
    ) -> None:
        super().__init__(service, scope, identity, body, send)
        self._has_endpoint = has_endpoint
        self._app_scope = scope

    async def serve(self, app: ASGIApp, scope: Scope) -> None:
        """Serve the request.

        Raises:
            HTTPException: The request is refused.
            Exception: What the application raised before the stream had begun.
        """

        async def up_to_admission(scope: Scope, receive: Receive, send: Send) -> None:
            is_refusal = False

            async def receive_and_enter() -> Message:
                message = await receive()
                if not self._has_endpoint and message["type"] == "http.request" and not message.get("more_body"):
                    await self.enter()
                return message

            async def enter_and_send(message: Message) -> None:
                nonlocal is_refusal
                if not self._has_reached_endpoint and message["type"] == "http.response.start":
                    # The application's own checks come first, and what they refuse is not recorded.
                    is_refusal = not 200 <= message["status"] < 300
                    # One that uses `yield` is about to be begun. Else it is not the endpoint that answers.
                    self._has_endpoint = bool(self.generators)
                if not is_refusal:
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
        try:
            answer = await self.decide()
        except Exception:
            await self._dismiss(task)
            raise
        if answer is None:
            # The application's router has put it into the scope of the application. Telemetry looks for it here.
            self.scope = {**self.scope, "route": self._app_scope.get("route")}
            await super()._go_on(task)
            return
        await self._dismiss(task)
        with http_errors():
            await answer(self.scope, self._body.receive, self._send)

    async def _dismiss(self, task: "asyncio.Task[None]") -> None:
        """Have the application end without a word, since the client gets another answer, or a refusal."""
        if not self._has_endpoint:
            task.cancel()
            return
        # In place of its endpoint's answer; so its dependencies are closed in order.
        self._answer = Response()
        self._channel = self._body.receive, _drop
        self._goes_on.set()
        await task


async def _drop(_message: Message) -> None:
    """Take a message that no one gets."""


def routes_of(*apps: Any) -> Sequence[Any]:
    """The routes of the first of some applications that has any; middleware may stand around it."""
    for app in apps:
        within = app
        while within is not None and not hasattr(within, "routes"):
            within = getattr(within, "app", None)
        if within is not None:
            return within.routes  # type: ignore[no-any-return]  # a list, by Starlette's convention
    return ()


async def serve(
    service: Service,
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: list[tuple[bytes, bytes]] | None,
    path_params: dict[str, Any],
    routes: Sequence[Any],
) -> None:
    """Run any ASGI application recorded, if the request names a stream. See `Resumable.serve`.

    One that has FastAPI's `routes` runs up to its endpoint first, so that its dependencies may refuse the request.
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
    is_upload = not (endpoints or identity.refusal or body.is_complete) and (await body.peek()).get("more_body", True)
    if endpoints or is_upload:
        intercept(endpoints, service)
        upload = inner[service.scope_key] = AppAdmission(
            service, request, identity, body, send, has_endpoint=bool(endpoints)
        )
        await upload.serve(app, inner_scope(inner, lambda: upload.producer))
        return
    if service.settings.owner is None:
        service.warn_once(
            "a resume at an endpoint that is not FastAPI's is answered before the application can check the user: "
            "anyone who knows a stream id can read that stream, and replace it. "
            "Set Resumable(owner=...) to a dependency that returns the user's id."
        )
    admission = inner[service.scope_key] = Admission(service, request, identity, body, send)
    answer = await admission.decide()
    if answer is not None:
        with http_errors():
            await answer(request, body.receive, send)
    elif admission.exchange is None:
        await app(scope, body.receive, send)
    else:
        await run_to_the_end(admission.exchange, app, inner, body.receive, send)
