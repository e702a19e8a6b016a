"""What servers of bad will, or in a bad way, can make of a client: on real sockets, two origins."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from fastapi_resumable.client import (
    AsyncResumableClient,
    AsyncResumableTransport,
    Backoff,
    ClientError,
    RequestRefused,
    ResumableClient,
    ResumableTransport,
    StreamState,
)

EPOCH = "a" * 16
LOG = b"0123456789"
FEW = Backoff(initial=0.001, retries=2)
SECRETS = ("authorization", "cookie", "x-api-key")
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def origin(answer: Answer) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers as it is told; its URL, and the requests that it has had."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            seen.append((self.command, self.path, self.headers))
            self.rfile.read(int(self.headers.get("content-length") or 0))
            answer(self)

        do_GET = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815  # http.server's names

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def say(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    handler.send_response(status)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def redirect(to: str) -> Answer:
    return lambda handler: say(handler, 307, {"location": to})


def stream(location: str = "/replay") -> Answer:
    """Ten bytes, of which the first answer breaks off after five."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        ours = {"x-stream-epoch": EPOCH, "x-conversation-id": "one", "content-location": location}
        start = int(handler.path.partition("from=")[2] or 0)
        body = {"POST": LOG[:5], "GET": LOG[start:], "HEAD": b""}[handler.command]
        status = {"x-stream-status": "completed", "x-stream-total-bytes": str(len(LOG))}
        size = {"content-type": "text/plain", "content-length": str(len(LOG) - start)}
        say(handler, 200, {**ours, **status, **size}, body)

    return answer


def refuse(handler: BaseHTTPRequestHandler) -> None:
    say(handler, 401, {}, b'{"detail": "who are you?"}')


def secrets(seen: list[Any]) -> set[str]:
    """Which secrets a server has seen."""
    return {name for _, _, headers in seen for name in SECRETS if name in headers}


WAYS = {
    "headers of the request": ({}, {"headers": {"Authorization": "Bearer s", "X-Api-Key": "k", "Cookie": "a=b"}}),
    "headers of the client": ({"headers": {"Authorization": "Bearer s", "X-Api-Key": "k"}}, {}),
    "auth of the request": ({}, {"auth": ("user", "secret")}),
    "auth of the client": ({"auth": ("user", "secret")}, {}),
    "cookies of the client": ({"cookies": {"session": "s"}}, {}),
    "cookies of the request": ({}, {"cookies": {"session": "s"}}),
}
ways = pytest.mark.parametrize(("of_client", "of_request"), WAYS.values(), ids=WAYS)


@ways
def test_a_redirect_takes_no_credentials_along(of_client: dict[str, Any], of_request: dict[str, Any]) -> None:
    """The stream comes all the same, and is resumed and stopped without them, if its server wants none."""
    with origin(stream()) as (other, seen), origin(redirect(f"{other}/chat")) as (url, first):
        with httpx.Client(follow_redirects=True, **of_client) as http:
            with ResumableClient(http, backoff=FEW).stream("POST", f"{url}/chat", content=b"x", **of_request) as body:
                assert b"".join(body.iter_bytes()) == LOG
            assert body.state is StreamState.DONE
        assert [command for command, _, _ in seen] == ["POST", "GET", "HEAD"]
        assert secrets(first)
        assert not secrets(seen)


async def test_the_asynchronous_client_follows_redirects_without_them() -> None:
    """From one origin to the next."""
    with (
        origin(stream()) as (other, seen),
        origin(redirect(f"{other}/chat")) as (second, between),
        origin(redirect(f"{second}/chat")) as (url, first),
    ):
        async with httpx.AsyncClient(follow_redirects=True, cookies={"session": "s"}) as http:
            client = AsyncResumableClient(http, backoff=FEW)
            async with client.stream("POST", f"{url}/chat", auth=("user", "secret")) as body:
                assert b"".join([chunk async for chunk in body.iter_bytes()]) == LOG
        assert secrets(first) == {"authorization", "cookie"}
        assert not secrets(seen + between)


@ways
async def test_nor_does_content_location(of_client: dict[str, Any], of_request: dict[str, Any]) -> None:
    """Of the asynchronous client; what the other server refuses then is an error that says why."""
    with origin(refuse) as (other, seen), origin(stream(f"{other}/replay")) as (url, first):
        async with httpx.AsyncClient(**of_client) as http:
            client = AsyncResumableClient(http, backoff=FEW)
            async with client.stream("POST", f"{url}/chat", content=b"x", **of_request) as body:
                chunks = body.iter_bytes()
                assert await anext(chunks) == LOG[:5]
                with pytest.raises(RequestRefused, match="none of the credentials") as caught:
                    await anext(chunks)
        assert (caught.value.status_code, caught.value.message) == (401, "who are you?")
        assert len(seen) == 1
        assert secrets(first)
        assert not secrets(seen)


def test_the_transport_sends_them_nowhere_else_either() -> None:
    """Below any client."""
    named = {"X-Conversation-Id": "one", "Authorization": "Bearer s", "X-Api-Key": "k", "Cookie": "a=b"}
    with origin(stream()) as (other, seen), origin(stream(f"{other}/replay")) as (url, first):
        with httpx.Client(transport=ResumableTransport(backoff=FEW, on_close="stop")) as http:
            assert http.post(f"{url}/chat", headers=named).content == LOG
        assert secrets(first) == set(SECRETS)
        assert not secrets(seen)


async def test_nor_does_the_asynchronous_one() -> None:
    """The place in the stream is there to be seen."""
    named = {"X-Conversation-Id": "one", "Authorization": "Bearer s"}
    with origin(stream()) as (other, seen), origin(stream(f"{other}/replay")) as (url, _):
        async with httpx.AsyncClient(transport=AsyncResumableTransport(backoff=FEW)) as http:
            answer = await http.post(f"{url}/chat", headers=named)
        assert answer.content == LOG
        place = answer.extensions["resumable"]
        assert (place.id, place.epoch, place.offset, place.state) == ("one", EPOCH, 10, StreamState.DONE)
        assert not secrets(seen)


def test_a_redirect_within_the_origin_keeps_them() -> None:
    """To another path."""
    play = stream()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (redirect("/there") if handler.path == "/chat" else play)(handler)

    with origin(answer) as (url, seen), httpx.Client(follow_redirects=True, auth=("user", "secret")) as http:
        with ResumableClient(http, backoff=FEW).stream("POST", f"{url}/chat") as body:
            assert b"".join(body.iter_bytes()) == LOG
        assert all("authorization" in headers for _, _, headers in seen)
        assert [path.partition("?")[0] for _, path, _ in seen] == ["/chat", "/there", "/replay", "/replay"]


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:99999999/", "http://[::1", f"http://{'a' * 64}.example/", "gopher://x/", "/chat"]
)
def test_a_redirect_to_nowhere_is_a_client_error(location: str) -> None:
    """Whatever is wrong with it; the last one goes round in circles."""
    with origin(redirect(location)) as (url, _), httpx.Client(follow_redirects=True) as http:
        client = ResumableClient(http, backoff=FEW)
        with pytest.raises(ClientError), client.stream("POST", f"{url}/chat"):
            pass
        with pytest.raises(ClientError):
            ResumableClient(http, prefix=url, backoff=FEW).stop("one")


@pytest.mark.parametrize("asked", ["3000000", "9" * 5000])
def test_a_retry_after_of_weeks_is_a_minute(asked: str) -> None:
    """And no number makes a client ask without a pause."""
    slept: list[float] = []
    with origin(lambda handler: say(handler, 503, {"retry-after": asked})) as (url, seen), httpx.Client() as http:
        client = ResumableClient(http, prefix=url, backoff=FEW, sleep=slept.append)
        with pytest.raises(ClientError), client.stream("POST", f"{url}/chat"):
            pass
        with pytest.raises(ClientError):
            client.lookup(["one"])
    assert len(seen) == 6
    assert [int(delay) for delay in slept] == [60] * 4


@pytest.mark.parametrize("body", [b"[" * 100_000, b"<html>", b"", b'[{"total_bytes": -1}]', b"9" * 5000])
def test_an_answer_to_a_lookup_that_is_none_is_a_client_error(body: bytes) -> None:
    """Of one type, whatever it is."""
    with (
        origin(lambda handler: say(handler, 200, {}, body)) as (url, _),
        httpx.Client() as http,
        pytest.raises(ClientError, match="prefix"),
    ):
        ResumableClient(http, prefix=url, backoff=FEW).lookup(["one"])


@pytest.mark.parametrize("cookies", [{}, {"session": "a"}, {"worker": "1", "session": "a"}])
@pytest.mark.parametrize("below", [False, True], ids=["client", "transport"])
def test_a_cookie_that_comes_with_the_answer_goes_with_what_follows(below: bool, cookies: dict[str, str]) -> None:
    """A load balancer finds the worker by it that has the stream; another origin gets neither it nor the user's own."""
    for elsewhere in (False, True):
        with origin(stream()) as (other, foreign):
            play = stream(f"{other}/replay" if elsewhere else "/replay")

            def answer(handler: BaseHTTPRequestHandler, play: Answer = play) -> None:
                handler.send_response_only = partial(send_cookie, handler)  # type: ignore[method-assign]
                play(handler)

            with origin(answer) as (url, own):
                transport = ResumableTransport(backoff=FEW) if below else None
                with httpx.Client(transport=transport, cookies=cookies) as http:
                    if below:
                        assert http.post(url, headers={"X-Conversation-Id": "one"}).content == LOG
                    else:
                        with ResumableClient(http, backoff=FEW).stream("POST", url) as body:
                            assert b"".join(body.iter_bytes()) == LOG
        asked = [headers.get("cookie") for _, _, headers in [*own, *foreign]]
        before = "; ".join(f"{name}={value}" for name, value in cookies.items()) or None
        after = "; ".join(f"{name}={value}" for name, value in {**cookies, "worker": "2"}.items())
        assert asked == [before, *[None if elsewhere else after] * 2]


def send_cookie(handler: BaseHTTPRequestHandler, status: int, message: str | None = None) -> None:
    BaseHTTPRequestHandler.send_response_only(handler, status, message)
    handler.send_header("set-cookie", "worker=2; Path=/")


def pausing(asked: threading.Event) -> Answer:
    """A stream that breaks off, and a server that wants it to be asked for much later."""
    play = stream()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "GET":
            asked.set()
            say(handler, 503, {"retry-after": "100000"})
        elif handler.command == "DELETE":
            say(handler, 204, {})
        else:
            play(handler)

    return answer


PATIENT = Backoff(initial=0.001, server_maximum=100_000.0)


def test_a_stop_ends_a_pause() -> None:
    """However long the server has asked to wait: there is nothing to come back for."""
    asked = threading.Event()
    with origin(pausing(asked)) as (url, seen), httpx.Client() as http:
        with ResumableClient(http, backoff=PATIENT).stream("POST", url) as body:

            def stop() -> None:
                asked.wait()
                body.stop()

            stopper = threading.Thread(target=stop)
            stopper.start()
            assert b"".join(body.iter_bytes()) == LOG[:5]
            stopper.join()
        assert body.state is StreamState.STOPPED
        assert [command for command, _, _ in seen] == ["POST", "GET", "DELETE"]


async def test_a_stop_ends_a_pause_of_the_asynchronous_client() -> None:
    """The one that reads is another task."""
    asked = threading.Event()
    with origin(pausing(asked)) as (url, seen):
        async with (
            httpx.AsyncClient() as http,
            AsyncResumableClient(http, backoff=PATIENT).stream("POST", url) as body,
        ):

            async def stop() -> None:
                await asyncio.to_thread(asked.wait)
                await body.stop()

            stopper = asyncio.ensure_future(stop())
            assert b"".join([chunk async for chunk in body.iter_bytes()]) == LOG[:5]
            await stopper
        assert body.state is StreamState.STOPPED
        assert [command for command, _, _ in seen] == ["POST", "GET", "DELETE"]
