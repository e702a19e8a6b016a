"""The configurations of the page on several workers: nginx takes its own, and the compose file fits it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.redis_server import RedisServer
from tests.support.server import HOST, Server, free_port
from tests.support.site import environment, serving

from .player import ROOT, blocks

pytestmark = [pytest.mark.redis, pytest.mark.servers]

FILES = {block.title: block.code for block in blocks(ROOT / "docs/how-to/several-workers.md") if block.title}
PATHS = "\n".join(
    f"{name}_temp_path {{folder}}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The page's nginx, in front of two workers on a Redis; its URL."""
    port = free_port()
    with RedisServer(tmp_path) as redis, serving([environment(redis.url, tmp_path / "notes")] * 2) as workers:
        servers = "\n".join(f"server {HOST}:{worker.port};" for worker in workers)
        http = FILES["nginx.conf"].replace("server app:8000;", servers).replace("listen 80;", f"listen {HOST}:{port};")
        user = "user root;" if os.geteuid() == 0 else ""
        paths = PATHS.format(folder=tmp_path)
        config = tmp_path / "nginx.conf"
        config.write_text(
            f"daemon off; pid {tmp_path}/nginx.pid; {user} events {{}}\nhttp {{\naccess_log off;\n{paths}\n{http}}}\n"
        )
        path = f"{os.environ['PATH']}:/usr/sbin"
        nginx = Server(["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(config)], {"PATH": path}, port=port)
        try:
            nginx.wait_ready()
            yield nginx.url
        finally:
            nginx.stop()


def test_nginx_passes_streams_on_as_they_come_to_any_worker(site: str) -> None:
    """A stream that waits in its middle is begun, followed and stopped through it, by both workers."""
    script = {"steps": [["send", b"data: 1\n\n".hex()], ["forever"]]}
    with httpx.Client(base_url=site, timeout=60) as client:
        headers = {"X-Conversation-Id": "a"}
        with client.stream("POST", "/script", json=script, headers=headers) as live:
            body = live.iter_raw()
            assert next(body).startswith(b"data: 1\n")
            served = set()
            for _ in range(6):
                with client.stream("GET", "/v1/stream/a") as reader:
                    assert next(reader.iter_raw()).startswith(b"data: 1\n")
                    served.add(reader.headers["X-Worker"])
            assert len(served) == 2
            assert client.delete("/v1/stream/a").status_code == 204
            assert b"event: cancelled" in b"".join(body)
        # Requests that name no stream are not held back either; the gate is opened on both workers.
        script = {"steps": [["send", b"data: 1\n\n".hex()], ["wait", "a"], ["send", b"data: 2\n\n".hex()], ["forever"]]}
        with client.stream("POST", "/script", json=script) as plain:
            body = plain.iter_raw()
            assert next(body) == b"data: 1\n\n"
            for _ in range(4):
                assert client.post("/gate/a").status_code == 204
            assert next(body) == b"data: 2\n\n"


def test_the_compose_file_agrees_with_the_rest() -> None:
    """It is YAML, its services are the names that the variable, nginx and the mounts use, and the graces fit."""
    compose = yaml.safe_load(FILES["compose.yaml"])
    services = compose["services"]
    assert services["app"]["environment"] == {"FASTAPI_RESUMABLE_STORE": "redis://redis:6379"}
    assert {"app", "redis", "nginx"} == {*services}
    assert {*services["app"]["depends_on"], *services["nginx"]["depends_on"]} == {"redis", "app"}
    assert "server app:8000;" in FILES["nginx.conf"] and "--port 8000" in services["app"]["command"]
    assert "./nginx.conf:" in services["nginx"]["volumes"][0]
    assert services["redis"]["volumes"] == ["redis:/data"] and "redis" in compose["volumes"]
    assert "noeviction" in services["redis"]["command"]
    assert subprocess.run(["bash", "-nc", services["app"]["command"]], check=False).returncode == 0
