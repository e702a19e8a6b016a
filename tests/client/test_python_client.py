"""`ResumableClient` and its asynchronous twin, on real sockets, through lines that break."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import httpx2
import httpx_sse
import pytest

from fastapi_resumable import ResumableStatus
from fastapi_resumable.client import (
    AsyncResumableClient,
    Backoff,
    ClientError,
    ConnectionLost,
    RequestRefused,
    ResumableClient,
    StreamCancelled,
    StreamFailed,
    StreamState,
)
from tests.support.apps.player import Step, fail, forever, numbered, script_body, send, sends, unique, wait
from tests.support.cutting import CuttingProxy
from tests.support.faults import FaultyLink
from tests.support.server import Server, serve

from .conftest import JSON, Stage

TIMEOUT = 30
TEXT = "Zwölf große Käse, 東京 und 😀"


def numbers(events: list[httpx_sse.ServerSentEvent]) -> list[int]:
    return [int(event.data.split()[0]) for event in events]


@contextmanager
def client_of(port: int, backoff: Backoff, **options: Any) -> Iterator[ResumableClient]:
    """A client of the application at `port`."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT) as http:
        yield ResumableClient(http, backoff=backoff, **options)


def script(*steps: Step, **more: Any) -> dict[str, Any]:
    """The request of a script."""
    return {"content": script_body(*steps, **more), "headers": JSON}


def test_events_come_once_and_in_order_through_200_cuts(server: Server, backoff: Backoff) -> None:
    """And the iteration ends when the stream ends."""
    seen: list[StreamState] = []
    with CuttingProxy(server.port, seed=1, cuts=200, most=300) as line, client_of(line.port, backoff) as client:
        with client.stream("POST", "/script", **script(numbered(500, 100)), on_state=seen.append) as stream:
            assert numbers(list(stream)) == list(range(500))
        assert line.spent
    assert stream.state is seen[-1] is StreamState.DONE
    assert seen.count(StreamState.RECONNECTING) > 100


async def test_the_asynchronous_client_does_the_same(server: Server, backoff: Backoff) -> None:
    """200 cuts, other ones."""
    with CuttingProxy(server.port, seed=2, cuts=200, most=300) as line:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{line.port}", timeout=TIMEOUT) as http:
            client = AsyncResumableClient(http, backoff=backoff)
            async with client.stream("POST", "/script", **script(numbered(500, 100))) as stream:
                assert numbers([event async for event in stream]) == list(range(500))
            [item] = await client.lookup([stream.id])
        assert line.spent
    assert (item.epoch, item.total_bytes, item.status) == (stream.epoch, stream.offset, ResumableStatus.COMPLETED)


def test_cuts_before_the_head_run_the_endpoint_once(server: Server, stage: Stage, backoff: Backoff) -> None:
    """The request is repeated with its own key, so a repetition follows the first."""
    name = unique("once")
    with (
        CuttingProxy(server.port, seed=3, cuts=100, most=500, heads=True) as line,
        client_of(line.port, backoff) as client,
    ):
        with client.stream("POST", "/script", **script(numbered(50, 100), name=name)) as stream:
            assert numbers(list(stream)) == list(range(50))
        assert line.spent
    assert stage.until(f"ended:{name}").count(f"called:{name}") == 1


@pytest.mark.parametrize("ids", [True, False])
def test_cuts_within_a_character_and_a_field_do_no_harm(ids: bool, backoff: Backoff) -> None:
    """Every few bytes, with ids and without; `event:` and the application's own ids included."""
    events = [f"event: e{n}\r\nid: mine\r\ndata: {TEXT} {n}\r\ndata:zwei\r\n\r\n".encode() for n in range(10)]
    with (
        serve("tests.support.apps.scripted:app", options={"event_ids": ids}) as server,
        CuttingProxy(server.port, seed=5, cuts=200, most=12) as line,
        client_of(line.port, backoff) as client,
    ):
        with client.stream("POST", "/script", **script(*sends(*events))) as stream:
            got = [(event.event, event.data, event.id) for event in stream.events()]
        assert line.cuts > 100
    assert got == [(f"e{n}", f"{TEXT} {n}\nzwei", "mine") for n in range(10)]


def test_lines_and_bytes_of_other_media_types_come_once(server: Server, backoff: Backoff) -> None:
    """NDJSON line by line; and what is no text, byte for byte."""
    rows = [json.dumps({"n": n, "text": f"{TEXT}\u2028"}, ensure_ascii=False) for n in range(40)]
    chunks = sends(*[f"{row}\n".encode() for row in rows])
    with CuttingProxy(server.port, seed=6, cuts=200, most=60) as line, client_of(line.port, backoff) as client:
        with client.stream("POST", "/script", **script(*chunks, media_type="application/x-ndjson")) as stream:
            assert list(stream.iter_lines()) == rows
        data = bytes(range(256)) * 20
        with client.stream("POST", "/script", **script(send(data), media_type="audio/ogg")) as stream:
            assert b"".join(stream.iter_bytes()) == data
        assert line.cuts > 100
    assert stream.headers["content-type"] == "audio/ogg"
    assert (stream.status_code, stream.offset) == (200, len(data))


class UserAuth(httpx.Auth):
    """Says who asks; the server keeps its streams by owner."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-User"] = "alice"
        yield request


@pytest.mark.parametrize("where", ["client", "request", "header"])
def test_every_request_is_made_with_the_users_own_client(server: Server, backoff: Backoff, where: str) -> None:
    """Its `base_url`, auth, headers and hooks; and with what belongs to the request."""
    sent: list[httpx.Request] = []
    arguments = script(numbered(20, 100))
    if where == "request":
        arguments["auth"] = UserAuth()
    if where == "header":
        arguments["headers"] = {**JSON, "X-User": "alice"}
    with (
        CuttingProxy(server.port, seed=7, cuts=10, most=400) as line,
        httpx.Client(
            base_url=f"http://127.0.0.1:{line.port}/",
            auth=UserAuth() if where == "client" else None,
            event_hooks={"request": [sent.append]},
            cookies={"session": "s"},
            timeout=TIMEOUT,
        ) as http,
        ResumableClient(http, backoff=backoff).stream("POST", "script", **arguments) as stream,
    ):
        assert numbers(list(stream)) == list(range(20))
    start, *replays = sent
    assert len(replays) >= 10
    assert {request.headers["x-user"] for request in sent} == {"alice"}
    assert {request.headers["cookie"] for request in sent} == {"session=s"}
    assert {request.headers["accept-encoding"] for request in sent} == {"identity"}
    assert all(name in start.headers for name in ("idempotency-key", "content-type"))
    assert not any(name in request.headers for request in replays for name in ("idempotency-key", "content-type"))


def test_it_finds_its_way_under_any_path(backoff: Backoff) -> None:
    """A mounted application: `base_url` has the path, and `prefix` leads to the routes."""
    with (
        serve("tests.support.apps.placed:mounted") as server,
        CuttingProxy(server.port, seed=8, cuts=5, most=20) as line,
        httpx.Client(base_url=f"http://127.0.0.1:{line.port}/sub", timeout=TIMEOUT) as http,
    ):
        client = ResumableClient(http, prefix="/api/v1", backoff=backoff)
        with client.stream("POST", "/deep/er/chat", stream_id="a/b c?é") as stream:
            assert [event.data for event in stream] == ["one", "two"]
        assert stream.id == "a/b c?é"
        [item] = client.lookup(["a/b c?é"])
        assert item.conversation_id == "a/b c?é"
        with client.resume("a/b c?é") as again:
            assert [event.data for event in again] == ["one", "two"]
        client.stop("a/b c?é", epoch="other")
        assert len(client.lookup(["a/b c?é"])) == 1
        client.stop("a/b c?é")
        assert client.lookup(["a/b c?é"]) == []


def test_a_client_of_httpx2_does_as_well(server: Server, backoff: Backoff) -> None:
    """It has the same interface."""
    with (
        CuttingProxy(server.port, seed=9, cuts=50, most=300) as line,
        httpx2.Client(base_url=f"http://127.0.0.1:{line.port}", timeout=TIMEOUT) as http,
    ):
        with ResumableClient(http, backoff=backoff).stream("POST", "/script", **script(numbered(100, 100))) as stream:
            assert numbers(list(stream)) == list(range(100))
        assert line.spent


@pytest.mark.servers
def test_it_works_over_http_2(backoff: Backoff) -> None:
    """Where bodies have frames, and a cut is another error."""
    with (
        serve("tests.support.apps.scripted:app", server="hypercorn", loop="asyncio", workers=0) as server,
        CuttingProxy(server.port, seed=11, cuts=50, least=200, most=600, heads=True) as line,
        httpx.Client(base_url=f"http://127.0.0.1:{line.port}", http1=False, http2=True, timeout=TIMEOUT) as http,
    ):
        with ResumableClient(http, backoff=backoff).stream("POST", "/script", **script(numbered(200, 100))) as stream:
            assert numbers(list(stream)) == list(range(200))
        assert line.spent
        assert http.get("/events").http_version == "HTTP/2"


def test_a_body_that_can_be_read_once_is_sent_again(server: Server, backoff: Backoff) -> None:
    """A generator is kept."""
    body = iter([script_body(numbered(3, 100))])
    with CuttingProxy(server.port, cuts=3, most=20, heads=True) as line, client_of(line.port, backoff) as client:
        with client.stream("POST", "/script", content=body, headers=JSON) as stream:
            assert numbers(list(stream)) == [0, 1, 2]
        assert line.spent


def test_an_iteration_may_be_left_and_taken_up_again(server: Server, backoff: Backoff) -> None:
    """By the same client, or by another one, after a restart say."""
    with client_of(server.port, backoff) as client:
        with client.stream("POST", "/script", **script(numbered(10, 100))) as stream:
            for event in stream:
                if event.data.startswith("00000003"):
                    break
            assert next(stream.events()).data.startswith("00000004")
            with pytest.raises(RuntimeError, match=r"events\(\)"):
                next(stream.iter_bytes())
        assert stream.state is StreamState.DETACHED
        with client.resume(stream.id, offset=stream.offset, epoch=stream.epoch) as rest:
            assert numbers(list(rest)) == [5, 6, 7, 8, 9]
        with pytest.raises(RequestRefused, match="stream_replaced"), client.resume(stream.id, epoch="a" * 16):
            pass
        assert list(stream) == []


def test_leaving_is_not_stopping(server: Server, stage: Stage, backoff: Backoff) -> None:
    """The endpoint goes on when the client has left; `stop` ends it, and the iteration."""
    name = unique("left")
    with client_of(server.port, backoff) as client:
        with client.stream("POST", "/script", **script(*sends(b"data: 1\n\n"), wait(name), name=name)) as stream:
            assert next(iter(stream)).data == "1"
        stage.open(name)
        assert f"finished:{name}" in stage.until(f"ended:{name}")

        name = unique("stopped")
        with client.stream("POST", "/script", **script(*sends(b"data: 1\n\n"), forever(), name=name)) as stream:
            assert next(iter(stream)).data == "1"
            stream.stop()
            assert list(stream) == []
            assert stream.state is StreamState.STOPPED
            stream.stop()
        assert f"finished:{name}" not in stage.until(f"ended:{name}")
        assert client.lookup([stream.id]) == []

        with client.stream("POST", "/script", **script(*sends(b"data: 1\n\n"), forever())) as stream:
            pass
        assert len(client.lookup([stream.id])) == 1
        stream.stop()
        assert client.lookup([stream.id]) == []
        assert stream.state is StreamState.DETACHED


def test_a_stream_can_be_stopped_from_another_thread(server: Server, backoff: Backoff) -> None:
    """The one that reads just ends; others are told."""
    with (
        client_of(server.port, backoff) as client,
        client.stream("POST", "/script", **script(send(b"data: 1\n\n"), forever())) as stream,
        client.resume(stream.id) as other,
    ):
        assert next(iter(stream)).data == next(iter(other)).data == "1"
        stopper = threading.Thread(target=stream.stop)
        stopper.start()
        assert list(stream) == []
        stopper.join(TIMEOUT)
        with pytest.raises(StreamCancelled, match="cancelled"):
            next(iter(other))
        assert other.state is StreamState.STOPPED


def test_a_failure_is_raised_after_what_came_before_it(server: Server, stage: Stage, backoff: Backoff) -> None:
    """Of an event stream by its event, through cuts; of any other by the status of the replay."""
    with CuttingProxy(server.port, seed=10, cuts=20, most=200) as line, client_of(line.port, backoff) as client:
        got: list[httpx_sse.ServerSentEvent] = []
        failing = script(numbered(10, 100), fail())
        with (
            pytest.raises(StreamFailed, match="producer_failed"),
            client.stream("POST", "/script", **failing) as stream,
        ):
            got.extend(stream)
        assert numbers(got) == list(range(10))
        assert stream.state is StreamState.FAILED

        with client.stream("POST", "/script", **script(numbered(2, 100), fail())) as stream:
            assert [event.event for event in stream.events("yield")] == ["message", "message", "error"]

        lines: list[str] = []
        failing = script(send(b"a\nb\n"), fail(), media_type="text/plain")
        with pytest.raises(StreamFailed, match="failed"), client.stream("POST", "/script", **failing) as stream:
            lines.extend(stream.iter_lines())
        assert lines == ["a", "b"]


def test_a_refusal_carries_the_servers_words(server: Server, backoff: Backoff) -> None:
    """At the start, and when the stream is gone."""
    with client_of(server.port, backoff) as client:
        with pytest.raises(RequestRefused) as caught, client.stream("POST", "/script", content=b"{", headers=JSON):
            pass
        assert caught.value.status_code == 422
        with pytest.raises(RequestRefused) as caught, client.resume("nobody knows it"):
            pass
        assert (caught.value.status_code, caught.value.code) == (404, "stream_not_found")
        with pytest.raises(RequestRefused) as caught:
            client.lookup(["x"], headers={"Content-Length": "0"}, content=b"")
        assert caught.value.code == "invalid_request"


def test_a_stream_that_is_stopped_during_an_outage_is_not_found(server: Server, backoff: Backoff) -> None:
    """404 is final."""
    with (
        FaultyLink(server.port) as link,
        client_of(link.port, backoff) as client,
        client.stream("POST", "/script", **script(send(b"data: 1\n\n"), forever())) as stream,
    ):
        assert next(iter(stream)).data == "1"
        link.refuse()
        with client_of(server.port, backoff) as direct:
            direct.stop(stream.id)
        link.accept()
        with pytest.raises(RequestRefused) as caught:
            next(iter(stream))
        assert (caught.value.code, stream.state) == ("stream_not_found", StreamState.LOST)


def test_a_hung_connection_is_noticed(server: Server, stage: Stage, backoff: Backoff) -> None:
    """No keep-alive comes for the read timeout, so another connection is made."""
    name = unique("hung")
    steps = [send(b"data: 1\n\n"), wait(name), send(b"data: 2\n\n")]
    with FaultyLink(server.port) as link, client_of(link.port, backoff, read_timeout=3.0) as client:
        freed = []

        def watch(state: StreamState) -> None:
            if state is StreamState.RECONNECTING:
                link.release()
                stage.open(name)
                freed.append(link.accepted)

        with client.stream("POST", "/script", **script(*steps), on_state=watch) as stream:
            events = iter(stream)
            assert next(events).data == "1"
            link.hold()
            assert next(events).data == "2"
        assert freed == [1]
        assert link.accepted == 2


def test_keep_alives_keep_a_silent_stream_open(server: Server, stage: Stage, backoff: Backoff) -> None:
    """Thirty of them take longer than the read timeout, and it is one connection all the time."""
    name = unique("silent")
    seen: list[StreamState] = []

    def watch(client: ResumableClient) -> None:
        with client.resume(name) as watcher:
            heard = b""
            for chunk in watcher.iter_bytes():
                heard += chunk
                if heard.count(b": ping\n") == 30:
                    break
        stage.open(name)

    with client_of(server.port, backoff, read_timeout=5.0) as client:
        steps = [wait(name), send(b"data: 1\n\n")]
        with client.stream("POST", "/script", stream_id=name, on_state=seen.append, **script(*steps)) as stream:
            watcher = threading.Thread(target=watch, args=[client])
            watcher.start()
            assert [event.data for event in stream] == ["1"]
            watcher.join(TIMEOUT)
    assert seen == [StreamState.OPEN, StreamState.DONE]


def test_it_waits_as_the_server_asks_and_gives_up_in_the_end() -> None:
    """Sleep and randomness are the caller's to choose."""
    slept: list[float] = []
    backoff = Backoff(initial=1, maximum=4, retries=4, random=lambda: 0.5)
    with (
        FaultyLink(1) as link,
        client_of(link.port, backoff, sleep=slept.append) as client,
    ):
        link.refuse()
        with pytest.raises(ConnectionLost) as caught, client.stream("POST", "/script"):
            pass
        assert isinstance(caught.value.__cause__, httpx.ConnectError)
        assert slept == [0.5, 1.0, 2.0, 2.0]
        with pytest.raises(ConnectionLost):
            client.lookup(["a"])
        assert slept == [0.5, 1.0, 2.0, 2.0] * 2


def test_a_server_that_is_busy_is_asked_again(backoff: Backoff) -> None:
    """503 with `Retry-After`."""
    slept: list[float] = []
    with (
        serve("tests.support.apps.scripted:app", options={"max_streams": 1}) as server,
        client_of(server.port, backoff) as first,
        first.stream("POST", "/script", **script(forever())) as live,
    ):

        def make_room(delay: float) -> None:
            slept.append(delay)
            live.stop()

        with (
            client_of(server.port, backoff, sleep=make_room) as second,
            second.stream("POST", "/script", **script(send(b"data: 1\n\n"))) as stream,
        ):
            assert [event.data for event in stream] == ["1"]
    assert len(slept) == 1
    assert 5 <= slept[0] < 5.1


def test_a_cut_right_before_the_end_is_no_loss(server: Server, stage: Stage, backoff: Backoff) -> None:
    """The server answers 204: there is nothing more."""
    name = unique("end")
    with (
        FaultyLink(server.port) as link,
        client_of(link.port, backoff) as client,
        client.stream("POST", "/script", **script(send(b"data: 1\n\n"), wait(name), name=name)) as stream,
    ):
        assert next(iter(stream)).data == "1"
        link.cut()
        stage.open(name)
        stage.until(f"ended:{name}")
        assert list(stream) == []
        assert stream.state is StreamState.DONE


def test_what_is_no_event_stream_is_not_read_as_one(server: Server, backoff: Backoff) -> None:
    """The error says what to use."""
    with (
        client_of(server.port, backoff) as client,
        client.stream("POST", "/script", **script(media_type="text/plain")) as stream,
        pytest.raises(ClientError, match="iter_lines"),
    ):
        next(iter(stream))


def test_a_stream_is_used_in_a_with_block(server: Server, backoff: Backoff) -> None:
    """Without one, the error says so."""
    with client_of(server.port, backoff) as client, pytest.raises(RuntimeError, match=r"with client\.stream"):
        list(client.stream("POST", "/script"))


def test_respond_async_is_followed_to_the_stream(server: Server, backoff: Backoff) -> None:
    """202 is an answer about it."""
    with client_of(server.port, backoff) as client:
        arguments = script(numbered(3, 100))
        arguments["headers"] = {**JSON, "Prefer": "respond-async"}
        with client.stream("POST", "/script", **arguments) as stream:
            assert numbers(list(stream)) == [0, 1, 2]
        assert stream.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("charset", "text"), [("latin-1", "größer"), ("utf-8", "größer"), ("no-such", "gr\ufffd\ufffder")]
)
def test_lines_are_read_in_their_charset(server: Server, backoff: Backoff, charset: str, text: str) -> None:
    """UTF-8 if there is none, or none that is known."""
    data = "größer".encode(charset if charset != "no-such" else "latin-1")
    arguments = script(send(data), media_type=f"application/x-text; v=1; charset={charset}")
    with (
        client_of(server.port, backoff) as client,
        client.stream("POST", "/script", timeout=TIMEOUT, **arguments) as stream,
    ):
        assert list(stream.iter_lines()) == [text]
        assert stream.replay_url and stream.replay_url.startswith(f"{server.url}/v1/stream/")


def test_more_than_1000_ids_are_looked_up_in_parts(server: Server, backoff: Backoff) -> None:
    """Each stream is told of once."""
    with client_of(server.port, backoff) as client:
        name = unique("many")
        with client.stream("POST", "/script", stream_id=f"{name}::variant", **script(numbered(1, 100))) as stream:
            list(stream)
        ids = [name, *[f"none-{number}" for number in range(2500)], f"{name}::variant"]
        assert [item.conversation_id for item in client.lookup(ids)] == [f"{name}::variant"]


async def test_a_read_that_is_cancelled_loses_nothing(server: Server, stage: Stage, backoff: Backoff) -> None:
    """The next one goes on where it left off."""
    name = unique("cancelled")
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as http:
        client = AsyncResumableClient(http, backoff=backoff)
        steps = [send(b"data: 1\n\n"), wait(name), send(b"data: 2\n\n")]
        async with client.stream("POST", "/script", **script(*steps)) as stream:
            assert (await anext(aiter(stream))).data == "1"
            task = asyncio.ensure_future(anext(aiter(stream)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with anyio.move_on_after(0):
                await anext(aiter(stream))
            stage.open(name)
            assert [event.data async for event in stream.events()] == ["2"]


async def test_the_asynchronous_client_stops_looks_up_and_reads_lines(server: Server, backoff: Backoff) -> None:
    """The rest of its interface."""
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as http:
        client = AsyncResumableClient(http, backoff=backoff)
        text = script(send(b"a\nb"), media_type="text/plain")
        async with client.stream("POST", "/script", **text) as stream:
            assert [line async for line in stream.iter_lines()] == ["a", "b"]
        async with client.resume(stream.id, offset=1, epoch=stream.epoch) as stream:
            assert b"".join([chunk async for chunk in stream.iter_bytes()]) == b"\nb"
        async with client.stream("POST", "/script", **script(send(b"data: 1\n\n"), forever())) as stream:
            async for _ in stream:
                await stream.stop()
            assert stream.state is StreamState.STOPPED
            await stream.close()
        await client.stop(stream.id)
        assert await client.lookup([stream.id]) == []


async def test_a_streamed_body_of_the_asynchronous_client_is_sent_again(server: Server, backoff: Backoff) -> None:
    """An asynchronous generator is kept, too."""

    async def body() -> AsyncIterator[bytes]:
        yield script_body(numbered(3, 100))

    with CuttingProxy(server.port, cuts=3, most=20, heads=True) as line:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{line.port}", timeout=TIMEOUT) as http:
            client = AsyncResumableClient(http, backoff=backoff)
            async with client.stream("POST", "/script", content=body(), headers=JSON) as stream:
                assert numbers([event async for event in stream]) == [0, 1, 2]
        assert line.spent


WITHOUT_EXTRAS = """
import sys
import fastapi_resumable

for missing in ("httpx_sse", "httpx"):
    sys.modules[missing] = None
    try:
        import fastapi_resumable.client
    except ImportError as error:
        print(error)
"""


def test_a_missing_extra_is_named() -> None:
    """The error says what to install; the server's side needs none of it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.splitlines() == [
        f"fastapi_resumable.client needs {missing}: pip install 'fastapi-resumable[client]'"
        for missing in ("httpx_sse", "httpx")
    ]
