"""The event that ends a stream which did not complete."""

import asyncio
import json

import pytest

from fastapi_resumable._core.terminal import terminal_event, write_terminal_event

DEFAULT = terminal_event("sse", "failed", "producer_failed", "It broke.")


def data_of(event: bytes) -> object:
    [line] = [line for line in event.splitlines() if line.startswith(b"data: ")]
    return json.loads(line.removeprefix(b"data: "))


def test_ag_ui_gets_its_run_error():
    """`HttpAgent` reads unnamed frames, and reports this one as the end of the run."""
    event = terminal_event("ag-ui", "failed", "producer_failed", "It broke.")

    assert event == b'data: {"type":"RUN_ERROR","message":"It broke.","code":"producer_failed"}\n\n'


def test_anthropic_gets_its_error_event():
    """The SDK raises on an event named `error` whose data has a type."""
    event = terminal_event("anthropic", "cancelled", "cancelled", "It was stopped.")

    assert event.startswith(b"event: error\n")
    assert data_of(event) == {"type": "error", "error": {"type": "api_error", "message": "It was stopped."}}


@pytest.mark.parametrize("form", ["sse", "openai", "ai-sdk", "ag-ui", "anthropic"])
def test_every_form_is_whole_events_of_single_lines(form):
    """Whatever the message holds, it stays within its JSON string."""
    event = terminal_event(form, "failed", "c", "one\ntwo\r\nthree\rdata: é")

    assert event.endswith(b"\n\n")
    assert b"\r" not in event
    for block in event.split(b"\n\n")[:-1]:
        assert [line.partition(b":")[0] for line in block.split(b"\n")] in ([b"data"], [b"event", b"data"])


@pytest.mark.parametrize("returned", [b"data: over\n\n", bytearray(b"data: over\n\n"), memoryview(b"data: over\n\n")])
def test_a_function_writes_the_event(returned):
    """What it returns is what readers see."""
    assert write_terminal_event(lambda *_: returned, "failed", "c", "m") == (b"data: over\n\n", None)


def test_a_function_may_write_no_event():
    """Then the stream ends after its last event."""
    assert write_terminal_event(lambda *_: None, "failed", "c", "m") == (None, None)


@pytest.mark.parametrize("raised", [RuntimeError("no words"), SystemExit(1), GeneratorExit(), asyncio.CancelledError()])
def test_a_function_that_raises_is_replaced_by_the_default(raised):
    """The caller gets what was raised, in order to log it."""

    def write(*_: str) -> bytes:
        raise raised

    assert write_terminal_event(write, "failed", "producer_failed", "It broke.") == (DEFAULT, raised)


@pytest.mark.parametrize("returned", ["data: over\n\n", 7, [], object()])
def test_a_function_that_returns_anything_else_is_replaced_by_the_default(returned):
    """The failure names what it has to return."""
    event, failure = write_terminal_event(lambda *_: returned, "failed", "producer_failed", "It broke.")

    assert event == DEFAULT
    assert isinstance(failure, TypeError)
    assert type(returned).__name__ in str(failure)
