"""The client's state machine and its decoders, without any I/O: cut anywhere, everything is delivered once."""

import asyncio
import random
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from httpx_sse import ServerSentEvent
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_resumable._core.sse import EventFramer
from fastapi_resumable._core.terminal import terminal_event
from fastapi_resumable.client import (
    Backoff,
    ConnectionLost,
    RequestRefused,
    ResumableClient,
    StreamCancelled,
    StreamFailed,
    StreamState,
)
from fastapi_resumable.client.decoder import Decoder, Item, known_charset, terminal
from fastapi_resumable.client.engine import run
from fastapi_resumable.client.machine import Resumption
from fastapi_resumable.client.messages import Ask
from tests.support.ssemodel import Event, parse

EPOCH = "mfrggzdfmztwq2lk"
URL = "http://server/v1/stream/one"
ENDLESS = Backoff(retries=None, random=lambda: 0.0)
OURS = {"x-stream-epoch": EPOCH, "content-location": "/v1/stream/one", "x-conversation-id": "one"}

pieces = st.lists(
    st.sampled_from([b"data: ", b"data", b"id: 7", b"id: ", b"event: e", b": c", b"retry: 20", b"\n", b"\n\n", b"\r\n"])
    | st.sampled_from([b"\r\n\r\n", b"\r", b"\r\r", b"\xef\xbb\xbf", "é€😀".encode(), b"\xff", b"x: y", b"\0", b" "])
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)
cuts = st.lists(st.integers(0, 12), max_size=60)


def recorded(sent: bytes, *, ids: bool = True) -> bytes:
    """What the server's log holds of what an application has sent."""
    framer = EventFramer(EPOCH if ids else None, 1 << 20)
    log = framer.feed(sent, 0)
    return log + framer.finish(len(log))


def answered(status: int, headers: dict[str, str], url: str) -> httpx.Response:
    """The head of an answer."""
    return httpx.Response(status, headers=httpx.Headers(headers, "utf-8"), request=httpx.Request("GET", url))


class Server:
    """A model of the replay route: one finished stream."""

    def __init__(self, log: bytes, status: str = "completed") -> None:
        self.log = log
        self.status = status
        self.asked: list[str] = []

    def answer(self, ask: Ask) -> tuple[httpx.Response, bytes]:
        """The whole answer to a request."""
        query = parse_qs(urlsplit(ask.url).query)
        offset = int(query.get("from", ["0"])[0])
        if ask.method is not None:
            assert query["epoch"] == [EPOCH]
        assert offset <= len(self.log)
        self.asked.append("start" if ask.method is None else ask.method)
        told = {"x-stream-status": self.status, "x-stream-total-bytes": str(len(self.log))}
        return answered(200, {**OURS, **(told if ask.method == "HEAD" else {})}, URL), self.log[offset:]


def resumption(backoff: Backoff = ENDLESS, **options: Any) -> Resumption:
    return Resumption(backoff, "http://server/chat", **options)


def drive(machine: Resumption, server: Server, cuts: Iterable[int]) -> Iterator[bytes]:
    """Deliver a stream over connections that break after so many bytes each; the last one is whole."""
    limits = iter(cuts)
    fed = random.Random(0)
    while (ask := machine.ask()) is not None:
        head, body = server.answer(ask)
        head.headers["content-type"] = "text/plain"
        if not machine.head(head):
            continue
        limit = next(limits, None)
        body, rest = (body, b"") if limit is None else (body[:limit], body[limit:])
        while body:
            size = fed.randint(1, 3)
            machine.feed(body[:size])
            yield body[:size]
            body = body[size:]
        if limit is None:
            machine.end()
        else:
            machine.cut(ConnectionError(f"{len(rest)} bytes are missing"))


def decode(decoder: Decoder, chunks: Iterable[bytes]) -> Iterator[Item]:
    for chunk in chunks:
        yield from decoder.feed(chunk)
    yield from decoder.feed(b"", final=True)


def events(items: Iterable[Item]) -> list[Event]:
    """In the form of the model."""
    return [Event(item.value.data, item.value.event, item.value.id) for item in items]


@given(sent=pieces, cuts=cuts, ids=st.booleans())
@example(sent=b"data: a\r\rdata: b\r\r", cuts=[2] * 40, ids=False)
@example(sent=b"data: a\r\r\ndata: b\n\n", cuts=[9, 1], ids=False)
@example(sent="data: é€\r\n\r\ndata: 2\r\n\r\n".encode(), cuts=[1] * 60, ids=True)
@example(sent=b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", cuts=[2], ids=False)
@example(sent=b"event: e\n\ndata\n\nid: 1\n\ndata: x\n\n: c\n\n\n\n", cuts=[2], ids=False)
def test_any_cuts_of_any_bytes_give_the_same_events(sent: bytes, cuts: list[int], ids: bool) -> None:
    """The events of an uninterrupted stream, in order, each once."""
    log = recorded(sent, ids=ids)
    machine = resumption()
    assert events(decode(Decoder("events", 0), drive(machine, Server(log), cuts))) == parse(log)
    assert machine.state is StreamState.DONE


@given(log=st.binary(max_size=60), cuts=cuts)
def test_any_cuts_of_any_bytes_give_the_same_bytes(log: bytes, cuts: list[int]) -> None:
    """For every media type; and each item says where it ends."""
    machine = resumption()
    items = list(decode(Decoder("iter_bytes", 0), drive(machine, Server(log), cuts)))
    assert b"".join(item.value for item in items) == log
    assert machine.offset == len(log)
    assert [item.offset for item in items][-1:] in ([], [len(log)])


def test_a_drop_at_every_byte_loses_and_repeats_nothing() -> None:
    """Of five events: one cut for each place there is."""
    log = recorded(b"".join(f"data: Käse {number}\n\n".encode() for number in range(5)))
    for place in range(len(log) + 1):
        server = Server(log)
        assert b"".join(drive(resumption(), server, [place])) == log
        assert server.asked == ["start", *["HEAD"] * (place == 0), "GET", "HEAD"]


letters = st.characters(codec="utf-8", exclude_characters="\r\n")


@given(lines=st.lists(st.text(letters, max_size=6), max_size=8), cuts=cuts)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_cuts_of_a_text_give_the_same_lines(lines: list[str], cuts: list[int], end: str) -> None:
    """Lines that hold U+2028 or a form feed are one line each."""
    log = "".join(line + end for line in lines).encode("utf-8", "replace")
    items = list(decode(Decoder("iter_lines", 0), drive(resumption(), Server(log), cuts)))
    assert [item.value for item in items] == lines
    assert [item.offset for item in items][-1:] in ([], [len(log)])


def test_a_line_is_delivered_as_soon_as_it_is_known_to_have_ended() -> None:
    """A CR may be half a line end, so the next byte decides."""
    decoder = Decoder("iter_lines", 0)
    fed = [[item.value for item in decoder.feed(chunk)] for chunk in (b"one\r", b"two", b"\nthree\r", b"\n", b"4")]
    assert fed == [[], ["one"], ["two"], ["three"], []]
    assert [*decoder.feed(b"", final=True)] == [Item("4", 16)]
    assert [*decoder.feed(b"", final=True)] == []


@given(sent=pieces, cuts=cuts, stop=st.integers(0, 10))
def test_a_stream_can_be_taken_up_by_another_client_after_any_event(sent: bytes, cuts: list[int], stop: int) -> None:
    """The offset of an event delivered is where the rest begins."""
    log = recorded(sent)
    first = list(decode(Decoder("events", 0), drive(resumption(), Server(log), cuts)))[:stop]
    offset = first[-1].offset if first else 0
    rest = [*decode(Decoder("events", offset), [log[offset:]])]
    assert [event.data for event in events([*first, *rest])] == [event.data for event in parse(log)]


def machine_after_head(backoff: Backoff = ENDLESS, **headers: str) -> Resumption:
    machine = resumption(backoff)
    assert machine.ask() == Ask(0)
    assert machine.head(answered(200, {**OURS, **headers}, URL))
    return machine


def lose(machine: Resumption) -> Ask:
    machine.cut(ConnectionError("lost"))
    ask = machine.ask()
    assert ask is not None
    return ask


def test_waits_grow_from_failure_to_failure_and_start_again_with_a_byte() -> None:
    """Exponential, with full jitter, and a limit."""
    drawn = iter([1.0, 0.5, 1.0, 1.0, 1.0])
    machine = machine_after_head(Backoff(initial=1, maximum=5, random=lambda: next(drawn)))
    machine.feed(b"x")
    assert [lose(machine).delay for _ in range(4)] == [1, 1, 4, 5]
    machine.head(answered(200, OURS, URL))
    machine.feed(b"x")
    assert lose(machine).delay == 1


def test_it_gives_up_after_so_many_failures_in_a_row() -> None:
    """And names the last one."""
    machine = machine_after_head(Backoff(retries=2, random=lambda: 0))
    machine.feed(b"x")
    lose(machine)
    lose(machine)
    with pytest.raises(ConnectionLost, match=r"Gave up after 3 attempts in a row: lost") as caught:
        lose(machine)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert (machine.state, machine.ask()) == (StreamState.LOST, None)


def test_what_the_stream_asks_clients_to_wait_is_the_least() -> None:
    """`retry:` counts from then on; the jitter comes on top."""
    machine = machine_after_head(Backoff(initial=1, random=lambda: 0.5))
    decoder = Decoder("events", 0)
    assert list(decoder.feed(b"retry: 3000\n\n")) == []
    assert decoder.retry == 3000
    machine.wait_at_least(3000)
    machine.feed(b"x")
    assert [lose(machine).delay for _ in range(2)] == [3.5, 4.0]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "3000000"}, 60),
        ({"retry-after": "9" * 5000}, 60),
        ({"retry-after": "-7"}, 0),
        ({"retry-after": "7_0"}, 0),
        ({"retry-after": "\u0667"}, 0),
        ({"retry-after": "1e3"}, 0),
        ({"retry-after": "Wed, 21 Oct 2099 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 60),
        ({"retry-after": f"Wed, 21 Oct {'9' * 30} 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({"retry-after": f"Wed, 21 Oct 2026 07:28:30 +{'9' * 30}", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({}, 0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_the_least_to_wait(headers: dict[str, str], wait: float, status: int) -> None:
    """Seconds, or a date, which counts from the answer's own."""
    machine = resumption(Backoff(random=lambda: 0))
    assert not machine.head(answered(status, headers, URL), b"{}")
    assert machine.ask() == Ask(wait)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 416])
@pytest.mark.parametrize("begun", [False, True])
def test_a_final_answer_is_raised_with_the_servers_code_and_message(status: int, begun: bool) -> None:
    """At the start and at a resume."""
    machine = machine_after_head() if begun else resumption()
    if begun:
        machine.feed(b"x")
        lose(machine)
    with pytest.raises(RequestRefused) as caught:
        machine.head(answered(status, {}, URL), b'{"detail": {"code": "c", "message": "m", "tail": 3}}')
    error = caught.value
    assert (error.status_code, error.code, error.message, error.detail["tail"]) == (status, "c", "m", 3)
    assert machine.state is StreamState.LOST


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "<html>"),
        (b'{"detail": "no"}', "no"),
        (b"[1]", "[1]"),
        (b"\xff", "\ufffd"),
        (b"[" * 100_000, "[" * 100_000),
        (b"9" * 5000, "9" * 5000),
    ],
    ids=["page", "text", "list", "bytes", "deep", "digits"],
)
def test_a_refusal_of_any_other_form_is_one_too(body: bytes, message: str) -> None:
    """A proxy's page, or FastAPI's own."""
    with pytest.raises(RequestRefused) as caught:
        resumption().head(answered(403, {}, URL), body)
    assert (caught.value.code, caught.value.message) == ("", message)


def test_an_error_of_the_server_is_final_at_the_start_alone() -> None:
    """An endpoint that fails would fail again, at a price; a replay route that does is having a bad time."""
    with pytest.raises(RequestRefused):
        resumption().head(answered(500, {}, URL))
    machine = machine_after_head()
    machine.feed(b"x")
    lose(machine)
    assert not machine.head(answered(500, {}, URL))
    assert machine.state is StreamState.RECONNECTING


def test_an_answer_that_is_not_the_stream_counts_as_none() -> None:
    """A page of the hotel's, say, another epoch, or what a proxy has compressed."""
    machine = machine_after_head()
    machine.feed(b"x")
    lose(machine)
    for headers in ({}, {**OURS, "x-stream-epoch": "a" * 16}, {**OURS, "content-encoding": "gzip"}):
        assert not machine.head(answered(200, headers, URL))
        ask = machine.ask()
        assert ask and ask.url == f"{URL}?epoch={EPOCH}&from=1"


def test_an_answer_without_a_way_back_is_read_as_it_is() -> None:
    """To its end; a cut says why it cannot be mended."""
    machine = resumption()
    assert machine.head(answered(200, {}, URL))
    machine.feed(b"x")
    machine.end()
    assert machine.state is StreamState.DONE
    machine = resumption()
    machine.head(answered(200, {}, URL))
    with pytest.raises(ConnectionLost, match="Content-Location"):
        machine.cut(ConnectionError())


@pytest.mark.parametrize(
    ("location", "asked", "trusted"),
    [
        ("http://server/api/v1/stream?conv_id=a%2F", "http://server/api/v1/stream?conv_id=a%2F&", True),
        ("HTTP://SERVER:80/x#part", "http://server/x?", True),
        ("http://elsewhere/x", "http://elsewhere/x?", False),
        ("https://server/x", "https://server/x?", False),
        ("//server:81/x", "http://server:81/x?", False),
        ("http://server@elsewhere/x", "http://server@elsewhere/x?", False),
    ],
)
def test_credentials_go_to_no_other_origin(location: str, asked: str, trusted: bool) -> None:
    """It is asked without them."""
    machine = machine_after_head(**{"content-location": location})
    machine.feed(b"x")
    assert lose(machine) == Ask(0, "GET", f"{asked}epoch={EPOCH}&from=1", trusted)
    assert machine.stop().trusted is trusted
    if not trusted:
        with pytest.raises(RequestRefused, match="none of the credentials"):
            machine.head(answered(401, {}, asked), b"{}")


def test_a_server_that_it_was_redirected_to_sends_it_nowhere_with_credentials() -> None:
    """Not back to the first one either: that would be a request of its choice in the caller's name."""
    machine = resumption()
    machine.head(answered(200, {**OURS, "content-location": "http://server/account"}, "http://evil/"))
    assert not machine.stop().trusted


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1",
        "http://a:99999999/",
        "file:///etc/passwd",
        "mailto:a@b",
        "/" + "x" * 70000,
        "http://a\0/",
    ],
)
def test_a_content_location_that_is_none_makes_no_stream_resumable(location: str) -> None:
    """And raises nothing of its own."""
    machine = machine_after_head(**{"content-location": location})
    assert machine.replay_url is None
    with pytest.raises(ConnectionLost, match="cannot be resumed"):
        machine.cut(ConnectionError())


@pytest.mark.parametrize("asked", [3_000_000_000, 10**400, -5])
def test_what_a_stream_asks_clients_to_wait_is_clipped(asked: int) -> None:
    """To a minute, by default; the jitter comes on top."""
    machine = machine_after_head(Backoff(initial=1, random=lambda: 0.5))
    machine.feed(b"x")
    machine.wait_at_least(asked)
    assert lose(machine).delay == (60.5 if asked > 0 else 0.5)
    machine = machine_after_head(Backoff(initial=1, server_maximum=5, random=lambda: 0.5))
    machine.feed(b"x")
    machine.wait_at_least(asked)
    assert lose(machine).delay == (5.5 if asked > 0 else 0.5)


@pytest.mark.parametrize("total", ["", "x", "-1", "1_0", "\u0660", "9" * 5000, "1e3", "\u00b2"])
def test_a_total_that_is_no_number_is_none(total: str) -> None:
    """Nothing is concluded from it."""
    machine = machine_after_head()
    assert lose(machine).method == "HEAD"
    head = {**OURS, "x-stream-status": "completed", "x-stream-total-bytes": total}
    assert not machine.head(answered(200, head, URL))
    assert machine.ask() == Ask(0, "GET", f"{URL}?epoch={EPOCH}&from=0")


@pytest.mark.parametrize("charset", ["utf-8", "latin-1", "idna", "base64", "no-such", "a\0b", "punycode", "undefined"])
def test_any_charset_is_one_that_can_be_read(charset: str) -> None:
    """UTF-8 where it cannot."""
    b"\xff\n".decode(known_charset(charset), "replace")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("completed", None), ("failed", StreamFailed), ("interrupted", StreamFailed), ("cancelled", StreamCancelled)],
)
def test_a_stream_that_breaks_off_without_a_word_is_looked_at(status: str, outcome: type[Exception] | None) -> None:
    """Media types other than events end uncleanly each time; the head of the replay says how."""
    server = Server(b"partial", status)
    delivered: list[bytes] = []
    with pytest.raises(outcome) if outcome else nullcontext():
        delivered.extend(drive(resumption(), server, [7, 0, 0]))
    assert b"".join(delivered) == b"partial"
    assert server.asked == ["start", "GET", "HEAD"]


def test_a_stream_that_is_silent_is_not_given_up() -> None:
    """However often a proxy closes the connection meanwhile."""
    machine = resumption(Backoff(retries=2, random=lambda: 0))
    server = Server(b"x", "in_progress")

    def cuts() -> Iterator[int]:
        yield 1
        yield from [0] * 20
        server.status = "completed"

    assert list(drive(machine, server, cuts())) == [b"x"]


def test_where_head_is_not_to_be_had_it_goes_on_without() -> None:
    """Some proxies refuse it."""
    machine = machine_after_head()
    assert lose(machine).method == "HEAD"
    assert not machine.head(answered(405, {}, URL))
    ask = machine.ask()
    assert ask and ask.method == "GET"
    machine.head(answered(200, OURS, URL))
    assert lose(machine).method == "GET"


@pytest.mark.parametrize("status", ["in_progress", "completed"])
def test_an_end_in_good_order_need_not_be_the_streams(status: str) -> None:
    """A proxy may have lost its server: the stream is over when the server says so."""
    machine = machine_after_head(Backoff(retries=2, random=lambda: 0.0))
    server = Server(b"abcdef", status)
    machine.feed(b"abc")
    machine.end()
    for place in (4, 5, 5, 6):
        ask = machine.ask()
        assert ask and ask.method == "HEAD"
        assert not machine.head(server.answer(ask)[0])
        assert machine.state is StreamState.RECONNECTING
        ask = machine.ask()
        assert ask and ask.method == "GET"
        assert machine.head(server.answer(ask)[0])
        machine.feed(b"abcdef"[machine.offset : place])
        machine.end()
    ask = machine.ask()
    assert ask and ask.method == "HEAD"
    assert not machine.head(server.answer(ask)[0])
    assert machine.state is (StreamState.DONE if status == "completed" else StreamState.RECONNECTING)


def test_a_stream_that_is_silent_may_have_its_responses_ended() -> None:
    """Time and again, by a proxy that ends what is silent in good order."""
    machine = machine_after_head(Backoff(retries=2, random=lambda: 0.0))
    server = Server(b"", "in_progress")
    for _ in range(20):
        machine.end()
        ask = machine.ask()
        assert ask and ask.method == "HEAD"
        machine.head(server.answer(ask)[0])
        ask = machine.ask()
        assert ask and ask.method == "GET"
        machine.head(server.answer(ask)[0])


@pytest.mark.parametrize("answer", [401, 403, 405, 409, 501])
def test_an_end_that_cannot_be_asked_about_is_the_streams(answer: int) -> None:
    """Nothing is known but that the response has ended."""
    machine = machine_after_head()
    machine.feed(b"abc")
    machine.end()
    assert machine.ask()
    assert not machine.head(answered(answer, {}, URL), b"{}")
    assert (machine.state, machine.ask()) == (StreamState.DONE, None)


@pytest.mark.parametrize("status", [400, 416])
def test_a_place_that_is_gone_when_the_response_ends_is_not_the_end(status: int) -> None:
    """The rest was dropped, or there is less than has come. A server that answers every HEAD so is believed its end."""
    for is_head_alone in (False, True):
        machine = machine_after_head()
        machine.feed(b"abc")
        machine.end()
        assert machine.ask()
        assert not machine.head(answered(status, {}, URL))
        ask = machine.ask()
        assert ask and (ask.method, ask.delay) == ("GET", 0)
        if is_head_alone:
            assert machine.head(answered(200, OURS, URL))
            machine.end()
            assert (machine.state, machine.ask()) == (StreamState.DONE, None)
        else:
            with pytest.raises(RequestRefused, match="offset_lost"):
                machine.head(answered(status, {}, URL), b'{"detail": {"code": "offset_lost", "message": "m"}}')


@pytest.mark.parametrize("headers", [{}, {"x-stream-status": "completed"}])
def test_a_server_that_does_not_say_how_the_stream_is_is_believed_its_end(headers: dict[str, str]) -> None:
    """An older one, or a proxy that leaves the headers out."""
    machine = machine_after_head()
    machine.feed(b"abc")
    machine.end()
    assert machine.ask()
    assert not machine.head(answered(200, {**OURS, **headers}, URL))
    assert machine.state is StreamState.DONE


def test_a_stream_that_is_gone_when_its_response_ends_is_not_taken_for_whole() -> None:
    """Its server may have lost it."""
    machine = machine_after_head()
    machine.feed(b"abc")
    machine.end()
    assert machine.ask()
    with pytest.raises(RequestRefused, match="404"):
        machine.head(answered(404, {}, URL), b"{}")
    assert machine.state is StreamState.LOST


@pytest.mark.parametrize("status", ["failed", "cancelled", "interrupted"])
@pytest.mark.parametrize("media_type", ["text/event-stream", "text/plain"])
def test_a_bad_end_in_good_order_is_one_too(status: str, media_type: str) -> None:
    """Some middleware ends every response so. An event stream has said how it ended in its last event."""
    machine = machine_after_head(**{"content-type": media_type})
    machine.feed(b"abc")
    machine.end()
    ask = machine.ask()
    assert ask
    machine.head(Server(b"abc", status).answer(ask)[0])
    with nullcontext() if media_type == "text/event-stream" else pytest.raises((StreamFailed, StreamCancelled)):
        assert machine.ask() is None
    assert machine.state is (StreamState.STOPPED if status == "cancelled" else StreamState.FAILED)


def ending(code: str, status: str, form: str = "sse") -> bytes:
    event = terminal_event(form, status, code, "m")
    assert event
    return recorded(b"data: 1\n\n" + event)


def answering(*bodies: bytes) -> ResumableClient:
    """A client of a server that answers each request with one of these bodies."""
    rest = iter(bodies)
    headers = {**OURS, "content-type": "text/event-stream"}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else next(rest))

    http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    return ResumableClient(http, backoff=ENDLESS)


@pytest.mark.parametrize(
    ("code", "status", "error", "state"),
    [
        ("producer_failed", "failed", StreamFailed, StreamState.FAILED),
        ("interrupted", "interrupted", StreamFailed, StreamState.FAILED),
        ("offset_lost", "failed", StreamFailed, StreamState.FAILED),
        ("store_unavailable", "failed", StreamFailed, StreamState.FAILED),
        ("cancelled", "cancelled", StreamCancelled, StreamState.STOPPED),
        ("replaced", "cancelled", StreamCancelled, StreamState.STOPPED),
    ],
)
def test_the_event_of_a_bad_end_is_raised_after_all_before_it(
    code: str, status: str, error: type[StreamFailed], state: StreamState
) -> None:
    """With the server's code and message."""
    delivered: list[str] = []
    with answering(ending(code, status)).stream("POST", "/") as stream, pytest.raises(error) as caught:
        delivered.extend(event.data for event in stream)
    assert delivered == ["1"]
    assert (caught.value.code, caught.value.message, str(caught.value)) == (code, "m", f"{code}: m")
    assert type(caught.value) is error
    assert stream.state is state


def test_the_event_of_a_bad_end_can_be_had_as_an_event() -> None:
    """For those who look at it themselves."""
    with answering(ending("c", "failed")).stream("POST", "/") as stream:
        assert [event.event for event in stream.events("yield")] == ["message", "error"]
    assert stream.state is StreamState.FAILED


SHAPE = b'{"code": "c", "message": "m", "error": {"code": "c", "message": "m"}}'


@pytest.mark.parametrize(
    "event",
    [
        b"event: error\ndata: oh\n\n",
        b'event: error\ndata: {"code": "mine"}\n\n',
        b"event: cancelled\ndata\n\n",
        b"data: %b\n\n" % SHAPE,
        b"event: done\ndata: %b\n\n" % SHAPE,
        b"event: error\ndata: %b\n\n" % (b"[" * 100_000),
        b"event: error\ndata: %b\n\n" % (b"9" * 10_000),
    ],
    ids=["text", "other members", "no data", "no name", "another name", "deep", "digits"],
)
def test_an_applications_own_event_is_an_event(event: bytes) -> None:
    """The end is known by its name and its form, and by neither alone."""
    with answering(recorded(event)).stream("POST", "/") as stream:
        assert len(list(stream)) == 1
    assert stream.state is StreamState.DONE


def test_an_answer_that_cannot_be_resumed_is_not_asked_about() -> None:
    """Nor is its request repeated, which would run the endpoint again."""
    machine = resumption()
    assert machine.ask() == Ask(0)
    machine.head(answered(200, {"content-type": "text/event-stream"}, URL))
    machine.feed(b"data: 1\n\n")
    machine.end()
    assert (machine.state, machine.ask()) == (StreamState.DONE, None)


def test_the_client_that_stops_a_stream_does_not_raise_that_it_was_stopped() -> None:
    """By event, or because it is gone: the iteration ends."""
    machine = resumption()
    machine.stopping = True
    stopped = terminal(ServerSentEvent("cancelled", SHAPE.decode()))
    assert stopped
    assert machine.conclude(stopped) is None
    assert machine.state is StreamState.STOPPED
    machine = machine_after_head()
    machine.feed(b"x")
    stop = machine.stop()
    assert (stop.method, stop.url) == ("DELETE", f"{URL}?epoch={EPOCH}")
    lose(machine)
    assert not machine.head(answered(404, {}, URL), b"{}")
    assert (machine.state, machine.ask()) == (StreamState.STOPPED, None)


def test_what_cannot_be_resumed_cannot_be_stopped() -> None:
    """The server does not know it."""
    machine = resumption()
    machine.head(answered(200, {}, URL))
    with pytest.raises(RuntimeError, match="Close it"):
        machine.stop()


@pytest.mark.parametrize("is_cut", [True, False])
def test_to_stop_what_cannot_be_resumed_is_nothing_once_its_connection_has_ended(is_cut: bool) -> None:
    """By a cut, or because the caller has left."""

    def body() -> Iterator[bytes]:
        yield b"ab"
        raise httpx.ReadError("The connection broke before the end.")

    http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=body())))
    with ResumableClient(http, backoff=ENDLESS).stream("POST", "http://server/") as stream:
        if is_cut:
            with pytest.raises(ConnectionLost):
                list(stream.iter_bytes())
            stream.stop()
    stream.stop()
    assert stream.state is (StreamState.LOST if is_cut else StreamState.DETACHED)


def test_states_are_reported_as_they_change() -> None:
    """Each once, in order."""
    seen: list[StreamState] = []
    machine = resumption(on_state=seen.append)
    list(drive(machine, Server(b"abc"), [1, 0]))
    assert [state.value for state in seen] == [*["open", "reconnecting"] * 2, "open", "done"]


def test_an_answer_about_the_stream_leads_to_it() -> None:
    """`Prefer: respond-async` is answered 202."""
    machine = resumption()
    head = answered(202, {**OURS, "preference-applied": "respond-async"}, URL)
    assert not machine.head(head)
    ask = machine.ask()
    assert ask and (ask.method, ask.url) == ("GET", f"{URL}?epoch={EPOCH}&from=0")


def test_an_interruption_by_the_user_is_no_failure() -> None:
    """The stream is taken up again, without a wait; what cannot be, is over."""
    machine = machine_after_head()
    machine.feed(b"x")
    machine.interrupted()
    assert machine.ask() == Ask(0, "GET", f"{URL}?epoch={EPOCH}&from=1")
    machine.detach()
    machine.interrupted()
    assert machine.state is StreamState.DETACHED
    machine = resumption()
    machine.interrupted()
    assert machine.ask() == Ask(0)
    machine.head(answered(200, {}, URL))
    machine.interrupted()
    assert machine.ask() is None


def test_a_lookup_or_a_stop_is_repeated_until_it_is_answered() -> None:
    """After a failure of the connection, and when the server says later."""
    slept: list[float] = []

    def look_up(*answers: int | Exception, **options: Any) -> object:
        rest = iter(answers)

        def answer(_request: httpx.Request) -> httpx.Response:
            status = next(rest)
            if isinstance(status, Exception):
                raise status
            return httpx.Response(status, headers={"retry-after": "3"}, content=b"[]")

        http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
        return ResumableClient(http, sleep=slept.append, **options).lookup(["one"])

    assert look_up(httpx.ConnectError("no"), 503, 200, backoff=Backoff(initial=2, random=lambda: 0.5)) == []
    assert slept == [1, 5]
    with pytest.raises(RequestRefused):
        look_up(404)
    with pytest.raises(ConnectionLost, match="Gave up after 1"):
        look_up(503, backoff=Backoff(retries=0))


def test_parameters_of_the_clients_own_are_sent_beside_those_of_a_route() -> None:
    """httpx puts its parameters in the place of those that a URL has."""
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        return httpx.Response(200, headers=OURS)

    http = httpx.Client(base_url="http://server", params={"key": "k"}, transport=httpx.MockTransport(answer))
    client = ResumableClient(http)
    with client.resume("a/b", offset=7, params={"more": "1"}) as stream:
        assert stream.offset == 7
    client.stop("a/b", epoch=EPOCH)
    both = {"key": "k", "conv_id": "a/b"}
    assert asked == [{**both, "epoch": "", "from": "7", "more": "1"}, {**both, "epoch": EPOCH}]


def test_a_request_that_begins_a_stream_may_have_a_from_of_its_own() -> None:
    """Its answer begins at 0, whatever the method: only a replay's is a place in the stream."""
    for method in ("POST", "GET"):
        for start in ("2", "Rome"):
            with answering(b"data: 1\n\n").stream(method, "/export", params={"from": start}) as stream:
                assert (stream.offset, stream.replay_url) == (0, URL)
                list(stream)
                assert stream.offset == 9


def test_a_synchronous_client_never_waits() -> None:
    """What does is a defect, and is told as one."""
    with pytest.raises(RuntimeError, match="has waited"):
        run(asyncio.sleep(0))
