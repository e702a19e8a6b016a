"""What the tests of the Python clients share: a server that plays scripts, and clients that lose no time."""

import random
from collections.abc import Iterator

import httpx
import pytest

from fastapi_resumable.client import Backoff
from tests.support.apps.player import Step, script_body, unique
from tests.support.server import Server, serve

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 0.2, "owned": True}) as running:
        yield running


@pytest.fixture
def backoff() -> Backoff:
    """Hardly any wait, and a seed; endless, as a connection may be cut before its first byte, time and again."""
    return Backoff(initial=0.001, maximum=0.002, retries=None, random=random.Random(4).random)


class Stage:
    """The side of the server."""

    def __init__(self, server: Server) -> None:
        self._http = httpx.Client(base_url=server.url, timeout=60)

    def open(self, gate: str) -> None:
        """Let the script go on."""
        self._http.post(f"/gate/{gate}").raise_for_status()

    def until(self, entry: str) -> list[str]:
        """What has happened, once this has."""
        events: list[str] = self._http.get("/events", params={"until": entry}).json()
        return events

    def prepare(self, *steps: Step) -> str:
        """Prepare a script; return its name."""
        name = unique("prepared")
        self._http.post(f"/prepare/{name}", content=script_body(*steps, name=name), headers=JSON).raise_for_status()
        return name

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def stage(server: Server) -> Iterator[Stage]:
    stage = Stage(server)
    yield stage
    stage.close()
