"""`ResumableTransport`, below clients that know nothing of it: httpx itself, and the OpenAI SDK."""

import asyncio
import json
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2
import openai
import pytest
from packaging.version import Version

from fastapi_resumable.client import AsyncResumableTransport, Backoff, ResumableTransport
from tests.support.apps.player import Step, fail, forever, numbered, script_body, send, sends, unique, wait
from tests.support.cutting import CuttingProxy
from tests.support.faults import FaultyLink
from tests.support.params import representatives
from tests.support.server import Server, serve
from tests.support.ssemodel import payloads, without_ids

from .conftest import JSON, Stage

TIMEOUT = 30
WORDS = [f"Käse {number} 😀 " for number in range(150)]
DONE = b"data: [DONE]\n\n"
MODULES = [httpx, httpx2] if Version(openai.__version__) >= Version("3") else [httpx]
"""What the SDK takes clients of."""


def completion(text: str) -> bytes:
    """One chunk of a chat completion, as the OpenAI API sends it."""
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def answer(*steps: Step) -> list[Step]:
    return [*sends(*map(completion, WORDS)), *steps, send(DONE)]


def sdk(port: int, transport: Any, module: ModuleType = httpx) -> openai.OpenAI:
    """The SDK, as its documentation has it; an error of a connection is not retried by itself."""
    return openai.OpenAI(
        api_key="none",
        base_url=f"http://127.0.0.1:{port}/v1",
        max_retries=0,
        http_client=module.Client(transport=transport, timeout=TIMEOUT),
    )


def ask(client: Any, model: str) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}], stream=True)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_openai_sdk_sees_nothing_of_200_cuts(
    server: Server, stage: Stage, backoff: Backoff, module: ModuleType
) -> None:
    """The caller's loop is the one of the SDK's documentation; the endpoint runs once."""
    model = stage.prepare(*answer())
    with CuttingProxy(server.port, seed=1, cuts=200, most=250) as line:
        transport = ResumableTransport(module.HTTPTransport(), backoff=backoff)
        with sdk(line.port, transport, module) as client:
            assert [chunk.choices[0].delta.content for chunk in ask(client, model)] == WORDS
        assert line.cuts > 100
    assert stage.until(f"ended:{model}").count(f"called:{model}") == 1


@pytest.mark.parametrize(
    "module", representatives(MODULES, lambda module: module is MODULES[-1]), ids=lambda module: module.__name__
)
async def test_nor_does_the_asynchronous_one(
    server: Server, stage: Stage, backoff: Backoff, module: ModuleType
) -> None:
    """With heads cut off as well."""
    model = stage.prepare(*answer())
    with CuttingProxy(server.port, seed=2, cuts=200, most=800, heads=True) as line:
        transport = AsyncResumableTransport(module.AsyncHTTPTransport(), backoff=backoff)
        async with openai.AsyncOpenAI(
            api_key="none",
            base_url=f"http://127.0.0.1:{line.port}/v1",
            max_retries=0,
            http_client=module.AsyncClient(transport=transport, timeout=TIMEOUT),
        ) as client:
            stream = await ask(client, model)
            assert [chunk.choices[0].delta.content async for chunk in stream] == WORDS
        assert line.cuts > 50
    assert stage.until(f"ended:{model}").count(f"called:{model}") == 1


def test_the_bytes_are_those_of_the_log(server: Server, backoff: Backoff) -> None:
    """Any client of httpx gets one seamless body, with the headers of the first answer."""
    with (
        CuttingProxy(server.port, seed=3, cuts=50, most=100) as line,
        httpx.Client(transport=ResumableTransport(backoff=backoff), timeout=TIMEOUT) as http,
    ):
        headers = {**JSON, "X-Conversation-Id": unique("seamless")}
        url = f"http://127.0.0.1:{line.port}/script"
        response = http.post(url, content=script_body(numbered(40, 100)), headers=headers)
        assert line.spent
        replay = http.get(httpx.URL(url).join(response.headers["content-location"]))
        assert response.content == replay.content
        rest = http.get(replay.url, params={"from": 1000})
        assert rest.content == replay.content[1000:]
        after = http.get(replay.url, headers={"Last-Event-ID": f"{response.headers['x-stream-epoch']}-0"})
        assert after.content == replay.content
    assert len(payloads(response.content)) == 40


def test_a_replay_from_the_middle_survives_cuts_too(server: Server, backoff: Backoff) -> None:
    """It is known where its answer begins."""
    with httpx.Client(base_url=server.url) as direct:
        headers = {**JSON, "X-Conversation-Id": unique("middle")}
        whole = direct.post("/script", content=script_body(numbered(40, 100)), headers=headers)
    with CuttingProxy(server.port, seed=4, cuts=20, most=200) as line:
        with httpx.Client(transport=ResumableTransport(backoff=backoff), timeout=TIMEOUT) as http:
            url = httpx.URL(f"http://127.0.0.1:{line.port}").join(whole.headers["content-location"])
            assert http.get(url, params={"from": 777}).content == whole.content[777:]
        assert line.cuts > 5


@pytest.mark.parametrize(
    ("path", "kept", "place"),
    [
        ("/v1/stream/a/b", "/v1/stream/a/b", 2),
        ("/api/v1/stream/a/b", "/v1/stream/a/b", 2),
        ("/v1/stream/a/b?conv_id=x", "/v1/stream/a/b", 2),
        ("/v1/stream?conv_id=a/b", "/v1/stream/a/b", 2),
        ("/v1/stream?conv_id=x&conv_id=a/b", "/v1/stream/a/b", 2),
        ("/export", "/v1/stream/a/b", None),
        ("/a/b", "/v1/stream/a/b", None),
        *[
            (path, f"/v1/stream?conv_id={stream_id}", 2)
            for stream_id in ("a%2F%2Fb", "%2Fa", "a%2F", "a%2F..%2Fb")
            for path in (f"/v1/stream/{stream_id}", f"/api/v1/stream?conv_id={stream_id}")
        ],
        ("/v1/stream/b", "/v1/stream?conv_id=a%2F%2Fb", None),
    ],
)
def test_only_the_from_of_a_replay_is_a_place_in_the_stream(
    path: str, kept: str, place: int | None, backoff: Backoff
) -> None:
    """Of another path it may be the application's own, or the replay's behind a proxy: a cut is an error."""
    asked: list[str] = []

    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"abc"
            raise httpx.ReadError("the connection broke")

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"Content-Location": kept, "X-Stream-Epoch": "mfrggzdfmztwq2lk"}
        if request.method == "HEAD":
            return httpx.Response(200, headers={**headers, "X-Stream-Status": "completed"})
        asked.append(request.url.params["from"])
        return httpx.Response(200, headers=headers, stream=Cut()) if len(asked) == 1 else httpx.Response(404)

    transport = ResumableTransport(httpx.MockTransport(answer), backoff=backoff)
    error = "404" if place else "the connection broke"
    with httpx.Client(transport=transport) as http, pytest.raises(httpx.ReadError, match=error):
        http.get(f"http://server{path}", params=[*httpx.URL(path).params.multi_items(), ("from", "2")])
    assert asked == ["2", *([str(place + 3)] if place else [])]


@pytest.mark.parametrize("place", ["starting_after", "lastEventId", "last_event_id", "startIndex"])
def test_a_replay_from_an_event_is_never_gone_on_with_at_a_wrong_place(place: str) -> None:
    """It is not known at which offset its answer begins, so that a cut is an error, as without the transport."""
    asked: list[httpx.URL] = []

    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"data: 3\n\n"
            raise httpx.ReadError("the connection broke")

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        if len(asked) > 1:
            return httpx.Response(404)
        headers = {"Content-Location": "/v1/stream/one", "X-Stream-Epoch": "mfrggzdfmztwq2lk"}
        return httpx.Response(200, headers={**headers, "Content-Type": "text/event-stream"}, stream=Cut())

    transport = ResumableTransport(httpx.MockTransport(answer), backoff=Backoff(initial=0, retries=1))
    with httpx.Client(transport=transport) as http, pytest.raises(httpx.ReadError, match="the connection broke"):
        http.get("http://server/v1/stream/one", params={place: "2"})
    assert len(asked) == 1


def test_what_asks_for_no_stream_passes_untouched(server: Server, backoff: Backoff) -> None:
    """No header is added, and a cut is an error, as ever."""
    sent: list[httpx.Request] = []

    class Watched(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(request)
            return super().handle_request(request)

    with httpx.Client(transport=ResumableTransport(Watched(), backoff=backoff), base_url=server.url) as http:
        plain = http.post("/script", content=script_body(*sends(b"data: 1\n\n")), headers=JSON)
        assert plain.text == "data: 1\n\n"
        assert "x-conversation-id" not in sent[0].headers
        assert http.get("/v1/stream/unknown").status_code == 404
        assert http.head("/v1/stream/unknown").status_code == 404
        cut = (httpx.RemoteProtocolError, httpx.ReadError)
        with CuttingProxy(server.port, cuts=1, most=5) as line, pytest.raises(cut):
            http.post(f"http://127.0.0.1:{line.port}/script", content=script_body(numbered(9, 99)), headers=JSON)


def test_requests_that_ask_for_a_stream_are_named(server: Server, backoff: Backoff) -> None:
    """By `Accept`, or as the APIs of language models have it; or as the caller says."""
    with httpx.Client(transport=ResumableTransport(backoff=backoff), base_url=server.url) as http:
        accepting = {**JSON, "Accept": "text/event-stream"}
        body = script_body(*sends(b"data: 1\n\n"))
        answers = [http.post("/script", content=body, headers=accepting) for _ in range(2)]
        assert len({answer.headers["x-conversation-id"] for answer in answers}) == 2
        assert "x-conversation-id" not in http.post("/asks", json={"steps": [], "stream": 1}).headers
        assert "x-conversation-id" in http.post("/asks", json={"steps": [], "stream": True}).headers
        assert "x-conversation-id" not in http.post("/script", content=b"no JSON").headers
        assert "x-conversation-id" not in http.get("/events", headers=accepting).headers
    named = ResumableTransport(
        backoff=backoff, read_timeout=None, stream_id=lambda request: request.url.path.strip("/")
    )
    with httpx.Client(transport=named, base_url=server.url) as http:
        assert http.post("/script", content=body, headers=JSON).headers["x-conversation-id"] == "script"
    unnamed = ResumableTransport(backoff=backoff, stream_id=None)
    with httpx.Client(transport=unnamed, base_url=server.url) as http:
        assert "x-conversation-id" not in http.post("/script", content=body, headers=accepting).headers


def test_a_stream_that_the_server_has_named_is_resumed(backoff: Backoff) -> None:
    """With `auto_id` every answer can be."""
    with (
        serve("tests.support.apps.scripted:app", options={"auto_id": True}) as server,
        CuttingProxy(server.port, seed=5, cuts=20, most=200) as line,
        httpx.Client(transport=ResumableTransport(backoff=backoff), timeout=TIMEOUT) as http,
    ):
        url = f"http://127.0.0.1:{line.port}/script"
        answer = http.post(url, content=script_body(numbered(20, 100)), headers={**JSON, "Accept-Encoding": "identity"})
        assert line.spent
        assert len(payloads(answer.content)) == 20


def test_a_refusal_reaches_the_caller_as_it_is(server: Server, stage: Stage, backoff: Backoff) -> None:
    """The SDK makes of it what it always does."""
    model = unique("refused")
    httpx.post(
        f"{server.url}/prepare/{model}", content=script_body(before=[["http_error", 429]]), headers=JSON
    ).raise_for_status()
    with sdk(server.port, ResumableTransport(backoff=backoff)) as client, pytest.raises(openai.RateLimitError):
        ask(client, model)


def test_a_failure_in_mid_stream_is_an_error_of_the_api(server: Server, stage: Stage, backoff: Backoff) -> None:
    """The terminal event comes through as any other."""
    model = stage.prepare(send(completion("one")), fail())
    with sdk(server.port, ResumableTransport(backoff=backoff)) as client, pytest.raises(openai.APIError) as caught:
        list(ask(client, model))
    assert caught.value.code == "producer_failed"


LOST = (openai.APIConnectionError, httpx.TransportError)
"""What the SDK raises in mid-stream; older ones let the transport's own error through."""


def below(error: BaseException) -> BaseException | None:
    """The error of the transport."""
    return error.__cause__ if isinstance(error, openai.APIConnectionError) else error


def test_what_cannot_be_mended_is_an_error_of_the_connection(server: Server, stage: Stage) -> None:
    """As the SDK would have seen it without the transport: no server, and a stream that is gone."""
    few = Backoff(initial=0.001, retries=2)
    model = stage.prepare(send(completion("one")), forever())
    with FaultyLink(server.port) as link, sdk(link.port, ResumableTransport(backoff=few)) as client:
        stream = ask(client, model)
        assert next(stream).choices[0].delta.content == "one"
        link.refuse()
        with pytest.raises(LOST) as caught:
            next(stream)
        assert isinstance(below(caught.value), httpx.ConnectError)
        with pytest.raises(openai.APIConnectionError):
            ask(client, model)
        link.accept()
        stream = ask(client, model)
        assert next(stream).choices[0].delta.content == "one"
        link.cut()
        location = stream.response.headers["content-location"]
        assert httpx.delete(httpx.URL(server.url).join(location)).status_code == 204
        with pytest.raises(LOST) as caught:
            next(stream)
        assert "stream_not_found" in str(below(caught.value))


def lookup(server: Server, stream_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = httpx.post(
        f"{server.url}/v1/streams/lookup", json={"conversation_ids": [stream_id]}
    ).json()
    return items


def test_closing_early_detaches(server: Server, stage: Stage, backoff: Backoff) -> None:
    """By default: the endpoint goes on."""
    gate = unique("gate")
    model = stage.prepare(send(completion("one")), wait(gate), send(DONE))
    with sdk(server.port, ResumableTransport(backoff=backoff)) as client, ask(client, model) as stream:
        next(stream)
        stream_id = stream.response.headers["x-conversation-id"]
    assert [item["status"] for item in lookup(server, stream_id)] == ["in_progress"]
    stage.open(gate)


def test_closing_early_stops_if_it_is_to(server: Server, stage: Stage, backoff: Backoff) -> None:
    """And `[DONE]` is not early, although the SDK does not read on."""
    transport = ResumableTransport(backoff=backoff, on_close="stop")
    with sdk(server.port, transport) as client:
        with ask(client, stage.prepare(send(completion("one")), forever())) as stream:
            next(stream)
        assert lookup(server, stream.response.headers["x-conversation-id"]) == []
        gate = unique("gate")
        stream = ask(client, stage.prepare(send(completion("one")), send(DONE), wait(gate)))
        assert len(list(stream)) == 1
        assert len(lookup(server, stream.response.headers["x-conversation-id"])) == 1
        stage.open(gate)
        whole = ask(client, stage.prepare(*answer()))
        assert len(list(whole)) == len(WORDS)
        assert len(lookup(server, whole.response.headers["x-conversation-id"])) == 1


async def test_a_caller_that_is_cancelled_stops_the_stream_if_it_is_to(
    server: Server, stage: Stage, backoff: Backoff
) -> None:
    """The request for it is made under the cancellation."""
    model = stage.prepare(send(completion("one")), forever())
    transport = AsyncResumableTransport(backoff=backoff, on_close="stop")
    ids: list[str] = []
    begun = asyncio.Event()

    async def consume(http: httpx.AsyncClient) -> None:
        body = {"model": model, "stream": True}
        async with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            ids.append(response.headers["x-conversation-id"])
            async for _ in response.aiter_bytes():
                begun.set()

    async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http:
        task = asyncio.ensure_future(consume(http))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lookup(server, ids[0]) == []


def test_a_stop_that_does_not_get_through_is_logged(
    server: Server, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing a response does not fail."""
    transport = ResumableTransport(backoff=Backoff(initial=0.001), on_close="stop")
    model = stage.prepare(send(completion("one")), forever())
    with FaultyLink(server.port) as link, sdk(link.port, transport) as client, ask(client, model) as stream:
        next(stream)
        link.refuse()
        with caplog.at_level(logging.WARNING, "fastapi_resumable"):
            stream.close()
    assert "could not be stopped" in caplog.text


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_hung_connection_is_noticed(server: Server, stage: Stage, backoff: Backoff, module: ModuleType) -> None:
    """The SDK's own read timeout of ten minutes is for the time before the stream begins."""
    gate = unique("gate")
    model = stage.prepare(send(completion("one")), wait(gate), send(completion("two")), send(DONE))
    with FaultyLink(server.port) as link:

        def free(_delay: float) -> None:
            link.release()
            stage.open(gate)

        transport = ResumableTransport(module.HTTPTransport(), backoff=backoff, read_timeout=3.0, sleep=free)
        client = openai.OpenAI(
            api_key="none", base_url=f"http://127.0.0.1:{link.port}/v1", http_client=module.Client(transport=transport)
        )
        with client:
            stream = ask(client, model)
            assert next(stream).choices[0].delta.content == "one"
            link.hold()
            assert next(stream).choices[0].delta.content == "two"
            assert list(stream) == []


def test_a_compressed_answer_is_left_alone(backoff: Backoff) -> None:
    """Its bytes are not those of the log; and where the transport may ask, it asks for none."""
    with serve("tests.support.apps.compressed:outside") as server:
        body = script_body(numbered(20, 100), media_type="text/plain")
        with httpx.Client(transport=ResumableTransport(backoff=backoff), base_url=server.url) as http:
            named = http.post("/script", content=body, headers={**JSON, "X-Conversation-Id": unique("plain")})
            assert "content-encoding" not in named.headers
            replay = http.get(named.headers["content-location"])
            assert replay.headers["content-encoding"] == "gzip"
            assert replay.content == named.content
    assert len(without_ids(named.content)) == 2000


def test_a_setting_that_is_none_is_refused() -> None:
    """With a sentence that says what to write."""
    with pytest.raises(ValueError, match="on_close must be 'detach' or 'stop'"):
        ResumableTransport(on_close="cancel")
