"""The browser's own `EventSource` on a resumable GET endpoint: it comes back by itself, and knows when to stop."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Page, Response, expect

from example_app import llm
from tests.browser.conftest import example_app
from tests.support.server import Server

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Page]

POEM = llm.PROSE["jabberwocky"].splitlines()


@pytest.fixture(scope="module")
def app() -> Iterator[Server]:
    """The example app, at a pace that leaves room for two reconnects, also on a busy machine."""
    with example_app({"EXAMPLE_WORDS_PER_SECOND": "12"}) as server:
        yield server


def verses(tab: Page) -> list[tuple[str | None, str | None]]:
    """The verses on the page, with their numbers."""
    lines = tab.locator("#verses li").all()
    return [(line.get_attribute("data-number"), line.text_content()) for line in lines]


def test_an_event_source_reconnects_by_itself_and_stops_at_the_end(open_tab: OpenTab) -> None:
    """The server drops the socket twice; every verse arrives once, in order, and a 204 ends it."""
    tab = open_tab("/eventsource.html")
    answers: list[Response] = []
    tab.on("response", lambda response: answers.append(response) if "/demo/poem" in response.url else None)
    tab.locator("#start").click()
    for verse in (3, 11):
        expect(tab.locator("#state")).to_have_text("Live")
        expect(tab.locator(f"#verses li[data-number='{verse}']")).to_be_visible()
        tab.locator("#cut").click()
        expect(tab.locator("#state")).to_have_text("Reconnecting")
    expect(tab.locator("#state")).to_have_text("Closed")
    assert verses(tab) == [(str(number), line) for number, line in enumerate(POEM, start=1)]
    assert [answer.status for answer in answers] == [200, 200, 200, 204]
    positions = [answer.request.header_value("Last-Event-ID") for answer in answers]
    assert positions[0] is None
    assert None not in positions[1:]


def test_a_reloaded_page_attaches_to_the_same_recital(open_tab: OpenTab, app: Server) -> None:
    """A new `EventSource` has no place to resume from: it hears the poem from its start, but it is not begun again."""
    tab = open_tab("/eventsource.html")
    tab.locator("#start").click()
    expect(tab.locator("#verses li[data-number='3']")).to_be_visible()
    run = tab.evaluate("new URLSearchParams(location.search).get('run')")
    epoch = httpx.head(f"{app.url}/demo/stream/{run}").headers["X-Stream-Epoch"]
    tab.reload()
    expect(tab.locator("#verses li[data-number='10']")).to_be_visible()
    assert verses(tab)[:10] == [(str(number), line) for number, line in enumerate(POEM[:10], start=1)]
    assert httpx.head(f"{app.url}/demo/stream/{run}").headers["X-Stream-Epoch"] == epoch
