"""Anthropic's SDK with our transport below it, and LangGraph's as it is, over lines that are cut at seeded bytes."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest

from fastapi_resumable.client import AsyncResumableTransport, Backoff, ResumableTransport
from tests.clients.lines import SEED
from tests.support.apps.player import unique
from tests.support.apps.vendors import WORDS
from tests.support.cutting import CuttingProxy
from tests.support.server import Server, serve

BACKOFF = Backoff(initial=0.001, maximum=0.002, retries=None)
QUESTION: dict[str, Any] = {"max_tokens": 10, "messages": [{"role": "user", "content": "Why?"}]}


@pytest.fixture(scope="module")
def vendors() -> Iterator[Server]:
    with serve("tests.support.apps.vendors:app") as running:
        yield running


def runs(server: Server, name: str) -> int:
    """How often an endpoint has run for it."""
    found: list[str] = httpx.get(f"{server.url}/runs").json()
    return found.count(name)


def claude(port: int) -> Any:
    import anthropic  # takes a second, which those who do not run this file need not wait

    http = httpx2.Client(transport=ResumableTransport(backoff=BACKOFF))
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="none", max_retries=0, http_client=http)


def test_the_anthropic_sdk_sees_nothing_of_100_cuts(vendors: Server) -> None:
    """Its own loop, unchanged; the endpoint runs once."""
    model = unique("claude")
    with (
        CuttingProxy(vendors.port, seed=SEED, cuts=100, most=400, heads=True) as line,
        claude(line.port) as client,
        client.messages.stream(model=model, **QUESTION) as stream,
    ):
        assert list(stream.text_stream) == WORDS
        assert line.spent
    assert runs(vendors, model) == 1


async def test_nor_does_the_asynchronous_one(vendors: Server) -> None:
    """The same, with `await`."""
    import anthropic

    model = unique("claude")
    with CuttingProxy(vendors.port, seed=SEED, cuts=100, most=400) as line:
        http = httpx2.AsyncClient(transport=AsyncResumableTransport(backoff=BACKOFF))
        url = f"http://127.0.0.1:{line.port}"
        async with (
            anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, http_client=http) as client,
            client.messages.stream(model=model, **QUESTION) as stream,
        ):
            assert [text async for text in stream.text_stream] == WORDS
        assert line.spent
    assert runs(vendors, model) == 1


def test_a_failure_is_an_error_of_the_anthropic_api(vendors: Server) -> None:
    """After all that came before it."""
    import anthropic

    received: list[str] = []
    with (
        claude(vendors.port) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(model="failing", **QUESTION) as stream,
    ):
        received.extend(stream.text_stream)
    assert received == WORDS
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "api_error"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the SDK's back-off of seconds waits for nothing that is tested here."""
    monkeypatch.setattr("langgraph_sdk._sync.http._reconnect_delay", lambda *_, **__: 0.001)
    monkeypatch.setattr("langgraph_sdk._async.http._reconnect_delay", lambda *_, **__: 0.001)


@pytest.mark.usefixtures("impatient")
def test_the_langgraph_sdk_resumes_by_itself(vendors: Server) -> None:
    """Where the answer has a `Location`; the run is one."""
    import langgraph_sdk

    thread = unique("thread")
    with CuttingProxy(vendors.port, seed=SEED, cuts=40, least=500, most=900) as line:
        with langgraph_sdk.get_sync_client(url=f"http://127.0.0.1:{line.port}") as client:
            parts = list(client.runs.stream(thread, "agent", input={}))
        assert line.cuts > 15
    assert [part.data for part in parts if part.event == "custom"] == WORDS
    assert parts[-1].event == "end"
    assert runs(vendors, thread) == 1


@pytest.mark.usefixtures("impatient")
def test_so_does_the_asynchronous_langgraph_sdk(vendors: Server) -> None:
    """The same, with `await`."""
    import langgraph_sdk

    thread = unique("thread")

    async def read(port: int) -> list[Any]:
        async with langgraph_sdk.get_client(url=f"http://127.0.0.1:{port}") as client:
            return [part async for part in client.runs.stream(thread, "agent", input={})]

    with CuttingProxy(vendors.port, seed=SEED, cuts=40, least=500, most=900) as line:
        parts = asyncio.run(read(line.port))
        assert line.cuts > 15
    assert [part.data for part in parts if part.event == "custom"] == WORDS
    assert runs(vendors, thread) == 1
