"""A real server in a subprocess, on 127.0.0.1 and a port the kernel chose.

    with serve("tests.support.apps.scripted:app", http="h11") as server:
        httpx.get(server.url + "/events")

The port is never guessed: uvicorn and hypercorn bind port 0 and say in their log which one they got; granian, which
cannot, shares a port that this process keeps reserved for as long as the server lives.
"""

import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.forking import Forked

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
LOOPS = os.environ.get("RESUMABLE_LOOP", "").split()
"""The event loops, `asyncio`, `uvloop` or both. By default, tests run on asyncio's own and servers on uvloop."""
LOOP = LOOPS[0] if len(LOOPS) == 1 else None
DEADLINE = 120.0
"""Seconds that a server may take to start or to stop: a bound, not an expectation."""


def free_port(distance: int = 0) -> int:
    """A port that nobody listens on, and that the system gives to nobody meanwhile: it chooses from 32768 on.

    The same holds for the port that is so far behind it.
    """
    while True:
        port = random.randrange(16_384, 32_768 - distance)
        with socket.socket() as probe, socket.socket() as other, suppress(OSError):
            probe.bind((HOST, port))
            if distance:
                other.bind((HOST, port + distance))
            return port


def wait_until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Look at `condition` until it holds; fail, naming `what`, once the deadline has passed."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline:g} s for {what}")
        time.sleep(0.01)


class Server:
    """One running server process."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], *, port: int = 0, ready: str = "/", cwd: Path = ROOT
    ) -> None:
        """Start `command`; without a `port`, take the one that it prints."""
        self._lines: list[str] = []
        self._ready = ready
        self.port = port
        self.command = list(command)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **env}
        reading, writing = os.pipe()
        self._stdout = os.fdopen(reading, encoding="utf-8", errors="replace")
        self.process: Forked | subprocess.Popen[bytes]
        if _can_be_forked(self.command, env):
            self.process = Forked(self.command[2:], environment, cwd, writing)
        else:
            self.process = subprocess.Popen(
                self.command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        os.close(writing)
        self._pump = threading.Thread(target=self._read_output, daemon=True)
        self._pump.start()

    def _read_output(self) -> None:
        with self._stdout:
            for line in self._stdout:
                self._lines.append(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        """The process that was started: the server itself, or the supervisor of its workers."""
        return self.process.pid

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    @property
    def output(self) -> str:
        """What the server has printed so far, stdout and stderr in one."""
        return "\n".join(self._lines)

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process.poll() is None

    def workers(self) -> list[int]:
        """The pids of all descendants that are alive, or the pid itself where there are none."""
        found = [pid for pid in _descendants(self.pid) if "resource_tracker" not in _command_line(pid)]
        return found or [self.pid]

    def rss(self) -> int:
        """Resident memory in bytes, of the process and all its descendants."""
        return sum(_rss(pid) for pid in [self.pid, *_descendants(self.pid)])

    def wait_ready(self, deadline: float = DEADLINE) -> None:
        """Return once the server answers a request, whatever the status."""
        wait_until(lambda: self._find_port() or self._dead(), f"a port from {self.command}", deadline)
        wait_until(lambda: self._answers() or self._dead(), f"an answer on port {self.port}", deadline)

    def wait_for_output(self, pattern: str, deadline: float = DEADLINE) -> re.Match[str]:
        """Return the first match of `pattern` in the output, once there is one."""
        wait_until(lambda: re.search(pattern, self.output) is not None, f"{pattern!r} in the output", deadline)
        match = re.search(pattern, self.output)
        assert match
        return match

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Return the exit code once the process has ended."""
        code = self.process.wait(deadline)
        self._pump.join(deadline)
        return code

    def kill(self) -> None:
        """Kill the process and its descendants with SIGKILL, then wait."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def stop(self, grace: float = DEADLINE) -> int:
        """SIGTERM, then SIGKILL for what is left after `grace`; the exit code."""
        if self.running:
            self.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        self.kill()
        return self.wait()

    def _find_port(self) -> bool:
        if not self.port and (match := re.search(r"[Rr]unning on https?://[^ ]*?:(\d+)", self.output)):
            self.port = int(match[1])
        return self.port != 0

    def _dead(self) -> bool:
        if self.running:
            return False
        self._pump.join(DEADLINE)
        raise RuntimeError(f"{self.command} exited with {self.process.returncode}:\n{self.output}")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=DEADLINE)
        try:
            connection.request("GET", self._ready)
            # Its head is enough: an application that cuts its answers off is ready, too.
            connection.getresponse()
        except OSError:
            return False
        else:
            return True
        finally:
            connection.close()


@contextmanager
def serve(
    app: str,
    *,
    server: str = "uvicorn",
    http: str = "httptools",
    loop: str = LOOP or "uvloop",
    workers: int = 1,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
    ready: str = "/",
) -> Iterator[Server]:
    """Run `app` until the block ends: under `uvicorn` (`http`: httptools or h11), `hypercorn` or `granian`.

    `options` are for the test applications in `tests.support.apps`, which hand them to `Resumable(...)`.
    """
    environ = {**(env or {})}
    if options is not None:
        environ["RESUMABLE_TEST_OPTIONS"] = json.dumps(options)
    with ExitStack() as stack:
        port = 0
        if server == "granian":
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((HOST, 0))
            port = reserved.getsockname()[1]
        command = _command(server, app, http=http, loop=loop, workers=workers, port=port)
        process = Server([*command, *args], environ, port=port, ready=ready)
        stack.callback(process.kill)
        process.wait_ready()
        yield process
        process.stop()


def _command(server: str, app: str, *, http: str, loop: str, workers: int, port: int) -> list[str]:
    if server == "uvicorn":
        options = ["--host", HOST, "--port", "0", "--http", http, "--loop", loop, "--no-access-log"]
        return [sys.executable, "-m", "uvicorn", app, *options, *(["--workers", str(workers)] if workers > 1 else [])]
    if server == "hypercorn":
        options = ["--bind", f"{HOST}:0", "--workers", str(workers), "--worker-class", loop, "--error-logfile", "-"]
        return [sys.executable, "-m", "hypercorn", app, *options]
    if server == "granian":
        options = [
            "--interface",
            "asgi",
            "--host",
            HOST,
            "--port",
            str(port),
            "--workers",
            str(workers),
            "--loop",
            loop,
        ]
        return [sys.executable, "-m", "granian", app, *options]
    raise ValueError(f"unknown server {server!r}: use uvicorn, hypercorn or granian")


def _can_be_forked(command: list[str], env: Mapping[str, str]) -> bool:
    """One process of uvicorn or hypercorn, whose interpreter has no settings of its own, and is not measured."""
    uvicorn = command[2:3] == ["uvicorn"] and not {"--workers", "--reload"} & set(command)
    hypercorn = command[2:3] == ["hypercorn"] and command[command.index("--workers") + 1] == "0"
    return (
        command[:2] == [sys.executable, "-m"]
        and (uvicorn or hypercorn)
        and "WEB_CONCURRENCY" not in env
        and not any(name.startswith("PYTHON") for name in env)
        and "COVERAGE_PROCESS_CONFIG" not in os.environ
    )


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _rss(pid: int) -> int:
    with suppress(OSError):
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(match[1]) * 1024 if match else 0
    return 0
