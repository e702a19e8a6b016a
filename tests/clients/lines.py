"""Bad lines of `tests.support.apps.counting`, for the clients in this folder."""

import os
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any
from urllib.parse import quote

import httpx

from tests.support.server import ROOT, Server

PAGE = ROOT / "docs" / "reference" / "clients.md"

ENDINGS = [("fail", ("error", "producer_failed")), ("stop", ("cancelled", "cancelled"))]
"""What is ordered of a line, and the type and the code of the last event then."""
SEED = int(os.environ.get("RESUMABLE_TEST_SEED", "1"))


@dataclass(frozen=True)
class Line:
    """A line that cuts connections."""

    server: Server
    name: str
    url: str
    """Where clients connect."""

    @property
    def count(self) -> str:
        """The resumable endpoint, behind the line."""
        return f"{self.url}/count?line={quote(self.name, safe='')}"

    @property
    def replay(self) -> str:
        """The replay route, behind the line."""
        return f"{self.url}/v1/stream/{quote(self.name, safe='')}"

    def look(self) -> dict[str, Any]:
        """What has become of it."""
        found: dict[str, Any] = httpx.get(f"{self.server.url}/line", params={"line": self.name}).json()
        return found

    def check(self, received: list[str], cuts: int) -> None:
        """All that was sent has come once, in order, over so many cuts of both kinds; and it was made once."""
        seen = self.look()
        differs = [pair for pair in zip_longest(received, seen.pop("texts")) if pair[0] != pair[1]]
        assert not differs, f"{len(differs)} differ; received and sent, first: {differs[:3]}; {seen}"
        assert (seen["cuts"], seen["runs"]) == (cuts, 1), seen
        assert cuts < 100 or 0.3 * cuts < seen["resets"] < 0.7 * cuts, seen


def open_line(server: Server, cuts: int = 200, **order: Any) -> Line:
    """Open a line. All its randomness is that of `SEED`."""
    answer = httpx.post(f"{server.url}/lines", json={"seed": SEED, "cuts": cuts, **order}).json()
    return Line(server, answer["name"], answer["url"])


@dataclass(frozen=True)
class FinishedLine(Line):
    """A line to a stream that has ended, which cuts a connection once."""

    proxy: str

    def check(self, received: list[str], cuts: int = 1) -> None:
        """All has come once, in order, and there was the cut."""
        Line(self.server, self.name, self.url).check(received, cuts=0)
        assert Line(self.server, self.proxy, self.url).look()["cuts"] == cuts


def finished_line(server: Server, missing: int = 0) -> FinishedLine:
    """Cut the connection when all of the log has come, but not yet the end of the response; or so many bytes before."""
    whole = open_line(server, cuts=0)
    log = httpx.post(whole.count).content
    at = len(f"{len(log):x}\r\n") + len(log) - missing
    cutter = open_line(server, cuts=1, least=at, most=at)
    return FinishedLine(server, whole.name, cutter.url, cutter.name)
