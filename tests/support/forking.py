"""A process that has imported what servers need, and becomes one by a fork: in a tenth of the time of a start.

    process = Forked(["uvicorn", "tests.support.apps.scripted:app"], environment, folder, stdout)
    process.pid; process.poll(); process.wait(10)

`python -m uvicorn` runs as it would from the command line, in a process, a session and an environment of its own; only
the imports are there already. Beside each server a process waits for it, to tell how it ended.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ["uvicorn.main", "uvloop", "httptools", "redis.asyncio", "sqlite3", "fastapi_resumable"]


class Forked:
    """A server process, as `subprocess.Popen` shows one."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], cwd: Path, stdout: int) -> None:
        """Run `python -m` with the arguments, in that environment alone, in a folder."""
        self.args = [sys.executable, "-m", *args]
        self.returncode: int | None = None
        self._news, writing = os.pipe()
        request = json.dumps({"args": list(args), "env": dict(env), "cwd": str(cwd)}).encode()
        socket.send_fds(_parent()[0], [len(request).to_bytes(4, "big")], [stdout, writing])
        _parent()[0].sendall(request)
        os.close(writing)
        self.pid = self._read_number()

    def poll(self) -> int | None:
        """The exit code, once the process has ended."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process is there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._news], [], [], timeout)[0]:
            self.returncode = self._read_number()
            os.close(self._news)
        return self.returncode

    def _read_number(self) -> int:
        digits = b""
        while (byte := os.read(self._news, 1)) not in (b"\n", b""):
            digits += byte
        return int(digits)


@cache
def _parent() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process to fork from, one for each process of tests: it ends with it, since the socket is closed then."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours, process


def main() -> None:
    """Fork for each request that comes, until the socket is closed."""
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that the collector does not touch, and thereby copy, what is shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    requests = socket.socket(fileno=int(sys.argv[1]))
    while True:
        head, descriptors, _, _ = socket.recv_fds(requests, 4, 2)
        if not head:
            return
        length = int.from_bytes(head, "big")
        request = json.loads(requests.recv(length, socket.MSG_WAITALL))
        if os.fork() == 0:
            requests.close()
            break
        for descriptor in descriptors:
            os.close(descriptor)
    _become(request["args"], request["env"], request["cwd"], *descriptors)


def _become(args: list[str], env: dict[str, str], cwd: str, stdout: int, news: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.close(stdout)
        _, status = os.waitpid(pid, 0)
        os.write(news, b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.setsid()
    os.write(news, b"%d\n" % os.getpid())
    os.close(news)
    for standard in (1, 2):
        os.dup2(stdout, standard)
    os.close(stdout)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = args
    runpy.run_module(args[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
