"""`make demo` on its SQLite files: killed in the middle of an answer, and started again."""

import json
import sqlite3
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server

pytestmark = pytest.mark.servers

QUESTION = {"stream": True, "messages": [{"role": "user", "content": "Tell me of Alice"}]}


def start(folder: Path, *arguments: str) -> Server:
    """The example app, with its files in `folder`."""
    environment = {
        "OPENAI_BASE_URL": "",
        "OPENAI_API_KEY": "",
        "EXAMPLE_WORDS_PER_SECOND": "20",
        "EXAMPLE_FOLDER": str(folder),
        "FASTAPI_RESUMABLE_SHUTDOWN_GRACE": "0.1",
    }
    server = Server([sys.executable, "-m", "example_app", "--port", "0", *arguments], environment)
    server.wait_ready()
    return server


def ask(server: Server, name: str, events: int) -> bytes:
    """Ask, and hang up after some events; what has come by then."""
    seen = b""
    headers = {"X-Conversation-Id": name, "Idempotency-Key": f"turn-{name}"}
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=60
    ) as answer:
        assert answer.status_code == 200
        for some in answer.iter_raw():
            seen += some
            if seen.count(b"\n\n") >= events:
                break
    return seen


def test_the_demo_survives_being_killed_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """What was shown is still there, with its end; the conversation is known; and the next question is answered."""
    server = start(tmp_path)
    try:
        seen = ask(server, "alice", 20)
    finally:
        server.kill()
    server = start(tmp_path)
    try:
        replay = httpx.get(f"{server.url}/v1/stream/alice", timeout=60)
        assert replay.content.startswith(seen)
        assert b"producer_lost" in replay.content[len(seen) :]
        [item] = httpx.post(f"{server.url}/v1/streams/lookup", json={"conversation_ids": ["alice"]}).json()
        assert item["status"] == "interrupted"
        [turn] = httpx.get(f"{server.url}/conversations/alice").json()
        assert turn["question"] == "Tell me of Alice"
        assert ask(server, "another", 5)
        server.stop()
    finally:
        server.kill()
    assert {path.name for path in tmp_path.iterdir()} >= {"streams.db", "conversations.db"}
    sqlite3.connect(tmp_path / "streams.db").close()


def test_in_memory_the_demo_leaves_no_file(tmp_path: Path) -> None:
    server = start(tmp_path, "--memory")
    try:
        assert json.loads(ask(server, "alice", 1).split(b"\n")[0].removeprefix(b"data: "))
        server.stop()
    finally:
        server.kill()
    assert list(tmp_path.iterdir()) == []
