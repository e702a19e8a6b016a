"""The `openai` SDK for Python, as it is: it does not resume by itself, so the caller asks again."""

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import httpx_sse
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.clients.lines import Line, open_line
from tests.support.server import Server

REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Count"}]}


def sdk(line: Line) -> openai.OpenAI:
    """The SDK at the end of a line; without retries of its own, which are slow, and only for what was not answered."""
    return openai.OpenAI(api_key="none", base_url=f"{line.url}/v1", timeout=60, max_retries=0)


def chunks(client: openai.OpenAI, key: str, pause: float = 1.0, **request: Any) -> Iterator[ChatCompletionChunk]:
    headers = {"X-Conversation-Id": key, "Idempotency-Key": key}
    seen = 0
    while True:
        try:
            stream = client.chat.completions.create(**request, stream=True, extra_headers=headers)
            for number, chunk in enumerate(stream):
                if number == seen:
                    seen += 1
                    yield chunk
        except openai.APIConnectionError:
            time.sleep(pause)
        else:
            return


def chunks_by_id(client: openai.OpenAI, key: str, pause: float = 1.0, **request: Any) -> Iterator[ChatCompletionChunk]:
    headers = {"X-Conversation-Id": key, "Idempotency-Key": key}
    create = client.chat.completions.with_streaming_response.create
    while True:
        try:
            with create(**request, stream=True, extra_headers=headers) as response:
                for event in httpx_sse.EventSource(response.http_response).iter_sse():
                    if event.data == "[DONE]":
                        return
                    if event.event != "message":
                        raise RuntimeError(event.data)
                    headers["Last-Event-ID"] = event.id
                    yield ChatCompletionChunk.model_validate_json(event.data)
        except (openai.APIConnectionError, httpx2.TransportError):
            time.sleep(pause)


# The first of them reads the answer from its start each time, so the count of its cuts is squared.
@pytest.mark.parametrize(("loop", "most", "cuts"), [(chunks, 50_000, 50), (chunks_by_id, 3000, 200)])
def test_the_openai_sdk_gets_all_over_many_cuts(server: Server, loop: Any, most: int, cuts: int) -> None:
    """The answer is generated once, whichever way the caller asks for the rest of it."""
    line = open_line(server, cuts=cuts, most=most, heads=True)
    with sdk(line) as client:
        received = [chunk.choices[0].delta.content for chunk in loop(client, line.name, 0, **REQUEST)]
    line.check(received, cuts=cuts)


@pytest.mark.parametrize(("end", "code"), [("fail", "producer_failed"), ("stop", "cancelled")])
def test_the_openai_sdk_raises_on_a_failure_and_on_a_stop(server: Server, end: str, code: str) -> None:
    """An `APIError`, which is not one of the connection."""
    line = open_line(server, cuts=5, end=end, most=5000)
    received: list[str] = []
    with sdk(line) as client, pytest.raises(openai.APIError) as caught:
        received.extend(chunk.choices[0].delta.content for chunk in chunks(client, line.name, 0, **REQUEST))
    line.check(received, cuts=5)
    assert (caught.value.code, isinstance(caught.value, openai.APIConnectionError)) == (code, False)
