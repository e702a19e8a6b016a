"""`httpx-sse`, with the reconnect loop of its README."""

import time
from collections.abc import Iterator

import httpx
import httpx_sse
import pytest

from tests.clients.lines import ENDINGS, finished_line, open_line
from tests.support.server import Server


def events(client: httpx.Client, method: str, url: str) -> Iterator[httpx_sse.ServerSentEvent]:
    last_event_id = ""
    delay = 1.0
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        try:
            with httpx_sse.connect_sse(client, method, url, headers=headers) as source:
                if source.response.status_code == 204:
                    return
                source.response.raise_for_status()
                for event in source.iter_sse():
                    last_event_id = event.id
                    if event.retry is not None:
                        delay = event.retry / 1000
                    yield event
                return
        except httpx.TransportError:
            time.sleep(delay)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_httpx_sse_gets_all_over_200_cuts(server: Server, method: str) -> None:
    """The README's loop, asking the endpoint itself again with `Last-Event-ID`."""
    line = open_line(server, heads=True)
    with httpx.Client(timeout=60) as client:
        line.check([event.data for event in events(client, method, line.count)], cuts=200)


@pytest.mark.parametrize(("end", "last"), ENDINGS)
def test_httpx_sse_sees_a_failure_and_a_stop(server: Server, end: str, last: tuple[str, str]) -> None:
    """As the last event; the loop ends."""
    line = open_line(server, cuts=5, end=end)
    with httpx.Client(timeout=60) as client:
        *received, ending = events(client, "GET", line.count)
    line.check([event.data for event in received], cuts=5)
    assert (ending.event, ending.json()["code"]) == last


def test_httpx_sse_ends_when_only_the_end_was_cut_off(server: Server) -> None:
    """It asks again, and 204 says that it has everything."""
    line = finished_line(server)
    with httpx.Client(timeout=60) as client:
        line.check([event.data for event in events(client, "GET", line.replay)])
