"""What OpenTelemetry is told of a request, whatever becomes of its stream, on every face and under three observers."""

from contextlib import contextmanager

import fastapi
import pytest
from packaging.version import Version

from tests.support.asgi import running, until
from tests.support.life_apps import FACES, ID, stage
from tests.support.otel import recording

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(Version(fastapi.__version__) < Version("0.142"), reason="FastAPI has no telemetry"),
]
NAMED = {ID: "chat"}


async def leave(exchange, made):
    """The client goes away, and the library notices."""
    exchange.disconnect()
    await until(lambda: not made.resumable.manager._readers, "the reader to leave")


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


FATES = {
    stayed: ["completed"],
    left: ["completed"],
    stopped: ["cancelled"],
    left_then_stopped: ["cancelled"],
    replaced: ["replaced", "completed"],
    accepted: ["completed"],
    failed: ["failed"],
    left_then_failed: ["failed"],
}


@contextmanager
def observed(recorded, made, observer):
    """Watch the application as FastAPI does by itself, or as OpenTelemetry's instrumentation of FastAPI."""
    if observer == "contrib" and hasattr(made.app, "router") and isinstance(made.app, fastapi.FastAPI):
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(made.app, tracer_provider=recorded.tracer_provider)
    yield


@pytest.mark.parametrize("observer", ["fastapi", "contrib"])
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.__name__)
@pytest.mark.parametrize("face", [face for face in FACES if face != "mounted"])
async def test_the_span_of_a_request_tells_the_truth(face, fate, observer):
    """Only a stream that failed is an error, with its exception; how it ended is on both spans and in the metric."""
    with recording() as recorded:
        made = stage(face, "async generator")
        with observed(recorded, made, observer):
            async with running(made.app) as client:
                await fate(client, made)
        outcomes = FATES[fate]
        servers = [span for span in recorded.spans("SERVER") if span.name.startswith("POST")]
        ours = recorded.spans(name="fastapi_resumable.stream")
        assert sorted(span.attributes["fastapi_resumable.stream.outcome"] for span in ours) == sorted(outcomes)
        assert len(servers) == len(outcomes)
        for span in [*servers, *ours]:
            assert (span.status.status_code.name == "ERROR") == (outcomes == ["failed"]), span.to_json()
            raised = [event.attributes["exception.type"] for event in span.events if event.name == "exception"]
            assert set(raised) == ({"RuntimeError"} if outcomes == ["failed"] else set()), span.to_json()
        durations = recorded.points("fastapi_resumable.stream.duration")
        assert sorted(attributes["outcome"] for attributes, _ in durations) == sorted(outcomes)
        assert recorded.points("fastapi_resumable.streams.active") == [
            (durations[0][0].keys() and {"http.route": durations[0][0]["http.route"]}, 0)
        ]
        if observer == "fastapi":
            errors = [
                attributes.get("error.type")
                for attributes, _ in recorded.points("http.server.request.duration")
                if attributes["http.request.method"] == "POST"
            ]
            assert set(errors) == ({"RuntimeError"} if outcomes == ["failed"] else {None})
        survived = recorded.points("fastapi_resumable.disconnects_survived")
        assert sum(count for _, count in survived) == ("left" in fate.__name__)
