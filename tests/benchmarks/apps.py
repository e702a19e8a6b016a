"""The applications under load: the same events with and without the library.

An event is exactly 128 bytes, unless asked otherwise: `data: {"t":<monotonic ns>,"i":<number>,"p":"xxx..."}`.
As a program, `python -m tests.benchmarks.apps KIND PORT [SETTINGS]`, it is a uvicorn of one worker; or, as `raw`, not
even that.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import StreamingResponse

EVENT_SIZE = 128
MIB = 1024 * 1024
REPLAYED = 32_768
"""How many events the finished stream of a replay has: 4 MiB."""


def event(number: int, size: int = EVENT_SIZE) -> str:
    """An event that tells when it was made; one too small for that has filling alone."""
    head = f'data: {{"t":{time.monotonic_ns()},"i":{number},"p":"'
    if size < len(head) + 4:
        return f"data: {'x' * (size - 8)}\n\n"
    return head + "x" * (size - len(head) - 4) + '"}\n\n'


def message(number: int) -> str:
    """The data of an event, for what adds the framing itself."""
    return event(number)[6:-2]


async def source(
    n: int,
    rate: float = 0,
    awaits: bool = True,
    hold: float = 0,
    make: Any = event,
    size: int = EVENT_SIZE,
    pause: float = 0,
    ping: float = 0,
) -> AsyncIterator[str]:
    """The language model: `n` events, `rate` a second, or as fast as may be, and then a silence of `hold` seconds.

    There is one of `pause` seconds after the first event; the last one may have a keep-alive every `ping` seconds.
    It awaits once per event, as reading from upstream does; without `awaits` it never lets the event loop run.
    """
    begun = time.monotonic() + pause
    for number in range(n):
        if pause and number == 1:
            await asyncio.sleep(pause)
        if rate:
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        elif awaits:
            await asyncio.sleep(0)
        yield make(number, size) if make is event else make(number)
    while hold and ping:
        await asyncio.sleep(ping)
        yield ": ping\n"
    if hold:
        await asyncio.sleep(hold)


def make_app(kind: str, **options: Any) -> FastAPI:
    """An application with `POST /generate`: `plain`, `sse-starlette`, `native`, or with the library.

    Those with the library: `resumable` (no ids), `resumable-ids`, by the dependency or the route class
    (`resumable-dependency`, `resumable-route`), `resumable-native`; `options` are its settings. Of these, the others
    know `ping`. All but the native ones have the same parameters: to solve one costs as much as a whole event.
    """
    app = FastAPI()
    if kind == "plain":

        @app.api_route("/generate", methods=["GET", "POST"])
        async def generate(
            n: int, rate: float = 0, awaits: bool = True, hold: float = 0, size: int = EVENT_SIZE, pause: float = 0
        ) -> StreamingResponse:
            events = source(n, rate, awaits, hold, size=size, pause=pause, ping=options.get("ping", 0))
            return StreamingResponse(events, media_type="text/event-stream")

        whole = b"".join(event(number).encode() for number in range(REPLAYED))

        @app.get("/blocks")
        async def blocks(block: int = 65_536) -> StreamingResponse:
            async def cut() -> AsyncIterator[bytes]:
                for start in range(0, len(whole), block):
                    yield whole[start : start + block]

            return StreamingResponse(cut(), media_type="text/event-stream")

    elif kind == "sse-starlette":
        from sse_starlette import EventSourceResponse

        @app.api_route("/generate", methods=["GET", "POST"])
        async def generate_sse(n: int, rate: float = 0, awaits: bool = True, hold: float = 0) -> EventSourceResponse:
            # The separator that makes its events the same bytes as everywhere else.
            return EventSourceResponse(source(n, rate, awaits, hold, message), sep="\n", ping=options.get("ping", 3600))

    elif kind == "native":
        _add_native(app)
    else:
        from fastapi_resumable import Resumable, ResumableStream

        settings: dict[str, Any] = {
            "event_ids": kind == "resumable-ids",
            "max_stream_bytes": 16 * MIB,
            "max_total_bytes": 8 * 1024 * MIB,
            "max_streams": 100_000,
            "retention": 3600.0,
        }
        resumable = Resumable(**(settings | options))
        app.include_router(resumable.router)
        app.state.resumable = resumable
        if kind == "resumable-native":
            router = APIRouter(route_class=resumable.route_class)
            _add_native(router)
            app.include_router(router)
        elif kind == "resumable-dependency":
            OwnStream = Annotated[ResumableStream, Depends(resumable)]  # noqa: N806  # a type

            @app.post("/generate")
            async def generate_by_dependency(
                stream: OwnStream,
                n: int,
                rate: float = 0,
                awaits: bool = True,
                hold: float = 0,
                size: int = EVENT_SIZE,
                pause: float = 0,
            ) -> StreamingResponse:
                events = source(n, rate, awaits, hold, size=size, pause=pause)
                return stream(StreamingResponse(events, media_type="text/event-stream"))

        elif kind == "resumable-route":
            router = APIRouter(route_class=resumable.route_class)

            @router.post("/generate")
            async def generate_by_route(
                n: int, rate: float = 0, awaits: bool = True, hold: float = 0, size: int = EVENT_SIZE, pause: float = 0
            ) -> StreamingResponse:
                events = source(n, rate, awaits, hold, size=size, pause=pause)
                return StreamingResponse(events, media_type="text/event-stream")

            app.include_router(router)
        else:

            @app.post("/generate")
            @resumable.stream
            async def generate_resumable(
                n: int, rate: float = 0, awaits: bool = True, hold: float = 0, size: int = EVENT_SIZE, pause: float = 0
            ) -> StreamingResponse:
                events = source(n, rate, awaits, hold, size=size, pause=pause)
                return StreamingResponse(events, media_type="text/event-stream")

    @app.get("/alive")
    async def alive() -> str:
        return "yes"

    return app


def _add_native(router: Any) -> None:
    """FastAPI's own event stream: an endpoint that uses `yield`."""
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    @router.post("/generate", response_class=EventSourceResponse)
    async def generate(n: int, rate: float = 0, awaits: bool = True, hold: float = 0) -> AsyncIterator[ServerSentEvent]:
        async for data in source(n, rate, awaits, hold, message):
            yield ServerSentEvent(raw_data=data)


def main() -> None:
    """Serve one of the applications."""
    import json
    import resource

    import uvicorn

    # A file for each connection, as far as it goes.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kind, port, *given = sys.argv[1:]
    options = json.loads(given[0]) if given else {}
    if kind == "raw":
        import uvloop

        from .raw import serve

        uvloop.run(serve(int(port), options["ping"]))
    app = make_app(kind, **options)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        access_log=False,
        backlog=4096,
    )


if __name__ == "__main__":
    main()
