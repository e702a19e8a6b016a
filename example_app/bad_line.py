"""A bad line, for demonstration: closes the connections of a stream's readers in the middle of it."""

import asyncio
from collections import defaultdict
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BadLine:
    """ASGI middleware. `POST /demo/cut?run=<run>` breaks every connection whose query says `?run=<run>`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._cuts: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._orphans: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Cut lines, or serve a request until it ends or its line is cut."""
        run = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("run", [""])[0]
        if scope["type"] != "http" or not run:
            await self.app(scope, receive, send)
        elif (scope["method"], scope["path"]) == ("POST", "/demo/cut"):
            cuts = self._cuts.pop(run, set())
            for cut in cuts:
                cut.set()
            await JSONResponse({"connections_cut": len(cuts)})(scope, receive, send)
        else:
            await self._serve_until_cut(run, scope, receive, send)

    async def _serve_until_cut(self, run: str, scope: Scope, receive: Receive, send: Send) -> None:
        cut = asyncio.Event()

        async def receive_until_cut() -> Message:
            message = asyncio.ensure_future(receive())
            await first_of(message, cut)
            return {"type": "http.disconnect"} if cut.is_set() else message.result()

        async def send_until_cut(message: Message) -> None:
            if not cut.is_set():
                await send(message)

        self._cuts[run].add(cut)
        served = asyncio.ensure_future(self.app(scope, receive_until_cut, send_until_cut))
        try:
            await first_of(served, cut, keep=True)
        finally:
            self._cuts[run].discard(cut)
        if served.done():
            await served
        else:
            # As after any disconnect, the request lives on without its socket. To return with the response incomplete
            # makes the server close that (and say so in its log).
            self._orphans.add(served)
            served.add_done_callback(self._orphans.discard)


async def first_of(work: asyncio.Future[Any], cut: asyncio.Event, *, keep: bool = False) -> None:
    """Wait until the work is done or the line is cut; then, or if the wait is cancelled, give up what is not done."""
    cutting = asyncio.ensure_future(cut.wait())
    try:
        await asyncio.wait({work, cutting}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        work.cancel()
        raise
    finally:
        cutting.cancel()
    if not keep:
        work.cancel()
