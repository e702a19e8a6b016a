"""Event framing against a decoder written from the specification, on any chunking and any line endings."""

import re
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_resumable._core.ids import parse_event_id
from fastapi_resumable._core.log import Budget
from fastapi_resumable._core.search import search_dispatch, search_event_id
from fastapi_resumable._core.sse import (
    BOM,
    EventFramer,
    events,
)
from tests.support.searches import result_of

EPOCH = "abcdefghijklmnop"
LARGE = 1_000_000


def would_dispatch(blocks: list[bytes]) -> bool:
    """The result of the search."""
    return result_of(search_dispatch(blocks))


def find_event_id(blocks: list[bytes], event_id: str) -> int | None:
    """The result of the search."""
    return result_of(search_event_id(blocks, event_id))


def decode(data: bytes) -> list[tuple[str, str, str]]:
    """(event, data, last event id) of every event a client dispatches: WHATWG HTML §9.2.6, line by line."""
    lines = re.split(r"\r\n|\n|\r", data.decode("utf-8", "replace").removeprefix("\ufeff"))
    dispatched, kind, buffer, last_id = [], "", [], ""
    for line in lines[:-1]:  # what follows the last line end is no line yet
        if not line:
            if buffer:
                dispatched.append((kind or "message", "\n".join(buffer), last_id))
            kind, buffer = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            buffer.append(value)
        elif name == "id":
            last_id = value
    return dispatched


def frame(chunks: list[bytes], epoch: str | None = EPOCH, limit: int = LARGE) -> bytes:
    framer = EventFramer(epoch, limit)
    out = b""
    for chunk in chunks:
        out += framer.feed(chunk, len(out))
    return out + framer.finish(len(out))


line = st.one_of(
    st.sampled_from(
        [b"data: x", b"data:", b"data", b"event: e", b"retry: 10", b": ping", b"id: own", b"id", b"dataset: no"]
    ),
    st.text(alphabet="aé漢:\U0001f600 ", max_size=6).map(lambda text: b"data: " + text.encode()),
)
block = st.lists(line, max_size=4)


@st.composite
def streams(draw) -> bytes:
    """A stream of blocks; each block and stream may mix line endings, and end anywhere."""
    ends = draw(st.sampled_from([[b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r\n"]]))
    out = draw(st.sampled_from([b"", BOM]))
    for lines in draw(st.lists(block, max_size=6)):
        for one in lines:
            out += one + draw(st.sampled_from(ends))
        out += draw(st.sampled_from(ends))
    return out + draw(st.sampled_from([b"", b"data: cut", b": c"]))


@st.composite
def chunked(draw) -> tuple[bytes, list[bytes]]:
    """A stream, and some chunking of it."""
    data = draw(streams())
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)))
    return data, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(chunked())
@example((b"data: x\r\n\r\ndata: y\r\n\r\n", [b"data: x\r\n\r", b"\ndata: y\r\n\r", b"\n"]))
@example((b"data: x\r\r\ndata: y\r\r", [b"data: x\r\r", b"\ndata: y\r\r"]))
def test_without_ids_the_bytes_are_untouched_however_they_are_chunked(case):
    """event_ids=False: what comes out is what went in."""
    data, chunks = case

    assert frame(chunks, epoch=None) == data


@given(chunked())
@example((b"data: x\r\r\ndata: y\r\r", [b"data: x\r\r", b"\ndata: y\r\r"]))
@example((b"\n" + BOM + b"data: x\n\n", [b"\n" + BOM + b"data: x\n\n"]))
@example((b"\n\n" + BOM + b"data: x\n\n", [b"\n\n" + BOM + b"data: x\n\n"]))
def test_ids_change_nothing_that_a_client_dispatches(case):
    """Kind and data of every event are those of the application's own stream."""
    data, chunks = case

    assert [event[:2] for event in decode(frame(chunks))] == [event[:2] for event in decode(data)]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("lines", [b"data: x", b"event: e\ndata: x", b"", BOM + b"data: x"])
def test_a_bom_in_mid_stream_means_the_same_to_a_client_that_resumes_right_before_it(lines, end):
    """At the start of what that client gets, it would be dropped, and the line behind it be a field."""
    out = frame([b"data: a" + end, BOM + lines + end, b"data: b" + end])
    starts = [match.end() for match in re.finditer(rb"\n\n|\r\n\r\n|\r\r", out)]

    assert decode(out)[0][:2] == ("message", "a")
    for start in starts:
        assert decode(out[start:]) == decode(out)[len(decode(out[:start])) :]


@given(chunked())
def test_every_injected_id_names_the_position_right_after_its_event(case):
    """`from=<offset>` and `Last-Event-ID` mean the same place."""
    out = frame(case[1])
    position = 0
    for event in events([out]):
        position += len(event)
        for value in re.findall(rb"(?:^|[\r\n])id: (\S+)", event):
            event_id = parse_event_id(value.decode())
            if event_id is not None:
                assert (event_id.epoch, event_id.offset) == (EPOCH, position)


@given(chunked())
def test_every_event_with_data_has_an_id_of_its_own_or_one_of_ours(case):
    """An event that is dispatched is a place to resume from."""
    out = frame(case[1])
    for event in events([out]):
        text = re.split(rb"\r\n|\n|\r", event.removeprefix(BOM))
        if would_dispatch([event]):
            assert any(one == b"id" or one.startswith(b"id:") for one in text)


@given(chunked())
def test_with_ids_no_blank_line_stands_where_nothing_is_dispatched_or_named(case):
    """A decoder that dispatches at every blank line once it has an id never gets an empty event from us."""
    out = frame(case[1])
    for event in events([out.removeprefix(BOM)]):
        if event.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
            lines = [one for one in re.split(rb"\r\n|\n|\r", event) if one]
            assert any(not one.startswith((b":", b"retry")) for one in lines)


@given(chunked())
def test_only_whole_events_come_out_before_the_end(case):
    """Whatever is fed, the log never ends within an event."""
    framer = EventFramer(EPOCH, LARGE)
    out = b""
    for chunk in case[1]:
        out += framer.feed(chunk, len(out))

        assert not out or out.endswith((b"\n", b"\r", BOM))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_ready_as_soon_as_its_blank_line_is(end):
    """No event waits for the next one, where its end is beyond doubt."""
    framer = EventFramer(EPOCH, LARGE)
    event = b"data: x" + end + end

    stamped = framer.feed(event, 0)

    assert stamped == b"data: x" + end + b"id: %s-%d" % (EPOCH.encode(), len(stamped)) + end + end


@pytest.mark.parametrize("base", [*range(1, 120), 975, 976, 977, 978, 9975, 9976, 99_974, 10**12 - 30])
def test_an_id_counts_its_own_digits(base):
    """The offset in the line is the one after the line, also where one more digit is needed for it."""
    stamped = EventFramer(EPOCH, LARGE).feed(b"data: x\n\n", base)

    assert int(stamped.strip().rsplit(b"-", 1)[1]) == base + len(stamped)


def test_an_event_larger_than_the_limit_is_handed_on_in_parts():
    """An event that never ends does not grow for ever."""
    framer = EventFramer(EPOCH, 100)
    out = b""
    for _ in range(50):
        part = framer.feed(b"data: " + b"x" * 20 + b"\n", len(out))
        assert len(part) <= 127
        out += part
    assert framer.oversize

    out += framer.feed(b"\ndata: y\n\n", len(out))

    assert not framer.oversize
    assert [data for _, data, _ in decode(out)] == ["\n".join(["x" * 20] * 50), "y"]
    assert all(parse_event_id(last_id) for _, _, last_id in decode(out))


def test_an_oversize_event_keeps_its_own_id():
    """The id may be in the part that was handed on already."""
    out = frame([b"id: own\ndata: " + b"x" * 200, b"\n\n"], limit=100)

    assert decode(out) == [("message", "x" * 200, "own")]
    assert out.count(b"id:") == 1


@given(chunked())
def test_cutting_recorded_bytes_into_events_loses_nothing(case):
    """events() is a partition of the bytes, whatever the blocks."""
    data, chunks = case

    assert b"".join(events(chunks)) == data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", False),
        (b": ping\n", False),
        (b": ping\n\n", False),
        (b"event: x\n\n", False),
        (b"data: x\n", False),
        (b"data: x\n\n", True),
        (b"data\r\r", True),
        (b"id: 1\r\ndata: x\r\n\r\n", True),
    ],
)
def test_a_client_dispatches_only_whole_events_that_have_data(data, expected):
    """What is left may be nothing to a client."""
    assert would_dispatch([data]) is expected


def test_an_event_is_found_by_the_applications_own_id():
    """The position is right after the first event that has it; values are compared whole."""
    data = b"id: 1\ndata: a\n\nid: 10\ndata: b\n\nid:1\ndata: c\n\nid\ndata: d\n\n"

    assert find_event_id([data], "1") == 15
    assert find_event_id([data], "10") == 31
    assert find_event_id([data], "0") is None


@pytest.mark.parametrize("data", [b"data: id: x\n", b"id: xy\n", b"id: x\nid: y\n", b"id: x"])
def test_what_only_looks_like_the_id_is_passed_over(data):
    """Of another value, in the middle of a line, or not the last id of its event."""
    assert find_event_id([data + b"\n"], "x") is None if data != b"id: x" else find_event_id([data], "x") is None


@pytest.mark.parametrize("before", [b"", BOM, b"data: x\n\n", b"data: a\r\n\r\n", b"data: a\r\r"])
@pytest.mark.parametrize("value", ["x", " x", "x ", "\u00e9"])
def test_an_id_is_found_byte_for_byte_wherever_it_stands(before, value):
    """Spaces at its ends included."""
    event = b"id: %s\ndata: b\n\n" % value.encode()
    assert find_event_id([before, event, b"data: c\n\n"], value) == len(before + event)


@given(chunked())
def test_an_id_that_comes_first_names_the_same_place(case):
    """Same events, same length, same offsets: only the order of the lines differs."""
    _, chunks = case
    last, first = EventFramer(EPOCH, LARGE), EventFramer(EPOCH, LARGE, ids_first=True)
    mine = other = b""
    for chunk in chunks:
        mine += last.feed(chunk, len(mine))
        other += first.feed(chunk, len(other))
        assert len(mine) == len(other)
    assert decode(mine) == decode(other)
    lines = [sorted(data.removeprefix(BOM).splitlines()) for data in (mine, other)]
    assert lines[0] == lines[1]


def test_an_id_comes_before_the_data_of_its_event():
    """For readers that give an id to the data that follows it."""
    framer = EventFramer(EPOCH, LARGE, ids_first=True)
    assert framer.feed(b"event: e\ndata: x\n\n", 0) == b"id: %s-42\nevent: e\ndata: x\n\n" % EPOCH.encode()


def test_after_a_giant_event_the_log_is_between_events_again_without_ids_too():
    """So that keep-alives are recorded again."""
    framer = EventFramer(None, 20)
    framer.feed(b"data: " + b"x" * 50, 0)
    assert framer.oversize
    framer.feed(b"\n\n", 40)
    assert not framer.oversize


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, in C or in Python."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_blank_lines_are_passed_over_at_once(end):
    """However many there are in one chunk, and nothing of them is recorded."""
    framer = EventFramer(EPOCH, 10**6)
    blank = end * 60_000
    recorded = []
    assert calls_of(lambda: recorded.append(framer.feed(blank, 0))) < 100
    assert recorded == [b""]
    event = b"data: x" + end
    assert framer.feed(blank + event + end + blank, 0).startswith(event + b"id: ")
    assert framer.held_back <= 2


def test_an_event_that_was_cut_is_still_known_by_its_fields():
    """Wherever the cut was: within the name of a field, within a value that looks like one, and after a mark."""
    text = BOM + b"event: a\ndata: x\nid: 5\nvalid: x\n\n"
    for size in range(1, len(text)):
        framer = EventFramer(EPOCH, 0)
        recorded = b"".join(framer.feed(text[start : start + size], 0) for start in range(0, len(text), size))
        assert recorded == text, "it has an id"
    text = b"event: a\ndata: valid: \n\n"
    for size in range(1, len(text)):
        framer, recorded = EventFramer(EPOCH, 0), b""
        for start in range(0, len(text), size):
            recorded += framer.feed(text[start : start + size], len(recorded))
        assert recorded == text[:-1] + b"id: %s-%d\n\n" % (EPOCH.encode(), len(recorded)), "it has none"


def test_an_id_with_a_nul_is_none():
    """Clients ignore such a line, so that the event gets an id that they take."""
    assert EventFramer(EPOCH, 100).feed(b"id: a\0b\ndata: x\n\n", 0).count(EPOCH.encode()) == 1
    assert EventFramer(EPOCH, 100).feed(b"id: ab\ndata: x\n\n", 0).count(EPOCH.encode()) == 0
    assert find_event_id([b"id: a\ndata: x\nid: b\0\n\n"], "a") == 22


def test_spaces_around_an_id_do_not_matter():
    """A header comes without those that its value begins or ends with."""
    blocks = [b"id:  a b \ndata: x\n\nid:c\t\n\n"]
    assert find_event_id(blocks, "a b") == find_event_id(blocks, " a b ") == 19
    assert find_event_id(blocks, "c") == 26
    assert find_event_id(blocks, "a") is None


def test_what_is_held_back_is_counted():
    """Until it is handed on."""
    budget = Budget()
    framer = EventFramer(EPOCH, 10**6, budget=budget)
    for start in range(0, 100_000, 7):
        framer.feed(b"data: x" + b"\n\n" * (start % 11 == 0), 0)
        assert budget.used == framer.held_back
    framer.finish(0)
    assert budget.used == framer.held_back == 0
