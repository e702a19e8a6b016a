"""What the library measures, told to a real OpenTelemetry SDK."""

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal as metrics_api

from fastapi_resumable.stores import MeasuredStore
from fastapi_resumable.telemetry import Telemetry
from tests.support.otel import recording


class MemoryStore:
    """A store that holds some bytes."""

    def __init__(self, held_bytes):
        self.held_bytes = held_bytes


class RedisStore(MemoryStore):
    """A store of another kind."""


def test_nothing_is_measured_without_a_provider():
    """No object is made for a stream, and none for a reader."""
    telemetry = Telemetry()
    assert telemetry.stream("chat", "epoch", {}, 0.0) is None
    assert telemetry.reader_attached() is None
    assert telemetry.read("first") is None


def test_opentelemetry_is_not_imported_by_us():
    """An application that has set a provider has imported it; for others, its import would only cost."""
    # The module alone: FastAPI imports OpenTelemetry itself.
    path = sys.modules["fastapi_resumable.telemetry"].__file__
    code = (
        "import sys, runpy; "
        f"Telemetry = runpy.run_path({path!r})['Telemetry']; "
        "assert Telemetry().stream('chat', 'epoch', {}, 0.0) is None; "
        "sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0


def test_every_instrument_has_its_unit():
    """Names and units are part of the contract: dashboards are made of them."""

    async def operation():
        return 1

    with recording() as recorded:
        telemetry = Telemetry(MemoryStore(3))
        stream = telemetry.stream("chat", "epoch", {}, 0.0)
        stream.begun()
        stream.first_byte()
        stream.client_left()
        stream.ended("completed", size=5)
        telemetry.read("first")
        telemetry.reader_attached()("stalled")

        class Store:
            find = staticmethod(operation)

        coroutine = MeasuredStore(Store(), telemetry).find()
        with pytest.raises(StopIteration):
            coroutine.send(None)
        assert recorded.units() == {
            "fastapi_resumable.streams.active": "{stream}",
            "fastapi_resumable.stream.duration": "s",
            "fastapi_resumable.stream.time_to_first_event": "s",
            "fastapi_resumable.stream.size": "By",
            "fastapi_resumable.readers.active": "{reader}",
            "fastapi_resumable.reads": "{read}",
            "fastapi_resumable.reads.dropped": "{read}",
            "fastapi_resumable.disconnects_survived": "{disconnect}",
            "fastapi_resumable.log.bytes": "By",
            "fastapi_resumable.store.operation.duration": "s",
        }
        assert recorded.points("fastapi_resumable.store.operation.duration") == [({"operation": "find"}, 1)]


def test_only_the_first_end_of_a_stream_counts():
    """The first end counts: a stop that comes at the same time as the end is no second one."""
    with recording() as recorded:
        stream = Telemetry().stream("chat", "epoch", {}, 0.0)
        for _ in range(2):
            stream.begun()
        stream.ended("completed", size=5)
        stream.ended("cancelled", size=5)
        stream.client_left()
        assert recorded.points("fastapi_resumable.streams.active") == [({}, 0)]
        assert recorded.points("fastapi_resumable.stream.duration") == [({"outcome": "completed"}, 1)]
        assert recorded.points("fastapi_resumable.disconnects_survived") == []


def test_a_request_that_never_became_a_stream_is_not_counted():
    """A 401 is no stream."""
    with recording() as recorded:
        Telemetry().stream("chat", "epoch", {}, 0.0).ended("failed")
        assert recorded.spans() == []
        assert recorded.points("fastapi_resumable.streams.active") == []
        assert recorded.points("fastapi_resumable.stream.duration") == []


@pytest.mark.parametrize("stream_ids", [True, False])
def test_ids_are_on_spans_unless_switched_off(stream_ids):
    """And never on a metric."""
    with recording() as recorded:
        stream = Telemetry(stream_ids=stream_ids).stream("chat-42", "epoch", {}, 0.0)
        stream.open_span()
        stream.begun()
        stream.ended("completed")
        (span,) = recorded.spans()
        assert span.attributes.get("fastapi_resumable.stream.id") == ("chat-42" if stream_ids else None)
        assert span.attributes["fastapi_resumable.stream.epoch"] == "epoch"
        assert span.attributes["fastapi_resumable.stream.outcome"] == "completed"


def test_a_replay_links_to_the_stream():
    """By the text that a store keeps, so from another process as well."""
    with recording() as recorded:
        telemetry = Telemetry()
        stream = telemetry.stream("chat", "epoch", {}, 0.0)
        traceparent = stream.open_span()
        stream.ended("completed")
        with trace.get_tracer("server").start_as_current_span("GET"):
            telemetry.read("replay", traceparent=traceparent)
        span, replay = recorded.spans()
        (link,) = replay.links
        assert (link.context.trace_id, link.context.span_id) == (span.context.trace_id, span.context.span_id)


def test_what_the_provider_raises_does_no_harm():
    """A processor of spans is the application's own code."""

    class Broken:
        def get_meter(self, *_args, **_kwargs):
            raise RuntimeError("broken")

    with recording():
        metrics_api._METER_PROVIDER = Broken()
        telemetry = Telemetry()
        telemetry.read("first")
        stream = telemetry.stream("chat", "epoch", {}, 0.0)
        stream.begun()
        stream.ended("completed")


def test_two_applications_share_the_gauge_of_held_bytes():
    """OpenTelemetry keeps only the first callback of a name; the sum of both is shown."""
    with recording() as recorded:
        first, second, third = Telemetry(MemoryStore(3)), Telemetry(MemoryStore(4)), Telemetry(RedisStore(5))
        for telemetry in (first, second, third):
            telemetry.read("first")
        points = recorded.points("fastapi_resumable.log.bytes")
        assert sorted(points, key=str) == [({"store": "memory"}, 7), ({"store": "redis"}, 5)]
