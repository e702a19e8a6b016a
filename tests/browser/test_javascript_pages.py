"""The pages of the how-tos on the JavaScript client, as they show them, in a browser."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.chat import FIRST, WHOLE, Model, expect_text
from tests.browser.pages import serve_page
from tests.support.line import Line
from tests.support.params import representatives
from tests.support.server import wait_until

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Page]


PAGES = ["javascript-client", "mobile", "react"]
one_page = pytest.mark.parametrize("line", representatives(PAGES, "javascript-client".__eq__), indirect=True)


@pytest.fixture(scope="module", params=PAGES)
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Line]:
    """The line between browser and server, for each of the pages."""
    folder = tmp_path_factory.mktemp(request.param)
    with serve_page(request.param, folder, model) as server, Line(server.port) as line:
        yield line


@pytest.fixture
def open_tab(person: BrowserContext, line: Line) -> OpenTab:
    """Open a tab on the page."""

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
    """Wait until the answer is shown exactly so far."""
    expect_text(tab.locator("#answer, .answer"), text)


def test_an_answer_streams_in(open_tab: OpenTab, line: Line, model: Model) -> None:
    """One question after the other."""
    tab = open_tab()
    for question in (f"Who is at {line.url}?", f"And still at {line.url}?"):
        ask(tab, question)
        expect_answer(tab, FIRST)
        model.write()
        expect_answer(tab, WHOLE)
        assert model.outcomes(question) == ["whole"]


@one_page
def test_a_reloaded_page_goes_on(open_tab: OpenTab, line: Line, model: Model) -> None:
    """Twice in mid-answer: nothing is missing or doubled, and the model is asked once."""
    tab = open_tab()
    question = f"And now, {line.url}?"
    ask(tab, question)
    expect_answer(tab, FIRST)
    for _ in range(2):
        tab.reload()
        expect_answer(tab, FIRST)
    model.write()
    expect_answer(tab, WHOLE)
    assert model.outcomes(question) == ["whole"]


@one_page
def test_a_page_that_was_cut_off_catches_up(open_tab: OpenTab, line: Line, model: Model) -> None:
    """It comes back by itself, as often as it takes."""
    tab = open_tab()
    question = f"What if {line.url} is cut?"
    ask(tab, question)
    expect_answer(tab, FIRST)
    line.cut()
    model.write(20)
    line.cut()
    model.write()
    expect_answer(tab, WHOLE)
    assert model.outcomes(question) == ["whole"]


@one_page
def test_a_failure_is_shown(open_tab: OpenTab) -> None:
    """The page says what the server said."""
    tab = open_tab()
    ask(tab, "Fail.")
    expect(tab.get_by_text("500")).to_be_visible()


@pytest.mark.parametrize("line", ["javascript-client", "react"], indirect=True)
def test_stop_really_stops(open_tab: OpenTab, line: Line, model: Model) -> None:
    """The model is told, and the page says so."""
    tab = open_tab()
    question = f"Will {line.url} stop?"
    ask(tab, question)
    expect_answer(tab, FIRST)
    tab.get_by_role("button", name="Stop").click()
    expect(tab.get_by_role("status")).to_have_text("stopped")
    wait_until(lambda: model.outcomes(question) == ["abandoned"], "the model to be told")


@pytest.mark.parametrize("line", ["mobile"], indirect=True)
def test_an_app_that_was_killed_in_the_background_goes_on(open_tab: OpenTab, line: Line, model: Model) -> None:
    """It is hidden, and then closed without another word; when it is opened again, everything is there."""
    tab = open_tab()
    question = f"Where was I, {line.url}?"
    ask(tab, question)
    expect_answer(tab, FIRST)
    tab.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", { value: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    assert '"text"' in tab.evaluate("localStorage.getItem('resumable:answer')")
    tab.close(run_before_unload=False)
    model.write(20)
    again = open_tab()
    model.write()
    expect_answer(again, WHOLE)
    assert model.outcomes(question) == ["whole"]
    again.wait_for_function("localStorage.length === 0")


@pytest.mark.parametrize("line", ["mobile"], indirect=True)
def test_a_page_that_was_frozen_goes_on(open_tab: OpenTab, line: Line, model: Model) -> None:
    """Chromium freezes the page, as a phone does; the connection dies meanwhile, and more is written."""
    tab = open_tab()
    ask(tab, "Are you asleep?")
    expect_answer(tab, FIRST)
    lifecycle = tab.context.new_cdp_session(tab)
    lifecycle.send("Page.setWebLifecycleState", {"state": "frozen"})
    line.cut()
    model.write()
    lifecycle.send("Page.setWebLifecycleState", {"state": "active"})
    expect_answer(tab, WHOLE)


@pytest.mark.parametrize("line", ["mobile"], indirect=True)
def test_an_expired_answer_is_shown_as_such(open_tab: OpenTab, line: Line) -> None:
    """The reader came back too late, or the server was restarted."""
    tab = open_tab()
    place = """{"id": "gone", "epoch": "aaaaaaaaaaaaaaaa", "offset": 7, "saved": {"text": "Once"}}"""
    tab.evaluate("(place) => localStorage.setItem('resumable:answer', place)", place)
    tab.reload()
    expect_answer(tab, "Once")
    expect(tab.get_by_role("status")).to_have_text("This answer is no longer there.")
