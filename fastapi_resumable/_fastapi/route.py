"""The face that records more than a response: the route class.

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
from .._run.recorder import inner_scope
from . import internals
from .admission import END_DELAY, Admission, Identity, Service, admissions_of, enter_all
from .endpoint import intercept
from .responses import run_to_the_end


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
        """Set when it is decided how the route goes on: by `_refusal` or `answer`, if there is one."""
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
        return self.answer

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

    async def _receive(self) -> Message:
        channel = self._channel
        message = await channel[0]()
        # What waited for the client when the request was admitted is not to see it leave.
        if message["type"] == "http.disconnect" and self._channel is not channel:
            return await self._channel[0]()
        return message

    async def _run(self, route: ASGIApp, scope: Scope) -> None:
        try:
            with self._cancel_scope:
                # By way of the attribute, which changes before the endpoint.
                await route(scope, self._receive, lambda message: self._channel[1](message))  # noqa: PLW0108
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
        await run_to_the_end(self.exchange, go_on, self.scope, self._body.receive, self._send)

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
                if (answer := await enter_all(admissions_of(request.scope))) is None:
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
            intercept(internals.running_dependants(scope))
            admission = RouteAdmission(service, scope, identity, body, send)
            inner = inner_scope({**scope, service.scope_key: admission}, lambda: admission.producer)
            await admission.serve(super().handle, inner)

    return ResumableRoute
