"""A real redis-server in a subprocess, on 127.0.0.1 and a port of its own, and what can happen to one.

with RedisServer(tmp_path) as redis:
    redis.url                     # redis://127.0.0.1:40123/0
    redis.freeze(); redis.thaw()  # SIGSTOP, SIGCONT
    redis.restart(empty=True)     # on the same port
    redis.calls("xadd")           # how often it has been called, by the server's own count
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis

from tests.support.server import HOST, Server, free_port, wait_until

SLOTS = 16384
BUS = 10_000
"""How far behind its port a node of a Cluster listens for the others: Redis 6.2 knows no other distance."""
EXECUTABLE = os.environ.get("REDIS_SERVER", "redis-server")


class RedisServer:
    """One running redis-server; `directory` keeps its data."""

    def __init__(
        self, directory: Path, *options: str, tls: bool = False, cluster: bool = False, appendonly: bool = False
    ) -> None:
        """Take further `options` as on the command line, `--maxmemory 10mb`; without `appendonly`, nothing is kept."""
        if shutil.which(EXECUTABLE) is None:
            pytest.fail(f"There is no {EXECUTABLE}: install it (apt-get install redis-server), or set $REDIS_SERVER.")
        self.directory = directory
        self.port = free_port(BUS if cluster else 0)
        self._certificates = Certificates(directory) if tls else None
        self._options = [word for option in options for word in option.split(" ")]
        if appendonly:
            self._options += ["--appendonly", "yes", "--appendfsync", "always"]
        if cluster:
            # And how long it may be away before the others take it for gone.
            self._options += ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
        self.process = self._launch()

    def _launch(self) -> Server:
        port = ["--port", str(self.port)]
        if self._certificates is not None:
            port = ["--port", "0", "--tls-port", str(self.port), *self._certificates.options]
        basics = ["--bind", HOST, "--dir", str(self.directory), "--save", "", "--daemonize", "no", "--protected-mode"]
        # A diskless replica is in step some seconds earlier.
        replication = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
        process = Server([EXECUTABLE, *port, *basics, "no", *replication, *self._options], {}, port=self.port)
        try:
            wait_until(lambda: self._answers(process), f"an answer of Redis on port {self.port}")
        except BaseException:
            process.kill()
            raise
        return process

    def _answers(self, process: Server) -> bool:
        if not process.running:
            raise RuntimeError(f"{process.command} exited:\n{process.output}")
        try:
            return bool(self._control.ping())
        except redis.ConnectionError:  # that it is loading its data is one, too
            return False

    @cached_property
    def _control(self) -> Any:
        return self.client()

    def client(self, **options: Any) -> Any:
        """A client of the test's own; close it."""
        return redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=60, **options)

    @property
    def control(self) -> Any:
        """The client by which a test looks at the server."""
        return self._control

    @property
    def url(self) -> str:
        """What an application connects to."""
        return self.url_at(self.port)

    def url_at(self, port: int, credentials: str = "") -> str:
        """The same by way of another port: a proxy's."""
        if self._certificates is not None:
            return f"rediss://{credentials}{HOST}:{port}/0?ssl_ca_certs={self._certificates.authority}"
        return f"redis://{credentials}{HOST}:{port}/0"

    # What can happen to it.

    def freeze(self) -> None:
        """Stop answering; connections stay."""
        self.process.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        self.process.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Die, without a last word to anybody."""
        self.thaw()
        self.process.kill()

    def restart(self, *, kill: bool = False, empty: bool = False) -> None:
        """Go and come back on the same port: in good order or not, with the data that is on disk or with none."""
        self.kill() if kill else self.process.stop()
        if empty:
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
        self.start()

    def start(self) -> None:
        """Come back."""
        self._control.connection_pool.disconnect()
        self.process = self._launch()

    def follow(self, port: int) -> None:
        """Become a replica of the server at `port`, and be in step with it."""
        self._control.replicaof(HOST, port)
        wait_until(lambda: self._control.info("replication")["master_link_status"] == "up", "the replica")

    def promote(self) -> None:
        """Be a replica no longer."""
        self._control.replicaof("NO", "ONE")

    # What it tells.

    def calls(self, command: str) -> int:
        """How many times a command has been called."""
        return int(self.commandstats().get(f"cmdstat_{command}", {}).get("calls", 0))

    def commandstats(self) -> dict[str, dict[str, Any]]:
        """The server's own count of commands."""
        stats: dict[str, dict[str, Any]] = self._control.info("commandstats")
        return stats

    def connections(self) -> int:
        """How many clients are connected, the test's own left out."""
        return len(self._control.client_list()) - 1

    def list_keys(self, pattern: str = "*") -> list[str]:
        """The keys that there are."""
        return sorted(self._control.scan_iter(pattern, count=1000))

    def list_keys_without_expiry(self, pattern: str = "*") -> list[str]:
        """The keys that would stay for ever, all seen at one instant."""
        script = """
            local found = {}
            for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
                if redis.call('PTTL', key) == -1 then table.insert(found, key) end
            end
            return found"""
        found: list[str] = self._control.eval(script, 0, pattern)
        return found

    def memory(self, pattern: str = "*") -> int:
        """The bytes that the keys take, by the server's own reckoning."""
        script = """
            local total = 0
            for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
                total = total + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0)
            end
            return total"""
        return int(self._control.eval(script, 0, pattern))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        self.kill()


@contextmanager
def cluster_of(count: int, directory: Path) -> Iterator[list[RedisServer]]:
    """Some nodes that share the slots of a Cluster."""
    with ExitStack() as stack:
        nodes: list[RedisServer] = []
        for number in range(count):
            (home := directory / f"node-{number}").mkdir()
            node = stack.enter_context(RedisServer(home, cluster=True))
            first, end = (SLOTS * each // count for each in (number, number + 1))
            node.control.execute_command("CLUSTER ADDSLOTS", *range(first, end))
            if nodes:
                node.control.execute_command("CLUSTER MEET", HOST, nodes[0].port)
            nodes.append(node)
        for node in nodes:
            wait_until(partial(_is_in_cluster, node, count), "the cluster")
        yield nodes


def _is_in_cluster(node: RedisServer, count: int) -> bool:
    info = node.control.cluster("info")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == count


class Certificates:
    """An authority of our own, and a server that it vouches for."""

    def __init__(self, directory: Path) -> None:
        self.authority = directory / "ca.crt"
        key, request, certificate = directory / "redis.key", directory / "redis.csr", directory / "redis.crt"
        authority_key, names = directory / "ca.key", directory / "names"
        # Python 3.13 asks for all that a certificate should say.
        names.write_text(f"subjectAltName=IP:{HOST},DNS:localhost\nauthorityKeyIdentifier=keyid\n")
        new: list[str | Path] = [
            "openssl",
            "req",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ]
        own: list[str | Path] = [
            "-x509",
            "-days",
            "2",
            "-subj",
            "/CN=tests",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ]
        _run([*new, *own, "-keyout", authority_key, "-out", self.authority])
        _run([*new, "-subj", f"/CN={HOST}", "-keyout", key, "-out", request])
        sign: list[str | Path] = [
            "openssl",
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            request,
            "-CA",
            self.authority,
            "-CAkey",
            authority_key,
        ]
        _run([*sign, "-CAcreateserial", "-extfile", names, "-out", certificate])
        files = {"cert-file": certificate, "key-file": key, "ca-cert-file": self.authority}
        self.options = [word for name, file in files.items() for word in (f"--tls-{name}", str(file))]
        # Clients show no certificate of theirs.
        self.options += ["--tls-auth-clients", "no"]


def _run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True)
