"""Servers and proxies that misbehave, on real sockets: the client gets every byte once, or says what is wrong."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from fastapi_resumable.client import (
    Backoff,
    ClientError,
    ConnectionLost,
    RequestRefused,
    ResumableClient,
    ResumableTransport,
    StreamState,
)

EPOCH = "a" * 16
LOG = "".join(f"id: {number}\ndata: Zwölf große Käse, 東京 und 😀\n\n" for number in range(3)).encode()
OURS = f"X-Stream-Epoch: {EPOCH}\r\nX-Conversation-Id: one\r\nContent-Location: /replay\r\n"
FEW = Backoff(initial=0.001, maximum=0.002, retries=3)


def head(status: str = "200 OK", length: int | None = None, more: str = "", kind: str = "text/event-stream") -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n{OURS}{size}{more}\r\n".encode()


def described(status: str, total: object = len(LOG)) -> bytes:
    """The answer to HEAD."""
    return head(more=f"X-Stream-Status: {status}\r\nX-Stream-Total-Bytes: {total}\r\n")


@contextmanager
def server(*answers: bytes | Callable[[int], bytes]) -> Iterator[tuple[str, list[str]]]:
    """Gives one answer for each connection, and then closes it; its URL, and the requests that it has had."""
    seen: list[str] = []
    rest = iter(answers)

    def serve() -> None:
        for answer in rest:
            try:
                peer, _ = listener.accept()
            except OSError:
                # The test is over, and had no use for this answer.
                return
            # A client may leave in the middle of an answer.
            with peer, suppress(ConnectionError):
                request = b""
                while b"\r\n\r\n" not in request:
                    request += peer.recv(65536)
                method, path, _ = request.split(b" ", 2)
                seen.append(f"{method.decode()} {path.partition(b'from=')[2].decode()}".strip())
                offset = int(path.partition(b"from=")[2] or 0)
                peer.sendall(answer if isinstance(answer, bytes) else answer(offset))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
        finally:
            # It wakes a thread that waits for a connection, which would fail in a later test, when the socket's number
            # is that of something else.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)


def rest(offset: int) -> bytes:
    """A good replay."""
    return head(length=len(LOG) - offset) + LOG[offset:]


def cut(place: int) -> bytes:
    """The first response, which breaks off."""
    return head(length=len(LOG)) + LOG[:place]


@contextmanager
def following(url: str) -> Iterator[tuple[list[str], list[StreamState]]]:
    """Read a stream to its end with the client: its data, and the states."""
    states: list[StreamState] = []
    data: list[str] = []
    with httpx.Client(base_url=url) as http:
        client = ResumableClient(http, backoff=FEW, sleep=lambda _: None)
        with client.stream("POST", "/chat", on_state=states.append) as stream:
            data.extend(event.data for event in stream)
    yield data, states


WHOLE = ["Zwölf große Käse, 東京 und 😀"] * 3
COMPLETED = described("completed")
NOISE = {
    "nothing at all": b"",
    "no HTTP": b"hello\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "503 and a date": (
        b"HTTP/1.1 503 Later\r\nDate: Wed, 21 Oct 2026 07:28:00 GMT\r\nRetry-After: Wed, 21 Oct 2026 07:28:30 GMT\r\n"
        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    ),
    "a page to sign in": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage"
    ),
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\nConnection: close\r\n\r\n",
    "a length that is too small": head(length=0) + LOG,
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
@pytest.mark.parametrize("place", [0, 8, LOG.index("ö".encode()) + 1, len(LOG) - 1])
def test_an_answer_that_makes_no_sense_is_asked_for_again(noise: bytes, place: int) -> None:
    """Wherever the connection broke, within a character too."""
    answers = [cut(place), *[described("in_progress")] * (place == 0), noise]
    with server(*answers, *[COMPLETED] * noise.startswith(head(length=0)), rest, COMPLETED) as (url, seen):
        with following(url) as (data, states):
            assert data == WHOLE
        assert states[-1] is StreamState.DONE
        assert seen.count("POST") == 1


@pytest.mark.parametrize("place", [1, 30, len(LOG) - 1])
def test_an_end_in_good_order_that_is_not_the_streams_is_noticed(place: int) -> None:
    """As of a proxy that has lost its server."""
    with server(head(length=place) + LOG[:place], described("in_progress"), rest, COMPLETED) as (url, seen):
        with following(url) as (data, states):
            assert data == WHOLE
        assert StreamState.RECONNECTING in states
        assert seen == ["POST", f"HEAD {place}", f"GET {place}", f"HEAD {len(LOG)}"]


@pytest.mark.parametrize("reads", [True, False])
def test_a_hook_that_raises_for_a_status_changes_nothing(reads: bool) -> None:
    """As in httpx's documentation: an answer that holds for now is no end, and a refusal has the server's words."""

    def raise_for_status(response: httpx.Response) -> None:
        if reads and response.is_error:
            response.read()
        response.raise_for_status()

    refused = b'{"detail": {"code": "c", "message": "m"}}'
    answers = [cut(30), NOISE["500"], NOISE["503 and a date"], head("404 Gone", len(refused)) + refused]
    hooks = {"response": [raise_for_status]}
    with server(*answers) as (url, _), httpx.Client(base_url=url, event_hooks=hooks) as http:
        client = ResumableClient(http, backoff=FEW, sleep=lambda _: None)
        with pytest.raises(RequestRefused) as caught, client.stream("POST", "/chat") as stream:
            list(stream)
    assert (caught.value.status_code, caught.value.code) == (404, "c" if reads else "")


def test_below_a_transport_too() -> None:
    """The caller gets one body."""
    with (
        server(head(length=30) + LOG[:30], described("in_progress"), rest, COMPLETED) as (url, _),
        httpx.Client(transport=ResumableTransport(backoff=FEW, sleep=lambda _: None)) as http,
    ):
        assert http.post(url, headers={"X-Conversation-Id": "one"}).content == LOG


@pytest.mark.parametrize("total", ["", "-1", "9" * 5000, "1e3", "\u00b2"])
def test_a_total_that_is_no_number_is_left_aside(total: str) -> None:
    """The end of the response counts then."""
    with server(rest, described("completed", total)) as (url, _), following(url) as (data, states):
        assert data == WHOLE
        assert states[-1] is StreamState.DONE


def test_a_body_without_a_length_ends_when_the_server_says_so() -> None:
    """Its end looks like a cut."""
    with server(head() + LOG[:30], described("in_progress"), rest, COMPLETED) as (url, _), following(url) as (data, _):
        assert data == WHOLE


def test_an_id_that_is_replaced_in_mid_read_is_an_error() -> None:
    """Nothing of the new stream is taken for the old one."""
    gone = b'{"detail": {"code": "stream_replaced", "message": "m"}}'
    replaced = head("409 Conflict", len(gone), kind="application/json") + gone
    with server(cut(60), replaced) as (url, _), pytest.raises(RequestRefused, match="stream_replaced"), following(url):
        pass


BAD = {
    "epoch": f"X-Stream-Epoch: {'e' * 70000}\r\nContent-Location: /replay\r\n",
    "bytes in the epoch": "X-Stream-Epoch: \xff\xfe\r\nContent-Location: /replay\r\n",
    "location": f"X-Stream-Epoch: {EPOCH}\r\nContent-Location: http://[::1\r\n",
    "host": f"X-Stream-Epoch: {EPOCH}\r\nContent-Location: http://{'a' * 64}.example/\r\n",
    "port": f"X-Stream-Epoch: {EPOCH}\r\nContent-Location: http://127.0.0.1:0/\r\n",
    "compression": f"X-Stream-Epoch: {EPOCH}\r\nContent-Encoding: gzip\r\n",
}


@pytest.mark.parametrize("headers", BAD.values(), ids=BAD)
def test_bad_headers_raise_errors_of_the_client_alone(headers: str) -> None:
    """Whatever is wrong with them."""
    first = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 999\r\n{headers}\r\n"
    with server(first.encode("latin-1") + LOG[:60], *[b""] * 9) as (url, _), pytest.raises(ClientError), following(url):
        pass


def test_a_retry_of_thousands_of_digits_is_left_aside() -> None:
    """And one of weeks is a minute."""
    for digits, wait in (("9" * 5000, 0), ("3000000000", 60)):
        slept: list[float] = []
        asked = f"retry: {digits}\ndata: 1\n\n".encode()
        with server(head(length=999) + asked, b"", b"", b"", b"") as (url, _), httpx.Client(base_url=url) as http:
            client = ResumableClient(http, backoff=FEW, sleep=slept.append)
            with pytest.raises(ConnectionLost), client.stream("POST", "/chat") as stream:
                list(stream)
        assert {int(delay) for delay in slept} == {wait}
