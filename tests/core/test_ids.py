"""core/ids.py: what is taken as an id, an offset, an event id, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_resumable._core.ids import (
    EPOCH_BYTES,
    EventId,
    format_epoch,
    parse_count,
    parse_event_id,
    parse_stream_id,
    require_stream_id,
    variants,
)
from fastapi_resumable.exceptions import InvalidOffset, InvalidStreamId


@given(entropy=st.binary(min_size=EPOCH_BYTES, max_size=EPOCH_BYTES), offset=st.integers(0, 2**59))
def test_an_event_id_reads_back_as_it_was_written(entropy, offset):
    """Writing and reading are inverse."""
    event_id = EventId(format_epoch(entropy), offset)

    assert parse_event_id(str(event_id)) == event_id


@pytest.mark.parametrize(
    "text",
    ["", "1", "abcdefghijklmnop", "ABCDEFGHIJKLMNOP-1", "abcdefghijklmno1-1"]
    + ["abcdefghijklmnop-" + offset for offset in ("", "01", "1 ", "٣", "9" * 20)],
)
def test_anything_else_is_taken_for_an_id_of_the_applications_own(text):
    """Only the exact form is ours."""
    assert parse_event_id(text) is None


@pytest.mark.parametrize("text", ["-1", "+5", "1e3", "1.0", " 5", "5 ", "0x10", "1_0", "٣", "²", "½", "NaN", "5\n"])
def test_an_offset_is_ascii_digits_and_nothing_else(text):
    """What Python would take for an integer is not taken for one."""
    with pytest.raises(InvalidOffset, match="`from`"):
        parse_count("from", text)


def test_an_offset_may_be_absent_or_larger_than_any_log():
    """No value is no offset; a huge one is out of range, not an error of form."""
    assert parse_count("from", None) is None
    assert parse_count("from", "") is None
    assert parse_count("from", "007") == 7
    assert parse_count("from", "9" * 5000) == 2**63 - 1


@pytest.mark.parametrize("value", ["a\x00b", "a\nb", "\x7f", "a\x85b", "x" * 513, "é" * 257, "\ud800"])
def test_control_characters_long_ids_and_lone_surrogates_are_refused(value):
    """Over 512 bytes of UTF-8, or not printable."""
    with pytest.raises(InvalidStreamId):
        parse_stream_id(value)


def test_a_blank_id_is_no_id():
    """Empty after strip: nothing was named."""
    assert parse_stream_id(None) is parse_stream_id("") is parse_stream_id("  \t") is None
    with pytest.raises(InvalidStreamId, match="conv_id"):
        require_stream_id(" ")


def test_an_id_is_kept_as_it_is():
    """Byte for byte: nothing is stripped, folded or normalised."""
    for value in (" a ", "É", "E\u0301", "a/b", "a::b", "x" * 512):
        assert parse_stream_id(value) == value


def test_the_variants_of_an_id_are_its_prefixes_at_double_colons():
    """`a` and `a::b` are the ids by which `a::b::c` is found too."""
    assert variants("a") == []
    assert variants("a::b::c") == ["a", "a::b"]
    assert variants("a::") == ["a"]
    assert variants("::a") == []
    assert variants("a:::b") == ["a", "a:"]
