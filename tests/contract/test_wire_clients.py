"""The wire with clients of other people's making: what they decode is what the application sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.support.apps.player import Player, fail, send, sends, unique, wait
from tests.support.rawhttp import TIMEOUT
from tests.support.server import Server, serve
from tests.support.ssemodel import parse, types

PING = b": ping\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("tests.support.apps.scripted:app", options={"ping": 0.2}) as running:
        yield running


@pytest.fixture
async def player(server: Server) -> AsyncIterator[Player]:
    async with Player(server.port) as opened:
        yield opened


@pytest.fixture
async def sdk(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key="none", base_url=f"{server.url}/v1", timeout=TIMEOUT, max_retries=0
    ) as client:
        yield client


def completion(text: str) -> bytes:
    """One chunk of a chat completion, as the OpenAI API sends it."""
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    return f"data: {json.dumps(chunk)}\n\n".encode()


async def ask(sdk: openai.AsyncOpenAI, model: str) -> openai.AsyncStream:
    return await sdk.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        extra_headers={"x-conversation-id": model},
    )


async def test_the_openai_sdk_reads_a_stream_with_ids_and_keep_alives(player: Player, sdk: openai.AsyncOpenAI) -> None:
    """Our ids, our pings, pings of the application and `retry:` do not disturb it."""
    name = unique("sdk")
    await player.prepare(
        name,
        send(completion("Good ")),
        *sends(b": ping - now\r\n\r\n", b"retry: 3000\n\n"),
        wait(name),
        send(completion("morning")),
        send(b"data: [DONE]\n\n"),
    )
    stream = await ask(sdk, name)
    watcher = await player.follow(name)
    await watcher.read_until(PING * 2)
    await player.open(name)
    words = [chunk.choices[0].delta.content async for chunk in stream]
    assert words == ["Good ", "morning"]
    body = watcher.body + await watcher.read_all()
    assert [event.id != "" for event in parse(body)] == [True, True, True]


async def test_the_openai_sdk_reads_a_plain_refusal(player: Player, sdk: openai.AsyncOpenAI) -> None:
    """An endpoint that answers 429 before its stream is what the SDK sees as that."""
    name = unique("sdk-refusal")
    await player.prepare(name, before=[["http_error", 429]])
    with pytest.raises(openai.RateLimitError):
        await ask(sdk, name)


async def curl(*arguments: str) -> tuple[int, bytes]:
    """Exit code and standard output of curl."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--no-buffer", "--max-time", str(TIMEOUT), *arguments, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT + 5):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output


async def test_curl_can_tell_a_failed_download(server: Server, player: Player) -> None:
    """It exits with 18, "partial file", when NDJSON breaks off, and with 0 for an event stream that says so itself."""
    name, events = unique("partial"), unique("events")
    await player.record(name, send(b"{}\n"), fail(), media_type="application/x-ndjson")
    assert await curl(f"{server.url}/v1/stream/{name}") == (18, b"{}\n")
    await player.record(events, send(b"data: one\n\n"), fail())
    code, body = await curl(f"{server.url}/v1/stream/{events}")
    assert (code, types(body)) == (0, ["message", "error"])


async def test_curl_reads_only_the_head_when_it_asks_for_it(server: Server, player: Player) -> None:
    """`curl --head` of a stream, finished or live, comes back at once."""
    name = unique("curl-head")
    live = await player.post(name, send(b"data: one\n\n"), wait(name))
    code, head = await curl("--head", f"{server.url}/v1/stream/{name}")
    assert code == 0
    assert head.startswith(b"HTTP/1.1 200")
    await player.open(name)
    await live.read_all()
