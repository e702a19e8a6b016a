"""A read is counted by its kind and by what came of it, and its span leads to the stream's."""

import pytest

from fastapi_resumable import RedisStore, SqliteStore
from tests.support.asgi import running
from tests.support.life_apps import FACES, stage
from tests.support.otel import recording
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio


def reads(recorded):
    """How many reads there were, by kind and result."""
    points = recorded.points("fastapi_resumable.reads")
    return {(attributes["kind"], attributes["result"]): count for attributes, count in points}


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def store(request, tmp_path):
    """Each store there is."""
    match request.param:
        case "memory":
            yield None
        case "sqlite":
            yield SqliteStore(tmp_path / "streams.db")
        case "redis":
            with RedisServer(tmp_path) as server:
                yield RedisStore(server.url)


async def test_the_span_of_a_replay_links_to_the_streams():
    """The first response, a replay, a resume, and one that finds nothing left are told apart."""
    with recording() as recorded:
        made = stage("decorator", "async generator")
        async with running(made.app) as client:
            exchange, run = await made.begin(client, "chat", "one")
            run.finish()
            answer = await exchange.reply()
            last = answer.text.split("id: ")[-1].split()[0]
            await client.get("/v1/stream/chat")
            await client.get("/v1/stream/chat?from=3")
            await client.get("/v1/stream/chat", headers={"Last-Event-ID": last})
        (ours,) = recorded.spans(name="fastapi_resumable.stream")
        replays = [span for span in recorded.spans("SERVER") if span.name.startswith("GET")]
        assert len(replays) == 3
        for span in replays[:2]:  # the third has no stream to send, and is linked where FastAPI runs the route
            assert [link.context.span_id for link in span.links] == [ours.context.span_id]
        assert reads(recorded) == {
            ("first", "ok"): 1,
            ("replay", "ok"): 1,
            ("resume", "ok"): 1,
            ("resume", "204"): 1,
        }
        assert recorded.points("fastapi_resumable.readers.active") == [({}, 0)]


@pytest.mark.parametrize("face", FACES)
async def test_a_repeated_request_attaches_and_a_late_one_replays(face):
    """Both are linked to the stream that they follow."""
    once = {"Idempotency-Key": "once"}
    with recording() as recorded:
        made = stage(face)
        async with running(made.app) as client:
            exchange, run = await made.begin(client, "chat", "one", headers=once)
            second = made.post(client, "chat", headers=once)
            await second.head()
            run.finish()
            await exchange.reply()
            await second.reply()
            await made.post(client, "chat", headers=once).reply()
        (ours,) = recorded.spans(name="fastapi_resumable.stream")
        links = [[link.context.span_id for link in span.links] for span in recorded.spans("SERVER")]
        assert sorted(links) == [[], [ours.context.span_id], [ours.context.span_id]]
        assert reads(recorded) == {("first", "ok"): 1, ("attach", "ok"): 1, ("replay", "ok"): 1}


async def test_a_read_that_is_refused_is_counted_and_is_no_error(store):
    """The stream is unknown, still queued, or of another epoch; or the place is gone, or not there yet."""
    with recording() as recorded:
        made = stage("decorator", gated=True, pending_timeout=0.05, max_stream_bytes=1024, store=store)
        async with running(made.app) as client:
            await client.get("/v1/stream/unknown")
            await client.get("/v1/stream/unknown?from=3")
            resume = {"X-Conversation-Id": "unknown", "Last-Event-ID": "aaaaaaaaaaaaaaaa-1"}
            await client.request("POST", "/chat", headers=resume, json={"text": "hi"})

            exchange = made.post(client, "chat")
            run = await made.run()
            assert (await client.get("/v1/stream/chat")).status == 503
            run.admitted.set()
            for piece in range(4):
                run.put(str(piece) * 500)
            run.finish()
            await exchange.reply()
            await client.get("/v1/stream/chat")
            await client.get("/v1/stream/chat?from=1000000")
            await client.get("/v1/stream/chat", headers={"Last-Event-ID": "aaaaaaaaaaaaaaaa-1"})
        assert reads(recorded) == {
            ("first", "ok"): 1,
            ("replay", "not_found"): 1,
            ("resume", "not_found"): 2,
            ("replay", "pending"): 1,
            ("replay", "offset_lost"): 1,
            ("resume", "offset_out_of_range"): 1,
            ("resume", "replaced"): 1,
        }
        refused = [span for span in recorded.spans("SERVER") if span.attributes["http.response.status_code"] < 500]
        assert {span.status.status_code.name for span in refused} == {"UNSET"}


async def test_reads_by_the_routes_of_the_ai_sdk_are_counted():
    """Live, from a part on, past the end, of an unknown chat, and with an index that is no number."""
    with recording() as recorded:
        made = stage("decorator", "async generator")
        made.app.include_router(made.resumable.ai_sdk_router, prefix="/api/chat")
        async with running(made.app) as client:
            exchange, run = await made.begin(client, "chat", "one")
            live = client.start("GET", "/api/chat/chat/stream")
            assert (await live.head()).status == 200
            run.finish()
            await exchange.reply()
            await live.reply()
            for path in ("chat/stream", "chat/stream?startIndex=0", "chat/stream?startIndex=9"):
                await client.get(f"/api/chat/{path}")
            await client.get("/api/chat/unknown/stream")
            await client.get("/api/chat/chat/stream?startIndex=x")
        assert reads(recorded) == {
            ("first", "ok"): 1,
            ("replay", "ok"): 1,
            ("replay", "204"): 2,
            ("resume", "ok"): 1,
            ("resume", "204"): 1,
            ("resume", "invalid_offset"): 1,
        }


async def test_the_bytes_of_live_streams_are_held(store):
    """On a shared store, those that this process writes or follows."""
    with recording() as recorded:
        made = stage("decorator", store=store)
        async with running(made.app) as client:
            exchange, run = await made.begin(client, "chat", "x" * 1000)
            await exchange.read()
            ((attributes, held),) = recorded.points("fastapi_resumable.log.bytes")
            run.finish()
            await exchange.reply()
        assert attributes == {"store": type(made.resumable.store).__name__.removesuffix("Store").lower()}
        assert held > 1000
