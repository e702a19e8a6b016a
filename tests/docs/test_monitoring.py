"""The queries of the page on monitoring, and of its dashboard, on a real Prometheus that scrapes a real application."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.server import HOST, ROOT, free_port, serve, wait_until

from .player import blocks

PAGE = ROOT / "docs" / "how-to" / "monitoring.md"
DASHBOARD = ROOT / "docs" / "how-to" / "grafana-dashboard.json"


def queries() -> dict[str, str]:
    """All queries, by where they are from; alerts without their threshold."""
    found = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']}: {target['legendFormat']}"] = target["expr"]
    for block in blocks(PAGE):
        if block.language == "text" and "fastapi_resumable_" in block.code:
            found[f"line {block.line}"] = re.sub(r" > [\d.]+\s*$", "", block.code)
    return {name: query.replace("$__rate_interval", "1m").replace("[5m]", "[1m]") for name, query in found.items()}


@pytest.fixture
def prometheus() -> str:
    """The command; tests without it are skipped, except where all tools are required."""
    program = shutil.which("prometheus") or os.environ.get("PROMETHEUS")
    if not program:
        pytest.skip("prometheus is not installed")
    return program


def stir(url: str) -> None:
    """Make streams of every fate, and reads of every kind."""
    with httpx.Client(base_url=url, timeout=60) as client:
        client.post("/chat", headers={"X-Conversation-Id": "good"})
        client.get("/v1/stream/good?from=150")
        client.get("/v1/stream/good?from=0")  # its head was dropped
        client.get("/v1/stream/unknown")
        client.post("/chat?fail=1", headers={"X-Conversation-Id": "bad"})
        with client.stream("POST", "/chat", headers={"X-Conversation-Id": "left"}) as response:
            next(response.iter_raw())


@pytest.mark.slow
def test_every_query_finds_something(tmp_path: Path, prometheus: str) -> None:
    """No query names a metric or a label that there is not."""
    (code,) = [block.code for block in blocks(PAGE) if block.title == "main.py"]
    code = code.replace(
        "resumable = Resumable()",
        "import os\nfrom fastapi_resumable import SqliteStore\n"
        "resumable = Resumable(store=SqliteStore(os.environ['STREAMS']), max_stream_bytes=64)",
    )
    (tmp_path / "main.py").write_text(code)
    env = {"STREAMS": str(tmp_path / "streams.db")}
    with serve("main:app", args=["--app-dir", str(tmp_path)], env=env) as app:
        config = tmp_path / "prometheus.yml"
        config.write_text(
            "scrape_configs: [{job_name: app, metrics_path: /metrics/, scrape_interval: 1s, "
            f"static_configs: [{{targets: ['{HOST}:{app.port}']}}]}}]\n"
        )
        command = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
        with start(command) as url:
            asked = queries()
            assert len(asked) > 15

            def answered() -> bool:
                stir(app.url)
                return not unanswered(url, asked)

            wait_until(answered, "an answer to every query", 25)


def unanswered(url: str, asked: dict[str, str]) -> list[str]:
    """The queries that find nothing. Those of what does not happen here, such as an outage, only have to be valid."""
    found = []
    for name, query in asked.items():
        answer = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (name, answer)
        rare = ("error_type", "reads_dropped")
        if not answer["data"]["result"] and not any(name in query for name in rare):
            found.append(name)
    return found


@contextmanager
def start(command: list[str]) -> Iterator[str]:
    """Run Prometheus, which cannot say which free port it was given, on one that is free now."""
    port = free_port()
    process = subprocess.Popen([*command, f"--web.listen-address={HOST}:{port}"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_ready(f"http://{HOST}:{port}/-/ready"), "Prometheus")
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(60)


def is_ready(url: str) -> bool:
    """Whether it answers."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
