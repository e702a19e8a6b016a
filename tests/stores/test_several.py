"""A memory store in one of several workers says so: real servers, started in each way that there is."""

import sys
from pathlib import Path

import httpx
import pytest

from fastapi_resumable.stores.several import count_workers
from tests.support.params import in_long_runs
from tests.support.server import HOST, Server

APP = """
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi_resumable import Resumable

resumable = Resumable()
app = FastAPI()
app.include_router(resumable.router)

@app.post("/chat")
@resumable.stream
async def chat():
    return StreamingResponse(iter(["data: 1\\n\\n"]), media_type="text/event-stream")

@app.get("/")
async def root():
    return "up"

if __name__ == "__main__":
    import uvicorn
    uvicorn.run("several_app:app", host="127.0.0.1", port=%d, workers=2)
"""


@pytest.mark.parametrize(
    ("arguments", "environment", "warns"),
    [
        in_long_runs((["--workers", "2"], {}, True)),
        ([], {"WEB_CONCURRENCY": "2"}, True),
        (["--workers", "1"], {"WEB_CONCURRENCY": "2"}, False),
        in_long_runs(([], {}, False)),
    ],
    ids=["workers", "environment", "one-of-two", "one"],
)
def test_a_memory_store_in_one_of_several_workers_says_so_once(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], warns: bool
) -> None:
    """Once for each worker, with the two lines that help."""
    (tmp_path / "several_app.py").write_text(APP.replace("%d", "0"))
    command = [sys.executable, "-m", "uvicorn", "several_app:app", "--app-dir", str(tmp_path), "--host", HOST]
    server = Server([*command, "--port", "0", *arguments], environment)
    try:
        server.wait_ready()
        for _ in range(4):
            httpx.post(f"{server.url}/chat", headers={"X-Conversation-Id": "a"}, timeout=60).raise_for_status()
        if warns:
            server.wait_for_output("one of 2 workers")
            assert 'store="sqlite:///streams.db"' in server.output
            assert 'store="redis://' in server.output
        server.stop()
        assert server.output.count("MemoryStore keeps streams") <= (2 if warns else 0)
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("argv", "count"),
    [
        (["/usr/bin/gunicorn", "app:app", "-w", "4"], 4),
        (["/usr/bin/gunicorn", "app:app", "-w4"], 4),
        (["/venv/uvicorn/__main__.py", "app:app", "--workers=3"], 3),
        (["/usr/bin/fastapi", "run", "--workers", "2"], 2),
        (["/usr/bin/uvicorn", "app:app"], 1),
        (["/usr/bin/pytest", "-w", "4"], 1),
    ],
)
def test_the_command_line_says_how_many_workers_there_are(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], count: int
) -> None:
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    monkeypatch.setattr(sys, "argv", argv)
    assert count_workers() == count


def test_the_workers_of_gunicorn_may_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--bind=:8000 --workers=5")
    assert count_workers() == 5
