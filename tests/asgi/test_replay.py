"""asgi/replay.py: how a reading that lost its place ends."""

import asyncio

import pytest

from fastapi_resumable.asgi.replay import StreamBroken, serve
from fastapi_resumable.core.ids import StreamKey
from fastapi_resumable.life.manager import StreamManager
from fastapi_resumable.stores.memory import MemoryStore
from fastapi_resumable.stores.stream import Budget, Head, Limits, Stream


def overtaken(media_type: bytes) -> tuple[StreamManager, Stream]:
    """A stream whose head is gone."""
    manager = StreamManager(
        MemoryStore(), on_conflict="replace", ping=0, stall_timeout=30, stop_grace=1, shutdown_grace=1
    )
    stream = Stream(
        StreamKey(None, "s"),
        "abcdefghijklmnop",
        Head(200, ((b"content-type", media_type),)),
        limits=Limits(max_stream_bytes=64),
        budget=Budget(),
        started_at=1.0,
        on_stop=lambda code: None,
    )
    for _ in range(40):
        stream.write(b"data: 0123456789\n\n")
    return manager, stream


async def served(media_type: bytes) -> list[dict]:
    """What a reader gets that was attached too late."""
    manager, stream = overtaken(media_type)
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    async def never() -> None:
        await asyncio.Event().wait()

    try:
        await serve(manager.reader(stream, 0), manager, [], send, never)
    finally:
        assert not manager._readers
    return sent


async def test_an_event_stream_says_that_the_place_is_lost():
    """Never a silent gap, never a clean end without a word."""
    sent = await served(b"text/event-stream")

    assert b"event: error" in sent[1]["body"]
    assert b"offset_lost" in sent[1]["body"]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_other_media_types_break_off():
    """There is no other way to tell."""
    with pytest.raises(StreamBroken, match="lost its place"):
        await served(b"application/x-ndjson")
