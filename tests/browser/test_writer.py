"""The example app as it comes: with its built-in writer, at its own pace."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.chat import ask, client_of, conversation, passage, read_all, read_some, shown, turns
from tests.browser.conftest import example_app
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.browser

OpenTab = Callable[..., Page]

LONG = "Down the rabbit-hole with Alice"
SHORT = "How did the species evolve?"


@pytest.fixture(scope="module")
def app() -> Iterator[Server]:
    """The example app, with its built-in writer."""
    with example_app() as server:
        yield server


@pytest.mark.long
def test_reloads_at_any_moment_lose_nothing(open_tab: OpenTab, app: Server) -> None:
    """Some reloads while the writer writes leave the text as it was meant; it was written once."""
    tab = open_tab()
    ask(tab, SHORT)
    for _ in range(3):
        expect(tab.locator(".answer-text")).to_have_text(re.compile("^It is"))
        tab.reload()
    assert read_all(tab) == passage(SHORT)
    assert app.output.count("The writer begins") == 1


def test_stop_makes_the_writer_lay_down_the_pen(person: BrowserContext) -> None:
    """What the page shows in the end is what was written, and no more is being written."""
    # It would write for minutes: on a busy machine, its answer would otherwise be over before the click.
    with example_app({"EXAMPLE_WORDS_PER_SECOND": "4"}) as app:
        tab = person.new_page()
        tab.goto(app.url)
        ask(tab, LONG)
        read_some(tab, 20)
        tab.locator("#stop").click()
        expect(tab.locator(".answer-note")).to_contain_text("Stopped")
        wait_until(lambda: "The writer lays down" in app.output, "the writer to stop")
        written, words = re.findall(r"lays down the pen after (\d+) of (\d+) words", app.output)[-1]
        assert int(written) < int(words)
        wait_until(lambda: turns(app, conversation(tab))[0]["answer"] is not None, "the answer to be kept")
        assert turns(app, conversation(tab))[0]["answer"] == shown(tab)
        assert passage(LONG).startswith(shown(tab))


def test_the_official_client_understands_the_writer(app: Server) -> None:
    """With a stream and without, the words are the same."""
    messages = [{"role": "user", "content": SHORT}]
    with client_of(app) as client:
        whole = client.chat.completions.create(model="example", messages=messages)
        assert whole.choices[0].message.content == passage(SHORT)
        stream = client.chat.completions.create(
            model="example", messages=messages, stream=True, extra_headers={"X-Conversation-Id": "of the client"}
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == passage(SHORT)


@pytest.mark.long
def test_an_answer_outlives_the_retention_of_its_stream(person: BrowserContext) -> None:
    """Who comes back when the stream has expired reads the answer that the app has kept."""
    with example_app({"FASTAPI_RESUMABLE_RETENTION": "0", "EXAMPLE_WORDS_PER_SECOND": "300"}) as app:
        tab = person.new_page()
        tab.goto(app.url)
        ask(tab, SHORT)
        read_some(tab, 1)
        address = conversation(tab)
        tab.close()
        wait_until(lambda: turns(app, address)[0]["answer"] is not None, "the answer to be kept")
        wait_until(lambda: httpx.get(f"{app.url}/v1/stream/{address}").status_code == 404, "the stream to expire")
        again = person.new_page()
        again.goto(f"{app.url}/#{address}")
        assert read_all(again) == passage(SHORT)


def test_an_answer_that_a_shutdown_interrupts_says_so_and_is_kept(person: BrowserContext, tmp_path: Path) -> None:
    """The page keeps what it has and says why there is no more; the next server finds the same in its database."""
    env = {"EXAMPLE_DATABASE": str(tmp_path / "chat.db"), "EXAMPLE_WORDS_PER_SECOND": "4"}
    tab = person.new_page()
    with example_app(env) as app:
        tab.goto(app.url)
        ask(tab, LONG)
        read_some(tab, 20)
        address = conversation(tab)
        app.terminate()
        expect(tab.locator(".answer-note")).to_contain_text("the server went away")
        so_far = shown(tab)
        assert passage(LONG).startswith(so_far)
    with example_app(env) as app:
        assert [(turn["answer"], turn["status"]) for turn in turns(app, address)] == [(so_far, "interrupted")]
