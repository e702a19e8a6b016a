"""The example app between an OpenAI-compatible server and the official OpenAI client."""

import httpx
import openai
import pytest
from playwright.sync_api import BrowserContext, expect

from example_app.llm import text_of
from tests.browser.chat import FIRST, WHOLE, Model, ask, client_of, conversation, turns
from tests.browser.conftest import example_app
from tests.browser.fake_openai import WORDS
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.browser


def test_a_refusal_is_shown_and_the_question_given_back(person: BrowserContext, model: Model) -> None:
    """A wrong key: the page says what the language model's server said, and nothing of it is kept."""
    with example_app({"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": "wrong"}) as app:
        tab = person.new_page()
        tab.goto(app.url)
        ask(tab, "May I?")
        expect(tab.locator(".answer-note")).to_contain_text("Incorrect API key provided")
        expect(tab.locator("#question")).to_have_value("May I?")
        assert turns(app, conversation(tab)) == []


def test_the_official_client_reads_the_endpoint_and_its_replay(app: Server, model: Model) -> None:
    """`openai.OpenAI` with an id in a header; the answer can be read again where `Content-Location` says."""
    with client_of(app) as client:
        messages = [{"role": "user", "content": "For the client"}]
        reply = client.chat.completions.with_raw_response.create(
            model="any", messages=messages, stream=True, extra_headers={"X-Conversation-Id": "of/the::client"}
        )
        text = ""
        for chunk in reply.parse():
            text += chunk.choices[0].delta.content or ""
            if text == FIRST:
                model.write()
        assert text == WHOLE
        replay = httpx.get(f"{app.url}{reply.headers['Content-Location']}")
        assert replay.text.count('"delta"') == len(WORDS)
        assert "data: [DONE]\n" in replay.text
        assert replay.headers["content-type"] == reply.headers["content-type"]


def test_the_official_client_sees_a_stop(app: Server, model: Model) -> None:
    """A stop from elsewhere raises `APIError` in the client, and reaches the language model."""
    with client_of(app) as client:
        messages = [{"role": "user", "content": "For a client that is stopped"}]
        stream = client.chat.completions.create(
            model="any", messages=messages, stream=True, extra_headers={"X-Conversation-Id": "stopped"}
        )
        text = ""
        while text != FIRST:
            text += next(stream).choices[0].delta.content or ""
        assert httpx.delete(f"{app.url}/v1/stream/stopped").status_code == 204
        with pytest.raises(openai.APIError):
            next(stream)


def test_a_client_that_wants_no_stream_gets_none(app: Server) -> None:
    """The whole answer as one JSON; it is in the conversation, too."""
    with client_of(app) as client:
        messages = [{"role": "user", "content": "At once, please"}]
        named = {"X-Conversation-Id": "at-once"}
        whole = client.chat.completions.create(model="any", messages=messages, extra_headers=named)
        assert whole.choices[0].message.content == WHOLE
    wait_until(lambda: [turn["answer"] for turn in turns(app, "at-once")] == [WHOLE], "the answer to be kept")


def test_what_a_language_model_says_beside_its_words_does_no_harm() -> None:
    """Servers send chunks without choices, without a delta, or with an error; and an answer may end in mid-chunk."""
    chunks = [
        '{"choices": [{"delta": {"role": "assistant", "content": null}}]}',
        '{"choices": [{"delta": {"content": "one "}}]}',
        '{"choices": []}',
        '{"choices": [{"finish_reason": "stop"}], "usage": null}',
        '{"error": {"message": "no"}}',
        "[1]",
        '{"choices": [{"delta": {"content": "two"}}]}',
        "[DONE]",
        '{"choices": [{"de',
    ]
    assert text_of("\n\n".join(f"data: {chunk}" for chunk in chunks).encode()) == "one two"
    assert text_of(b'{\n  "choices": [{"message": {"content": "three"}}]\n}') == "three"
    assert text_of(b"") == ""
