"""In development: a server that is restarted at every save waits for no live stream."""

from pathlib import Path

import pytest

from tests.support.rawhttp import connect
from tests.support.server import ROOT, serve

APP = """
import asyncio
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi_resumable import Resumable

resumable = Resumable()
app = FastAPI()
app.include_router(resumable.router)
print("grace", resumable.settings.shutdown_grace)

@app.get("/")
async def ready():
    return 1

@app.post("/chat")
@resumable.stream
async def chat():
    async def words():
        yield "data: one\\n\\n"
        await asyncio.Event().wait()
    return StreamingResponse(words(), media_type="text/event-stream")
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An application in a folder of its own, which the reloader watches."""
    path = tmp_path / "main.py"
    path.write_text(APP)
    return path


@pytest.mark.anyio
async def test_a_save_does_not_wait_for_a_live_stream(app):
    """Its reader is told that the stream was interrupted: the grace is none, on the old server and on the new one."""
    folder = str(app.parent)
    args = ["--reload", "--reload-dir", folder, "--app-dir", folder]
    with serve("main:app", args=args, env={"PYTHONPATH": str(ROOT)}) as server:
        server.wait_for_output(r"grace 0\.0")
        async with await connect(server.port) as connection:
            await connection.request("POST", "/chat", [("X-Conversation-Id", "a")])
            response = await connection.response()
            await response.read_until(b"data: one")
            app.write_text(APP + "\n# saved\n")
            assert b'"code":"interrupted"' in await response.read_all()
        server.wait_for_output(r"grace 0\.0[\s\S]*grace 0\.0")


@pytest.mark.parametrize(
    ("args", "env", "grace"),
    [
        pytest.param([], {}, "10.0", id="no reloader"),
        pytest.param(["--workers", "2"], {}, "10.0", id="a supervisor of workers"),
        pytest.param(["--reload"], {"FASTAPI_RESUMABLE_SHUTDOWN_GRACE": "3"}, "3.0", id="what is set counts"),
    ],
)
def test_the_grace_is_as_ever_where_nothing_is_reloaded(app, args, env, grace):
    """A supervisor of workers starts processes in the same way."""
    with serve("main:app", args=[*args, "--app-dir", str(app.parent)], env=env) as server:
        server.wait_for_output(rf"grace {grace}")
