"""Failure mid-stream: how a stream that did not complete ends, in each form that a client may want."""

import asyncio
import json
import logging
from typing import Any

import pytest
from fastapi import FastAPI

from fastapi_resumable import ResumableMiddleware
from tests.support.asgi import Client, Exchange, data_of, parse_events, running, terminal_of
from tests.support.life_apps import PLACES, YIELDS, Run, Stage, make, stage

every_face = pytest.mark.parametrize("face", PLACES)

FATES = {
    "failed": ("failed", "producer_failed"),
    "stopped": ("cancelled", "cancelled"),
    "replaced": ("cancelled", "replaced"),
    "interrupted": ("interrupted", "interrupted"),
}
every_fate = pytest.mark.parametrize("fate", FATES)


async def ended(made: Stage, client: Client, fate: str) -> tuple[Exchange, Run, bytes]:
    """A stream with one event that ended in a given way, and all that its first client read."""
    exchange, run = await made.begin(client, "chat-1", "one")
    body = await exchange.read_until(b"one")
    await _end(made, client, run, fate)
    body += await exchange.rest()
    run.put("late")
    await run.wait_closed()
    return exchange, run, body


async def _end(made: Stage, client: Client, run: Run, fate: str) -> None:
    match fate:
        case "failed":
            run.fail(ValueError("swordfish"))
        case "stopped":
            await client.delete("/v1/stream/chat-1")
        case "replaced":
            second, other = await made.begin(client, "chat-1", "other")
            other.finish()
            await second.rest()
        case "interrupted":
            await made.resumable.shutdown()


@every_fate
@every_face
async def test_the_default_terminal_event_names_code_and_message(face: str, fate: str) -> None:
    """`event: error` or `event: cancelled`, and the JSON with the inner object that the OpenAI SDKs look for."""
    made = stage(face)
    async with running(made.app) as client:
        exchange, _, body = await ended(made, client, fate)
    status, code = FATES[fate]
    end = terminal_of(body)
    assert exchange.clean
    assert end.event == ("cancelled" if status == "cancelled" else "error")
    told = end.json()
    assert set(told) == {"code", "message", "error"}
    assert told["code"] == code
    assert told["message"]
    assert told["error"] == {"code": code, "message": told["message"]}
    assert data_of(body) == ["one"]


@every_fate
async def test_the_openai_form_is_an_unnamed_frame(fate: str) -> None:
    """The OpenAI SDKs raise `APIError` on a data frame that has `error`."""
    made = stage("decorator", terminal_event="openai")
    async with running(made.app) as client:
        exchange, _, body = await ended(made, client, fate)
    last = parse_events(body)[-1]
    assert exchange.clean
    assert b"\nevent:" not in body
    assert last.event == "message"
    assert last.json()["error"]["code"] == FATES[fate][1]


@every_fate
async def test_the_ai_sdk_form_is_its_own_parts(fate: str) -> None:
    """An `error` or an `abort` part, and `[DONE]`."""
    made = stage("decorator", terminal_event="ai-sdk")
    async with running(made.app) as client:
        exchange, _, body = await ended(made, client, fate)
    part, done = parse_events(body)[-2:]
    assert exchange.clean
    assert done.data == "[DONE]"
    if FATES[fate][0] == "cancelled":
        assert part.json() == {"type": "abort"}
    else:
        assert part.json()["type"] == "error"
        assert part.json()["errorText"]


@every_fate
async def test_a_function_writes_its_own_terminal_event(fate: str) -> None:
    """It gets status, code and message, and what it returns is what the readers see."""
    calls: list[tuple[str, str, str]] = []

    def write(status: str, code: str, message: str) -> bytes:
        calls.append((status, code, message))
        return b"event: over\ndata: " + json.dumps([status, code]).encode() + b"\n\n"

    made = stage("decorator", terminal_event=write)
    async with running(made.app) as client:
        exchange, _, body = await ended(made, client, fate)
    last = parse_events(body)[-1]
    assert exchange.clean
    assert (last.event, last.json()) == ("over", list(FATES[fate]))
    assert calls[0][:2] == FATES[fate]
    assert isinstance(calls[0][2], str)
    assert calls[0][2]
    assert len(calls) == 1


@every_fate
async def test_a_function_may_write_nothing(fate: str) -> None:
    """`None`: the stream ends after its last event."""
    made = stage("decorator", terminal_event=lambda status, code, message: None)
    async with running(made.app) as client:
        _, _, body = await ended(made, client, fate)
    assert [event.data for event in parse_events(body)] == ["one"]


async def test_a_function_that_fails_does_not_keep_a_stream_from_ending(caplog: pytest.LogCaptureFixture) -> None:
    """Its failure is logged; readers still learn that the stream is over."""

    def write(status: str, code: str, message: str) -> bytes:
        raise RuntimeError("no words")

    made = stage("decorator", terminal_event=write)
    with caplog.at_level(logging.ERROR, logger="fastapi_resumable"):
        async with running(made.app) as client:
            exchange, _, _ = await ended(made, client, "failed")
            item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]
    assert exchange.over
    assert item["status"] == "failed"
    assert caplog.records


@every_fate
@pytest.mark.parametrize("event_ids", [True, False])
async def test_the_terminal_event_is_in_the_log(fate: str, event_ids: bool) -> None:
    """Other readers, and those that come later where the stream is still known, see the same bytes and the same end."""
    made = stage("decorator", event_ids=event_ids)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        reader = client.start("GET", "/v1/stream/chat-1")
        await reader.head()
        await _end(made, client, run, fate)
        body = await exchange.rest()
        assert await reader.rest() == body
        if fate == "failed":
            replay = await client.get("/v1/stream/chat-1")
            assert (replay.body, replay.clean) == (body, True)
        await run.wait_closed()
    assert (b"\nid: " in body) is event_ids


@every_face
async def test_the_exceptions_text_is_logged_and_not_sent(face: str, caplog: pytest.LogCaptureFixture) -> None:
    """What went wrong is the operator's to read: with the traceback, and nowhere on the wire."""
    made = stage(face)
    with caplog.at_level(logging.DEBUG, logger="fastapi_resumable"):
        async with running(made.app) as client:
            exchange, _, body = await ended(made, client, "failed")
    assert b"swordfish" not in body
    assert not any(b"swordfish" in m.get("body", b"") for m in exchange.messages)
    raised = [record for record in caplog.records if record.exc_info and "swordfish" in str(record.exc_info[1])]
    assert raised
    assert raised[0].levelno == logging.ERROR
    assert "chat-1" in raised[0].getMessage()


@pytest.mark.parametrize("fate", ["failed", "stopped", "replaced", "interrupted"])
async def test_other_media_types_end_by_an_unclean_close(fate: str) -> None:
    """So a client that counts bytes can tell a broken answer from a whole one; a replay breaks off alike."""
    made = stage("decorator", "bytes")
    async with running(made.app) as client:
        reader = None
        exchange, run = await made.begin(client, "chat-1", "one")
        reader = client.start("GET", "/v1/stream/chat-1")
        await reader.read_until(b"one")
        await _end(made, client, run, fate)
        body = await exchange.rest()
        await reader.rest()
        run.put("late")
        await run.wait_closed()
        replay = await client.get("/v1/stream/chat-1")
    assert body == b"one"
    assert (exchange.clean, reader.clean) == (False, False)
    if fate == "failed":
        assert replay.body == b"one"
        assert not replay.clean


async def test_a_completed_stream_has_no_terminal_event_of_ours() -> None:
    """The app's last byte is the last byte."""
    made = stage("decorator", event_ids=False)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        run.finish()
        assert await exchange.rest() == b"data: one\n\n"
        assert exchange.clean


class Broken:
    """A raw ASGI app that ends without ending its response."""

    def __init__(self, media_type: bytes) -> None:
        self.media_type = media_type

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self.media_type)]})
        await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})


@pytest.mark.parametrize("media_type", [b"text/event-stream", b"text/plain"])
async def test_an_app_that_returns_without_ending_its_response_has_failed(media_type: bytes) -> None:
    """No last message came: nobody may take this for a whole answer."""
    resumable = make()
    app = FastAPI()
    app.include_router(resumable.router)
    app.mount("/raw", Broken(media_type))
    app.add_middleware(ResumableMiddleware, resumable=resumable, paths=["/raw/chat"])
    async with running(app) as client:
        exchange = client.start("POST", "/raw/chat", headers={"X-Conversation-Id": "chat-1"})
        body = await exchange.rest()
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]
    assert item["status"] == "failed"
    if media_type == b"text/plain":
        assert not exchange.clean
    else:
        end = terminal_of(body)
        assert end.json()["code"] == "producer_failed"


@pytest.mark.parametrize(
    ("face", "kind"),
    [
        *(("decorator", kind) for kind in ("async generator", "sse-starlette", "bytes")),
        *(("route_class", kind) for kind in YIELDS),
        ("middleware", "async generator"),
    ],
)
async def test_a_cancellation_of_the_apps_own_making_is_a_failure(face: str, kind: str) -> None:
    """A generator that awaits something cancelled raises `CancelledError`: the stream ends, and not as a whole one."""
    made = stage(face, kind)
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat-1", "one")
        run.fail(asyncio.CancelledError())
        body = await exchange.rest()
        item = (await client.post("/v1/streams/lookup", json={"conversation_ids": ["chat-1"]})).json()[0]
    assert item["status"] == "failed"
    if kind in ("bytes", "yield json lines", "yield raw"):
        assert not exchange.clean
    else:
        end = terminal_of(body)
        assert end.json()["code"] == "producer_failed"
