"""core/log.py: a log reads like the bytes that went in, minus the head that was trimmed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_resumable._core.log import Budget, ByteLog

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=30)


def read_all(log: ByteLog, offset: int, size: int) -> bytes:
    out = b""
    while offset < log.tail:
        data = log.read(offset, size)
        assert 0 < len(data) <= size
        out += data
        offset += len(data)
    return out


@given(chunks=chunks, block_size=st.integers(1, 64), size=st.integers(1, 70), data=st.data())
def test_a_log_reads_like_plain_bytes_from_any_offset_in_pieces_of_any_size(chunks, block_size, size, data):
    """Reading from any offset gives what a bytes object would."""
    log = ByteLog(block_size)
    model = b""
    for chunk in chunks:
        log.append(chunk)
        model += chunk
        offset = data.draw(st.integers(0, len(model)))

        assert read_all(log, offset, size) == model[offset:]
    log.close()

    assert log.tail == log.size == len(model)
    assert b"".join(log.chunks(0)) == model


@given(chunks=chunks, block_size=st.integers(1, 64), cuts=st.lists(st.integers(0, 1200), max_size=5))
def test_trimming_drops_whole_blocks_below_the_offset_and_nothing_else(chunks, block_size, cuts):
    """What is at or above the given offset stays; the bytes given back are counted."""
    budget = Budget()
    log = ByteLog(block_size, budget=budget)
    for chunk in chunks:
        log.append(chunk)
    model = b"".join(chunks)
    for cut in cuts:
        floor = log.floor
        log.trim(cut)

        assert budget.used == log.size
        assert log.floor <= max(floor, min(cut, log.tail))
        assert read_all(log, log.floor, 7) == model[log.floor :]


def test_reading_below_the_floor_or_past_the_tail_is_an_error():
    """An offset that is not there is never answered with other bytes."""
    log = ByteLog(4)
    log.append(b"abcd")
    log.append(b"efgh")
    log.trim(4)

    assert log.floor == 4
    with pytest.raises(LookupError):
        log.read(3)
    with pytest.raises(ValueError, match="past the tail"):
        log.read(9)


def test_a_sealed_block_is_handed_out_without_copying():
    """A replay sends whole blocks as they are."""
    log = ByteLog(8)
    log.append(b"12345678")
    log.append(b"9")

    assert log.read(0) is log.read(0)


def test_closing_an_empty_log_is_harmless():
    """A stream may end without a byte."""
    log = ByteLog()
    log.close()

    assert log.read(0) == b""
    assert list(log.chunks(0)) == []


def test_a_closed_log_of_one_block_is_handed_out_without_copying():
    """Replays of most answers are one piece, and all of them the same one."""
    log = ByteLog()
    log.append(b"data: x\n\n")
    log.append(b"data: y\n\n")
    log.close()

    assert log.read(0) is log.read(0)
    assert log.read(0) == b"data: x\n\ndata: y\n\n"
    assert log.read(9) == b"data: y\n\n"


@given(chunks=chunks, block_size=st.integers(1, 64), closed=st.booleans(), more=st.binary(max_size=40), data=st.data())
def test_what_is_cut_off_makes_place_for_other_bytes(chunks, block_size, closed, more, data):
    """A log that is truncated reads like what is left and what is added then, whether it had been closed or not."""
    log = ByteLog(block_size)
    for chunk in chunks:
        log.append(chunk)
    if closed:
        log.close()
    log.trim(data.draw(st.integers(0, log.tail)))
    floor = log.floor
    cut = data.draw(st.integers(floor, log.tail))
    log.truncate(cut)
    log.append(more)
    model = b"".join(chunks)[:cut] + more

    assert (log.floor, log.tail, log.size) == (floor, len(model), len(model) - floor)
    assert read_all(log, floor, 7) == model[floor:]
    log.close()
    assert b"".join(log.chunks(floor)) == model[floor:]
