"""An application that plays scripts: a test decides what its endpoint sends, and when, one step at a time.

A script is a list of steps, each a list whose first item names it:

    ["send", "<hex>"]          one chunk of the body
    ["events", n, size]        n numbered SSE events of `size` bytes, each its own chunk
    ["wait", "<gate>"]         go on once somebody has sent POST /gate/<gate>
    ["raise", "<text>"]        fail
    ["http_error", status]     fail with an HTTPException
    ["forever"]                wait to be cancelled

What happens is noted in a journal, which `GET /events` returns, at once or when it holds a certain entry.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from fastapi_resumable import Resumable


class Script(BaseModel):
    """What the endpoint does: `before` it answers, then as its body."""

    name: str = "script"
    steps: list[list[Any]] = Field(default_factory=list)
    before: list[list[Any]] = Field(default_factory=list)
    status: int = 200
    media_type: str | None = "text/event-stream"
    headers: list[tuple[str, str]] = Field(default_factory=list)
    content: Any = None
    """Answer with this as JSON, and without a stream."""


class Journal:
    """What has happened, in order."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self._changed = asyncio.Event()

    def note(self, entry: str) -> None:
        self.entries.append(entry)
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, entry: str, count: int) -> None:
        while self.entries.count(entry) < count:
            await self._changed.wait()


class Stage:
    """The journal, the gates and the prepared scripts of one application."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.gates: dict[str, asyncio.Event] = {}
        self.scripts: dict[str, Script] = {}

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def wait_at(self, gate: str) -> None:
        self.journal.note(f"waits:{gate}")
        await self.gate(gate).wait()

    async def respond(self, script: Script) -> Response:
        """Answer as the script says."""
        self.journal.note(f"called:{script.name}")
        async for _ in self._play(script.before):
            pass
        response: Response
        if script.content is not None:
            response = JSONResponse(script.content, script.status)
        else:
            response = StreamingResponse(self._body(script), script.status, media_type=script.media_type)
        response.raw_headers += [(name.encode(), value.encode()) for name, value in script.headers]
        return response

    async def _body(self, script: Script) -> AsyncIterator[bytes]:
        self.journal.note(f"started:{script.name}")
        how = "finished"
        try:
            async for chunk in self._play(script.steps):
                yield chunk
        except BaseException as exc:
            how = type(exc).__name__
            raise
        finally:
            self.journal.note(f"{how}:{script.name}")
            self.journal.note(f"ended:{script.name}")

    async def _play(self, steps: list[list[Any]]) -> AsyncIterator[bytes]:
        for step in steps:
            match step:
                case ["send", hexadecimal]:
                    yield bytes.fromhex(hexadecimal)
                case ["events", count, size]:
                    for number in range(count):
                        head = b"data: %08d " % number
                        yield head + b"x" * (size - len(head) - 2) + b"\n\n"
                case ["wait", gate]:
                    await self.wait_at(gate)
                case ["raise", text]:
                    raise RuntimeError(text)
                case ["http_error", status]:
                    raise HTTPException(status, "as the script says")
                case ["forever"]:
                    await asyncio.Event().wait()
                case _:
                    raise ValueError(f"no such step: {step}")


def caller(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """Who asks: the owner of the streams, if the options ask for owners."""
    return x_user


def create_app(*, install_router: bool = True, **extra: Any) -> tuple[FastAPI, Resumable]:
    """Build the application with the options from the environment; `extra` ones win."""
    options: dict[str, Any] = {
        "shutdown_grace": 0.2,
        **json.loads(os.environ.get("RESUMABLE_TEST_OPTIONS", "{}")),
        **extra,
    }
    owned = options.pop("owned", False)
    decorated = options.pop("decorated", True)
    resumable = Resumable(**options, owner=caller if owned else None)
    app = FastAPI()
    stage = Stage()
    if install_router:
        app.include_router(resumable.router)

    async def script(script: Script) -> Response:
        return await stage.respond(script)

    async def play(name: str) -> Response:
        return await stage.respond(stage.scripts[name])

    async def completions(body: dict[str, Any]) -> Response:
        return await stage.respond(stage.scripts[body["model"]])

    async def asks(request: Request) -> Response:
        return await stage.respond(Script.model_validate_json(await request.body()))

    wrap: Any = resumable.stream if decorated else lambda endpoint: endpoint
    app.post("/script")(wrap(script))
    app.get("/play/{name}")(wrap(play))
    app.post("/v1/chat/completions")(wrap(completions))
    app.post("/asks")(wrap(asks))

    @app.post("/prepare/{name}", status_code=204)
    async def prepare(name: str, script: Script) -> None:
        stage.scripts[name] = script

    @app.post("/gate/{name}", status_code=204)
    async def open_gate(name: str) -> None:
        stage.gate(name).set()

    @app.get("/events")
    async def events(until: str | None = None, count: int = 1) -> list[str]:
        if until is not None:
            await stage.journal.until(until, count)
        return stage.journal.entries

    @app.post("/shutdown", status_code=204)
    async def shutdown(request: Request) -> None:
        request.app.state.shutdown = asyncio.create_task(resumable.shutdown())
        await asyncio.sleep(0)

    @app.get("/whoami")
    async def whoami(user: Annotated[str | None, Depends(caller)]) -> str | None:
        return user

    return app, resumable


def build() -> FastAPI:
    """The application alone, for `uvicorn --factory`."""
    return create_app()[0]


app, resumable = create_app()
