"""The chat of docs/how-to/ai-sdk.md, its backend and its React page as the page shows them, in a browser."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Response, expect

from tests.browser.chat import FIRST, WHOLE, Model, expect_text, wait_in
from tests.browser.pages import serve_page
from tests.support.line import Line
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Page]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[Server]:
    """The backend, on its real server."""
    with serve_page("ai-sdk", tmp_path_factory.mktemp("ai-sdk"), model) as server:
        yield server


@pytest.fixture
def line(app: Server) -> Iterator[Line]:
    """The line between browser and backend."""
    with Line(app.port) as line:
        yield line


@pytest.fixture
def open_tab(person: BrowserContext, line: Line) -> OpenTab:
    """Open a tab on the chat."""

    def open_tab(address: str = "/") -> Page:
        tab = person.new_page()
        tab.goto(line.url + address)
        return tab

    return open_tab


def ask(tab: Page, question: str) -> None:
    """Send a question."""
    tab.get_by_label("Question").fill(question)
    tab.get_by_label("Question").press("Enter")


def expect_answer(tab: Page, text: str, number: int = 0) -> None:
    """Wait until the answer is shown, exactly so far, and exactly once."""
    expect(tab.locator(".assistant")).to_have_count(number + 1)
    expect_text(tab.locator(".assistant").nth(number), text)


def address(tab: Page) -> str:
    """The path by which another tab opens the same chat."""
    return tab.evaluate("location.pathname + location.hash")


def resumes(tab: Page) -> list[Response]:
    """The answers to what a tab asks for in order to resume, as a list that grows."""
    answers: list[Response] = []
    tab.on("response", lambda response: answers.append(response) if response.url.endswith("/stream") else None)
    return answers


def test_an_answer_streams_in(open_tab: OpenTab, model: Model) -> None:
    """While it is being written there is a Stop button; a second answer comes below the first."""
    tab = open_tab()
    ask(tab, "Who is there?")
    expect_answer(tab, FIRST)
    expect(tab.get_by_role("button", name="Stop")).to_be_visible()
    model.write()
    expect_answer(tab, WHOLE)
    expect(tab.get_by_role("button", name="Send")).to_be_visible()
    ask(tab, "And who else?")
    expect_answer(tab, FIRST, number=1)
    model.write()
    expect_answer(tab, WHOLE, number=1)
    expect(tab.get_by_role("alert")).to_have_count(0)


def test_a_reloaded_page_goes_on(open_tab: OpenTab, model: Model) -> None:
    """Twice in mid-answer, and nothing is missing or doubled; the model is asked once."""
    tab = open_tab()
    ask(tab, "Does a reload matter to the SDK?")
    expect_answer(tab, FIRST)
    answers = resumes(tab)
    for _ in range(2):
        tab.reload()
        expect_answer(tab, FIRST)
        expect(tab.get_by_role("button", name="Stop")).to_be_visible()
    model.write()
    expect_answer(tab, WHOLE)
    assert [answer.status for answer in answers] == [200, 200]
    assert model.outcomes("Does a reload matter to the SDK?") == ["whole"]


def test_a_finished_answer_is_not_replayed(open_tab: OpenTab, model: Model) -> None:
    """After the end, a reloaded page shows the history, and is told 204."""
    tab = open_tab()
    ask(tab, "Once?")
    expect_answer(tab, FIRST)
    model.write()
    expect_answer(tab, WHOLE)
    answers = resumes(tab)
    tab.reload()
    wait_in(tab, lambda: len(answers) == 1, "the request for the live stream")
    assert answers[0].status == 204
    expect_answer(tab, WHOLE)


@pytest.mark.long
def test_a_second_tab_follows(open_tab: OpenTab, model: Model) -> None:
    """It shows the answer from its start, and both tabs see its end."""
    first = open_tab()
    ask(first, "Can two read the same chat?")
    expect_answer(first, FIRST)
    second = open_tab(address(first))
    expect_answer(second, FIRST)
    model.write()
    for tab in (first, second):
        expect_answer(tab, WHOLE)
    assert model.outcomes("Can two read the same chat?") == ["whole"]


def test_a_cut_connection_is_resumed(open_tab: OpenTab, line: Line, model: Model) -> None:
    """Three times, without anybody doing anything; the text is the same as if nothing had happened."""
    tab = open_tab()
    ask(tab, "Is the line bad?")
    expect_answer(tab, FIRST)
    for _ in range(3):
        line.cut()
        expect(tab.get_by_role("alert")).to_have_text("The connection is lost. Trying again …")
        expect(tab.get_by_role("button", name="Stop")).to_be_visible()
        expect(tab.get_by_role("alert")).to_have_count(0)
        expect_answer(tab, FIRST)
    model.write()
    expect_answer(tab, WHOLE)
    assert model.outcomes("Is the line bad?") == ["whole"]


@pytest.mark.long
def test_an_answer_that_ends_during_a_cut_is_taken_from_the_history(
    person: BrowserContext, open_tab: OpenTab, app: Server, line: Line, model: Model
) -> None:
    """The page is told 204, and shows all of it."""
    tab = open_tab()
    ask(tab, "Will the SDK wait?")
    expect_answer(tab, FIRST)
    answers = resumes(tab)
    person.set_offline(True)
    line.cut()
    model.write()
    chat = tab.evaluate("location.hash.slice(1)")

    def is_over() -> bool:
        reply = httpx.post(f"{app.url}/v1/streams/lookup", json={"conversation_ids": [chat]})
        return reply.json()[0]["is_done"]

    wait_until(is_over, "the end of the answer")
    person.set_offline(False)
    expect_answer(tab, WHOLE)
    assert [answer.status for answer in answers] == [204]
    expect(tab.get_by_role("alert")).to_have_count(0)


def test_stop_stops_the_model_and_keeps_what_is_there(open_tab: OpenTab, model: Model) -> None:
    """In every tab, and after a reload; and the chat goes on."""
    tab = open_tab()
    ask(tab, "Stop?")
    expect_answer(tab, FIRST)
    other = open_tab(address(tab))
    expect_answer(other, FIRST)
    tab.get_by_role("button", name="Stop").click()
    wait_until(lambda: model.outcomes("Stop?") == ["abandoned"], "the end of the model's work")
    for each in (tab, other):
        expect(each.get_by_role("button", name="Send")).to_be_visible()
        expect(each.get_by_role("alert")).to_have_count(0)
        expect_answer(each, FIRST)
    answers = resumes(tab)
    tab.reload()
    expect_answer(tab, FIRST)
    wait_in(tab, lambda: len(answers) == 1, "the request for the live stream")
    assert answers[0].status == 204
    ask(tab, "And now?")
    expect_answer(tab, FIRST, number=1)
    model.write()
    expect_answer(tab, WHOLE, number=1)


def test_a_failure_is_shown(open_tab: OpenTab) -> None:
    """The page says so, and does not try again."""
    tab = open_tab()
    ask(tab, "Fail.")
    expect(tab.get_by_role("alert")).to_have_text("The answer could not be completed.")
    expect(tab.get_by_role("button", name="Send")).to_be_visible()
