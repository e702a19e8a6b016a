"""The two routes that the AI SDK asks for: the live stream from its start, and stop."""

import json
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable, body_field
from tests.support.asgi import Client, Exchange, bounded, running, until
from tests.support.life_apps import Run, Stage, make, stage

API = "/api/chat"
PROTOCOL = {"x-vercel-ai-ui-message-stream": "v1"}


def part(kind: str, **members: Any) -> str:
    """A part of a UI message stream."""
    return json.dumps({"type": kind, **members})


def parts(body: bytes) -> list[Any]:
    """What the AI SDK reads: the JSON of every `data:` line, and `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Chat(Stage):
    """A chat's backend at `POST /api/chat`, whose answers the test writes."""

    def __init__(self, *, gated: bool = False, **settings: Any) -> None:
        super().__init__(gated=gated)
        self.path = API
        self.resumable = resumable = make(**{"stream_id": body_field("id"), "terminal_event": "ai-sdk"} | settings)
        self.app.include_router(resumable.router)
        self.app.include_router(resumable.ai_sdk_router, prefix=API)

        @self.app.post(API)
        @resumable.stream
        async def chat() -> StreamingResponse:
            run = self.new_run()
            await run.admitted.wait()
            frames = run.frames(lambda value: f"data: {value}\n\n")
            return StreamingResponse(frames, media_type="text/event-stream", headers=PROTOCOL)

    async def ask(self, client: Client, chat_id: str, *texts: str, **options: Any) -> tuple[Exchange, Run]:
        """Begin an answer."""
        values = [part("start", messageId="m"), *(part("text-delta", id="t", delta=text) for text in texts)]
        return await self.begin(client, None, *values, json={"id": chat_id, "messages": []}, **options)


# -- GET /{id}/stream ---------------------------------------------------------------------------------------------


async def test_a_live_stream_is_replayed_from_its_start_and_followed_to_its_end() -> None:
    """The bytes and the protocol's header are those of the first response, and nothing is run again."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        await first.read_until(b"Hello")
        again = client.start("GET", f"{API}/chat-1/stream")
        head = await again.head()
        seen = await again.read_until(b"Hello")
        run.put("[DONE]")
        run.finish()
        seen += await again.rest()
        log = await client.get("/v1/stream/chat-1")
    assert head.status == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    assert head.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert head.headers["cache-control"] == "no-store, no-transform"
    assert head.headers["content-location"] == "/v1/stream/chat-1"
    assert seen == log.body
    assert [each if each == "[DONE]" else each["type"] for each in parts(seen)] == ["start", "text-delta", "[DONE]"]
    assert len(chat.runs) == 1


async def test_204_when_nothing_is_live() -> None:
    """Unknown, finished, failed, stopped: all the same, empty, and not to be kept by a cache."""
    chat = Chat()
    async with running(chat.app) as client:
        finished, run = await chat.ask(client, "finished")
        run.finish()
        await finished.rest()
        failed, run = await chat.ask(client, "failed")
        run.fail(RuntimeError("as the test says"))
        await failed.rest()
        stopped, _ = await chat.ask(client, "stopped")
        await client.post(f"{API}/stopped/stop")
        await stopped.rest()
        for name in ("unknown", "finished", "failed", "stopped"):
            reply = await client.get(f"{API}/{name}/stream")
            assert (reply.status, reply.body) == (204, b""), name
            assert reply.headers["cache-control"] == "no-store"


async def test_a_position_is_not_asked_for() -> None:
    """The AI SDK builds the message from the first part on, so neither `from` nor `Last-Event-ID` moves the start."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        seen = await first.read_until(b"\n\n")
        last = seen.rpartition(b"id: ")[2].strip().decode()
        again = client.start("GET", f"{API}/chat-1/stream?from=999", headers={"Last-Event-ID": last})
        assert (await again.read_until(b"\n\n")) == seen
        run.finish()
        await again.rest()


@pytest.mark.parametrize("path", ["team/7/chat", "team%2F7%2Fchat"])
async def test_an_id_may_have_slashes(path: str) -> None:
    """Percent-encoded, as `HttpChatTransport` writes them, or not, as it used to."""
    chat = Chat()
    async with running(chat.app) as client:
        first, _ = await chat.ask(client, "team/7/chat", "Hello")
        again = client.start("GET", f"{API}/{path}/stream")
        await again.read_until(b"Hello")
        assert (await client.post(f"{API}/{path}/stop")).status == 200
        assert parts(await first.rest())[-2:] == [{"type": "abort"}, "[DONE]"]


async def test_a_queued_stream_is_waited_for() -> None:
    """The page that is reloaded before the first token gets the answer all the same."""
    chat = Chat(gated=True, pending_timeout=20)
    async with running(chat.app) as client:
        first = chat.post(client, json={"id": "chat-1"})
        run = await chat.run()
        again = client.start("GET", f"{API}/chat-1/stream")
        run.put(part("start"))
        run.admitted.set()
        assert parts(await again.read_until(b"\n\n")) == [{"type": "start"}]
        run.finish()
        assert await again.rest() == b""
        assert (await first.reply()).status == 200


async def test_a_new_question_is_waited_for_behind_an_answer_that_has_ended() -> None:
    """The page that is reloaded between the second question and its first token gets that answer, not 204."""
    chat = Chat(gated=True, pending_timeout=20)
    async with running(chat.app) as client:
        first = chat.post(client, json={"id": "chat-1"})
        run = await chat.run()
        run.admitted.set()
        run.finish()
        await first.reply()
        second = chat.post(client, json={"id": "chat-1"})
        run = await chat.run(1)
        again = client.start("GET", f"{API}/chat-1/stream")
        run.put(part("second"))
        run.admitted.set()
        assert parts(await again.read_until(b"\n\n")) == [{"type": "second"}]
        run.finish()
        assert await again.rest() == b""
        assert (await second.reply()).status == 200


async def test_a_stream_that_stays_queued_is_no_204() -> None:
    """A client that is told that nothing is live would never ask again, and the answer would go unseen."""
    chat = Chat(gated=True, pending_timeout=0.05)
    async with running(chat.app) as client:
        first = chat.post(client, json={"id": "chat-1"})
        run = await chat.run()
        reply = await client.get(f"{API}/chat-1/stream")
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "stream_pending", "1")
        run.admitted.set()
        run.finish()
        await first.reply()


async def test_a_stream_whose_start_was_dropped_is_refused() -> None:
    """A message cannot be built from its middle on; 204 would say that nothing is live."""
    chat = Chat(max_stream_bytes=4096)
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1")
        first.disconnect()
        run.put(*(part("text-delta", id="t", delta="x" * 500) for _ in range(30)))
        await until(lambda: run.yielded == 31)
        reply = await client.get(f"{API}/chat-1/stream")
        assert (reply.status, reply.code) == (400, "offset_lost")


async def test_the_route_never_starts_work() -> None:
    """No endpoint runs for a GET."""
    chat = Chat()
    async with running(chat.app) as client:
        assert (await client.get(f"{API}/chat-1/stream")).status == 204
    assert chat.runs == []


# -- GET /{id}/stream?startIndex=N ---------------------------------------------------------------------------------


async def test_the_first_response_names_the_run() -> None:
    """`WorkflowChatTransport` asks for the stream by the `x-workflow-run-id` of the POST; replays have it as well."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1")
        again = client.start("GET", f"{API}/chat-1/stream")
        for reader in (first, again):
            assert (await reader.head()).headers["x-workflow-run-id"] == "chat-1"
        run.finish()


async def test_other_streams_are_no_runs() -> None:
    """What does not speak the AI SDK's protocol gets no header of its."""
    made = stage("decorator", terminal_event="ai-sdk")
    async with running(made.app) as client:
        first, run = await made.begin(client, "chat-1", "one")
        assert "x-workflow-run-id" not in (await first.head()).headers
        run.finish()


@pytest.mark.parametrize(("index", "texts"), [("0", "abcde"), ("2", "cde"), ("4", "e"), ("-1", "de"), ("-99", "abcde")])
async def test_a_start_index_is_the_number_of_the_next_part(index: str, texts: str) -> None:
    """Counted from the first part on, comments aside; negative, from the last one that there is."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.begin(client, None, *"abc", json={"id": "chat-1"})
        run.put("d\n\n: ping")
        await first.read_until(b"ping")
        again = client.start("GET", f"{API}/chat-1/stream?startIndex={index}")
        tail = (await again.head()).headers["x-workflow-stream-tail-index"]
        run.put("e", "[DONE]")
        run.finish()
        seen = await again.rest()
    assert tail == "3"
    assert "".join(line[6:7] for line in seen.decode().split("\n") if line.startswith("data: ")) == f"{texts}["
    assert len(chat.runs) == 1


async def test_with_a_start_index_an_answer_that_has_ended_is_replayed() -> None:
    """Its last parts may be what a cut has taken away. Past them is 204, on which the client gives up."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        run.put(part("finish"), "[DONE]")
        run.finish()
        await first.rest()
        rest = await client.get(f"{API}/chat-1/stream?startIndex=1")
        assert [each if each == "[DONE]" else each["type"] for each in parts(rest.body)] == [
            "text-delta",
            "finish",
            "[DONE]",
        ]
        for index in (3, 4, 10**18 - 1):
            assert (await client.get(f"{API}/chat-1/stream?startIndex={index}")).status == 204


async def test_a_start_index_after_a_failure_is_the_error_and_then_nothing() -> None:
    """The terminal event is a part as well."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        run.fail(RuntimeError("as the test says"))
        await first.rest()
        rest = await client.get(f"{API}/chat-1/stream?startIndex=2")
        assert parts(rest.body)[0]["type"] == "error"
        assert (await client.get(f"{API}/chat-1/stream?startIndex=3")).status == 204


async def test_an_event_that_is_not_whole_is_no_part_however_many_lines_it_has() -> None:
    """It is looked at once, and not once more for each of its lines: that would take a quarter of an hour."""
    resumable = Resumable(stream_id=body_field("id"), event_ids=False)
    app = FastAPI()
    app.include_router(resumable.ai_sdk_router, prefix=API)
    rest = b"data: x\n" * 150_000

    async def chat() -> StreamingResponse:
        return StreamingResponse(iter([b"data: 1\n\n", rest]), media_type="text/event-stream")

    app.post(API)(resumable.stream(chat))
    async with running(app) as client:
        await client.post(API, json={"id": "chat-1"})
        again = await client.get(f"{API}/chat-1/stream?startIndex=-1")
        assert (await client.get(f"{API}/chat-1/stream?startIndex=1")).status == 204
    assert again.body == b"data: 1\n\n" + rest


@pytest.mark.parametrize("index", ["x", "1.5", "--1", "٣", "9" * 19])
async def test_a_start_index_that_is_no_number_is_refused(index: str) -> None:
    """400 `invalid_offset`; without a value it is as if absent."""
    chat = Chat()
    async with running(chat.app) as client:
        reply = await client.get(f"{API}/chat-1/stream?startIndex={quote(index)}")
        assert (reply.status, reply.code) == (400, "invalid_offset")
        assert (await client.get(f"{API}/chat-1/stream?startIndex=")).status == 204


# -- POST /{id}/stop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{}", b'{"activeStreamId": null}', b'{"assistantMessage": {"id": "m"}}'])
async def test_a_stop_ends_what_is_live(body: bytes) -> None:
    """The producer is cancelled, every reader gets the `abort` part and `[DONE]`, and the stream is gone."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        again = client.start("GET", f"{API}/chat-1/stream")
        await again.read_until(b"Hello")
        reply = await client.post(f"{API}/chat-1/stop", body=body)
        assert (reply.status, reply.json()) == (200, {"success": True})
        for reader in (first, again):
            assert parts(await reader.rest())[-2:] == [{"type": "abort"}, "[DONE]"]
            assert reader.clean
        await run.wait_closed()
        assert (await client.get("/v1/stream/chat-1")).status == 404
    assert "finished" not in run.endings


async def test_a_stop_of_an_earlier_answer_leaves_the_present_one_alone() -> None:
    """`activeStreamId` is the epoch, which every response carries as `X-Stream-Epoch`."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "one")
        old = (await first.head()).headers["x-stream-epoch"]
        run.finish()
        await first.rest()
        second, run = await chat.ask(client, "chat-1", "two")
        await second.read_until(b"two")
        late = await client.post(f"{API}/chat-1/stop", json={"activeStreamId": old})
        assert (late.status, late.json()) == (200, {"success": True})
        run.put(part("finish"))
        await second.read_until(b"finish")
        now = (await second.head()).headers["x-stream-epoch"]
        await client.post(f"{API}/chat-1/stop", json={"activeStreamId": now})
        assert parts(await second.rest())[-2:] == [{"type": "abort"}, "[DONE]"]


async def test_a_stop_tells_nothing() -> None:
    """Unknown, finished, live: the same answer."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "finished")
        run.finish()
        await first.rest()
        await chat.ask(client, "live")
        replies = [await client.post(f"{API}/{name}/stop") for name in ("unknown", "finished", "live", "live")]
    assert len({(reply.status, reply.body, tuple(reply.headers.items())) for reply in replies}) == 1


async def test_a_stop_cancels_a_queued_request() -> None:
    """The request that waits for its endpoint is answered 400 `cancelled`."""
    chat = Chat(gated=True)
    async with running(chat.app) as client:
        first = chat.post(client, json={"id": "chat-1"})
        await chat.run()
        assert (await client.post(f"{API}/chat-1/stop")).status == 200
        reply = await first.reply()
        assert (reply.status, reply.code) == (400, "cancelled")


@pytest.mark.parametrize("body", [b"nonsense", b"[]", b"null", b'{"activeStreamId": 7}', b"\xff"])
async def test_a_stop_that_cannot_be_read_stops_nothing(body: bytes) -> None:
    """What was meant to be guarded by `activeStreamId` is not stopped unguarded."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        reply = await client.post(f"{API}/chat-1/stop", body=body)
        assert (reply.status, reply.code) == (400, "invalid_request")
        assert "activeStreamId" in reply.json()["detail"]["message"]
        run.finish()
        assert b"abort" not in await first.rest()


async def test_a_stop_with_a_huge_body_is_refused() -> None:
    """The message that the client sends along is not read, but neither is any amount of it."""
    chat = Chat()
    async with running(chat.app) as client:
        reply = await client.post(f"{API}/chat-1/stop", pieces=[b" " * 2**20] * 17)
        assert (reply.status, reply.code) == (400, "invalid_request")


@pytest.mark.parametrize("value", [b"[],", b'{"a":{}},', b"1,", b'"\\n",'])
async def test_a_stop_whose_body_takes_long_to_parse_is_refused(value: bytes) -> None:
    """No single request holds up the event loop; one with a large file in its message is read."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        body = b'{"activeStreamId":"other","assistantMessage":[%b1]}' % (value * (2**20 // len(value)))
        reply = await client.post(f"{API}/chat-1/stop", body=body)
        assert (reply.status, reply.code) == (400, "invalid_request")
        body = b'{"activeStreamId":"other","assistantMessage":"data:image/png;base64,%b"}' % (b"A" * 2**20)
        assert (await client.post(f"{API}/chat-1/stop", body=body)).status == 200
        run.finish()
        assert b"abort" not in await first.rest()


@pytest.mark.parametrize(("method", "verb"), [("GET", "stream"), ("POST", "stop")])
async def test_a_bad_id_is_refused(method: str, verb: str) -> None:
    """By the rules of the main router."""
    async with running(Chat().app) as client:
        for name in ("%00", "x" * 513, "%20"):
            reply = await client.request(method, f"{API}/{name}/{verb}")
            assert (reply.status, reply.code) == (400, "invalid_stream_id")


# -- who asks -----------------------------------------------------------------------------------------------------


async def user(x_user: Annotated[str, Header()] = "") -> str:
    """Who asks; nobody is refused."""
    if not x_user:
        raise HTTPException(401, "Sign in.")
    return x_user


async def test_a_foreign_stream_does_not_exist() -> None:
    """The owner dependency scopes both routes, and guards them."""
    chat = Chat(owner=user)
    alice, bob = {"X-User": "alice"}, {"X-User": "bob"}
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello", headers=alice)
        await first.read_until(b"Hello")
        assert (await client.get(f"{API}/chat-1/stream", headers=bob)).status == 204
        assert (await client.post(f"{API}/chat-1/stop", headers=bob)).json() == {"success": True}
        assert (await client.get(f"{API}/chat-1/stream")).status == 401
        assert (await client.post(f"{API}/chat-1/stop")).status == 401
        again = client.start("GET", f"{API}/chat-1/stream", headers=alice)
        await again.read_until(b"Hello")
        run.put(part("finish"))
        run.finish()
        assert parts(await again.rest())[-1] == {"type": "finish"}


async def test_the_router_takes_dependencies_like_any_other() -> None:
    """`include_router(dependencies=...)` guards it."""
    app, resumable = FastAPI(), Resumable()
    app.include_router(resumable.ai_sdk_router, prefix=API, dependencies=[Depends(user)])
    async with running(app, lifespan=False) as client:
        assert (await client.get(f"{API}/chat-1/stream")).status == 401
        assert (await client.get(f"{API}/chat-1/stream", headers={"X-User": "alice"})).status == 204


# -- OpenAPI ------------------------------------------------------------------------------------------------------


def operation(method: str, path: str) -> dict[str, Any]:
    app = FastAPI()
    app.include_router(Resumable().ai_sdk_router, prefix=API)
    return app.openapi()["paths"][path][method]


def codes(response: dict[str, Any]) -> set[str]:
    return set(response["content"]["application/json"]["examples"])


def test_the_stream_is_documented() -> None:
    """In words, with an example, and with the errors that there are."""
    documented = operation("get", f"{API}/{{chat_id}}/stream")
    assert documented["summary"] and documented["description"]
    answers = documented["responses"]
    assert set(answers) == {"200", "204", "400", "503", "4XX"}
    assert "data:" in answers["200"]["content"]["text/event-stream"]["example"]
    assert codes(answers["400"]) == {"invalid_stream_id", "invalid_offset", "offset_lost"}
    assert codes(answers["503"]) == {"stream_pending", "store_unavailable"}
    assert {parameter["name"] for parameter in documented["parameters"]} == {"chat_id", "startIndex"}
    assert all(parameter["description"] and parameter["schema"]["examples"] for parameter in documented["parameters"])


def test_the_stop_is_documented() -> None:
    """With its body, which may be left out, and an example of it."""
    documented = operation("post", f"{API}/{{chat_id}}/stop")
    assert documented["summary"] and documented["description"]
    assert set(documented["responses"]) == {"200", "400", "503", "4XX"}
    assert codes(documented["responses"]["400"]) == {"invalid_stream_id", "invalid_request"}
    body = documented["requestBody"]
    assert not body.get("required")
    schema = body["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"activeStreamId"}
    assert schema["examples"]


async def test_the_two_routers_live_side_by_side() -> None:
    """What one began, the other replays and stops."""
    chat = Chat()
    async with running(chat.app) as client:
        first, run = await chat.ask(client, "chat-1", "Hello")
        replay = client.start("GET", "/v1/stream/chat-1")
        await replay.read_until(b"Hello")
        await client.post(f"{API}/chat-1/stop")
        ends = {(await bounded(reader.rest())) for reader in (replay,)}
        assert all(parts(end)[-2:] == [{"type": "abort"}, "[DONE]"] for end in ends)
        await first.rest()
        await run.wait_closed()
