"""The scripted application as one of several workers: on one Redis, on SQLite files, or as the environment says.

It has several rooms, each a `Resumable` of its own with options of its own, under its own path and key prefix:
`POST /attach/script`, `GET /attach/v1/stream`. What happens is also noted in a file, with the worker's pid: what a
worker has done is known when it is dead. Every answer says in `X-Worker` who gave it.

    RESUMABLE_TEST_SITE = {"store": {...}, "url": "redis://...", "client": "url", "key_prefix": "tests", "rooms": {...}}
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_resumable import Resumable
from tests.support.apps.scripted import Journal, Script, Stage, caller

ROOMS: dict[str, dict[str, Any]] = {"": {}}


class WrittenJournal(Journal):
    """A journal that outlives its worker."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        self._path = Path(path) if path else None

    def note(self, entry: str) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(f"{os.getpid()} {entry}\n")
        super().note(entry)


class PacedStage(Stage):
    """Scripts with a pace: `["paced", n, size, seconds]` is `["events", n, size]` with a pause after each."""

    async def _play(self, steps: list[list[Any]]) -> AsyncIterator[bytes]:
        for step in steps:
            match step:
                case ["paced", count, size, seconds]:
                    async for chunk in super()._play([["events", count, size]]):
                        yield chunk
                        await asyncio.sleep(seconds)
                case _:
                    async for chunk in super()._play([step]):
                        yield chunk


class Signed:
    """Middleware that says which worker has answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", str(os.getpid()).encode())]
            await send(message)

        await self._app(scope, receive, signed if scope["type"] == "http" else send)


def make_store(site: dict[str, Any], room: str, clients: list[Any]) -> Any:
    """The store of a room; `None`: what the environment says. A client of Redis that it does not close is appended."""
    if "url" not in site:
        return None
    if site["url"].startswith("sqlite:"):
        from fastapi_resumable import SqliteStore

        return SqliteStore("-".join(filter(None, [site["url"], room])), **site.get("store", {}))
    from redis.asyncio import Redis, RedisCluster

    from fastapi_resumable import RedisStore

    makers: dict[str, Any] = {"url": str, "redis": Redis.from_url, "cluster": RedisCluster.from_url}
    where = makers[site.get("client", "url")](site["url"])
    if not isinstance(where, str):
        clients.append(where)
    prefix = "-".join(filter(None, [site.get("key_prefix", "tests"), room]))
    return RedisStore(where, key_prefix=prefix, **site.get("store", {}))


def create_app(site: dict[str, Any] | None = None, notes: str | None = None) -> FastAPI:
    """Build the application; what is not given is taken from the environment."""
    if site is None:
        site = json.loads(os.environ.get("RESUMABLE_TEST_SITE", "{}"))
        notes = os.environ.get("RESUMABLE_TEST_NOTES")
    clients: list[Any] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for client in clients:
            await client.aclose()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(Signed)
    stage = PacedStage()
    stage.journal = WrittenJournal(notes)
    for room, options in (site.get("rooms") or ROOMS).items():
        app.include_router(_room(stage, make_store(site, room, clients), options), prefix=f"/{room}" if room else "")

    @app.get("/health")
    async def health() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/journal")
    async def journal() -> list[str]:
        return stage.journal.entries

    return app


def _room(stage: Stage, store: Any, options: dict[str, Any]) -> APIRouter:
    options = {"shutdown_grace": 0.2, "stop_grace": 1.0, **options}
    owner = caller if options.pop("owned", False) else None
    resumable = Resumable(store=store, owner=owner, **options)
    router = APIRouter()
    router.include_router(resumable.router)

    @router.post("/script")
    @resumable.stream
    async def script(script: Script) -> Response:
        return await stage.respond(script)

    @router.post("/gate/{name}", status_code=204)
    async def open_gate(name: str) -> None:
        stage.gate(name).set()

    @router.get("/events")
    async def events(until: str | None = None, count: int = 1) -> list[str]:
        if until is not None:
            await stage.journal.until(until, count)
        return stage.journal.entries

    return router


def build() -> FastAPI:
    """The application alone, for `uvicorn --factory`."""
    return create_app()
