"""Several workers of one application, as processes, and the clients that a test has with each.

async with site_of([environment(redis.url, tmp_path / "notes")] * 3) as site:
    live = await site.player(0).post("some-id", ...)      # on the first worker
    reader = await site.player(1).follow("some-id")       # on the second
    site.count("started:some-id")                         # what all of them have noted, the dead ones too
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.apps.player import Player
from tests.support.asgi import terminal_of
from tests.support.rawhttp import Headers, Reply, Response
from tests.support.server import HOST, LOOP, Server
from tests.support.ssemodel import without_ids

APP = "tests.support.apps.shared:build"


class RoomPlayer(Player):
    """A player in one room of one worker."""

    def __init__(self, port: int, room: str = "", headers: Headers = ()) -> None:
        super().__init__(port, headers)
        self._base = f"/{room}" if room else ""

    async def open_request(self, method: str, target: str, *args: Any, **options: Any) -> Response:
        return await super().open_request(method, self._base + target, *args, **options)

    async def fetch(self, method: str, target: str, *args: Any, **options: Any) -> Reply:
        return await super().fetch(method, self._base + target, *args, **options)


class Site:
    """Workers, and what they have noted."""

    def __init__(self, servers: Sequence[Server], notes: Path) -> None:
        self.servers = list(servers)
        self.notes = notes
        self._players = AsyncExitStack()

    def player(self, worker: int, room: str = "", headers: Headers = ()) -> Player:
        """A client of one worker; its connections end with the test."""
        player = RoomPlayer(self.servers[worker].port, room, headers)
        self._players.push_async_exit(player)
        return player

    def pid(self, worker: int) -> int:
        """The process of a worker."""
        return self.servers[worker].pid

    async def close(self) -> None:
        """Close the connections of all players."""
        await self._players.aclose()

    def noted(self) -> list[tuple[int, str]]:
        """Which worker has noted what, in order."""
        lines = self.notes.read_text().splitlines()
        return [(int(pid), entry) for pid, _, entry in (line.partition(" ") for line in lines)]

    def count(self, entry: str, pid: int | None = None) -> int:
        """How often something was noted, by all or by one."""
        return sum(1 for who, what in self.noted() if what == entry and pid in (None, who))

    @asynccontextmanager
    async def staying_healthy(self, *workers: int, seconds: float) -> AsyncIterator[None]:
        """Ask all the time how the workers are: each answer comes within so many seconds."""
        over = asyncio.Event()

        async def ask(worker: int) -> None:
            while not over.is_set():
                async with asyncio.timeout(seconds):
                    assert (await self.player(worker).fetch("GET", "/health")).status == 200
                await asyncio.sleep(0.02)  # one question after the other

        asking = [asyncio.create_task(ask(worker)) for worker in workers]
        try:
            yield
        finally:
            over.set()
            try:
                await asyncio.gather(*asking)
            except TimeoutError:
                raise AssertionError(f"/health took more than {seconds:g} seconds") from None

    async def until_noted(self, entry: str, count: int = 1, deadline: float = 60.0) -> None:
        """Wait for a note of any worker."""
        await until(lambda: self.count(entry) >= count, f"{count} x {entry!r}", deadline)


async def until(condition: Callable[[], bool], what: str, deadline: float = 60.0) -> float:
    """Look until `condition` holds; the seconds that it took."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(deadline):
            while not condition():  # noqa: ASYNC110  # what happens in another process gives no event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited {deadline:g} s in vain for {what}") from None
    return time.monotonic() - begun


def environment(
    url: str | None,
    notes: Path,
    *,
    store: Mapping[str, Any] | None = None,
    rooms: Mapping[str, Any] | None = None,
    **site: Any,
) -> dict[str, str]:
    """What a worker is told."""
    notes.touch()
    told = {"store": store or {}, "rooms": rooms or {"": {}}, **({"url": url} if url else {}), **site}
    return {"RESUMABLE_TEST_SITE": json.dumps(told), "RESUMABLE_TEST_NOTES": str(notes)}


@contextmanager
def serving(environments: Sequence[Mapping[str, str]], *, workers: int = 1) -> Iterator[list[Server]]:
    """One server for each environment, all started at once; what they have printed is told at the end."""
    command = [sys.executable, "-m", "uvicorn", "--factory", APP, "--host", HOST, "--port", "0", "--no-access-log"]
    command += ["--loop", LOOP or "auto"]
    if workers > 1:
        command += ["--workers", str(workers)]
    with ExitStack() as stack:
        servers = [Server(command, environment, ready="/health") for environment in environments]
        for server in servers:
            stack.callback(_end, server)
        for server in servers:
            server.wait_ready()
        yield servers


def _end(server: Server) -> None:
    for pid in [server.pid, *server.workers()] if server.running else []:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    server.kill()
    print(f"----- worker {server.pid}\n{server.output[-6000:]}")  # noqa: T201  # shown with a test that fails


@asynccontextmanager
async def site_of(environments: Sequence[Mapping[str, str]], *, workers: int = 1) -> AsyncIterator[Site]:
    """Workers of a test's own."""
    with serving(environments, workers=workers) as servers:
        site = Site(servers, Path(environments[0]["RESUMABLE_TEST_NOTES"]))
        try:
            yield site
        finally:
            await site.close()


# What a reader has got.


def whole(count: int, size: int) -> bytes:
    """The bytes of `["events", count, size]`."""
    head = b"data: %08d "
    return b"".join(head % number + b"x" * (size - 17) + b"\n\n" for number in range(count))


def code_of(body: bytes) -> str | None:
    """The code of the terminal event that ends the body; `None` if no event says how it ended."""
    event = terminal_of(body)
    return str(event.json()["code"]) if event is not None else None


def outcome(response: Reply, expected: bytes) -> str:
    """How an answer ended: `whole`, the code of its terminal event, or `cut`; fails if a reader could not tell.

    In each case what has come is what was sent, in order, each byte once: as far as it goes.
    """
    body = without_pings(without_ids(response.body))
    code = code_of(body)
    if code is None:
        assert expected.startswith(body), f"not what was sent, from byte {_first_difference(body, expected)} on"
        assert not (response.clean and body != expected), f"a clean end after {len(body)} of {len(expected)} bytes"
        return "whole" if response.clean else "cut"
    before = body[: body.rindex(b"event: ")]
    assert expected.startswith(before), f"not what was sent, from byte {_first_difference(before, expected)} on"
    assert response.clean or code == "store_unavailable"
    return code


async def drain(response: Response) -> bytes:
    """The whole body of a response, however long: its `body` is not kept."""
    data = bytearray(response.body)
    while some := await response.read_some():
        data += some
        response.body = b""
    return bytes(data)


def without_pings(body: bytes) -> bytes:
    """The body without keep-alives."""
    return body.replace(b": ping\n", b"")


def _first_difference(one: bytes, other: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
