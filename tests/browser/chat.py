"""What a person does in the chat, and sees there."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import openai
from playwright.sync_api import Locator, Page, expect

from example_app import llm
from tests.browser.fake_openai import AT_ONCE, WORDS
from tests.support.server import Server, wait_until

WHOLE = "".join(WORDS)
FIRST = "".join(WORDS[:AT_ONCE])


class Model:
    """The language model behind the example app: it writes `FIRST`, then what it is told to, `WHOLE` in the end."""

    def __init__(self, server: Server) -> None:
        self.url = server.url

    def write(self, words: int = len(WORDS)) -> None:
        """Let every answer go on by so many words; without a number, to its end."""
        httpx.post(f"{self.url}/write", params={"words": words}).raise_for_status()

    def journal(self, question: str) -> list[dict[str, Any]]:
        """The answers to a question: what exactly was asked (`body`), and the `outcome` of each."""
        return httpx.get(f"{self.url}/journal", params={"question": question}).json()

    def outcomes(self, question: str) -> list[str]:
        """How the answers to a question came out: `writing`, `whole` or `abandoned`."""
        return [answer["outcome"] for answer in self.journal(question)]


def passage(question: str) -> str:
    """What the built-in writer answers, if nobody interrupts it."""
    return llm.passage(llm.ChatRequest(messages=[llm.Message(role="user", content=question)]))


def expect_text(shown: Locator, text: str) -> None:
    """Wait until exactly that text is shown: `to_have_text` does not mind white space."""
    expect(shown).to_have_js_property("textContent", text)


def wait_in(tab: Page, condition: Callable[[], bool], what: str) -> None:
    """Look at `condition` until it holds, while what the tab tells of its requests comes in."""
    wait_until(lambda: tab.wait_for_timeout(50) is None and condition(), what)


def ask(tab: Page, question: str) -> None:
    """Type a question, and send it with the keyboard."""
    tab.locator("#question").fill(question)
    tab.locator("#question").press("Enter")


def shown(tab: Page) -> str:
    """The text of the last answer, as far as it is there."""
    return tab.locator(".answer-text").last.text_content() or ""


def read_some(tab: Page, characters: int) -> str:
    """Wait until so much of the last answer is there, and more is to come; return what is there."""
    expect(tab.locator(".writing .answer-text")).to_have_text(re.compile(rf"^[\s\S]{{{characters},}}"))
    return shown(tab)


def read_first(tab: Page) -> None:
    """Wait for all that the model writes without being told to."""
    assert read_some(tab, len(FIRST.encode("utf-16-le")) // 2) == FIRST  # JavaScript counts UTF-16


def read_all(tab: Page) -> str:
    """Wait for the end of the last answer, and return it."""
    expect(tab.locator("#turns > .answer:last-child:not(.writing)")).to_be_visible()
    return shown(tab)


def conversation(tab: Page) -> str:
    """The id of the conversation that a tab shows."""
    return tab.evaluate("location.hash.slice(1)")


def turns(app: Server, conversation: str) -> list[dict[str, str | None]]:
    """What the app has written down of a conversation."""
    return httpx.get(f"{app.url}/conversations/{conversation}").json()


def client_of(app: Server) -> openai.OpenAI:
    """The official client, pointed at the example app."""
    return openai.OpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0, timeout=60)
