"""The sidebar of docs/how-to/sidebar.md, as the page shows it, in a browser."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.chat import Model
from tests.browser.pages import serve_page
from tests.support.line import Line
from tests.support.server import Server

pytestmark = pytest.mark.browser

OpenTab = Callable[[], Page]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Server]:
    """The page's application, on its real server, with a model that writes when it is told to."""
    with serve_page("sidebar", tmp_path_factory.mktemp("sidebar"), model) as server:
        yield server


@pytest.fixture
def line(app: Server) -> Iterator[Line]:
    """The line between browser and server."""
    with Line(app.port) as line:
        yield line


@pytest.fixture
def open_tab(person: BrowserContext, line: Line) -> OpenTab:
    """Open a tab on the sidebar."""

    def open_tab() -> Page:
        tab = person.new_page()
        tab.goto(line.url)
        return tab

    return open_tab


def ask(tab: Page, chat: str) -> None:
    tab.locator(f"#{chat} button").click()


def expect_status(tab: Page, chat: str, status: str) -> None:
    expect(tab.locator(f"#{chat}")).to_have_attribute("data-status", status)


def test_every_tab_shows_what_each_chat_is_doing(open_tab: OpenTab, app: Server, model: Model) -> None:
    """From the question in one tab to the end, in all; a tab that is opened meanwhile knows at once."""
    first, second = open_tab(), open_tab()
    ask(first, "rome")
    for tab in (first, second):
        expect_status(tab, "rome", "in_progress")
    third = open_tab()
    expect_status(third, "rome", "in_progress")
    httpx.delete(f"{app.url}/v1/stream/rome").raise_for_status()
    ask(second, "poem")
    for tab in (first, second, third):
        expect_status(tab, "rome", "cancelled")
        expect_status(tab, "poem", "in_progress")
    model.write()
    for tab in (first, second, third):
        expect_status(tab, "poem", "completed")
        assert tab.locator("#soup").get_attribute("data-status") is None


def test_a_sidebar_that_was_cut_off_catches_up(open_tab: OpenTab, line: Line, model: Model) -> None:
    """It asks again, and is told what it has missed."""
    tab = open_tab()
    ask(tab, "soup")
    expect_status(tab, "soup", "in_progress")
    line.cut()
    model.write()
    expect_status(tab, "soup", "completed")
    line.cut()
    ask(tab, "soup")
    expect_status(tab, "soup", "in_progress")
    model.write()
    expect_status(tab, "soup", "completed")
