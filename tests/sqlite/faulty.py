"""Workers on a SQLite file, in this process or in others, and what all faults have in common."""

import asyncio
import subprocess
from collections.abc import Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi_resumable import SqliteStore
from fastapi_resumable._stream.stream import Limits
from tests.support.apps.player import numbered, unique, wait
from tests.support.rawhttp import Response
from tests.support.site import Site, environment, site_of, whole
from tests.support.ssemodel import without_ids

STORE_TIMEOUT = 3.0
ANSWERED = STORE_TIMEOUT + 30
"""Seconds within which every request is answered while the file cannot be used, also on a busy machine."""
HEALTHY = 20.0
"""Seconds within which a route that needs no store answers, likewise."""


def open_stores(path: Path, count: int, store_timeout: float = 10.0, **limits: Any) -> list[SqliteStore]:
    """Several workers on one file, in this process."""
    stores = [SqliteStore(path, store_timeout=store_timeout) for _ in range(count)]
    for store in stores:
        store.configure(Limits(**limits))
    return stores


@asynccontextmanager
async def workers(directory: Path, notes: Path, count: int = 2, **store: Any) -> Any:
    """Workers on the file in a directory, and a watch over how they feel."""
    settings = {"store_timeout": STORE_TIMEOUT, **store}
    # Without keep-alives, which would come on a busy machine.
    rooms = {"": {"ping": 3600.0}}
    about = environment(f"sqlite:///{directory}/streams.db", notes / "notes", store=settings, rooms=rooms)
    async with site_of([about] * count) as site, site.staying_healthy(*range(count), seconds=HEALTHY):
        yield site


async def within(seconds: float, awaitable: Awaitable[Any]) -> Any:
    """The result, in time."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def works_again(site: Site, deadline: float = 60.0) -> None:
    """Wait until a new stream on the first worker can be replayed by the last."""
    async with asyncio.timeout(deadline):
        while True:
            name = unique("afterwards")
            live = await site.player(0).record(name, numbered(20, 60))
            replay = await site.player(len(site.servers) - 1).replay(name)
            if replay.status == 200 and replay.body == live.body:
                assert without_ids(live.body) == whole(20, 60)
                return


async def begin(site: Site, name: str, gate: str) -> tuple[Response, Response]:
    """A stream that waits in its middle, and its readers on two workers, up to there."""
    live = await site.player(0).post(name, numbered(3, 60), wait(gate), numbered(3, 60), name=name)
    reader = await site.player(1).follow(name)
    for each in (live, reader):
        await each.read_until(b"00000002")
    return live, reader


async def goes_unrecorded(site: Site) -> None:
    """Wait until a new request is answered, as an ordinary one."""
    name = unique("plain")
    answer = await within(ANSWERED, site.player(0).record(name, numbered(3, 60)))
    assert (answer.status, answer.body) == (200, whole(3, 60))


def fill(directory: Path) -> Path:
    """Leave no byte free."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


def remount(directory: Path, how: str) -> None:
    """Make a file system read-only or writable, or give it another size."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(directory)], check=True)
