"""One receive channel with three readers, in every order."""

import asyncio

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_resumable import Resumable
from fastapi_resumable._run.body import DISCONNECT, RequestBody
from tests.support.asgi import Client


def piece(body: bytes, *, more: bool) -> dict:
    return {"type": "http.request", "body": body, "more_body": more}


UPLOAD = {"headers": [(b"content-length", b"2")]}


class Channel:
    """A `receive` whose messages the test releases."""

    def __init__(self, *messages: dict) -> None:
        self.queue: asyncio.Queue[dict] = asyncio.Queue()
        for message in messages:
            self.queue.put_nowait(message)

    async def __call__(self) -> dict:
        return await self.queue.get()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_was_peeked_at_comes_again_for_the_application():
    """The search for the stream id takes nothing away."""
    body = RequestBody(Channel(piece(b"a", more=True), piece(b"b", more=False)), UPLOAD)
    await body.peek()

    assert [await body.next(), await body.next(), await body.next()] == [
        piece(b"a", more=True),
        piece(b"b", more=False),
        None,
    ]


async def test_receive_passes_everything_on_as_it_comes():
    """For an application that answers by itself, the channel is what it was."""
    body = RequestBody(Channel(piece(b"a", more=False), DISCONNECT), UPLOAD)
    await body.peek()

    assert [await body.receive(), await body.receive(), await body.receive()] == [
        piece(b"a", more=False),
        DISCONNECT,
        DISCONNECT,
    ]


async def test_the_watch_reads_one_message_ahead_and_no_more():
    """A client cannot make the server hold its whole upload."""
    channel = Channel(piece(b"a", more=True), piece(b"b", more=True), piece(b"c", more=False))
    body = RequestBody(channel, UPLOAD)
    watch = asyncio.ensure_future(body.disconnected())
    await settled()
    assert channel.queue.qsize() == 2

    assert await body.next() == piece(b"a", more=True)
    await settled()
    assert channel.queue.qsize() == 1
    assert await body.next() == piece(b"b", more=True)
    assert await body.next() == piece(b"c", more=False)
    assert not watch.done()
    channel.queue.put_nowait(DISCONNECT)
    async with asyncio.timeout(5):
        await watch
    assert await body.next() is None


async def test_an_application_that_reads_no_body_does_not_hide_the_disconnect():
    """Once the body is there as a whole, the watch goes on to what comes after it."""
    body = RequestBody(Channel(piece(b"a", more=False), DISCONNECT), UPLOAD)
    async with asyncio.timeout(5):
        await body.disconnected()

    assert await body.next() == piece(b"a", more=False)
    assert await body.next() is None


async def test_a_client_that_leaves_in_mid_upload_is_noticed():
    """The application cannot do without the rest."""
    body = RequestBody(Channel(piece(b"a", more=True), DISCONNECT), UPLOAD)
    watch = asyncio.ensure_future(body.disconnected())
    assert await body.next() == piece(b"a", more=True)
    async with asyncio.timeout(5):
        await watch

    assert await body.next() == DISCONNECT


async def test_a_disconnect_is_kept_from_an_application_that_may_have_read_its_body():
    """FastAPI has read it before a dependency runs; what comes then is the client's leaving."""
    body = RequestBody(Channel(DISCONNECT))

    assert await body.next() is None


async def test_the_application_and_the_watch_share_a_wait():
    """Whoever holds the channel when the message comes, it reaches the one that it is for."""
    channel = Channel()
    body = RequestBody(channel, UPLOAD)
    watch = asyncio.ensure_future(body.disconnected())
    await settled()
    wanted = asyncio.ensure_future(body.next())
    await settled()
    channel.queue.put_nowait(piece(b"a", more=False))
    async with asyncio.timeout(5):
        assert await wanted == piece(b"a", more=False)

    late = asyncio.ensure_future(RequestBody(channel).next())
    await settled()
    channel.queue.put_nowait(DISCONNECT)
    channel.queue.put_nowait(DISCONNECT)
    async with asyncio.timeout(5):
        await watch
        assert await late is None


async def test_a_receive_that_gives_the_body_again_and_again_holds_up_nothing():
    """As middleware puts it in the place of the server's, whose body it has read: it never waits, and says no more."""
    resumable = Resumable()
    app = FastAPI()
    app.include_router(resumable.router)
    finish = asyncio.Event()
    asked = []

    async def words():
        yield "data: one\n\n"
        await finish.wait()
        yield "data: two\n\n"

    @app.post("/chat")
    @resumable.stream
    async def chat():
        return StreamingResponse(words(), media_type="text/event-stream")

    async def with_body_read(scope, receive, send):
        body = await receive()

        async def again():
            # The task that asks would ask on without giving way to the test, which is ended by this instead.
            asked.append(scope["path"])
            assert len(asked) < 1000
            return body

        await app(scope, again, send)

    client = Client(with_body_read, spec_version="2.4")
    first = client.start("POST", "/chat", headers={"x-conversation-id": "a"})
    try:
        await first.read_until(b"one")
        replay = client.start("GET", "/v1/stream/a")
        await replay.read_until(b"one")
        watch = client.start("POST", "/v1/streams/watch", json={"conversation_ids": ["a"]})
        await watch.read_until(b"in_progress")
        finish.set()
        assert b"two" in (await first.reply()).body
        assert b"two" in (await replay.reply()).body
        await watch.read_until(b"completed")
        # The watch would notice at its next keep-alive that its client has gone.
        watch.cancel()
    finally:
        finish.set()
        await client.close()
