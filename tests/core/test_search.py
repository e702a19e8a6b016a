"""core/search.py against the simplest filter that can be written, on any chunking and any line endings."""

import json
import sys
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_resumable._core import search
from fastapi_resumable._core.search import (
    Place,
    SequenceFilter,
    search_event_id,
    search_sequence,
    sequence_number,
)
from fastapi_resumable._core.sse import BOM, EventFramer
from tests.support.searches import result_of


def find_sequence(blocks, number: int) -> Place:
    """The result of the search."""
    return result_of(search_sequence(blocks, number))


def numbered(number: int, text: str = "", end: str = "\n") -> bytes:
    """An event as OpenAI's SDKs know them."""
    data = json.dumps({"type": "delta", "sequence_number": number, "delta": text})
    return f"event: delta{end}data: {data}{end}{end}".encode()


UNNUMBERED = [
    b": a comment\n\n",
    b"data: hello\n\n",
    b"data\n\n",
    b"event: error\ndata: {}\n\n",
    b'data: {"sequence_number": null}\n\n',
    b'data: {"sequence_number": true}\n\n',
    b'data: {"sequence_number": 1.5}\n\n',
    b'data: {"sequence_number": "7"}\n\n',
    b'data: {"response": {"sequence_number": 0}}\n\n',
    b'data: {"delta": "\\"sequence_number\\": 0"}\n\n',
    b'data: ["sequence_number", 7]\n\n',
    b'data: "sequence_number"\n\n',
    b'data: {"sequence_number": 7\n\n',
    b': {"sequence_number": 7}\n\n',
    b'dates: {"sequence_number": 7}\n\n',
    b'data: "sequence_number"' + b"[" * 100_000 + b"\n\n",
]


@pytest.mark.parametrize("event", UNNUMBERED, ids=lambda event: event[:40].decode())
def test_an_event_without_a_whole_number_of_its_own_has_none(event: bytes) -> None:
    """Nested, in a string, of another type, not JSON: that is no sequence number."""
    assert sequence_number(event) is None


@pytest.mark.parametrize(
    "event",
    [
        numbered(7),
        numbered(7, end="\r\n"),
        numbered(7, end="\r"),
        BOM + numbered(7),
        b'data:{"sequence_number":7}\n\n',
        b': ping\nid: x\ndata: {\ndata: "sequence_number"\ndata: : 7 }\nretry: 1\n\n',
        b'data: {"response": {"sequence_number": 3}, "sequence_number": 7, "delta": "\\"sequence_number\\": 4"}\n\n',
    ],
)
def test_the_number_of_an_event_is_that_of_its_data(event: bytes) -> None:
    """In any line ends, over several lines, beside other fields."""
    assert sequence_number(event) == 7


@pytest.mark.parametrize("character", ["[],", "1,", '"\\"{",', '"a":1,'])
def test_a_large_event_is_looked_through_in_steps(character: str) -> None:
    """To parse four mebibytes of small values at once holds up the event loop for a tenth of a second."""
    rest = f'"rest":[{character * (1 << 15)}1]'.replace('["a"', '[{"a"').replace(":1,1]", ":1}]")
    for text, number in [
        (f'{{{rest}, "sequence_number": 7}}', 7),
        (f'{{"sequence_number":7, {rest}}}', 7),
        (f'{{{rest}, "inner": {{"sequence_number": 7}}}}', None),
        (f'{{"sequence_number": "7", {rest}}}', None),
        (f'{{"sequence_number": 7, {rest}', None),
        (f'[{{"sequence_number": 7}}, {{{rest}}}]', None),
    ]:
        event = f"event: delta\ndata: {text}\nid: x\n\n".encode()
        steps = sum(1 for _ in search_sequence([event], 6))
        assert find_sequence([event], 6).following == number
        assert steps >= len(event) // (16 * 1024)


@st.composite
def logs(draw) -> list[bytes]:
    """Events whose numbers increase, with others between them."""
    log, number = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 12))):
        if draw(st.booleans()):
            log.append(
                numbered(
                    number,
                    draw(st.sampled_from(["", "é", "a\nb\u2028", "x" * 50])),
                    draw(st.sampled_from(["\n", "\r\n"])),
                )
            )
            number += draw(st.integers(1, 3))
        else:
            log.append(draw(st.sampled_from(UNNUMBERED[:-1])))
    return log


def cut(data: bytes, places: set[int]) -> list[bytes]:
    """The data in blocks, none of them empty."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def place_of(log: list[bytes], number: int) -> Place:
    """What `find_sequence` is to find: the last event up to the number, and the first one past it."""
    offset = None
    position = 0
    for event in log:
        position += len(event)
        found = sequence_number(event)
        if found is not None and found > number:
            return Place(offset, found)
        if found is not None:
            offset = position
    return Place(offset, None)


places = st.sets(st.integers(0, 10_000), max_size=12)


@given(logs(), st.integers(0, 40), places)
@example([numbered(0), b": c\n\n", numbered(1)], 0, {3, len(numbered(0)) - 1, len(numbered(0)) + 1})
def test_a_place_is_right_after_the_last_event_up_to_the_number(log, number, cuts) -> None:
    """Wherever the blocks are cut, with events without a number left where they are."""
    assert find_sequence(cut(b"".join(log), cuts), number) == place_of(log, number)


def test_a_place_is_found_in_a_log_of_many_blocks() -> None:
    """Blocks that lie before the place are passed over, blocks that lie after it are not looked at."""
    log = [numbered(number, "x" * 50) for number in range(400)]
    blocks = cut(b"".join(log), set(range(0, 100_000, 997)))
    for number in (0, 1, 150, 398, 399, 10_000):
        assert find_sequence(blocks, number) == place_of(log, number)
    taken = iter(blocks)
    find_sequence(taken, 10)
    assert len(list(taken)) > len(blocks) // 2


def test_a_last_event_that_is_not_whole_is_no_place() -> None:
    """It was not sent to anybody as an event."""
    whole = numbered(1)
    assert find_sequence([whole, numbered(2)[:-10]], 5) == Place(len(whole), None)


@given(logs(), st.integers(0, 40), places)
def test_a_filter_drops_what_the_client_has_had(log, number, cuts) -> None:
    """Every event up to the number is dropped until one past it comes; nothing else is, and no byte is changed."""
    kept, passed = [], False
    for event in log:
        found = sequence_number(event)
        passed = passed or (found is not None and found > number)
        if passed or found is None:
            kept.append(event)
    wanted = SequenceFilter(number)
    out = [result_of(wanted.feed(chunk)) for chunk in cut(b"".join(log), cuts)]
    assert b"".join([*out, result_of(wanted.finish())]) == b"".join(kept)
    assert wanted.passed is passed


def test_a_filter_hands_on_at_once_from_the_number_on() -> None:
    """Then even parts of events, as they come."""
    wanted = SequenceFilter(1)
    assert result_of(wanted.feed(numbered(1) + numbered(2)[:-5])) == b""
    assert result_of(wanted.feed(numbered(2)[-5:] + b"data: ha")) == numbered(2) + b"data: ha"
    assert result_of(wanted.feed(b"lf")) == b"lf"
    assert result_of(wanted.finish()) == b""


def test_a_filter_lets_an_endless_event_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than to keep it for ever."""
    monkeypatch.setattr(search, "MAX_EVENT_BYTES", 100)
    wanted = SequenceFilter(1)
    assert b"".join(result_of(wanted.feed(b"data: " + b"x" * 60)) for _ in range(3))
    assert wanted._framer.oversize
    assert isinstance(wanted._framer, EventFramer)


@pytest.mark.parametrize("size", [63, 64, 65, 66, 1000, 200_000])
def test_an_id_of_any_length_is_found(size: int) -> None:
    """And none that merely looks alike."""
    wanted = "(é" * (size // 2) + "x" * (size % 2)
    others = [wanted[:-1], f"{wanted}x", f"x{wanted}", f"{wanted[:-1]}y"]
    log = "".join(f"data: {other}\nid: {other}\n\n" for other in others) + f"data: {wanted}\n"
    found = f"{log}id: {wanted} \nid: {others[0]}\n\ndata: 1\nid:{wanted}\t\r\n\r\n"
    assert result_of(search_event_id([found.encode(), b"data: 2\n\n"], wanted)) == len(found.encode())
    assert result_of(search_event_id([f"{log}id: {wanted}".encode()], wanted)) is None


def test_ids_that_begin_alike_are_passed_over_in_few_steps() -> None:
    """A step gives way to other requests, so one for each event would take long."""
    log = b"".join(b"data: x\nid: %b-%d\n\n" % (b"x" * 70, number) for number in range(2000))
    steps = sum(1 for _ in search_event_id([log], "x" * 70 + "-none"))
    assert steps <= 2 + 2000 // 256


def test_an_event_is_not_searched_for_its_id_line_by_line() -> None:
    """It may have millions of lines, and nothing else runs meanwhile."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        assert result_of(search_event_id([b"id: 1\n" + b"data: x\n" * 10_000 + b"\n"], "x")) is None
    finally:
        sys.setprofile(None)
    assert calls < 100
