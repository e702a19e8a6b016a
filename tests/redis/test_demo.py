"""`make demo-redis`: three workers of the example app on one Redis, behind nginx."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.apps.player import unique
from tests.support.demo import workers_demo
from tests.support.server import HOST, Server

pytestmark = [pytest.mark.redis, pytest.mark.servers]

QUESTION = {"stream": True, "messages": [{"role": "user", "content": "Tell me of Alice"}]}


def is_taken(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def test_three_workers_behind_nginx_are_one_server(tmp_path: Path) -> None:
    """An answer is read through all three while one of them writes it, and when one dies; then nothing is left."""
    # Fifteen seconds, in which a busy machine, too, comes as far as the death of a worker.
    with workers_demo(tmp_path, words_per_second=20) as demo:
        use_and_stop(demo, tmp_path)


def use_and_stop(demo: Server, temporary: Path) -> None:
    """The whole story."""
    redis_port = int(demo.wait_for_output(r"redis-cli -p (\d+)")[1])
    workers = {
        name: (int(port), int(pid))
        for name, port, pid in re.findall(r"worker (\d)  http://[^:]*:(\d+)/  kill -9 (\d+)", demo.output)
    }
    assert [*workers] == ["1", "2", "3"]
    processes = demo.workers()
    conversation = unique("demo")
    replay = f"/v1/stream/{conversation}"

    with httpx.Client(base_url=demo.url, timeout=60) as client, ExitStack() as stack:
        named = {"X-Conversation-Id": conversation}
        live = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=QUESTION, headers=named))
        writer = live.headers["X-Writer"]
        assert (live.status_code, live.headers["X-Worker"]) == (200, writer)
        bodies: dict[str, Iterator[bytes]] = {}
        for _ in range(12):
            reader = stack.enter_context(client.stream("GET", replay))
            assert (reader.status_code, reader.headers["X-Writer"]) == (200, writer)
            bodies[reader.headers["X-Worker"]] = reader.iter_raw()
        assert {*bodies} == {"1", "2", "3"}
        begun = {name: next(body) for name, body in bodies.items()}
        [item] = client.post("/v1/streams/lookup", json={"conversation_ids": [conversation]}).json()
        assert item["status"] == "in_progress", "nothing came before the end"

        killed = next(name for name in workers if name != writer)
        os.kill(workers[killed][1], signal.SIGKILL)
        demo.wait_for_output(f"worker {killed} is gone")
        whole = live.read()
        assert b"[DONE]" in whole
        del bodies[killed]
        assert {begun[name] + b"".join(body) for name, body in bodies.items()} == {whole}
        for _ in range(6):
            again = client.get(replay)
            assert (again.status_code, again.content) == (200, whole)
        [turn] = client.get(f"/conversations/{conversation}").json()
        assert turn["status"] == "completed"

    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0
    assert [pid for pid in processes if is_alive(pid)] == []
    assert [port for port in (demo.port, redis_port, *(port for port, _ in workers.values())) if is_taken(port)] == []
    assert [*temporary.iterdir()] == []
