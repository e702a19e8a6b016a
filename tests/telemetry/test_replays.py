"""A replay is counted by its kind, and its span leads to the stream's."""

import pytest

from tests.support.asgi import running
from tests.support.life_apps import stage
from tests.support.otel import recording

pytestmark = pytest.mark.anyio


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
        kinds = {
            (attributes["kind"], attributes["result"]) for attributes, _ in recorded.points("fastapi_resumable.reads")
        }
        assert kinds == {
            ("first", "ok"),
            ("replay", "ok"),
            ("resume", "ok"),
            ("resume", "204"),
        }
        assert recorded.points("fastapi_resumable.readers.active") == [({}, 0)]
