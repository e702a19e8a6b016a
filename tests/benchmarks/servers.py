"""Starting what is measured, and the load that measures it, each on a core of its own where there are two."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.support.server import ROOT, Server


def pin(pid: int, core: int) -> None:
    """Keep a process on one core, so that the server's is not the load's."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(pid, {cores[core % len(cores)]})


@contextmanager
def serve(kind: str, **settings: Any) -> Iterator[Server]:
    """A uvicorn of one worker."""
    server = Server(
        [sys.executable, "-m", "tests.benchmarks.apps", kind, "0", json.dumps(settings)], {}, ready="/alive"
    )
    try:
        pin(server.pid, 0)
        server.wait_ready()
        yield server
    finally:
        server.kill()


class Load:
    """The load generator."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pin(self._process.pid, 1)

    def put(self, server: Server, do: str, **options: Any) -> dict[str, float]:
        """Put a server under load; `do` is a method of `load.Job`."""
        assert self._process.stdin
        assert self._process.stdout
        job = {"port": server.port, "pid": server.pid, "do": do, **options}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: dict[str, float] = json.loads(line or '{"error": "the load generator has gone"}')
        if "error" in answer:
            raise RuntimeError(f"{do} on {server.command[3]}: {answer['error']}\n{server.output}")
        return answer

    def close(self) -> None:
        """End the process."""
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()


@contextmanager
def load() -> Iterator[Load]:
    """A load generator, for as long as it is needed."""
    # So that no server stays behind when somebody loses patience.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack:
        generator = Load()
        stack.callback(generator.close)
        yield generator
