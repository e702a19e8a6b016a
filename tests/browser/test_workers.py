"""The chat on three workers: the page says which one writes an answer, and which one reads it to you."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.chat import ask, passage, read_first
from tests.support.demo import workers_demo

pytestmark = [pytest.mark.browser, pytest.mark.redis]


@pytest.mark.long
def test_the_page_says_which_worker_serves_it(person: BrowserContext, tmp_path: Path) -> None:
    """Whichever one reads after a reload, the writer stays the same, and the answer comes whole."""
    with workers_demo(tmp_path, words_per_second=60) as demo:
        tab = person.new_page()
        tab.goto(demo.url)
        expect(tab.locator("#workers")).to_be_hidden()
        ask(tab, "Tell me of Alice")
        workers = tab.locator("#workers")
        expect(workers).to_contain_text("Written by worker")
        writer = workers.inner_text().partition(",")[0]
        for _ in range(2):
            tab.reload()
            expect(workers).to_contain_text(f"{writer}, read through worker")
        expect(tab.locator("#line-label")).to_have_text("Complete")
        expect(tab.locator(".answer-text")).to_have_text(passage("Tell me of Alice"))


@pytest.mark.long
def test_the_page_of_a_single_worker_says_nothing(open_tab: Callable[..., Page]) -> None:
    """There is no such line where there is no choice."""
    tab = open_tab()
    ask(tab, "Which worker is this?")
    read_first(tab)
    expect(tab.locator("#workers")).to_be_hidden()
