"""The face that records more than a response: the route class; and `serve`, which records any ASGI application.

A route of the class runs in a task of its own. It stops before its endpoint until the request is admitted, and
goes on from there as the application that is recorded. So all that hangs on the request is in that task, and endpoints
that use `yield` are recorded like any other.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._run.body import RequestBody
from .._run.exchange import Exchange
from .._run.recorder import inner_scope
from .admission import END_DELAY, Admission, Identity, Service, http_errors
from .endpoint import intercept_endpoint
from .internals import threaded_generator
from .responses import run_recorded


class RouteAdmission(Admission):
    """Admits one request to a route: runs it up to its endpoint, decides, and has it go on."""

    is_of_app = False
    end_delay = 0.0

    def __init__(self, service: Service, scope: Scope, identity: Identity, body: RequestBody, send: Send) -> None:
        super().__init__(service, scope, identity, body, send)
        self._has_reached_endpoint = False
        self._stands = asyncio.Event()
        """Set while the route waits at its endpoint, and when it has ended: its own dependencies may refuse it."""
        self._goes_on = asyncio.Event()
        """Set when it is decided how the route goes on: by `_refusal` or `_answer`, if there is one."""
        self._refusal: BaseException | None = None
        self._channel: tuple[Receive, Send] = self._body.receive, self._send
        self._cancel_scope = anyio.CancelScope()

    async def enter(self) -> Response | None:
        """Wait, before the endpoint, for the decision."""
        # Once for each message of an application, so in the shortest way.
        if not self._goes_on.is_set():
            if not self._has_reached_endpoint:
                self._has_reached_endpoint = True
                self._stands.set()
            await self._goes_on.wait()
        if self._refusal is not None:
            raise self._refusal
        return self._answer

    def note_response(self, response: Response) -> None:
        """Note what the endpoint has returned, or FastAPI made of it."""
        self.generators += getattr(response, "body_iterator", None), threaded_generator(response)

    async def serve(self, route: ASGIApp, scope: Scope) -> None:
        """Serve the request.

        Raises:
            HTTPException: The request is refused.
            Exception: What the route raised.
        """
        task = asyncio.get_running_loop().create_task(self._run(route, scope), name="resumable route")
        task.add_done_callback(lambda _: self._stands.set())
        try:
            await self._stands.wait()
            if self._has_reached_endpoint:
                await self._go_on(task)
            else:
                await task
        except asyncio.CancelledError:
            if not self._goes_on.is_set():
                # A request that is cancelled before its endpoint ends when its dependencies are closed, as without us.
                self._give_up(task)
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({task})
            raise
        finally:
            self._give_up(task)

    def _give_up(self, task: "asyncio.Task[None]") -> None:
        """Cancel the route, whose answer is no longer needed; it may still have resources to close."""
        if not task.done():
            task.cancel()
            if not self._goes_on.is_set():
                # For one that catches the cancellation, and comes back.
                self._refusal = asyncio.CancelledError()
                self._goes_on.set()

    async def _run(self, route: ASGIApp, scope: Scope) -> None:
        try:
            with self._cancel_scope:
                # By way of the attribute, which changes before the endpoint.
                await route(scope, lambda: self._channel[0](), lambda message: self._channel[1](message))  # noqa: PLW0108
        except (KeyboardInterrupt, SystemExit) as exc:
            # A task hands these to its event loop, which would end.
            raise RuntimeError(f"The application raised {type(exc).__name__}.") from exc

    async def _go_on(self, task: "asyncio.Task[None]") -> None:
        if self.generators:
            # Of other endpoints, only a background task can raise by then, which is not the answer's failure.
            self.end_delay = END_DELAY
        try:
            await self.decide()
        except Exception as exc:  # noqa: BLE001  # raised in the route, where the application's handlers see it
            self._refusal = exc
        if self.exchange is None:
            self._goes_on.set()
            try:
                await task
            except ExceptionGroup as group:
                # FastAPI's event streams run in a task group, which wraps what is raised beside it.
                refusal = self._refusal
                if refusal is None or group.subgroup(lambda each: each is refusal) is None:
                    raise
                raise refusal from None
            return

        async def go_on(_scope: Scope, receive: Receive, send: Send) -> None:
            # Swapped only here: up to its endpoint the route talks to the client, from here on to the recorder.
            self._channel = receive, send
            if not task.done():
                self._stands.clear()
            self._goes_on.set()
            await self._wait_for(task)

        # Not with the scope of the route, in which the producer is the one of this exchange.
        await _run_to_the_end(self.exchange, go_on, self.scope, self._body.receive, self._send)

    async def _wait_for(self, task: "asyncio.Task[None]") -> None:
        """Wait for the route; when this is cancelled, cancel that."""
        try:
            await self._stands.wait()
        except asyncio.CancelledError:
            # By the scope, which has it wait for a thread that is at work for it.
            self._cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._stands.wait()
            if task.cancelled() or task.exception() is None:
                raise
        task.result()


class AppAdmission(RouteAdmission):
    """Admits one request to an application: runs it up to the end of the request's body, which is still on its way.

    So a client that sends half a body holds no id, and takes no place from others.
    """

    is_of_app = True
    end_delay = END_DELAY

    async def serve(self, app: ASGIApp, scope: Scope) -> None:
        """Serve the request.

        Raises:
            HTTPException: The request is refused.
            Exception: What the application raised before the stream had begun.
        """

        async def up_to_admission(scope: Scope, receive: Receive, send: Send) -> None:
            async def receive_and_enter() -> Message:
                message = await receive()
                if message["type"] == "http.request" and not message.get("more_body"):
                    await self.enter()
                return message

            async def enter_and_send(message: Message) -> None:
                await self.enter()
                await send(message)

            await app(scope, receive_and_enter, enter_and_send)

        await super().serve(up_to_admission, scope)

    async def _go_on(self, task: "asyncio.Task[None]") -> None:
        answer = await self.decide()
        if answer is None:
            await super()._go_on(task)
            return
        task.cancel()
        with http_errors():
            await answer(self.scope, self._body.receive, self._send)


async def _run_to_the_end(exchange: Exchange, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await run_recorded(exchange, app, scope, receive, send)
    if exchange.cancelled is not None:
        raise exchange.cancelled


def route_class(service: Service) -> type[APIRoute]:
    """Make a route class whose routes run resumable."""

    class ResumableRoute(APIRoute):
        """A route whose endpoint runs resumable."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """FastAPI's handler; an answer takes the place of what it makes of an endpoint that uses `yield`."""
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                response = await handler(request)
                admission = service.admission_of(request.scope)
                if not isinstance(admission, RouteAdmission):
                    return response
                admission.note_response(response)
                if (answer := await admission.enter()) is None:
                    return response
                answer.background = response.background
                return answer

            return handle

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Run the route in the background, if the request names a stream."""
            body = RequestBody(receive, scope)
            identity = None
            # An outer face, the middleware or another route class, may have the request already: each is recorded once.
            if service.admission_of(scope) is None:
                identity = await service.identify(Request(scope, body.peek), body.peek)
            if identity is None:
                await super().handle(scope, body.receive, send)
                return
            intercept_endpoint(scope, service)
            admission = RouteAdmission(service, scope, identity, body, send)
            inner = inner_scope({**scope, service.scope_key: admission}, lambda: admission.producer)
            await admission.serve(super().handle, inner)

    return ResumableRoute


async def serve(
    service: Service,
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: list[tuple[bytes, bytes]] | None,
    path_params: dict[str, Any],
) -> None:
    """Run any ASGI application recorded, if the request names a stream. See `Resumable.serve`."""
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
    # One that is refused needs no more of its body, and a limit may have been the end of that.
    if identity.refusal is None and not body.is_complete and (await body.peek()).get("more_body", True):
        upload = inner[service.scope_key] = AppAdmission(service, request, identity, body, send)
        await upload.serve(app, inner_scope(inner, lambda: upload.producer))
        return
    admission = inner[service.scope_key] = Admission(service, request, identity, body, send)
    answer = await admission.decide()
    if answer is not None:
        with http_errors():
            await answer(request, body.receive, send)
    elif admission.exchange is None:
        await app(scope, body.receive, send)
    else:
        await _run_to_the_end(admission.exchange, app, inner, body.receive, send)
