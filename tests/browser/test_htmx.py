"""The chat of docs/how-to/htmx.md, as the page shows it, with both htmx's extensions, in a browser."""

import json
from collections.abc import Callable, Iterator
from html import escape
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Request, Route, expect

from tests.browser.chat import FIRST, WHOLE, Model, expect_text, wait_in
from tests.browser.pages import JAVASCRIPT, serve_page
from tests.support.line import Line
from tests.support.params import representatives
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Page]

CDN = "https://cdn.jsdelivr.net/npm/"
PACKAGES = ("htmx.org", "htmx-2", "htmx-ext-sse")
MODULES = JAVASCRIPT / "node_modules"


one_version = pytest.mark.parametrize("app", representatives(["main", "htmx2"], "main".__eq__), indirect=True)


@pytest.fixture(scope="module", params=["main", "htmx2"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Server]:
    """The page's application, on its real server, with a model that writes when it is told to."""
    with serve_page("htmx", tmp_path_factory.mktemp("htmx"), model, module=request.param) as server:
        yield server


@pytest.fixture
def line(app: Server) -> Iterator[Line]:
    """The line between browser and server."""
    with Line(app.port) as line:
        yield line


def from_npm(route: Route) -> None:
    """Answer with the file of the npm package, which has to be the version that the page names."""
    package, _, file = route.request.url.removeprefix(CDN).partition("/")
    described = {folder: json.loads((MODULES / folder / "package.json").read_text()) for folder in PACKAGES}
    installed = {f"{each['name']}@{each['version']}": folder for folder, each in described.items()}
    route.fulfill(path=MODULES / installed[package] / file)


@pytest.fixture
def open_tab(person: BrowserContext, line: Line) -> OpenTab:
    """Open a tab on the chat."""
    person.route(CDN + "**", from_npm)

    def open_tab() -> Page:
        tab = person.new_page()
        tab.goto(line.url)
        return tab

    return open_tab


def ask(tab: Page, question: str) -> None:
    """Send a question."""
    tab.get_by_label("Question").fill(question)
    tab.get_by_label("Question").press("Enter")


def expect_answer(tab: Page, text: str) -> None:
    """Wait until the last answer is shown, exactly so far; a line break is a `<br>`."""
    text = text.replace("\n", "")
    expect_text(tab.locator(".answer").last, text)


def requests_of(tab: Page) -> list[Request]:
    """The requests for an answer that a tab makes, as a list that grows."""
    made: list[Request] = []
    tab.on("request", lambda request: made.append(request) if "/answers/" in request.url else None)
    return made


def stop_buttons(tab: Page) -> Any:
    """The Stop buttons, one for each answer that is being written."""
    return tab.get_by_role("button", name="Stop")


def test_an_answer_streams_in(open_tab: OpenTab, model: Model) -> None:
    """It closes the stream at its end: nothing more is asked for."""
    tab = open_tab()
    made = requests_of(tab)
    question = f"Who is there, {tab.url}?"
    ask(tab, question)
    expect_answer(tab, FIRST)
    model.write()
    expect_answer(tab, WHOLE)
    expect(stop_buttons(tab)).to_have_count(0)
    assert len(made) == 1
    assert model.outcomes(question) == ["whole"]


@one_version
def test_a_cut_connection_is_resumed(open_tab: OpenTab, line: Line, model: Model) -> None:
    """The extension comes back for what it has not had: from the start, it would show it twice."""
    tab = open_tab()
    made = requests_of(tab)
    question = f"Is the line bad, {tab.url}?"
    ask(tab, question)
    expect_answer(tab, FIRST)
    for count in (2, 3):
        line.cut()
        wait_in(tab, lambda count=count: len(made) == count, "a reconnect")
        # Before its head has come, the next cut might not find the connection.
        assert made[-1].response()
        expect_answer(tab, FIRST)
    model.write()
    expect_answer(tab, WHOLE)
    expect(stop_buttons(tab)).to_have_count(0)
    assert len(made) == 3
    assert model.outcomes(question) == ["whole"]


@one_version
def test_an_answer_that_ends_during_a_cut_is_read_to_its_end(open_tab: OpenTab, line: Line, model: Model) -> None:
    """The reconnect brings the rest and `done`."""
    tab = open_tab()
    ask(tab, "Will you wait?")
    expect_answer(tab, FIRST)
    line.cut()
    model.write()
    expect_answer(tab, WHOLE)
    expect(stop_buttons(tab)).to_have_count(0)


@one_version
def test_a_reloaded_page_and_a_second_tab_follow(open_tab: OpenTab, app: Server, model: Model) -> None:
    """From the start of the same answer; after its end it is rendered, not streamed."""
    tab = open_tab()
    question = f"Can two read, {tab.url}?"
    made = requests_of(tab)
    ask(tab, question)
    expect_answer(tab, FIRST)
    [first] = made
    tab.reload()
    second = open_tab()
    for each in (tab, second):
        expect_answer(each, FIRST)
    model.write()
    for each in (tab, second):
        expect_answer(each, WHOLE)
        expect(stop_buttons(each)).to_have_count(0)
    made.clear()
    tab.reload()
    expect_answer(tab, WHOLE)
    assert made == []
    # And whoever asks for it all the same gets it from there.
    late = httpx.get(app.url + urlsplit(first.url).path)
    assert late.text.startswith(f"data: {escape(WHOLE).replace(chr(10), '<br>')}\n")
    assert model.outcomes(question) == ["whole"]


@one_version
def test_stop_stops_the_model(open_tab: OpenTab, model: Model) -> None:
    """What was written stays, in the page and after a reload, and says that it is not all."""
    tab = open_tab()
    question = f"Stop, {tab.url}?"
    ask(tab, question)
    expect_answer(tab, FIRST)
    stop_buttons(tab).click()
    expect_answer(tab, FIRST + "[The stream was stopped.]")
    expect(stop_buttons(tab)).to_have_count(0)
    wait_until(lambda: model.outcomes(question) == ["abandoned"], "the end of the model's work")
    tab.reload()
    expect_answer(tab, FIRST + "[The stream was stopped.]")
