"""The client's state machine, without any I/O: cut anywhere, it delivers everything once."""

import asyncio
import random
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_resumable._core.sse import EventFramer
from fastapi_resumable._core.terminal import terminal_event
from fastapi_resumable.client import (
    Backoff,
    ConnectionLost,
    RequestRefused,
    StreamCancelled,
    StreamFailed,
    StreamState,
)
from fastapi_resumable.client.cursors import Item
from fastapi_resumable.client.follower import call, run
from fastapi_resumable.client.machine import Ask, Head, Resumption
from fastapi_resumable.client.wires import SyncReply
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


class Server:
    """A model of the replay route: one finished stream."""

    def __init__(self, log: bytes, status: str = "completed") -> None:
        self.log = log
        self.status = status
        self.asked: list[str] = []

    def answer(self, ask: Ask) -> tuple[Head, bytes]:
        """The whole answer to a request."""
        query = parse_qs(urlsplit(ask.url).query)
        last_event_id = ask.headers.get("Last-Event-ID")
        offset = int(query.get("from", ["0"])[0])
        if last_event_id is not None:
            epoch, _, digits = last_event_id.partition("-")
            assert epoch == EPOCH
            offset = int(digits)
        elif ask.method is not None:
            assert query["epoch"] == [EPOCH]
        assert offset <= len(self.log)
        self.asked.append("start" if ask.method is None else ask.method if last_event_id is None else "id")
        told = {"x-stream-status": self.status, "x-stream-total-bytes": str(len(self.log))}
        return Head(200, {**OURS, **(told if ask.method == "HEAD" else {})}, URL, delimited=True), self.log[offset:]


def drive(machine: Resumption, server: Server, cuts: Iterable[int], face: str, noise: bytes = b"") -> Iterator[Item]:
    """Deliver a stream over connections that break after so many bytes each; the last one is whole."""
    limits = iter(cuts)
    fed = random.Random(0)
    while (ask := machine.ask()) is not None:
        head, body = server.answer(ask)
        if not machine.head(head):
            continue
        if ask.method is None and face == "events":
            machine.read_events()
        elif ask.method is None and face == "lines":
            machine.read_lines("utf-8")
        limit = next(limits, None)
        body = noise + body
        body, rest = (body, b"") if limit is None else (body[:limit], body[limit:])
        while body:
            size = fed.randint(1, 3)
            yield from machine.feed(body[:size])
            body = body[size:]
        if limit is None:
            yield from machine.end()
        elif not machine.is_over:
            machine.cut(ConnectionError(f"{len(rest)} bytes are missing"))
    yield from machine.due()


def events(items: Iterable[Item]) -> list[Event]:
    """In the form of the model."""
    return [Event(item.value.data, item.value.event, item.value.id) for item in items]


@given(sent=pieces, cuts=cuts, ids=st.booleans())
@example(sent=b"data: a\r\rdata: b\r\r", cuts=[2] * 40, ids=False)
@example(sent=b"data: a\r\r\ndata: b\n\n", cuts=[9, 1], ids=False)
@example(sent="data: é€\r\n\r\ndata: 2\r\n\r\n".encode(), cuts=[1] * 60, ids=True)
def test_any_cuts_of_any_bytes_give_the_same_events(sent: bytes, cuts: list[int], ids: bool) -> None:
    """The events of an uninterrupted stream, in order, each once."""
    log = recorded(sent, ids=ids)
    machine = Resumption(ENDLESS)
    assert events(drive(machine, Server(log), cuts, "events")) == parse(log)
    assert machine.state is StreamState.DONE


@given(log=st.binary(max_size=60), cuts=cuts)
def test_any_cuts_of_any_bytes_give_the_same_bytes(log: bytes, cuts: list[int]) -> None:
    """For every media type; and each item says where it ends."""
    items = list(drive(Resumption(ENDLESS), Server(log), cuts, "bytes"))
    assert b"".join(item.value for item in items) == log
    assert [item.offset for item in items][-1:] in ([], [len(log)])


letters = st.characters(codec="utf-8", exclude_characters="\r\n")


@given(lines=st.lists(st.text(letters, max_size=6), max_size=8), cuts=cuts)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_cuts_of_a_text_give_the_same_lines(lines: list[str], cuts: list[int], end: str) -> None:
    """Lines that hold U+2028 or a form feed are one line each."""
    log = "".join(line + end for line in lines).encode("utf-8", "replace")
    machine = Resumption(ENDLESS)
    items = list(drive(machine, Server(log), cuts, "lines"))
    assert [item.value for item in items] == lines


def test_a_line_is_delivered_as_soon_as_it_is_known_to_have_ended() -> None:
    """A CR may be half a line end, so the next byte decides."""
    machine = machine_after_head()
    machine.read_lines("utf-8")
    fed = [[item.value for item in machine.feed(chunk)] for chunk in (b"one\r", b"two", b"\nthree\r", b"\n")]
    assert fed == [[], ["one"], ["two"], ["three"]]


@given(sent=pieces, cuts=cuts, stop=st.integers(0, 10))
def test_a_stream_can_be_taken_up_by_another_client_after_any_event(sent: bytes, cuts: list[int], stop: int) -> None:
    """The offset of an event delivered is where the rest begins."""
    log = recorded(sent)
    first = list(drive(Resumption(ENDLESS), Server(log), cuts, "events"))[:stop]
    offset = first[-1].offset if first else 0
    second = Resumption(ENDLESS, offset)
    rest = [*drive(second, Resumed(log, offset), [], "events")]
    assert [event.data for event in events([*first, *rest])] == [event.data for event in parse(log)]


class Resumed(Server):
    """Its first answer, too, begins somewhere else."""

    def __init__(self, log: bytes, offset: int) -> None:
        super().__init__(log)
        self._offset = offset

    def answer(self, ask: Ask) -> tuple[Head, bytes]:
        if ask.method is None:
            return super().answer(Ask(0, "GET", f"{URL}?epoch={EPOCH}&from={self._offset}"))
        return super().answer(ask)


def test_it_goes_on_by_event_id_where_there_is_one() -> None:
    """So that what a proxy puts in between, say a comment of its own, moves nothing."""
    log = recorded(b"".join(b"data: %d\n\n" % number for number in range(30)))
    server = Server(log)
    noisy = drive(Resumption(ENDLESS), server, [0, *[90] * 20], "events", noise=b": hello from the proxy\n\n")
    assert events(noisy) == parse(log)
    assert server.asked.count("id") > 10


def test_an_event_larger_than_what_a_connection_brings_comes_through() -> None:
    """A cut within an event that has been cut before goes on by byte, not by event."""
    log = recorded(b"data: small\n\ndata: " + b"x" * 500 + b"\n\n")
    server = Server(log)
    assert events(drive(Resumption(ENDLESS), server, [60] * 20, "events")) == parse(log)
    assert server.asked[:4] == ["start", "id", "GET", "GET"]


def machine_after_head(backoff: Backoff = ENDLESS, **headers: str) -> Resumption:
    machine = Resumption(backoff)
    assert machine.ask() == Ask(0)
    assert machine.head(Head(200, {**OURS, **headers}, URL, delimited=True))
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
    machine.head(Head(200, OURS, URL, delimited=True))
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
    machine.read_events()
    machine.feed(b"retry: 3000\n\n")
    assert [lose(machine).delay for _ in range(2)] == [3.5, 4.0]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({}, 0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_the_least_to_wait(headers: dict[str, str], wait: float, status: int) -> None:
    """Seconds, or a date, which counts from the answer's own."""
    machine = Resumption(Backoff(random=lambda: 0))
    assert not machine.head(Head(status, headers, URL, delimited=True), b"{}")
    assert machine.ask() == Ask(wait)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 416])
@pytest.mark.parametrize("begun", [False, True])
def test_a_final_answer_is_raised_with_the_servers_code_and_message(status: int, begun: bool) -> None:
    """At the start and at a resume."""
    machine = machine_after_head() if begun else Resumption(ENDLESS)
    if begun:
        machine.feed(b"x")
        lose(machine)
    with pytest.raises(RequestRefused) as caught:
        machine.head(Head(status, {}, URL, delimited=True), b'{"detail": {"code": "c", "message": "m", "tail": 3}}')
    error = caught.value
    assert (error.status_code, error.code, error.message, error.detail["tail"]) == (status, "c", "m", 3)
    assert machine.state is StreamState.LOST


@pytest.mark.parametrize(
    ("body", "message"), [(b"<html>", "<html>"), (b'{"detail": "no"}', "no"), (b"[1]", "[1]"), (b"\xff", "\ufffd")]
)
def test_a_refusal_of_any_other_form_is_one_too(body: bytes, message: str) -> None:
    """A proxy's page, or FastAPI's own."""
    with pytest.raises(RequestRefused) as caught:
        Resumption(ENDLESS).head(Head(403, {}, URL, delimited=True), body)
    assert (caught.value.code, caught.value.message) == ("", message)


def test_an_error_of_the_server_is_final_at_the_start_alone() -> None:
    """An endpoint that fails would fail again, at a price; a replay route that does is having a bad time."""
    with pytest.raises(RequestRefused):
        Resumption(ENDLESS).head(Head(500, {}, URL, delimited=True))
    machine = machine_after_head()
    machine.feed(b"x")
    lose(machine)
    assert not machine.head(Head(500, {}, URL, delimited=True))
    assert machine.state is StreamState.RECONNECTING


def test_an_answer_that_is_not_the_stream_counts_as_none() -> None:
    """A page of the hotel's, say, or another epoch."""
    machine = machine_after_head()
    machine.feed(b"x")
    lose(machine)
    for headers in ({}, {**OURS, "x-stream-epoch": "a" * 16}):
        assert not machine.head(Head(200, headers, URL, delimited=True))
        ask = machine.ask()
        assert ask and ask.url == f"{URL}?epoch={EPOCH}&from=1"


def test_an_answer_without_a_way_back_is_read_as_it_is() -> None:
    """To its end; a cut says why it cannot be mended."""
    machine = Resumption(ENDLESS)
    assert machine.head(Head(200, {}, URL, delimited=False))
    assert [item.value for item in machine.feed(b"x")] == [b"x"]
    machine.end()
    assert machine.state is StreamState.DONE
    machine = Resumption(ENDLESS)
    machine.head(Head(200, {}, URL, delimited=True))
    with pytest.raises(ConnectionLost, match="Content-Location"):
        machine.cut(ConnectionError())


def test_credentials_go_to_no_other_server() -> None:
    """A replay URL of another origin is none."""
    machine = machine_after_head(**{"content-location": "http://elsewhere/v1/stream/one"})
    assert machine.replay_url is None
    machine = machine_after_head(**{"content-location": "http://server/api/v1/stream?conv_id=a%2F"})
    machine.feed(b"x")
    assert lose(machine).url == f"http://server/api/v1/stream?conv_id=a%2F&epoch={EPOCH}&from=1"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("completed", None), ("failed", StreamFailed), ("interrupted", StreamFailed), ("cancelled", StreamCancelled)],
)
def test_a_stream_that_breaks_off_without_a_word_is_looked_at(status: str, outcome: type[Exception] | None) -> None:
    """Media types other than events end uncleanly each time; the head of the replay says how."""
    server = Server(b"partial", status)
    delivered: list[Item] = []
    with pytest.raises(outcome) if outcome else nullcontext():
        delivered.extend(drive(Resumption(ENDLESS), server, [7, 0, 0], "bytes"))
    assert b"".join(item.value for item in delivered) == b"partial"
    assert server.asked == ["start", "GET", "HEAD"]


def test_a_stream_that_is_silent_is_not_given_up() -> None:
    """However often a proxy closes the connection meanwhile."""
    machine = Resumption(Backoff(retries=2, random=lambda: 0))
    items = drive(machine, Server(b"x", "in_progress"), [1, *[0] * 20], "bytes")
    assert [item.value for item in items] == [b"x"]


def test_where_head_is_not_to_be_had_it_goes_on_without() -> None:
    """Some proxies refuse it."""
    machine = machine_after_head()
    assert lose(machine).method == "HEAD"
    assert not machine.head(Head(405, {}, URL, delimited=True))
    ask = machine.ask()
    assert ask and ask.method == "GET"
    machine.head(Head(200, OURS, URL, delimited=True))
    assert lose(machine).method == "GET"


def test_an_end_that_may_be_a_cut_is_not_believed() -> None:
    """A body without a length, as of HTTP/1.0: it is over when the server says so."""
    machine = Resumption(ENDLESS)
    machine.head(Head(200, OURS, URL, delimited=False))
    machine.feed(b"abc")
    assert machine.end() == []
    ask = machine.ask()
    assert ask and ask.method == "GET"
    machine.head(Head(200, OURS, URL, delimited=False))
    machine.end()
    ask = machine.ask()
    assert ask and ask.method == "HEAD"
    told = {**OURS, "x-stream-status": "completed", "x-stream-total-bytes": "3"}
    machine.head(Head(200, told, URL, delimited=True))
    assert machine.state is StreamState.DONE


def ending(code: str, status: str, form: str = "sse") -> bytes:
    event = terminal_event(form, status, code, "m")
    assert event
    return recorded(b"data: 1\n\n" + event)


@pytest.mark.parametrize(
    ("code", "status", "error", "state"),
    [
        ("producer_failed", "failed", StreamFailed, StreamState.FAILED),
        ("interrupted", "interrupted", StreamFailed, StreamState.FAILED),
        ("offset_lost", "failed", StreamFailed, StreamState.FAILED),
        ("cancelled", "cancelled", StreamCancelled, StreamState.STOPPED),
        ("replaced", "cancelled", StreamCancelled, StreamState.STOPPED),
    ],
)
def test_the_event_of_a_bad_end_is_raised_after_all_before_it(
    code: str, status: str, error: type[StreamFailed], state: StreamState
) -> None:
    """With the server's code and message."""
    machine = Resumption(ENDLESS)
    delivered: list[Item] = []
    with pytest.raises(error) as caught:
        delivered.extend(drive(machine, Server(ending(code, status)), [], "events"))
    assert [item.value.data for item in delivered] == ["1"]
    assert (caught.value.code, caught.value.message) == (code, "m")
    assert type(caught.value) is error
    assert machine.state is state


def test_the_event_of_a_bad_end_can_be_had_as_an_event() -> None:
    """For those who look at it themselves."""
    machine = Resumption(ENDLESS)
    machine.raises = False
    delivered = [item.value.event for item in drive(machine, Server(ending("c", "failed")), [], "events")]
    assert (delivered, machine.state) == (["message", "error"], StreamState.FAILED)


@pytest.mark.parametrize(
    "event", [b"event: error\ndata: oh\n\n", b'event: error\ndata: {"code": "mine"}\n\n', b"event: cancelled\ndata\n\n"]
)
def test_an_applications_own_error_event_is_an_event(event: bytes) -> None:
    """It is known by its form, not by its name alone."""
    machine = Resumption(ENDLESS)
    assert len(list(drive(machine, Server(recorded(event)), [], "events"))) == 1
    assert machine.state is StreamState.DONE


def test_a_server_that_has_lost_sight_of_the_stream_is_asked_again() -> None:
    """`store_unavailable` is told to one client, and is not in the log."""
    log = recorded(b"data: 1\n\ndata: 2\n\n")
    half = len(log) // 2
    machine = Resumption(ENDLESS)
    ask = machine.ask()
    assert ask
    machine.head(Server(log).answer(ask)[0])
    machine.read_events()
    lost = terminal_event("sse", "failed", "store_unavailable", "m")
    assert lost
    assert events(machine.feed(log[:half] + lost)) == parse(log)[:1]
    assert machine.state is StreamState.RECONNECTING
    assert events(drive(machine, Server(log), [], "events")) == parse(log)[1:]


def test_a_stream_that_ended_for_want_of_its_store_has_failed() -> None:
    """Where the event is in the log, it is the end."""
    with pytest.raises(StreamFailed, match="store_unavailable"):
        list(drive(Resumption(ENDLESS), Server(ending("store_unavailable", "failed")), [], "events"))


def test_who_stops_a_stream_is_not_told_that_it_was_stopped() -> None:
    """By event, or because it is gone: the iteration ends."""
    machine = Resumption(ENDLESS)
    machine.stopping = True
    assert len(list(drive(machine, Server(ending("cancelled", "cancelled")), [], "events"))) == 1
    assert machine.state is StreamState.STOPPED
    machine = machine_after_head()
    machine.feed(b"x")
    stop = machine.stop()
    assert (stop.method, stop.url) == ("DELETE", f"{URL}?epoch={EPOCH}")
    lose(machine)
    assert not machine.head(Head(404, {}, URL, delimited=True), b"{}")
    assert (machine.state, machine.ask()) == (StreamState.STOPPED, None)


def test_what_cannot_be_resumed_cannot_be_stopped() -> None:
    """The server does not know it."""
    machine = Resumption(ENDLESS)
    machine.head(Head(200, {}, URL, delimited=True))
    with pytest.raises(RuntimeError, match="Close it"):
        machine.stop()


def test_states_are_told_as_they_change() -> None:
    """Each once, in order."""
    seen: list[StreamState] = []
    machine = Resumption(ENDLESS, on_state=seen.append)
    list(drive(machine, Server(b"abc"), [1, 0], "bytes"))
    assert [state.value for state in seen] == [*["open", "reconnecting"] * 2, "open", "done"]


def test_an_answer_about_the_stream_leads_to_it() -> None:
    """`Prefer: respond-async` is answered 202."""
    machine = Resumption(ENDLESS)
    head = Head(202, {**OURS, "preference-applied": "respond-async"}, URL, delimited=True)
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
    machine = Resumption(ENDLESS)
    machine.interrupted()
    assert machine.ask() == Ask(0)
    machine.head(Head(200, {}, URL, delimited=True))
    machine.interrupted()
    assert machine.ask() is None


class Answers:
    """A wire that gives the answers that it was given."""

    errors = (ConnectionError,)

    def __init__(self, *answers: int | Exception) -> None:
        self._answers = list(answers)
        self.slept: list[float] = []

    async def send(self, _ask: Ask) -> SyncReply:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        head = Head(answer, {"retry-after": "3"}, URL, delimited=True)
        return SyncReply(head, iter([b"o", b"k"]), lambda: None)

    async def sleep(self, delay: float) -> None:
        self.slept.append(delay)


def test_a_lookup_or_a_stop_is_repeated_until_it_is_answered() -> None:
    """After a failure of the connection, and when the server says later."""
    wire = Answers(ConnectionError(), 503, 200)
    assert run(call(wire, Ask(0), Backoff(initial=2, random=lambda: 0.5))) == b"ok"
    assert wire.slept == [1, 5]
    with pytest.raises(RequestRefused):
        run(call(Answers(404), Ask(0), ENDLESS))
    with pytest.raises(ConnectionLost, match="Gave up after 1"):
        run(call(Answers(503), Ask(0), Backoff(retries=0)))


def test_a_synchronous_client_never_waits() -> None:
    """What does is a defect, and is told as one."""
    with pytest.raises(RuntimeError, match="has waited"):
        run(asyncio.sleep(0))
