"""An application behind bad lines: it counts until a line has made all its cuts, and then ends.

`POST /lines` opens a line, a proxy that cuts connections; a client of its port asks for `/count`, `/lines.ndjson` or
`/v1/chat/completions`, and names the line's stream. The count goes on for as long as there are cuts to come, so that
they all fall into a live stream, however fast the client is.
"""

import asyncio
import http.client
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Depends, FastAPI, Header, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, StreamingResponse
from pydantic import BaseModel

from fastapi_resumable import Resumable
from tests.support.cutting import HOST, CuttingProxy

MODULES = Path(__file__).resolve().parents[2] / "javascript" / "node_modules"
PACE = 0.001
"""Seconds between two events, so that a count is live for as long as it lasts."""
MANY = 10_000
LATER = 0.01
"""Seconds between two events after so many: a client on a busy machine needs minutes for its cuts, not more events."""
TOO_MANY = 40_000
FEW = 5


class Order(BaseModel):
    """What kind of line is wanted."""

    seed: int = 0
    cuts: int = 200
    least: int = 1
    most: int = 1200
    heads: bool = False
    end: Literal["complete", "fail", "stop"] = "complete"


class Line:
    """A bad line, and the stream at its end."""

    def __init__(self, order: Order, proxy: CuttingProxy, home: int) -> None:
        self.order = order
        self.proxy = proxy
        self.home = home
        self.name = f"a/line::{proxy.port}"
        self.runs = 0
        self.sent = 0

    async def numbers(self) -> AsyncIterator[int]:
        """Count until the cuts are made and the client is back, and a little longer; then end as ordered."""
        self.runs += 1
        rest = iter(range(FEW))
        for number in itertools.count():
            if self.proxy.spent and self.proxy.passed and next(rest, None) is None:
                break
            assert number < TOO_MANY, "nobody comes to be cut off"
            self.sent = number + 1
            yield number
            await asyncio.sleep(PACE if number < MANY else LATER)
        if self.order.end == "fail":
            raise RuntimeError("as ordered")
        if self.order.end == "stop":
            await asyncio.to_thread(self._stop)
            await asyncio.Event().wait()

    def _stop(self) -> None:
        connection = http.client.HTTPConnection(HOST, self.home)
        connection.request("DELETE", f"/v1/stream?conv_id={quote(self.name, safe='')}")
        assert connection.getresponse().status == 204
        connection.close()


lines: dict[str, Line] = {}
stack = ExitStack()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Hang up at the end."""
    with stack:
        yield


async def named(line: str | None = None, x_conversation_id: Annotated[str | None, Header()] = None) -> str | None:
    """Name a stream as a native `EventSource` can: in the query."""
    return line or x_conversation_id


async def line_of(name: Annotated[str, Depends(named)]) -> Line:
    """Find the line that a request is about."""
    return lines[name]


LineOf = Annotated[Line, Depends(line_of)]
# Some clients begin again at the start, so all that a slow machine counts has to be there.
resumable = Resumable(
    stream_id=named, on_conflict="attach", ping=0.05, shutdown_grace=0.1, max_stream_bytes=32 * 1024 * 1024
)
app = FastAPI(lifespan=lifespan)
app.include_router(resumable.router)
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=["*"])


def text_of(number: int) -> str:
    """What event `number` says: some of it takes two, three and four bytes a character."""
    return f"{number} é—🦄" + "x" * (number * 7 % 40)


@app.post("/lines")
async def open_line(order: Order, request: Request) -> dict[str, object]:
    """Open a line."""
    home = request.url.port
    assert home
    proxy = CuttingProxy(home, **order.model_dump(exclude={"end"}))
    line = Line(order, stack.enter_context(proxy), home)
    lines[line.name] = line
    return {"name": line.name, "url": f"http://{HOST}:{proxy.port}"}


@app.get("/line")
async def describe(line: LineOf) -> dict[str, object]:
    """Tell what has become of a line, and what a client of it must have got."""
    return {
        "runs": line.runs,
        "cuts": line.proxy.cuts,
        "resets": line.proxy.resets,
        "connections": line.proxy.connections,
        "texts": [text_of(number) for number in range(line.sent)],
    }


@app.get("/count")
@app.post("/count")
@resumable.stream
async def count(line: LineOf) -> StreamingResponse:
    """Server-sent events."""

    async def events() -> AsyncIterator[str]:
        yield "retry: 1\n\n"
        async for number in line.numbers():
            yield f"data: {text_of(number)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/lines.ndjson")
@resumable.stream
async def ndjson(line: LineOf) -> StreamingResponse:
    """A line of JSON each."""

    async def rows() -> AsyncIterator[str]:
        async for number in line.numbers():
            yield json.dumps(text_of(number), ensure_ascii=False) + "\n"

    return StreamingResponse(rows(), media_type="application/x-ndjson")


@app.post("/v1/chat/completions")
@resumable.stream
async def completions(line: LineOf) -> StreamingResponse:
    """What the OpenAI API sends."""

    async def chunks() -> AsyncIterator[str]:
        async for number in line.numbers():
            choice = {"index": 0, "delta": {"content": text_of(number)}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(chunks(), media_type="text/event-stream")


@app.get("/")
async def page() -> HTMLResponse:
    """An empty page to run scripts in."""
    return HTMLResponse("<!doctype html><title>Clients</title>")


@app.get("/modules/{path:path}")
async def module(path: str) -> FileResponse:
    """Serve an npm package to the page; a bundler, too, would find `./parse` in `./parse.js`."""
    return FileResponse(MODULES / (path if path.endswith(".js") else f"{path}.js"), media_type="text/javascript")
