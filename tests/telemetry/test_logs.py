"""What is logged about a stream names it in fields, and what happens every day is no warning."""

import ast
import logging
from pathlib import Path

import pytest

import fastapi_resumable
from tests.support.asgi import running, settle
from tests.support.life_apps import PLACES, stage

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("face", PLACES)
async def test_a_stop_a_client_that_leaves_and_a_replacement_are_no_warnings(face, caplog):
    """Nothing above INFO is logged of them, nor of a shutdown during which a stream is live."""
    caplog.set_level(logging.DEBUG, logger="fastapi_resumable")
    made = stage(face, owner=lambda: "alice")
    async with running(made.app) as client:
        stopped, _ = await made.begin(client, "stopped", "one")
        await client.delete("/v1/stream/stopped")
        await stopped.reply()

        left, run = await made.begin(client, "left", "one")
        left.disconnect()
        await settle()  # the library notices
        run.finish()
        await left.served()

        replaced, _ = await made.begin(client, "replaced", "one")
        second, run = await made.begin(client, "replaced", "one")
        await replaced.reply()
        run.finish()
        await second.reply()

        cut, _ = await made.begin(client, "cut", "one")
    await cut.served()
    ours = [record for record in caplog.records if record.name.startswith("fastapi_resumable")]
    assert [record.getMessage() for record in ours if record.levelno > logging.INFO] == []
    assert {record.name for record in ours} <= {"fastapi_resumable"}


@pytest.mark.parametrize("face", PLACES)
async def test_a_stream_that_fails_is_logged_with_its_id_owner_and_epoch(face, caplog):
    """A log pipeline filters by the fields, and need not parse the message."""
    made = stage(face, owner=lambda: "alice")
    async with running(made.app) as client:
        exchange, run = await made.begin(client, "chat", "one")
        epoch = (await exchange.head()).headers["x-stream-epoch"]
        run.fail(RuntimeError("boom"))
        await exchange.reply()
    (record,) = [record for record in caplog.records if record.name == "fastapi_resumable"]
    assert record.levelno == logging.ERROR
    assert (record.stream_id, record.owner, record.epoch) == ("chat", "alice", epoch)
    assert record.exc_info[0] is RuntimeError


def test_every_record_about_a_stream_has_its_fields():
    """A call that names a stream in its message has the fields, too."""
    without = []
    for path in Path(fastapi_resumable.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger."):
                names_a_stream = "stream %r" in ast.unparse(node)
                if names_a_stream and not {"extra", None} & {keyword.arg for keyword in node.keywords}:
                    without.append(f"{path.name}:{node.lineno}")
    assert without == []
