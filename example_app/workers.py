"""`python -m example_app.workers`: three workers of the chat, on one Redis and behind nginx, until Ctrl-C.

Each worker is the app as it is: `FASTAPI_RESUMABLE_STORE` says where its streams live, `EXAMPLE_DATABASE` where its
conversations do.
"""

import argparse
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

HOST = "127.0.0.1"
WORKERS = 3
START = 30.0
"""Seconds that a program may take to start."""
STOP = 30.0
"""Seconds that it may take to stop: more than the app's own grace."""

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
{user}
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream workers {{
        {servers}
        keepalive 16;
    }}
    upstream same_worker {{
        hash $arg_run consistent;
        {servers}
    }}
    server {{
        listen {host}:{port};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_buffering off;
        location / {{
            proxy_pass http://workers;
        }}
        # "Cut the connection" of the EventSource page has to reach the worker that holds the connection.
        location /demo/ {{
            proxy_pass http://same_worker;
        }}
    }}
}}
"""


class Program:
    """A process whose output is passed on, line by line, under its name."""

    def __init__(
        self, name: str, command: Sequence[str], ended: queue.Queue["Program"], env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.url: queue.Queue[str] = queue.Queue()
        """Where it listens, once it has said so; empty once it has ended."""
        # In its own session, so that a Ctrl-C reaches only this process, which stops the others in their order.
        self.process = subprocess.Popen(  # noqa: S603  # our own commands
            command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._pass_on, args=(ended,), daemon=True).start()

    def _pass_on(self, ended: queue.Queue["Program"]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := re.search(r"The chat is running on (\S+)", line):
                self.url.put(match[1])
            elif line.strip() and "Plots for its operator" not in line:
                sys.stdout.write(f"{self.name:>8} | {line}")
                sys.stdout.flush()
        self.process.wait()
        self.url.put("")
        ended.put(self)

    def wait_for_port(self, port: int) -> None:
        """Return once a process listens."""
        end = time.monotonic() + START
        while self.process.poll() is None and time.monotonic() < end:
            try:
                socket.create_connection((HOST, port), timeout=START).close()
            except ConnectionRefusedError:
                time.sleep(0.02)
            else:
                return
        sys.exit(f"{self.name} does not start.")

    def wait_for_url(self) -> str:
        """Return where it listens."""
        try:
            url = self.url.get(timeout=START)
        except queue.Empty:
            url = ""
        return url or sys.exit(f"{self.name} does not start.")


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m example_app.workers", description="The chat on three workers.")
    parser.add_argument("--port", type=int, default=0, help="of nginx; by default any free one")
    port = parser.parse_args().port
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            serve(stack, port)
    except KeyboardInterrupt:
        print("\n  All stopped.", flush=True)


def serve(stack: ExitStack, port: int) -> None:
    """Start everything; what is started is on the stack, and so stopped in the reverse order."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="example-app-")))
    ended: queue.Queue[Program] = queue.Queue()

    redis_port = reserve(stack)
    options = ["--bind", HOST, "--port", str(redis_port), "--dir", str(folder), "--save", ""]
    limits = ["--maxmemory", "256mb", "--maxmemory-policy", "noeviction"]
    redis = Program("Redis", [find("redis-server"), *options, *limits, "--loglevel", "warning"], ended)
    stack.callback(stop, redis)
    redis.wait_for_port(redis_port)

    shared = {
        "FASTAPI_RESUMABLE_STORE": f"redis://{HOST}:{redis_port}",
        "EXAMPLE_DATABASE": str(folder / "conversations.sqlite"),
    }
    front = reserve(stack, port)
    nginx_to_be = ExitStack()  # stopped after the workers, whose last bytes it passes on
    stack.push(nginx_to_be)
    workers: list[Program] = []
    stack.callback(lambda: stop(*workers))
    for number in range(1, WORKERS + 1):
        command = [sys.executable, "-m", "example_app", "--port", "0"]
        workers.append(Program(f"worker {number}", command, ended, {**shared, "EXAMPLE_WORKER": str(number)}))
    urls = [worker.wait_for_url() for worker in workers]

    config = folder / "nginx.conf"
    config.write_text(nginx_config(folder, front, urls))
    nginx = Program("nginx", [find("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config)], ended)
    nginx_to_be.callback(stop, nginx)
    nginx.wait_for_port(front)

    print(f"\n  The chat is running on http://{HOST}:{front}/  (Ctrl-C stops all of it)")
    print(f"  Plots for its operator: http://{HOST}:{front}/operations\n")
    for worker, url in zip(workers, urls, strict=True):
        print(f"    {worker.name}  {url}  kill -9 {worker.process.pid}")
    print(f"    Redis     redis-cli -p {redis_port}\n", flush=True)
    while (gone := ended.get()) in workers:
        print(f"\n  {gone.name} is gone. The others go on.\n", flush=True)
    sys.exit(f"{gone.name} has ended, and so has the demo.")


def reserve(stack: ExitStack, port: int = 0) -> int:
    """A port that no other process gets, but that a server can listen on, because servers reuse addresses."""
    held = stack.enter_context(closing(socket.socket()))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, port))
    taken: int = held.getsockname()[1]
    return taken


def find(program: str) -> str:
    """The path of a program of the system."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return path or sys.exit(f"There is no {program}: install it (make demo-redis does).")


def nginx_config(folder: Path, port: int, urls: Sequence[str]) -> str:
    """The configuration of nginx."""
    servers = "\n        ".join(f"server {url.split('/')[2]} fail_timeout=1s;" for url in urls)
    user = "user root;" if os.geteuid() == 0 else ""  # else it cannot enter our folder
    return NGINX.format(folder=folder, user=user, host=HOST, port=port, servers=servers)


def stop(*programs: Program) -> None:
    """Ask them to end, wait until they have; at another Ctrl-C, wait no longer."""
    for program in programs:
        program.process.terminate()
    for program in programs:
        try:
            program.process.wait(STOP)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            program.process.kill()
            program.process.wait()


if __name__ == "__main__":
    main()
