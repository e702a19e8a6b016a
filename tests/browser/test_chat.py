"""The example app, in a browser: an answer is neither lost nor doubled, whatever happens to its reader."""

import re
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Request, Route, expect

from tests.browser.chat import (
    FIRST,
    WHOLE,
    Model,
    ask,
    conversation,
    read_all,
    read_first,
    read_some,
    shown,
    turns,
    wait_in,
)
from tests.browser.conftest import example_app
from tests.browser.fake_openai import API_KEY, WORDS
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Page]


def requests_of(tab: Page, pattern: str) -> list[Request]:
    """The requests that a tab makes from now on, as a list that grows."""
    made: list[Request] = []
    tab.on("request", lambda request: made.append(request) if re.search(pattern, request.url) else None)
    return made


def test_an_answer_streams_in_and_ends_whole(open_tab: OpenTab, model: Model) -> None:
    """The spinner, the Stop button and the caret are there while the answer grows, and gone at its end."""
    tab = open_tab()
    ask(tab, "Are you there?")
    read_first(tab)
    expect(tab.locator(".conversations .spinner")).to_have_count(1)
    expect(tab.locator("#stop")).to_be_visible()
    expect(tab.locator("#send")).to_be_hidden()
    model.write()
    assert read_all(tab) == WHOLE
    expect(tab.locator(".conversations .spinner")).to_have_count(0)
    expect(tab.locator("#send")).to_be_visible()
    expect(tab.locator("#status")).to_have_text("The answer is complete, over one connection.")


def test_a_reload_in_mid_answer_goes_on_from_the_same_byte(open_tab: OpenTab, model: Model) -> None:
    """The text equals the uninterrupted one; the tab asked only for what it had not seen, the model was asked once."""
    tab = open_tab()
    ask(tab, "Does a reload matter?")
    read_first(tab)
    made = requests_of(tab, r"/v1/(chat|stream/)")
    tab.reload()
    expect(tab.locator("#line-label")).to_have_text("Live")
    read_first(tab)
    assert [request.method for request in made] == ["GET"]
    assert re.fullmatch(r"[a-z2-7]{16}-[1-9][0-9]+", made[0].header_value("Last-Event-ID") or "")
    model.write()
    assert read_all(tab) == WHOLE
    told = model.journal("Does a reload matter?")
    assert [(one["body"]["model"], one["body"]["stream"], one["outcome"]) for one in told] == [
        ("fake-model", True, "whole")
    ]


@pytest.mark.long
def test_what_is_written_during_a_reload_is_there_after_it(open_tab: OpenTab, model: Model) -> None:
    """The page is somewhere else while the model writes to the end; nothing is lost, nothing comes twice."""
    tab = open_tab()
    ask(tab, "And while I am away?")
    read_first(tab)
    address = tab.url
    tab.goto("about:blank")
    model.write(20)
    tab.goto(address)
    so_far = read_some(tab, len(FIRST) + 1)
    assert WHOLE.startswith(so_far)
    model.write()
    assert read_all(tab) == WHOLE


@pytest.mark.long
def test_two_tabs_follow_the_same_answer(open_tab: OpenTab, model: Model) -> None:
    """A second tab on the conversation gets all of the one answer that is being written."""
    first = open_tab()
    ask(first, "Can two read?")
    read_first(first)
    second = open_tab(f"/#{conversation(first)}")
    read_first(second)
    model.write()
    assert read_all(second) == WHOLE
    assert read_all(first) == WHOLE
    assert model.outcomes("Can two read?") == ["whole"]


def test_a_tab_beside_it_sees_the_next_question_at_once(open_tab: OpenTab, model: Model) -> None:
    """Two tabs show one conversation; what is asked in one is answered in both."""
    first = open_tab()
    ask(first, "One")
    read_first(first)
    model.write()
    read_all(first)
    second = open_tab(f"/#{conversation(first)}")
    expect(second.locator(".answer")).to_have_count(1)
    ask(first, "And two?")
    expect(second.locator(".question-text").last).to_have_text("And two?")
    expect(second.locator(".answer.writing")).to_be_visible()
    read_first(second)
    model.write()
    assert read_all(second) == WHOLE
    assert read_all(first) == WHOLE
    asked = model.journal("And two?")[0]["body"]["messages"]
    assert [(message["role"], message["content"]) for message in asked] == [
        ("user", "One"),
        ("assistant", WHOLE),
        ("user", "And two?"),
    ]


def test_stop_really_stops(open_tab: OpenTab, app: Server, model: Model) -> None:
    """The connection to the model is closed, all tabs learn of it, and what there was of the answer is kept."""
    tab = open_tab()
    ask(tab, "Will you stop?")
    read_first(tab)
    other = open_tab(f"/#{conversation(tab)}")
    read_first(other)
    tab.locator("#stop").click()
    expect(tab.locator(".answer-note")).to_contain_text("Stopped")
    expect(other.locator(".answer-note")).to_contain_text("Stopped")
    wait_until(lambda: model.outcomes("Will you stop?") == ["abandoned"], "the model to be told")
    assert httpx.get(f"{app.url}/v1/stream/{conversation(tab)}").status_code == 404
    wait_until(lambda: turns(app, conversation(tab))[0]["status"] == "cancelled", "the answer to be kept")
    tab.reload()
    expect(tab.locator(".answer-note")).to_contain_text("Stopped")
    assert shown(tab) == FIRST


def test_a_cut_connection_recovers_by_itself(open_tab: OpenTab, model: Model) -> None:
    """One sees the cut; then the tab is back at the byte where it was, and catches up what was written meanwhile."""
    tab = open_tab()
    made = requests_of(tab, r"/v1/(chat|stream/)")
    broken: list[str] = []
    tab.on("requestfailed", lambda request: broken.append(request.method))
    ask(tab, "What if the line is cut?")
    read_first(tab)
    held: list[Route] = []
    passing: list[bool] = []
    tab.route("**/v1/stream/**", lambda route: route.continue_() if passing else held.append(route))
    tab.locator("#cut").click()
    expect(tab.locator("#line-label")).to_have_text("Cut off")
    expect(tab.locator("#status")).to_contain_text("Cut off at byte")
    wait_in(tab, lambda: broken == ["POST"], "the browser to say that the request has failed")
    model.write(20)
    wait_in(tab, lambda: len(held) > 0, "the tab to come back")
    passing.append(True)
    for route in held:
        route.continue_()
    expect(tab.locator("#line-label")).to_have_text("Live")
    expect(tab.locator("#status")).to_contain_text("nothing lost, nothing twice")
    expect(tab.locator(".seam + .caught")).to_have_text(re.compile(rf"^{re.escape(WORDS[10].strip())}"))
    model.write()
    assert read_all(tab) == WHOLE
    assert [request.method for request in made][:2] == ["POST", "GET"]
    assert made[1].header_value("Last-Event-ID")
    assert model.outcomes("What if the line is cut?") == ["whole"]


@pytest.mark.long
def test_a_stop_while_the_connection_is_cut_stops(open_tab: OpenTab, app: Server, model: Model) -> None:
    """The tab that comes back finds its stream gone, and shows what was kept of the answer."""
    tab = open_tab()
    ask(tab, "Can I stop without a line?")
    read_first(tab)
    tab.locator("#cut").click()
    expect(tab.locator("#line-label")).to_have_text("Cut off")
    tab.locator("#stop").click()
    expect(tab.locator(".answer-note")).to_contain_text("Stopped")
    assert shown(tab) == FIRST
    assert turns(app, conversation(tab))[0]["answer"] == FIRST
    wait_until(lambda: model.outcomes("Can I stop without a line?") == ["abandoned"], "the model to be told")


def test_a_closed_tab_can_be_opened_again(open_tab: OpenTab, model: Model) -> None:
    """The conversation is in the sidebar, its spinner turns, and its answer has not missed a word."""
    tab = open_tab()
    ask(tab, "Is it there when I come back?")
    read_first(tab)
    tab.close()
    model.write(20)
    again = open_tab()
    link = again.locator(".conversations a", has_text="Is it there when I come back?")
    expect(link.locator(".spinner")).to_be_visible()
    link.click()
    read_some(again, len(FIRST) + 1)
    model.write()
    assert read_all(again) == WHOLE
    expect(again.locator(".conversations .spinner")).to_have_count(0)


@pytest.mark.long
def test_who_comes_back_too_late_for_the_head_follows_the_rest(person: BrowserContext, model: Model) -> None:
    """When the log has dropped the beginning, a new tab reads on from the earliest byte there is."""
    env = {
        "OPENAI_BASE_URL": f"{model.url}/v1",
        "OPENAI_API_KEY": API_KEY,
        "FASTAPI_RESUMABLE_MAX_STREAM_BYTES": "4096",
    }
    with example_app(env) as app:
        tab = person.new_page()
        tab.goto(app.url)
        ask(tab, "What is left?")
        read_first(tab)
        address = conversation(tab)
        tab.close()
        model.write(len(WORDS) - 15)

        def head_is_gone() -> bool:
            reply = httpx.post(f"{app.url}/v1/streams/lookup", json={"conversation_ids": [address]})
            return reply.json()[0]["dropped_bytes"] > 0

        wait_until(head_is_gone, "the log to drop its head")
        again = person.new_page()
        again.goto(f"{app.url}/#{address}")
        read_some(again, 1)
        model.write()
        rest = read_all(again)
        assert len(WORDS[-1]) < len(rest) < len(WHOLE)
        assert WHOLE.endswith(rest)


def test_a_bookmark_of_an_earlier_epoch_is_not_misread(open_tab: OpenTab, model: Model) -> None:
    """409 `stream_replaced`: the tab forgets its place, and reads the answer from its start."""
    tab = open_tab()
    ask(tab, "Where was I?")
    read_first(tab)
    tab.evaluate(
        """(id) => addEventListener("pagehide", () => {
            const key = `resumable:${id}`;
            const kept = JSON.parse(sessionStorage.getItem(key));
            const saved = { ...kept.saved, text: "not this" };
            const elsewhere = { ...kept, saved, epoch: "a".repeat(16), offset: 7, eventId: `${"a".repeat(16)}-7` };
            sessionStorage.setItem(key, JSON.stringify(elsewhere));
        })""",
        conversation(tab),
    )
    refused: list[int] = []
    tab.on("response", lambda response: refused.append(response.status) if response.status >= 400 else None)
    tab.reload()
    expect(tab.locator("#line-label")).to_have_text("Live")
    read_first(tab)
    model.write()
    assert read_all(tab) == WHOLE
    assert refused == [409]


def test_a_question_that_never_arrived_is_asked_again_once(open_tab: OpenTab, app: Server, model: Model) -> None:
    """A reload overtakes the question; the tab sends it again under the same idempotency key."""
    tab = open_tab()
    tab.route("**/v1/chat/completions", lambda route: route.abort())
    ask(tab, "Did you hear me?")
    expect(tab.locator("#line-label")).to_have_text("Cut off")
    tab.unroute("**/v1/chat/completions")
    tab.reload()
    read_first(tab)
    model.write()
    assert read_all(tab) == WHOLE
    expect(tab.locator(".question")).to_have_count(1)
    assert [turn["question"] for turn in turns(app, conversation(tab))] == ["Did you hear me?"]
    assert model.outcomes("Did you hear me?") == ["whole"]


@pytest.mark.long
def test_leaving_a_conversation_and_coming_back_loses_nothing(open_tab: OpenTab, model: Model) -> None:
    """Two answers are written at a time; the tab follows the one that it shows, and both end whole."""
    tab = open_tab()
    ask(tab, "One of two")
    read_first(tab)
    tab.locator("#new").click()
    expect(tab.locator("#welcome")).to_be_visible()
    ask(tab, "Two of two")
    read_first(tab)
    expect(tab.locator(".conversations .spinner")).to_have_count(2)
    model.write(20)
    tab.locator(".conversations a", has_text="One of two").click()
    expect(tab.locator(".question-text")).to_have_text("One of two")
    read_some(tab, len(FIRST) + 1)
    model.write()
    assert read_all(tab) == WHOLE
    tab.locator(".conversations a", has_text="Two of two").click()
    expect(tab.locator(".question-text")).to_have_text("Two of two")
    assert read_all(tab) == WHOLE


@pytest.mark.long
def test_spinners_come_from_one_lookup(open_tab: OpenTab) -> None:
    """On load, and when the tab is looked at again, one request asks for all conversations."""
    tab = open_tab()
    for question in ("First of the spinners", "Second of the spinners"):
        tab.locator("#new").click()
        ask(tab, question)
        read_first(tab)
    tab.close()

    again = open_tab("/eventsource.html")
    lookups = requests_of(again, "/v1/streams/lookup")
    again.goto(again.url.replace("/eventsource.html", "/"))
    expect(again.locator(".conversations .spinner")).to_have_count(2)
    assert len(lookups) == 1
    assert len(lookups[0].post_data_json["conversation_ids"]) == 2
    with again.expect_request("**/v1/streams/lookup"):
        again.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_text_is_never_taken_for_html(open_tab: OpenTab, model: Model) -> None:
    """Markup is shown as it was written, in the question, the answer, the sidebar and the title."""
    markup = "<img src=x onerror=\"document.body.textContent='broken'\"><b>bold</b>"
    tab = open_tab()
    ask(tab, markup)
    read_first(tab)
    expect(tab.locator(".question-text")).to_have_text(markup)
    expect(tab.locator(".conversation-title")).to_have_text(markup[:80])
    expect(tab.locator("h1")).to_have_text(markup[:80])
    model.write()
    assert read_all(tab) == WHOLE
    tab.reload()
    assert read_all(tab) == WHOLE
    expect(tab.locator("main b, #sidebar b, main img")).to_have_count(0)


@pytest.mark.long
def test_a_deleted_conversation_is_gone(open_tab: OpenTab, app: Server, model: Model) -> None:
    """Deleting stops the answer, too."""
    tab = open_tab()
    ask(tab, "Can you forget?")
    read_first(tab)
    address = conversation(tab)
    tab.locator("#forget").click()
    expect(tab.locator("#welcome")).to_be_visible()
    expect(tab.locator(".conversations a")).to_have_count(0)
    assert httpx.get(f"{app.url}/v1/stream/{address}").status_code == 404
    assert turns(app, address) == []
    wait_until(lambda: model.outcomes("Can you forget?") == ["abandoned"], "the model to be told")


def test_the_chat_works_by_keyboard_on_a_phone(open_tab: OpenTab) -> None:
    """On a narrow screen nothing is cut off, and the sidebar opens and closes by keyboard."""
    tab = open_tab()
    tab.set_viewport_size({"width": 360, "height": 640})
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    expect(tab.locator("#sidebar")).to_be_hidden()
    tab.locator("#menu").press("Enter")
    expect(tab.locator("#new")).to_be_focused()
    tab.keyboard.press("Escape")
    expect(tab.locator("#sidebar")).to_be_hidden()
    expect(tab.locator("#menu")).to_be_focused()
    ask(tab, "Does it work without a mouse?")
    read_first(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tab.keyboard.press("Tab")
    expect(tab.locator("#stop")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.locator(".answer-note")).to_contain_text("Stopped")
    expect(tab.locator("#question")).to_be_focused()
