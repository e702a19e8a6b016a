"""What OpenTelemetry is told of a request, whatever becomes of its stream, on every face and under three observers."""

from contextlib import contextmanager
from dataclasses import dataclass

import fastapi
import pytest
from packaging.version import Version

from tests.support.asgi import running, until
from tests.support.life_apps import FACES, PLACES, stage
from tests.support.otel import recording
from tests.support.params import representatives

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(Version(fastapi.__version__) < Version("0.142"), reason="FastAPI has no telemetry"),
]


async def leave(exchange, made):
    """The client goes away, and the library notices."""
    exchange.disconnect()
    await until(lambda: not made.resumable.manager._readers, "the reader to leave")


@dataclass
class Fate:
    """What is to be seen of one."""

    outcomes: list[str]
    """Of the streams."""
    requests: int = 0
    """How many there were, if not one for each stream."""
    errors: bool = False
    """Whether the spans of the requests are errors."""
    survived: int = 0
    """Disconnects that a stream has survived."""


async def stayed(client, made):
    exchange, run = await made.begin(client, "chat", "one")
    run.finish()
    await exchange.reply()


async def left(client, made):
    exchange, run = await made.begin(client, "chat", "one")
    await leave(exchange, made)
    run.put("two")
    run.finish()
    await exchange.served()


async def stopped(client, made):
    exchange, _ = await made.begin(client, "chat", "one")
    await client.delete("/v1/stream/chat")
    await exchange.reply()


async def left_then_stopped(client, made):
    exchange, _ = await made.begin(client, "chat", "one")
    await leave(exchange, made)
    await client.delete("/v1/stream/chat")
    await exchange.served()


async def replaced(client, made):
    exchange, _ = await made.begin(client, "chat", "one")
    second, run = await made.begin(client, "chat", "one")
    await exchange.reply()
    run.finish()
    await second.reply()


async def failed(client, made):
    exchange, run = await made.begin(client, "chat", "one")
    run.fail(RuntimeError("boom"))
    await exchange.reply()


async def failed_before_its_head_was_sent(client, made):
    exchange = made.post(client, "chat")
    run = await made.run()
    run.put("one")
    run.fail(RuntimeError("boom"))
    await exchange.reply()


async def left_then_failed(client, made):
    exchange, run = await made.begin(client, "chat", "one")
    await leave(exchange, made)
    run.fail(RuntimeError("boom"))
    await exchange.served()


async def accepted(client, made):
    exchange = made.post(client, "chat", headers={"Prefer": "respond-async"})
    run = await made.run()
    run.put("one")
    run.finish()
    await exchange.reply()


async def accepted_then_failed(client, made):
    exchange = made.post(client, "chat", headers={"Prefer": "respond-async"})
    run = await made.run()
    run.put("one")
    await exchange.reply()
    run.fail(RuntimeError("boom"))
    await exchange.served()


async def attached(client, made):
    exchange, run = await made.begin(client, "chat", "one", headers={"Idempotency-Key": "once"})
    second = made.post(client, "chat", headers={"Idempotency-Key": "once"})
    await second.head()
    run.finish()
    await exchange.reply()
    await second.reply()


async def interrupted(client, made):
    exchange, _ = await made.begin(client, "chat", "one")
    await made.resumable.shutdown()
    await exchange.reply()


async def failed_before_the_first_byte(client, made):
    exchange = made.post(client, "chat")
    run = await made.run()
    run.fail(RuntimeError("boom"))
    await exchange.served()


FATES = {
    stayed: Fate(["completed"]),
    left: Fate(["completed"], survived=1),
    stopped: Fate(["cancelled"]),
    left_then_stopped: Fate(["cancelled"], survived=1),
    replaced: Fate(["replaced", "completed"]),
    accepted: Fate(["completed"]),
    attached: Fate(["completed"], requests=2),
    interrupted: Fate(["interrupted"]),
    failed: Fate(["failed"], errors=True),
    failed_before_its_head_was_sent: Fate(["failed"], errors=True),
    left_then_failed: Fate(["failed"], errors=True, survived=1),
    # The request was answered in order; only the span of the stream has failed.
    accepted_then_failed: Fate(["failed"]),
    # There was no stream: what failed is the request.
    failed_before_the_first_byte: Fate([], requests=1, errors=True),
}


@contextmanager
def observed(recorded, made, observer):
    """Watch the application as FastAPI does by itself, or as OpenTelemetry's instrumentation of FastAPI."""
    if observer == "contrib" and hasattr(made.app, "router") and isinstance(made.app, fastapi.FastAPI):
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(made.app, tracer_provider=recorded.tracer_provider)
    yield


@pytest.mark.parametrize(
    ("face", "observer", "fate"),
    representatives(
        [
            *((face, "fastapi", fate) for face in FACES for fate in FATES),
            *((place, "contrib", fate) for place in PLACES for fate in FATES),
        ],
        lambda case: (
            case[:2] == (PLACES[0], "fastapi")
            or case[2] in {left, failed, failed_before_its_head_was_sent, failed_before_the_first_byte}
        ),
    ),
)
async def test_the_span_of_a_request_tells_the_truth(face, observer, fate):
    """Only a stream that failed is an error, with its exception; how it ended is on both spans and in the metric."""
    with recording() as recorded:
        made = stage(face, "async generator")
        with observed(recorded, made, observer):
            async with running(made.app) as client:
                await fate(client, made)
        wanted = FATES[fate]
        requests = [span for span in recorded.spans("SERVER") if span.name.startswith("POST")]
        streams = recorded.spans(name="fastapi_resumable.stream")
        assert len(requests) == (wanted.requests or len(wanted.outcomes))
        assert [errors_of(span) for span in requests] == [["RuntimeError"] if wanted.errors else []] * len(requests)
        for span in streams:
            outcome = span.attributes["fastapi_resumable.stream.outcome"]
            assert errors_of(span) == (["RuntimeError"] if outcome == "failed" else []), span.to_json()
        assert sorted(span.attributes["fastapi_resumable.stream.outcome"] for span in streams) == sorted(
            wanted.outcomes
        )
        durations = recorded.points("fastapi_resumable.stream.duration")
        assert sorted(attributes["outcome"] for attributes, _ in durations) == sorted(wanted.outcomes)
        routes = {attributes["http.route"] for attributes, _ in durations}
        active = recorded.points("fastapi_resumable.streams.active")
        assert active == [({"http.route": route}, 0) for route in routes]
        assert sum(count for _, count in recorded.points("fastapi_resumable.disconnects_survived")) == wanted.survived
        if observer == "fastapi":
            errors = [
                attributes.get("error.type")
                for attributes, _ in recorded.points("http.server.request.duration")
                if attributes["http.request.method"] == "POST"
            ]
            assert set(errors) == {"RuntimeError" if wanted.errors else None}


def errors_of(span):
    """The types of the errors of a span: of those that FastAPI sees, it notes the type alone."""
    raised = {event.attributes["exception.type"] for event in span.events if event.name == "exception"}
    raised |= {span.attributes["error.type"]} if "error.type" in span.attributes else set()
    assert (span.status.status_code.name == "ERROR") == bool(raised), span.to_json()
    return sorted(raised)
